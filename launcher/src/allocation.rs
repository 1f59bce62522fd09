//! Where ranks may run: what the user names, else what a scheduler has given, else this machine.

use crate::machine::Machine;
use codinet_config::env::{self, Variable};
use std::path::Path;

/// A host, and how many ranks it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name or address.
    pub name: String,
    /// Ranks.
    pub slots: usize,
}

/// Hosts and ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// In words.
    pub by: &'static str,
    /// Hosts for mpirun; empty where it knows them by itself.
    pub hosts: Vec<Host>,
    /// Hosts, or nodes.
    pub nodes: usize,
    /// Ranks that the allocation is made for.
    pub ranks: usize,
}

/// What the command line says of hosts.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Asked {
    /// Ranks to start; auto: one a GPU, or one a memory node (socket) where there is none, on every host.
    #[arg(short, long, value_name = "N|auto", default_value = "auto", value_parser = ranks)]
    pub n: Ranks,

    /// Hosts to start them on, such as a,b or a:8,b:8.
    #[arg(long, value_name = "HOST[:N],…", conflicts_with = "hostfile")]
    pub hosts: Option<String>,

    /// The same from a file, a host a line: `a`, `a:8` or `a slots=8`.
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<std::path::PathBuf>,
}

/// A number of ranks, or as many as suit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranks {
    /// As many as suit.
    #[default]
    Auto,
    /// So many.
    Number(usize),
}

/// More ranks than anyone starts; sums of so many cannot overflow.
const MOST_RANKS: usize = 1_000_000;

fn ranks(text: &str) -> Result<Ranks, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Ranks::Auto),
        (_, Ok(n @ 1..=MOST_RANKS)) => Ok(Ranks::Number(n)),
        _ => Err("neither a number from 1 on nor auto".into()),
    }
}

impl Allocation {
    /// Where to start ranks.
    pub fn find(asked: &Asked, machine: &Machine) -> Result<Self, String> {
        Self::by(asked, machine, env::get)
    }

    fn by(
        asked: &Asked,
        machine: &Machine,
        get: impl Fn(Variable) -> Option<String>,
    ) -> Result<Self, String> {
        let number = |variable| get(variable).and_then(|text| text.parse::<usize>().ok());
        let wanted = match asked.n {
            Ranks::Auto => None,
            Ranks::Number(n) => Some(n),
        };
        if number(env::SLURM_STEP_NUM_TASKS).is_some_and(|tasks| tasks > 1)
            || get(env::OMPI_COMM_WORLD_SIZE).is_some()
        {
            return Err("codinet-launch starts mpirun itself, once; under srun or mpirun start codinet-train, a rank \
                        per process"
                .into());
        }
        let (by, listed) = if let Some(list) = &asked.hosts {
            ("--hosts", parse(list.split(','), "--hosts")?)
        } else if let Some(path) = &asked.hostfile {
            ("--hostfile", read(path)?)
        } else if let Some(path) = get(env::PBS_NODEFILE).filter(|_| get(env::PBS_JOBID).is_some()) {
            ("PBS", read(Path::new(&path))?)
        } else if get(env::SLURM_JOB_ID).is_some() {
            let nodes = number(env::SLURM_NNODES).unwrap_or(1);
            let on_node = number(env::SLURM_GPUS_ON_NODE).unwrap_or_else(|| machine.ranks());
            let given = number(env::SLURM_NTASKS).unwrap_or(nodes * on_node);
            return Ok(Self { by: "SLURM", hosts: Vec::new(), nodes, ranks: wanted.unwrap_or(given) });
        } else {
            let ranks = wanted.unwrap_or_else(|| machine.ranks());
            return Ok(Self { by: "this machine", hosts: Vec::new(), nodes: 1, ranks });
        };
        let nodes = listed.len();
        let share = wanted.map_or_else(|| machine.ranks(), |n| n.div_ceil(nodes));
        let hosts: Vec<Host> =
            listed.into_iter().map(|(name, slots)| Host { name, slots: slots.unwrap_or(share) }).collect();
        let room = hosts.iter().map(|host| host.slots).sum();
        Ok(Self { by, nodes, ranks: wanted.unwrap_or(room), hosts })
    }

    /// Ranks on the host that has most of them.
    pub fn most_on_a_host(&self) -> usize {
        let most = self.hosts.iter().map(|host| host.slots).max();
        most.unwrap_or_else(|| self.ranks.div_ceil(self.nodes)).min(self.ranks)
    }

