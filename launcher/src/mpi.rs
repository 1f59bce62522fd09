//! The MPI of this machine, and the arguments that its `mpirun` needs.

use crate::allocation::Host;
use codinet_config::env::{self, Variable};
use std::path::PathBuf;
use std::process::Command;

/// An MPI implementation, by its `mpirun`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Open MPI up to 4.
    OpenMpi4,
    /// Open MPI 5 and later, which launches with PRRTE.
    OpenMpi5,
    /// MPICH and others with Hydra.
    Hydra,
    /// Intel MPI: Hydra, but variables control the binding.
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

    /// The flavour of [`mpirun`], and the first line of its version.
    pub fn detect() -> Result<(Self, String), String> {
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

    /// The arguments that pass a variable of mpirun's environment on to ranks on other hosts. Hydra passes all.
    pub fn export(self, variable: Variable) -> Vec<String> {
        match self {
            Self::OpenMpi4 | Self::OpenMpi5 => vec!["-x".into(), variable.name.into()],
            Self::Hydra | Self::Intel => Vec::new(),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenMpi4 | Self::OpenMpi5 => "Open MPI",
            Self::Hydra => "MPICH",
            Self::Intel => "Intel MPI",
        }
    }
}

/// `mpirun`: the variable CODINET_MPIRUN, else the one on PATH.
pub fn mpirun() -> PathBuf {
    env::get(env::CODINET_MPIRUN).unwrap_or_else(|| "mpirun".into()).into()
}

/// The arguments of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The flavour of mpirun.
    pub flavour: Flavour,
    /// Number of ranks.
    pub ranks: usize,
    /// Hosts; empty: this one, or those that mpirun gets from the scheduler.
    pub hosts: Vec<Host>,
    /// The number of cores that each rank is bound to; `None`: not bound.
    pub cores: Option<usize>,
    /// Whether there are more ranks than cores.
    pub oversubscribed: bool,
    /// Whether the user is root.
    pub root: bool,
    /// Whether mpirun tags each line with its rank.
    pub labels: bool,
}

impl Job {
    /// mpirun's arguments before the program.
    pub fn mpirun_args(&self) -> Vec<String> {
        let mut words = vec!["-n".to_owned(), self.ranks.to_string()];
        let mut add = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
        let cores = self.cores.unwrap_or(0).to_string();
        match self.flavour {
            Flavour::OpenMpi4 => {
                match self.cores {
                    Some(_) => add(&["--map-by", &format!("slot:PE={cores}"), "--bind-to", "core"]),
                    None => add(&["--bind-to", "none"]),
                }
                if self.oversubscribed {
                    add(&["--oversubscribe"]);
                }
                if self.labels {
                    add(&["--tag-output"]);
                }
            }
            Flavour::OpenMpi5 => {
                let oversubscribe = if self.oversubscribed { ":OVERSUBSCRIBE" } else { "" };
                match self.cores {
                    Some(_) => {
                        add(&["--map-by", &format!("slot:PE={cores}{oversubscribe}"), "--bind-to", "core"]);
                    }
                    None if self.oversubscribed => add(&["--map-by", oversubscribe, "--bind-to", "none"]),
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
    fn flavours_are_parsed_from_versions() {
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
    fn each_flavour_gets_its_arguments() {
        let hosts = ["a", "b"].map(|name| Host { name: name.into(), slots: 4 }).to_vec();
        let job = |flavour, cores| Job {
            flavour,
            ranks: 8,
            hosts: hosts.clone(),
            cores,
            oversubscribed: cores.is_none(),
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
            assert_eq!(job(flavour, Some(3)).mpirun_args().join(" "), bound);
            assert_eq!(job(flavour, None).mpirun_args().join(" "), free);
        }
    }
}
