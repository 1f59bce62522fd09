//! What is good enough, and what mends what is not.

use super::Check;
use super::probe::{Disk, Probe, Probed, Rank};
use codinet_config::env;
use codinet_config::text::counted;
use std::process::Command;
use std::time::Duration;

const MB: f64 = 1e6;

/// The first line that speaks of an error, else the last.
fn cause(lines: &[String]) -> String {
    let error = lines.iter().find_map(|line| line.strip_prefix("error: "));
    let last =
        lines.iter().rev().map(|line| line.trim()).find(|line| line.chars().any(char::is_alphanumeric));
    error.or(last).unwrap_or("they said nothing").to_owned()
}

/// What ranks told, or why they did not.
pub fn ranks(probed: Probed, started: usize) -> Vec<Check> {
    let Some(probe) = probed.probe else {
        let found = match probed.code {
            None => format!("{started} ranks did not meet in time (--timeout): {}", cause(&probed.lines)),
            Some(code) => format!("{} (exit code {code})", cause(&probed.lines)),
        };
        return match probed.code {
            Some(2) => vec![Check::red("config", found, "codinet-train CONFIG --dry-run shows what it is")],
            _ => vec![Check::red(
                "meeting",
                found,
                "use the mpirun of the MPI that codinet-train was built with; hosts have to reach one another by ssh \
                 (or srun) and TCP, and to have the program at the same path",
            )],
        };
    };
    let mut checks = vec![meeting(&probe)];
    if probe.world > 1 {
        checks.push(speed(&probe));
    }
    checks.push(cores(&probe));
    checks.extend(gpus(&probe));
    checks.extend(data(&probe));
    checks.extend(probe.ranks.iter().filter_map(|rank| Some(disk(&probe, rank, rank.disk.as_ref()?))));
    checks.push(signals(probed.signalled));
    checks
}

fn meeting(probe: &Probe) -> Check {
    let pmix = probe.pmix.as_ref().map_or("no PMIx".into(), |version| format!("PMIx {version}"));
    let hosts: std::collections::BTreeSet<&str> = probe.ranks.iter().map(|rank| rank.host.as_str()).collect();
    Check::green(
        "meeting",
        format!(
            "{} on {}, by {} ({}, {pmix})",
            counted(probe.world, "rank"),
            counted(hosts.len(), "host"),
            probe.met_by,
            probe.library
        ),
    )
}

fn speed(probe: &Probe) -> Check {
    let all = &probe.all_reduce;
    let found = format!(
        "of {:.0} MB {:.0} MB/s; of one number {:.0} µs, over MPI",
        all.bytes as f64 / MB,
        all.bytes_per_second / MB,
        all.microseconds
    );
    match all.bytes_per_second < 100.0 * MB || all.microseconds > 5000.0 {
        true => Check::yellow(
            "all-reduce",
            found,
            "if hosts are joined by something faster, name its interface: --mca btl_tcp_if_include, or UCX_NET_DEVICES; \
             if ranks share cores, start fewer",
        ),
        false => Check::green("all-reduce", found),
    }
}

/// Cores against the threads that compute and decode on them.
fn cores(probe: &Probe) -> Check {
    let sharing = |rank: &Rank| {
        let same = |other: &&Rank| other.host == rank.host && other.cpu_list == rank.cpu_list;
        probe.ranks.iter().filter(same).count()
    };
    let own = |rank: &Rank| rank.cpus as f64 / sharing(rank) as f64;
    let shown = |rank: &Rank| {
        format!(
            "rank {} may run on {} of {}'s {} cores ({}), used by {}, for {} compute and {} decode threads",
            rank.rank,
            rank.cpus,
            rank.host,
            rank.cpus_of_host,
            rank.cpu_list,
            counted(sharing(rank), "rank"),
            rank.threads,
            rank.decode_threads
        )
    };
    let bound = probe.ranks.iter().find(|rank| {
        own(rank) < 2.0
            && rank.cpus * rank.locals.max(1) <= rank.cpus_of_host
            && rank.cpus < rank.cpus_of_host
    });
    let crowded =
        probe.ranks.iter().find(|rank| rank.threads.max(rank.decode_threads) as f64 > own(rank).max(1.0));
    let small = probe.ranks.iter().find(|rank| own(rank) < 2.0);
    match (bound, crowded, small) {
        (Some(rank), ..) => Check::red(
            "cores",
            shown(rank),
            "leave each rank more cores: --bind none, sbatch --cpus-per-task (and SRUN_CPUS_PER_TASK), or no taskset",
        ),
        (_, Some(rank), _) => Check::yellow(
            "cores",
            shown(rank),
            "lower run.threads or data.decode_threads, or start fewer ranks",
        ),
        (.., Some(rank)) => Check::yellow(
            "cores",
            shown(rank),
            "decoding and computing share a core; start fewer ranks a host",
        ),
        _ => Check::green("cores", shown(&probe.ranks[0])),
    }
}