    /// Whether a host gets more ranks than it has room for, as far as can be told from here.
    pub fn crowded(&self, machine: &Machine) -> bool {
        match self.hosts.is_empty() {
            // With hosts that are named, slots are room.
            false => self.ranks > self.hosts.iter().map(|host| host.slots).sum(),
            true => self.by != "SLURM" && self.ranks > machine.cores,
        }
    }
}

fn read(path: &Path) -> Result<Vec<(String, Option<usize>)>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse(text.lines(), &path.display().to_string())
}

/// Hosts and the ranks that each takes, if that is said; a host that comes several times takes as many.
fn parse<'a>(
    lines: impl Iterator<Item = &'a str>,
    place: &str,
) -> Result<Vec<(String, Option<usize>)>, String> {
    let mut hosts: Vec<(String, Option<usize>)> = Vec::new();
    for line in lines {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let (name, count) = match (line.split_once(char::is_whitespace), line.split_once(':')) {
            (Some((name, more)), _) => {
                let slots = more.split_whitespace().find_map(|word| word.strip_prefix("slots="));
                (name, slots.or(Some(more.trim()).filter(|_| slots.is_none())))
            }
            (None, Some((name, count))) => (name, Some(count)),
            (None, None) => (line, None),
        };
        let count = match count.map(str::parse::<usize>) {
            None => None,
            Some(Ok(count @ 1..=MOST_RANKS)) if !name.is_empty() => Some(count),
            Some(_) => return Err(format!("{place}: {line:?} is no host; write a, a:8 or a slots=8")),
        };
        match hosts.iter_mut().find(|(known, _)| known == name) {
            Some((_, slots)) => *slots = Some(slots.unwrap_or(1) + count.unwrap_or(1)),
            None => hosts.push((name.to_owned(), count)),
        }
    }
    if hosts.is_empty() { Err(format!("{place} names no host")) } else { Ok(hosts) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine { cores: 16, memories: 2, gpus: 4, root: false };

    fn found(asked: &Asked, variables: &[(Variable, &str)]) -> Result<Allocation, String> {
        let get = |wanted: Variable| {
            let value = variables.iter().find(|(variable, _)| variable.name == wanted.name);
            value.map(|(_, value)| (*value).to_owned())
        };
        Allocation::by(asked, &MACHINE, get)
    }

    #[test]
    fn schedulers_say_how_many() {
        let auto = Asked::default();
        let here = found(&auto, &[]).unwrap();
        assert_eq!((here.by, here.ranks, here.nodes), ("this machine", 4, 1));
        let job = (env::SLURM_JOB_ID, "7");
        let slurm = found(&auto, &[job, (env::SLURM_NNODES, "2"), (env::SLURM_NTASKS, "6")]).unwrap();
        assert_eq!((slurm.by, slurm.ranks, slurm.most_on_a_host()), ("SLURM", 6, 3));
        let slurm = found(&auto, &[job, (env::SLURM_NNODES, "2"), (env::SLURM_GPUS_ON_NODE, "8")]).unwrap();
        assert_eq!(slurm.ranks, 16);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\na\nb\nb\n").unwrap();
        let path = file.path().to_str().unwrap();
        let pbs = found(&auto, &[(env::PBS_JOBID, "7"), (env::PBS_NODEFILE, path)]).unwrap();
        assert_eq!((pbs.by, pbs.ranks, pbs.hosts.len()), ("PBS", 4, 2));
        assert!(found(&auto, &[(env::SLURM_STEP_NUM_TASKS, "2")]).is_err());
        assert!(found(&auto, &[(env::OMPI_COMM_WORLD_SIZE, "2")]).is_err());
    }

    #[test]
    fn hosts_are_read_as_any_mpirun_writes_them() {
        let hosts = |text: &str| found(&Asked { hosts: Some(text.into()), ..Asked::default() }, &[]);
        assert_eq!(hosts("a,b").unwrap().ranks, 8, "as many as suit this machine");
        assert_eq!(hosts("a:2,b:3").unwrap().ranks, 5);
        let asked = Asked { n: Ranks::Number(6), hosts: Some("a,b".into()), hostfile: None };
        let six = found(&asked, &[]).unwrap();
        assert_eq!((six.hosts[1].slots, six.crowded(&MACHINE)), (3, false));
        let lines = "# hosts\na slots=2 max_slots=4\nb:2\nc 1\n\n";
        let read = parse(lines.lines(), "hosts").unwrap();
        assert_eq!(read.iter().map(|(_, slots)| slots.unwrap()).collect::<Vec<_>>(), [2, 2, 1]);
        for wrong in ["", "a:x", "a:0", ":3", "a:18446744073709551615,a"] {
            assert!(hosts(wrong).is_err(), "{wrong:?}");
        }
    }
}
