//! Which MPI this machine has, and the words that its `mpirun` needs.

use crate::allocation::Host;
use codinet_config::env;
use std::path::PathBuf;
use std::process::Command;

/// An MPI implementation, as far as its `mpirun` differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Open MPI up to 4.
    OpenMpi4,
    /// Open MPI 5 and later, which launches by PRRTE.
    OpenMpi5,
    /// MPICH and others with Hydra.
    Hydra,
    /// Intel MPI: Hydra, but binding is by variables.
    Intel,
}

impl Flavour {
    /// Reads the first lines of `mpirun --version`.
    pub fn from_version(text: &str) -> Option<Self> {
        let major = || text.split("(Open MPI)").nth(1)?.trim().split('.').next()?.parse::<u32>().ok();
        match text {
            _ if text.contains("Open MPI") => {
                Some(if major() < Some(5) { Self::OpenMpi4 } else { Self::OpenMpi5 })
            }
            _ if text.contains("Intel(R) MPI") => Some(Self::Intel),
            _ if text.contains("HYDRA") => Some(Self::Hydra),
            _ => None,
        }
    }

    /// The flavour of the mpirun that [`mpirun`] names, and its version's first line.
    pub fn of_this_machine() -> Result<(Self, String), String> {
        let output = Command::new(mpirun()).arg("--version").output();
        let output = output.map_err(|error| {
            format!(
                "cannot run {}: {error}; install Open MPI (apt-get install openmpi-bin) or load its module",
                mpirun().display()
            )
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().find(|line| line.contains("Version:") || line.contains("MPI"));
        let version = version.unwrap_or_default().trim().to_owned();
        let flavour = Self::from_version(&text)
            .ok_or_else(|| format!("mpirun is neither Open MPI nor MPICH nor Intel MPI: {version:?}"))?;
        Ok((flavour, version))
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi4 | Self::OpenMpi5 => "Open MPI",
            Self::Hydra => "MPICH",
            Self::Intel => "Intel MPI",
        }
    }
}

/// `mpirun`: what the variable CODINET_MPIRUN names, else the one that PATH finds.
pub fn mpirun() -> PathBuf {
    env::get(env::CODINET_MPIRUN).unwrap_or_else(|| "mpirun".into()).into()
}

/// How ranks are to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Whose mpirun it is.
    pub flavour: Flavour,
    /// How many ranks.
    pub ranks: usize,
    /// Where; empty: here, or where the scheduler says to mpirun itself.
    pub hosts: Vec<Host>,
    /// Cores that each rank is bound to; none: not bound.
    pub cores: Option<usize>,
    /// Whether there are more ranks than cores.
    pub crowded: bool,
    /// Whether root starts them.
    pub root: bool,
    /// Whether mpirun tells the rank of each line.
    pub labels: bool,
}

impl Job {
    /// mpirun's words before the program's.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec!["-n".to_owned(), self.ranks.to_string()];
        let mut add = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
        let cores = self.cores.unwrap_or(0).to_string();
        match self.flavour {
            Flavour::OpenMpi4 => {
                match self.cores {
                    Some(_) => add(&["--map-by", &format!("slot:PE={cores}"), "--bind-to", "core"]),
                    None => add(&["--bind-to", "none"]),
                }
                if self.crowded {
                    add(&["--oversubscribe"]);
                }
                if self.labels {
                    add(&["--tag-output"]);
                }
            }
            Flavour::OpenMpi5 => {
                let crowded = if self.crowded { ":OVERSUBSCRIBE" } else { "" };
                match self.cores {
                    Some(_) => {
                        add(&["--map-by", &format!("slot:PE={cores}{crowded}"), "--bind-to", "core"]);
                    }
                    None if self.crowded => add(&["--map-by", crowded, "--bind-to", "none"]),
                    None => add(&["--bind-to", "none"]),
                }
                if self.labels {
                    add(&["--output", "tag"]);
                }
            }
            Flavour::Hydra => {
                match self.cores {
                    Some(_) => add(&["-bind-to", &format!("core:{cores}")]),
                    None => add(&["-bind-to", "none"]),
                }
                if self.labels {
                    add(&["-prepend-rank"]);
                }
            }
            Flavour::Intel => {
                match self.cores {
                    Some(_) => add(&["-genv", "I_MPI_PIN_DOMAIN", &format!("{cores}:compact")]),
                    None => add(&["-genv", "I_MPI_PIN", "off"]),
                }
                if self.labels {
                    add(&["-prepend-rank"]);
                }
            }
        }
        let open_mpi = matches!(self.flavour, Flavour::OpenMpi4 | Flavour::OpenMpi5);
        if self.root && open_mpi {
            add(&["--allow-run-as-root"]);
        }
        if !self.hosts.is_empty() {
            let hosts: Vec<String> =
                self.hosts.iter().map(|host| format!("{}:{}", host.name, host.slots)).collect();
            add(&[if open_mpi { "-H" } else { "-hosts" }, &hosts.join(",")]);
        }
        words
    }
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
            ("Intel(R) MPI Library for Linux* OS, Version 2021.9\n", Some(Flavour::Intel)),
            ("something else", None),
        ] {
            assert_eq!(Flavour::from_version(text), flavour, "{text}");
        }
    }

    #[test]
    fn each_flavour_has_its_words() {
        let hosts = ["a", "b"].map(|name| Host { name: name.into(), slots: 4 }).to_vec();
        let job = |flavour, cores| Job {
            flavour,
            ranks: 8,
            hosts: hosts.clone(),
            cores,
            crowded: cores.is_none(),
            root: true,
            labels: true,
        };
        for (flavour, bound, free) in [
            (
                Flavour::OpenMpi4,
                "-n 8 --map-by slot:PE=3 --bind-to core --tag-output --allow-run-as-root -H a:4,b:4",
                "-n 8 --bind-to none --oversubscribe --tag-output --allow-run-as-root -H a:4,b:4",
            ),
            (
                Flavour::OpenMpi5,
                "-n 8 --map-by slot:PE=3 --bind-to core --output tag --allow-run-as-root -H a:4,b:4",
                "-n 8 --map-by :OVERSUBSCRIBE --bind-to none --output tag --allow-run-as-root -H a:4,b:4",
            ),
            (
                Flavour::Hydra,
                "-n 8 -bind-to core:3 -prepend-rank -hosts a:4,b:4",
                "-n 8 -bind-to none -prepend-rank -hosts a:4,b:4",
            ),
            (
                Flavour::Intel,
                "-n 8 -genv I_MPI_PIN_DOMAIN 3:compact -prepend-rank -hosts a:4,b:4",
                "-n 8 -genv I_MPI_PIN off -prepend-rank -hosts a:4,b:4",
            ),
        ] {
            assert_eq!(job(flavour, Some(3)).words().join(" "), bound);
            assert_eq!(job(flavour, None).words().join(" "), free);
        }
    }
}