fn gpus(probe: &Probe) -> Vec<Check> {
    let device = probe.config.as_ref().map_or("auto", |config| config.device.as_str());
    let hidden = probe.ranks.iter().find(|rank| rank.gpus == 0 && rank.gpus_installed > 0);
    let without = probe.ranks.iter().find(|rank| rank.gpus == 0);
    // A rank may be shown its socket's GPUs alone.
    let shared =
        probe.ranks.iter().find(|rank| rank.gpus > 1 && rank.locals > rank.gpus.max(rank.gpus_installed));
    let mut checks = Vec::new();
    checks.push(match (hidden, without, shared) {
        _ if device == "cpu" => Check::green("gpus", "run.device is cpu"),
        (Some(rank), ..) => Check::red(
            "gpus",
            format!(
                "{} has {} GPUs, of which libtorch sees none on rank {}",
                rank.host, rank.gpus_installed, rank.rank
            ),
            rank.without_gpu.clone(),
        ),
        (_, Some(rank), _) if device == "cuda" => Check::red(
            "gpus",
            format!("run.device is cuda, but rank {} on {} has no GPU", rank.rank, rank.host),
            "set run.device=cpu, ask the scheduler for GPUs (--gpus-per-node), or install the driver",
        ),
        (.., Some(rank)) => Check::red(
            "gpus",
            format!("{} ranks share {} GPUs on {}", rank.locals, rank.gpus, rank.host),
            "start a rank per GPU: -n auto",
        ),
        (_, Some(_), _) => Check::green("gpus", "none; ranks compute on cores"),
        _ => Check::green(
            "gpus",
            format!(
                "{} on each host; {}",
                probe.ranks[0].gpus,
                probe.ranks[0].driver.as_deref().unwrap_or("no driver")
            ),
        ),
    });
    if without.is_none() && device != "cpu" && probe.world > 1 {
        let lacks = probe.ranks.iter().find_map(|rank| Some((rank, rank.nccl.as_ref().err()?)));
        checks.push(match (lacks, &probe.ranks[0].nccl) {
            (Some((rank, why)), _) => Check::yellow(
                "nccl",
                format!("rank {} on {}: {why}", rank.rank, rank.host),
                "put libnccl.so.2 on LD_LIBRARY_PATH; without it GPUs meet by way of the host",
            ),
            (None, Ok(version)) => Check::green("nccl", version.clone()),
            (None, Err(_)) => unreachable!("an error was looked for"),
        });
    }
    checks
}

fn data(probe: &Probe) -> Vec<Check> {
    let Some(first) = probe.ranks.first().and_then(|rank| rank.data.as_ref()) else { return Vec::new() };
    let broken = probe.ranks.iter().find_map(|rank| {
        let sets = rank.data.as_ref()?;
        sets.iter().find_map(|(key, set)| Some((rank, key, set.error.as_ref()?)))
    });
    match broken {
        Some((rank, key, error)) => vec![Check::red(
            "data",
            format!("{key}: {error} (rank {} on {})", rank.rank, rank.host),
            "every host has to see all shards: codinet-data inspect tells which there are; import or copy what is missing",
        )],
        None => {
            let counts = first.iter().map(|(key, set)| format!("{key} {} samples", set.samples.unwrap_or(0)));
            vec![Check::green("data", counts.collect::<Vec<_>>().join(", "))]
        }
    }
}

