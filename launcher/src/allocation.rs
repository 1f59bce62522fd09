//! The hosts and ranks of a job: from the command line, else from the scheduler, else this machine.

use crate::machine::Machine;
use codinet_config::env::{self, Variable};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;

/// The source of an allocation inside a SLURM job.
const SLURM: &str = "SLURM";

/// A host with its number of ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its name or address.
    pub name: String,
    /// Its ranks.
    pub slots: usize,
}

/// Hosts and ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Where they come from: an option, a scheduler, or this machine.
    pub source: &'static str,
    /// Hosts for mpirun; empty if mpirun knows them itself.
    pub hosts: Vec<Host>,
    /// Number of hosts.
    pub nodes: usize,
    /// Number of ranks.
    pub ranks: usize,
}

/// The options on ranks and hosts.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RankArgs {
    /// Ranks to start; auto: one per GPU, or one per NUMA node (socket) without a GPU, on every host.
    #[arg(short, long, value_name = "N|auto", default_value = "auto", value_parser = parse_ranks)]
    #[arg(visible_aliases = ["np", "gpus"])]
    pub n: Ranks,

    /// The same for each host.
    #[arg(long, value_name = "N", alias = "nproc_per_node", conflicts_with = "n", value_parser = parse_number)]
    pub nproc_per_node: Option<usize>,

    /// Hosts to start them on, such as a,b or a:8,b:8.
    #[arg(long, value_name = "HOST[:N],…", conflicts_with = "hostfile")]
    pub hosts: Option<String>,

    /// The same from a file, one host per line: `a`, `a:8` or `a slots=8`.
    #[arg(long, value_name = "FILE")]
    pub hostfile: Option<std::path::PathBuf>,
}

/// The option `-n`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranks {
    /// One per GPU, or one per NUMA node.
    #[default]
    Auto,
    /// This number.
    Number(usize),
}

/// The largest number of ranks; sums of such numbers cannot overflow.
const MAX_RANKS: usize = 1_000_000;

fn parse_ranks(text: &str) -> Result<Ranks, String> {
    match (text, text.parse()) {
        ("auto", _) => Ok(Ranks::Auto),
        (_, Ok(n @ 1..=MAX_RANKS)) => Ok(Ranks::Number(n)),
        _ => Err("expected auto or a number of at least 1".into()),
    }
}

fn parse_number(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| (1..=MAX_RANKS).contains(n)).ok_or("expected a number of at least 1".into())
}

impl Allocation {
    /// Resolves the options, the scheduler's variables and this machine to hosts and ranks.
    pub fn resolve(args: &RankArgs, machine: &Machine) -> Result<Self, String> {
        Self::resolve_with(args, machine, env::get)
    }

    fn resolve_with(
        args: &RankArgs,
        machine: &Machine,
        get: impl Fn(Variable) -> Option<String>,
    ) -> Result<Self, String> {
        let number = |variable| get(variable).and_then(|text| text.parse::<usize>().ok());
        let wanted = match args.n {
            Ranks::Auto => None,
            Ranks::Number(n) => Some(n),
        };
        let per_host = args.nproc_per_node;
        if number(env::SLURM_STEP_NUM_TASKS).is_some_and(|tasks| tasks > 1)
            || get(env::OMPI_COMM_WORLD_SIZE).is_some()
        {
            return Err(
                "codinet-launch starts mpirun itself, once; under srun or mpirun start codinet-train, one \
                        rank per process"
                    .into(),
            );
        }
        let (source, listed) = if let Some(list) = &args.hosts {
            ("--hosts", parse_hosts(list.split(','), "--hosts")?)
        } else if let Some(path) = &args.hostfile {
            ("--hostfile", read_hosts(path)?)
        } else if let Some(path) = get(env::PBS_NODEFILE).filter(|_| get(env::PBS_JOBID).is_some()) {
            ("PBS", read_hosts(Path::new(&path))?)
        } else if get(env::SLURM_JOB_ID).is_some() {
            let nodes = number(env::SLURM_NNODES).unwrap_or(1);
            let on_node = number(env::SLURM_GPUS_ON_NODE).unwrap_or_else(|| machine.ranks());
            let tasks = number(env::SLURM_NTASKS).unwrap_or(nodes * on_node);
            let ranks = wanted.or(per_host.map(|ranks| ranks * nodes)).unwrap_or(tasks);
            return Ok(Self { source: SLURM, hosts: Vec::new(), nodes, ranks });
        } else {
            let ranks = wanted.or(per_host).unwrap_or_else(|| machine.ranks());
            return Ok(Self { source: "this machine", hosts: Vec::new(), nodes: 1, ranks });
        };
        let nodes = listed.len();
        let share = wanted.map_or_else(|| machine.ranks(), |n| n.div_ceil(nodes));
        let slots = |slots: Option<usize>| per_host.or(slots).unwrap_or(share);
        let hosts: Vec<Host> =
            listed.into_iter().map(|(name, own)| Host { name, slots: slots(own) }).collect();
        let slots = hosts.iter().map(|host| host.slots).sum();
        Ok(Self { source, nodes, ranks: wanted.unwrap_or(slots), hosts })
    }

