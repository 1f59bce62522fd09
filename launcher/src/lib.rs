//! Starting ranks: which MPI this machine has, and the flags that it needs here. Beside that, [`plan`]
//! predicts what more GPUs would do.

pub mod plan;

use std::path::{Path, PathBuf};
use std::process::Command;

/// An MPI implementation, as far as its `mpirun` differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Open MPI up to 4.
    OpenMpi4,
    /// Open MPI 5 and later, which launches by PRRTE.
    OpenMpi5,
    /// MPICH, Intel MPI and others with Hydra.
    Hydra,
}

impl Flavour {
    /// Reads the first lines of `mpirun --version`.
    pub fn from_version(text: &str) -> Option<Self> {
        let major = || text.split("(Open MPI)").nth(1)?.trim().split('.').next()?.parse::<u32>().ok();
        match text {
            _ if text.contains("Open MPI") => {
                Some(if major() < Some(5) { Self::OpenMpi4 } else { Self::OpenMpi5 })
            }
            _ if text.contains("HYDRA") || text.contains("Intel(R) MPI") => Some(Self::Hydra),
            _ => None,
        }
    }

    /// The flavour of the `mpirun` that `PATH` finds.
    pub fn of_this_machine() -> Result<Self, String> {
        let output = Command::new("mpirun").arg("--version").output();
        let output = output.map_err(|error| {
            format!("cannot run mpirun: {error}; install Open MPI (apt-get install openmpi-bin) or load its module")
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let first = text.lines().next().unwrap_or_default();
        Self::from_version(&text).ok_or_else(|| format!("mpirun is neither Open MPI nor MPICH: {first:?}"))
    }

    /// mpirun's flags for `ranks` ranks: more ranks than cores are let through, root too, and no rank is bound
    /// to one core, which its decode threads would share.
    pub fn flags(self, ranks: usize, root: bool) -> Vec<String> {
        let mut flags = vec!["-n".to_owned(), ranks.to_string()];
        match self {
            Self::OpenMpi4 => flags.extend(["--oversubscribe", "--bind-to", "none"].map(Into::into)),
            Self::OpenMpi5 => {
                flags.extend(["--map-by", ":OVERSUBSCRIBE", "--bind-to", "none"].map(Into::into))
            }
            Self::Hydra => flags.extend(["-bind-to", "none"].map(Into::into)),
        }
        if root && self != Self::Hydra {
            flags.push("--allow-run-as-root".into());
        }
        flags
    }
}

/// `codinet-train`: beside this program where it was installed or built together with it, else from `PATH`.
pub fn trainer() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("codinet-train")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| Path::new("codinet-train").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_tell_flavours() {
        for (text, flavour) in [
            ("mpirun (Open MPI) 4.1.4\n\nReport bugs to …", Some(Flavour::OpenMpi4)),
            ("mpirun (Open MPI) 5.0.8\n", Some(Flavour::OpenMpi5)),
            ("HYDRA build details:\n    Version: 4.0.2\n", Some(Flavour::Hydra)),
            ("Intel(R) MPI Library for Linux* OS, Version 2021.9\n", Some(Flavour::Hydra)),
            ("something else", None),
        ] {
            assert_eq!(Flavour::from_version(text), flavour, "{text}");
        }
    }

    #[test]
    fn root_needs_a_flag_under_open_mpi_alone() {
        let has = |flavour: Flavour, root| flavour.flags(2, root).contains(&"--allow-run-as-root".to_owned());
        assert!(has(Flavour::OpenMpi4, true) && has(Flavour::OpenMpi5, true));
        assert!(!has(Flavour::OpenMpi4, false) && !has(Flavour::Hydra, true));
    }
}