fn disk(probe: &Probe, rank: &Rank, disk: &Disk) -> Check {
    let config = probe.config.as_ref();
    let (one, all) = config
        .map_or((0, 0), |config| (config.checkpoint_bytes, config.checkpoint_bytes * config.checkpoints));
    let free = disk.free.unwrap_or(u64::MAX);
    let mend = "free some space, or set run.dir to another disk";
    let place = format!("{} on {}", disk.dir, rank.host);
    if let Some(error) = &disk.error {
        return Check::red("disk", format!("cannot write 64 MB to {place}: {error}"), mend);
    }
    let speed = disk.bytes_per_second.unwrap_or(0.0);
    let found = format!(
        "{place}: {:.1} GB free, {:.0} MB/s; a checkpoint is {:.0} MB, {:.1} s, and {:.0} MB in all are kept",
        free as f64 / 1e9,
        speed / MB,
        one as f64 / MB,
        one as f64 / speed,
        all as f64 / MB
    );
    match () {
        () if free < 2 * one => Check::red("disk", found, mend),
        () if free < all => Check::yellow("disk", found, mend),
        () if speed < 20.0 * MB => {
            Check::yellow("disk", found, "set run.dir to a faster disk, or save more rarely")
        }
        () => Check::green("disk", found),
    }
}

fn signals(signalled: Option<Vec<bool>>) -> Check {
    let mend = "send SIGUSR2 to the ranks themselves, or create a file named stop in the run directory";
    match signalled {
        None => Check::red("signals", "ranks ended before they told whether SIGUSR2 comes through", mend),
        Some(ranks) => match ranks.iter().position(|came| !came) {
            Some(rank) => {
                Check::red("signals", format!("mpirun's SIGUSR2 does not come to rank {rank}"), mend)
            }
            None => {
                Check::green("signals", "mpirun passes SIGUSR2 on to every rank: checkpoint, and exit 75")
            }
        },
    }
}

/// The time between SIGTERM and SIGKILL where no codinet-launch stands between.
pub fn grace(seen: Option<Duration>) -> Option<Check> {
    let seen = seen?;
    let found = format!("mpirun itself leaves ranks {:.1} s between SIGTERM and SIGKILL", seen.as_secs_f64());
    Some(match seen < Duration::from_secs(5) {
        true => Check::yellow(
            "grace",
            found,
            "stop a run through codinet-launch, which has --grace, or by SIGUSR2 to mpirun, never by SIGTERM to mpirun",
        ),
        false => Check::green("grace", found),
    })
}

/// SLURM, where this is a job of it.
pub fn scheduler() -> Vec<Check> {
    if !env::is_set(env::SLURM_JOB_ID) {
        return Vec::new();
    }
    let output = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        Some(format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        ))
    };
    let kinds = output("srun", &["--mpi=list"]).unwrap_or_default();
    let mut checks = vec![match kinds.contains("pmix") {
        true => Check::green("srun", "srun --mpi=pmix is there"),
        false => Check::yellow(
            "srun",
            "srun has no --mpi=pmix",
            "use cluster/slurm/train-mpirun.sbatch, or have SLURM built with PMIx",
        ),
    }];
    let config = output("scontrol", &["show", "config"]).unwrap_or_default();
    let wait = config
        .lines()
        .find_map(|line| line.strip_prefix("KillWait")?.split_whitespace().nth(1)?.parse().ok());
    if let Some(seconds) = wait {
        let seconds: u64 = seconds;
        let found = format!("SLURM leaves {seconds} s between SIGTERM and SIGKILL (KillWait)");
        checks.push(match seconds < 30 {
            true => Check::yellow(
                "killwait",
                found,
                "sbatch --signal=USR2@300 asks for a checkpoint early enough",
            ),
            false => Check::green("killwait", found),
        });
    }
    checks
}