    /// Checks that mpirun can start ranks: in a SLURM job it does so with srun, which a container may lack.
    pub fn check_srun(&self) -> Result<(), String> {
        let is_missing = || {
            let version = Command::new("srun").arg("--version").output();
            version.is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        if self.source == SLURM && is_missing() {
            return Err("this allocation is SLURM's (SLURM_JOB_ID is set), but srun, with which mpirun starts ranks, is not \
                        on PATH; start codinet-launch outside the container, or codinet-train with srun --mpi=pmix, or, for \
                        ranks on this node only, put env -u SLURM_JOB_ID -u SLURM_JOBID before codinet-launch"
                .into());
        }
        Ok(())
    }

    /// The largest number of ranks on a host.
    pub fn max_ranks_per_host(&self) -> usize {
        let most = self.hosts.iter().map(|host| host.slots).max();
        most.unwrap_or_else(|| self.ranks.div_ceil(self.nodes)).min(self.ranks)
    }

    /// Whether a host gets more ranks than it has slots or, on this machine, cores.
    pub fn oversubscribed(&self, machine: &Machine) -> bool {
        if self.hosts.is_empty() {
            self.source != SLURM && self.ranks > machine.cores
        } else {
            self.ranks > self.hosts.iter().map(|host| host.slots).sum()
        }
    }
}

fn read_hosts(path: &Path) -> Result<Vec<(String, Option<usize>)>, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    parse_hosts(text.lines(), &path.display().to_string())
}

/// Hosts with their slots, if given; the slots of a repeated host add up.
fn parse_hosts<'a>(
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
            Some(Ok(count @ 1..=MAX_RANKS)) if !name.is_empty() => Some(count),
            Some(_) => return Err(format!("{place}: {line:?} is not a host; write a, a:8 or a slots=8")),
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

    const MACHINE: Machine = Machine { cores: 16, numa_nodes: 2, gpus: 4, root: false };

    fn resolve(args: &RankArgs, variables: &[(Variable, &str)]) -> Result<Allocation, String> {
        let get = |wanted: Variable| {
            let value = variables.iter().find(|(variable, _)| variable.name == wanted.name);
            value.map(|(_, value)| (*value).to_owned())
        };
        Allocation::resolve_with(args, &MACHINE, get)
    }

    #[test]
    fn schedulers_variables_give_ranks_and_hosts() {
        let auto = RankArgs::default();
        let here = resolve(&auto, &[]).unwrap();
        assert_eq!((here.source, here.ranks, here.nodes), ("this machine", 4, 1));
        let job = (env::SLURM_JOB_ID, "7");
        let slurm = resolve(&auto, &[job, (env::SLURM_NNODES, "2"), (env::SLURM_NTASKS, "6")]).unwrap();
        assert_eq!((slurm.source, slurm.ranks, slurm.max_ranks_per_host()), ("SLURM", 6, 3));
        let slurm = resolve(&auto, &[job, (env::SLURM_NNODES, "2"), (env::SLURM_GPUS_ON_NODE, "8")]).unwrap();
        assert_eq!(slurm.ranks, 16);
        let each = RankArgs { nproc_per_node: Some(3), ..RankArgs::default() };
        assert_eq!(resolve(&each, &[job, (env::SLURM_NNODES, "2")]).unwrap().ranks, 6);
        assert_eq!(resolve(&each, &[]).unwrap().ranks, 3);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a\na\nb\nb\n").unwrap();
        let path = file.path().to_str().unwrap();
        let pbs = resolve(&auto, &[(env::PBS_JOBID, "7"), (env::PBS_NODEFILE, path)]).unwrap();
        assert_eq!((pbs.source, pbs.ranks, pbs.hosts.len()), ("PBS", 4, 2));
        assert!(resolve(&auto, &[(env::SLURM_STEP_NUM_TASKS, "2")]).is_err());
        assert!(resolve(&auto, &[(env::OMPI_COMM_WORLD_SIZE, "2")]).is_err());
    }

    #[test]
    fn host_lists_of_every_mpirun_are_parsed() {
        let hosts = |text: &str| resolve(&RankArgs { hosts: Some(text.into()), ..RankArgs::default() }, &[]);
        assert_eq!(hosts("a,b").unwrap().ranks, 8, "as many per host as on this machine");
        assert_eq!(hosts("a:2,b:3").unwrap().ranks, 5);
        let args = RankArgs { n: Ranks::Number(6), hosts: Some("a,b".into()), ..RankArgs::default() };
        let six = resolve(&args, &[]).unwrap();
        assert_eq!((six.hosts[1].slots, six.oversubscribed(&MACHINE)), (3, false));
        let args = RankArgs { nproc_per_node: Some(3), hosts: Some("a,b:8".into()), ..RankArgs::default() };
        assert_eq!(resolve(&args, &[]).unwrap().ranks, 6, "on each host");
        let lines = "# hosts\na slots=2 max_slots=4\nb:2\nc 1\n\n";
        let read = parse_hosts(lines.lines(), "hosts").unwrap();
        assert_eq!(read.iter().map(|(_, slots)| slots.unwrap()).collect::<Vec<_>>(), [2, 2, 1]);
        for wrong in ["", "a:x", "a:0", ":3", "a:18446744073709551615,a"] {
            assert!(hosts(wrong).is_err(), "{wrong:?}");
        }
    }
}