/// What joins this machine's GPUs, by nvidia-smi.
pub fn links(gpus: usize) -> Option<Check> {
    if gpus < 2 {
        return None;
    }
    let Ok(output) = Command::new("nvidia-smi").args(["topo", "-m"]).output() else {
        return Some(Check::yellow("links", "nvidia-smi is not there to tell what joins GPUs", "install it"));
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = text.lines().filter(|line| line.starts_with("GPU"));
    let joins: std::collections::BTreeSet<&str> = rows
        .flat_map(|row| row.split_whitespace().skip(1).take(gpus))
        .filter(|word| *word != "X" && !word.starts_with("GPU"))
        .collect();
    let found = format!("{gpus} GPUs joined by {}", joins.iter().copied().collect::<Vec<_>>().join(", "));
    Some(match !joins.is_empty() && joins.iter().all(|join| join.starts_with("NV")) {
        true => Check::green("links", found),
        false => Check::yellow(
            "links",
            found,
            "GPUs without NVLink meet over PCIe: collective.wire=bf16 halves the bytes",
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::super::State;
    use super::*;
    use serde_json::json;

    fn probe(change: impl Fn(&mut serde_json::Value)) -> Probe {
        let rank = |rank: usize| {
            json!({
                "rank": rank, "local": rank, "locals": 2, "host": "a", "cpus": 16, "cpu_list": "0-15",
                "cpus_of_host": 16, "threads": 8, "decode_threads": 8, "gpus": 2, "gpus_installed": 2, "without_gpu": "make setup CUDA=1",
                "driver": "580", "nccl": {"Ok": "2.27.3"}, "data": {"data.train": {"samples": 9}},
                "disk": {"dir": "/d", "free": 10_000_000_000u64, "bytes_per_second": 1e9, "error": null},
            })
        };
        let mut told = json!({
            "met_by": "MPI", "library": "Open MPI", "pmix": "4.2", "world": 2,
            "config": {"device": "cuda", "checkpoint_bytes": 300_000_000u64, "checkpoints": 5},
            "all_reduce": {"microseconds": 9.0, "bytes": 16_777_216, "bytes_per_second": 1e9},
            "ranks": [rank(0), rank(1)],
        });
        change(&mut told);
        serde_json::from_value(told).unwrap()
    }

    /// Names and states of what is not green.
    fn judged(change: impl Fn(&mut serde_json::Value)) -> Vec<(&'static str, State)> {
        let probed = Probed {
            probe: Some(probe(change)),
            signalled: Some(vec![true, true]),
            code: Some(0),
            lines: Vec::new(),
        };
        let checks = ranks(probed, 2).into_iter().filter(|check| check.state != State::Green);
        checks
            .inspect(|check| assert!(check.mend.is_some(), "{check:?}"))
            .map(|check| (check.name, check.state))
            .collect()
    }

    #[test]
    fn a_good_machine_is_green() {
        assert_eq!(judged(|_| {}), []);
    }

    #[test]
    fn what_no_machine_here_can_show_is_judged_too() {
        let red = |name| vec![(name, State::Red)];
        let yellow = |name| vec![(name, State::Yellow)];
        // No GPU on one rank; GPUs that libtorch does not see; GPUs that are shared.
        assert_eq!(
            judged(|told| {
                told["ranks"][1]["gpus"] = 0.into();
                told["ranks"][1]["gpus_installed"] = 0.into();
            }),
            red("gpus")
        );
        assert_eq!(judged(|told| told["ranks"][1]["gpus"] = 0.into()), red("gpus"));
        assert_eq!(judged(|told| told["ranks"][0]["locals"] = 3.into()), red("gpus"));
        assert_eq!(judged(|told| told["ranks"][1]["nccl"] = json!({"Err": "none"})), yellow("nccl"));
        assert_eq!(judged(|told| told["all_reduce"]["bytes_per_second"] = 1e6.into()), yellow("all-reduce"));
        assert_eq!(judged(|told| told["ranks"][0]["disk"]["free"] = 500_000_000.into()), red("disk"));
        assert_eq!(judged(|told| told["ranks"][0]["disk"]["free"] = 900_000_000.into()), yellow("disk"));
        assert_eq!(judged(|told| told["ranks"][0]["disk"]["bytes_per_second"] = 1e6.into()), yellow("disk"));
        assert_eq!(judged(|told| told["ranks"][0]["decode_threads"] = 64.into()), yellow("cores"));
        let bound = |told: &mut serde_json::Value| {
            for rank in 0..2 {
                told["ranks"][rank]["cpus"] = 1.into();
                told["ranks"][rank]["cpu_list"] = rank.to_string().into();
            }
        };
        assert_eq!(judged(bound), red("cores"));
    }

    #[test]
    fn signals_that_do_not_come_through_are_red() {
        for (signalled, state) in
            [(None, State::Red), (Some(vec![true, false]), State::Red), (Some(vec![true]), State::Green)]
        {
            assert_eq!(signals(signalled).state, state);
        }
        assert_eq!(grace(Some(Duration::from_secs(1))).unwrap().state, State::Yellow);
        assert!(grace(None).is_none());
    }
}
