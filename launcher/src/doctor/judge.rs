//! The checks: what is good enough, and how to fix what is not.

use super::probe::ProbeResult;
use super::{Check, State};
use codinet_config::DeviceChoice;
use codinet_config::env;
use codinet_config::probe::{CheckpointSpace, DiskProbe, Probe, RankProbe, Space};
use codinet_config::text::counted;
use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

const MB: f64 = 1e6;

/// The first error line, else the last line.
fn error_line(lines: &[String]) -> String {
    let error = lines.iter().find_map(|line| line.strip_prefix("error: "));
    let last =
        lines.iter().rev().map(|line| line.trim()).find(|line| line.chars().any(char::is_alphanumeric));
    error.or(last).unwrap_or("(no output)").to_owned()
}

/// The checks of all ranks' measurements; without them, a check that says why.
pub fn check_ranks(result: ProbeResult, started: usize) -> Vec<Check> {
    let Some(probe) = result.probe else {
        let error = error_line(&result.lines);
        let found = match result.code {
            None => format!("{started} ranks did not connect in time (--timeout): {error}"),
            Some(code) => format!("{error} (exit code {code})"),
        };
        return match result.code {
            Some(2) => vec![Check::red("config", found, "codinet-train CONFIG --dry-run shows the error")],
            _ if error.to_lowercase().contains("nccl") => {
                vec![Check::red(
                    "nccl",
                    found,
                    "NCCL_DEBUG=INFO shows why; collective.backend=mpi trains without NCCL",
                )]
            }
            _ => vec![Check::red(
                "meeting",
                found,
                "use the mpirun of the MPI that codinet-train was built with; hosts must reach each other by ssh \
                 (or srun) and TCP, and have the program at the same path",
            )],
        };
    };
    let mut checks = vec![check_connection(&probe)];
    if probe.world > 1 {
        checks.push(check_all_reduce(&probe));
    }
    checks.push(check_cores(&probe));
    checks.extend(check_gpus(&probe));
    let disks: Vec<Check> =
        probe.ranks.iter().filter_map(|rank| Some(check_disk(&probe, rank, rank.disk.as_ref()?))).collect();
    let worst_disk = disks.iter().map(|check| check.state).max().unwrap_or(State::Green);
    checks.extend(check_start(&probe, worst_disk));
    checks.extend(disks);
    checks.push(check_signals(result.signalled));
    checks
}

fn check_connection(probe: &Probe) -> Check {
    let pmix = probe.pmix.as_ref().map_or("no PMIx".into(), |version| format!("PMIx {version}"));
    let hosts: BTreeSet<&str> = probe.ranks.iter().map(|rank| rank.host.as_str()).collect();
    Check::green(
        "meeting",
        format!(
            "{} on {}, by {} ({}, {pmix})",
            counted(probe.world, "rank"),
            counted(hosts.len(), "host"),
            probe.backend,
            probe.library
        ),
    )
}

fn check_all_reduce(probe: &Probe) -> Check {
    let all = &probe.all_reduce;
    let found = format!(
        "{:.0} MB at {:.0} MB/s; one number in {:.0} µs, over MPI",
        all.bytes as f64 / MB,
        all.bytes_per_second / MB,
        all.microseconds
    );
    if all.bytes_per_second >= 100.0 * MB && all.microseconds <= 5000.0 {
        return Check::green("all-reduce", found);
    }
    Check::yellow(
        "all-reduce",
        found,
        "if hosts have a faster network, name its interface: --mca btl_tcp_if_include, or UCX_NET_DEVICES; if ranks share \
         cores, start fewer",
    )
}

/// Compares the ranks' cores with their compute and decode threads.
fn check_cores(probe: &Probe) -> Check {
    let ranks_sharing = |rank: &RankProbe| {
        let same = |other: &&RankProbe| other.host == rank.host && other.cpu_list == rank.cpu_list;
        probe.ranks.iter().filter(same).count()
    };
    let own_cores = |rank: &RankProbe| rank.cpus as f64 / ranks_sharing(rank) as f64;
    let describe = |rank: &RankProbe| {
        format!(
            "rank {} may run on {} of {}'s {} cores ({}), used by {}, for {} compute and {} decode threads",
            rank.rank,
            rank.cpus,
            rank.host,
            rank.host_cpus,
            rank.cpu_list,
            counted(ranks_sharing(rank), "rank"),
            rank.threads,
            rank.decode_threads
        )
    };
    let bound = probe.ranks.iter().find(|rank| {
        own_cores(rank) < 2.0
            && rank.cpus * rank.local_ranks.max(1) <= rank.host_cpus
            && rank.cpus < rank.host_cpus
    });
    let crowded = probe
        .ranks
        .iter()
        .find(|rank| rank.threads.max(rank.decode_threads) as f64 > own_cores(rank).max(1.0));
    let small = probe.ranks.iter().find(|rank| own_cores(rank) < 2.0);
    match (bound, crowded, small) {
        (Some(rank), ..) => Check::red(
            "cores",
            describe(rank),
            "leave each rank more cores: --bind none, sbatch --cpus-per-task (and SRUN_CPUS_PER_TASK), or no taskset",
        ),
        (_, Some(rank), _) => Check::yellow(
            "cores",
            describe(rank),
            "lower run.threads or data.decode_threads, or start fewer ranks",
        ),
        (.., Some(rank)) => Check::yellow(
            "cores",
            describe(rank),
            "decoding and computing share a core; start fewer ranks per host",
        ),
        _ => Check::green("cores", describe(&probe.ranks[0])),
    }
}

fn check_gpus(probe: &Probe) -> Vec<Check> {
    let device = probe.config.as_ref().map_or(DeviceChoice::Auto, |config| config.device);
    let hidden = probe.ranks.iter().find(|rank| rank.gpus == 0 && rank.gpus_installed > 0);
    let without = probe.ranks.iter().find(|rank| rank.gpus == 0);
    // SLURM may show a rank only its socket's GPUs.
    let shared = probe
        .ranks
        .iter()
        .find(|rank| rank.gpus > 1 && rank.local_ranks > rank.gpus.max(rank.gpus_installed));
    let broken = probe.ranks.iter().find_map(|rank| Some((rank, rank.gpu.as_ref()?.as_ref().err()?)));
    let driver = probe.ranks[0].driver.as_deref();
    let mut checks = Vec::new();
    checks.push(match (hidden, without, shared) {
        _ if device == DeviceChoice::Cpu => Check::green("gpus", "run.device is cpu"),
        (Some(rank), ..) => Check::red(
            "gpus",
            format!(
                "{} has {}, but libtorch sees none on rank {}",
                rank.host,
                counted(rank.gpus_installed, "GPU"),
                rank.rank
            ),
            rank.without_gpu.clone(),
        ),
        (_, Some(rank), _) if device == DeviceChoice::Cuda => Check::red(
            "gpus",
            format!("run.device is cuda, but rank {} on {} has no GPU", rank.rank, rank.host),
            "set run.device=cpu, ask the scheduler for GPUs (--gpus-per-node), or install the driver",
        ),
        (.., Some(rank)) => Check::red(
            "gpus",
            format!("{} ranks share {} GPUs on {}", rank.local_ranks, rank.gpus, rank.host),
            "start one rank per GPU: -n auto",
        ),
        (_, Some(_), _) => Check::green("gpus", "none; ranks compute on CPU cores"),
        _ => match (broken, driver) {
            (Some((rank, why)), _) => Check::red(
                "gpus",
                format!("rank {} on {} cannot compute: {why}", rank.rank, rank.host),
                "nvidia-smi and `dmesg | grep Xid` on that host show whether the GPU or its driver is at fault",
            ),
            (None, None) => Check::yellow(
                "gpus",
                format!("{} on each host, whose driver has no version", probe.ranks[0].gpus),
                "check that libcuda.so.1 is the driver's own: nvidia-smi prints its version",
            ),
            (None, Some(driver)) => {
                let name = probe.ranks[0].gpu.as_ref().and_then(|gpu| gpu.as_deref().ok()).unwrap_or_default();
                let gpus = counted(probe.ranks[0].gpus, "GPU");
                Check::green("gpus", format!("{gpus} on each host ({name}), each computes; {driver}"))
            }
        },
    });
    if without.is_none() && device != DeviceChoice::Cpu && probe.world > 1 {
        checks.push(check_nccl(probe));
    }
    checks
}

fn check_nccl(probe: &Probe) -> Check {
    let failure = probe.ranks.iter().find_map(|rank| Some((rank, rank.nccl.as_ref().err()?)));
    if let Some((rank, why)) = failure {
        return Check::yellow(
            "nccl",
            format!("rank {} on {}: {why}", rank.rank, rank.host),
            "put libnccl.so.2 on LD_LIBRARY_PATH; without it GPUs communicate through the host",
        );
    }
    let version = probe.ranks[0].nccl.as_deref().unwrap_or_default();
    match &probe.gpu_all_reduce {
        Some(Ok(speed)) => Check::green(
            "nccl",
            format!(
                "{version}; {:.0} MB between all GPUs at {:.2} GB/s; one number in {:.0} µs",
                speed.bytes as f64 / MB,
                speed.bytes_per_second / 1e9,
                speed.microseconds
            ),
        ),
        Some(Err(why)) => Check::red("nccl", format!("{version}: {why}"), "start one rank per GPU: -n auto"),
        None => Check::yellow("nccl", format!("{version}, not tried"), "fix the GPUs first"),
    }
}

/// What keeps a run from starting, each problem once, and the data sets' samples. `disk` is red: its own check says why.
fn check_start(probe: &Probe, disk: State) -> Vec<Check> {
    let mut checks = Vec::new();
    let mut seen = BTreeSet::new();
    for rank in &probe.ranks {
        for problem in &rank.problems {
            let name = match problem.key.as_str() {
                "run.dir" => "disk",
                key if key.starts_with("data.") => "data",
                _ => "config",
            };
            if name == "disk" && disk == State::Red || !seen.insert(&problem.message) {
                continue;
            }
            let fix = match name {
                "data" => {
                    "every host needs all shards: codinet-data inspect lists them; import or copy the missing ones"
                }
                _ => "codinet-train CONFIG --dry-run shows the same errors",
            };
            let found = format!("{} (rank {} on {})", problem.message, rank.rank, rank.host);
            checks.push(Check::red(name, found, fix));
        }
    }
    let samples = probe.ranks.first().map(|rank| &rank.samples).filter(|samples| !samples.is_empty());
    if let Some(samples) = samples.filter(|_| checks.iter().all(|check| check.name != "data")) {
        let counts = samples.iter().map(|(key, samples)| format!("{key} {samples} samples"));
        checks.push(Check::green("data", counts.collect::<Vec<_>>().join(", ")));
    }
    checks
}

fn check_disk(probe: &Probe, rank: &RankProbe, disk: &DiskProbe) -> Check {
    let needed =
        probe.config.as_ref().map_or(CheckpointSpace { bytes: 0, checkpoints: 0 }, |config| config.space);
    let one = needed.bytes;
    let all = one * needed.checkpoints;
    let free = disk.free.unwrap_or(u64::MAX);
    let fix = "free some space, or set run.dir to another disk";
    let place = format!("{} on {}", disk.dir, rank.host);
    if let Some(error) = &disk.error {
        return Check::red("disk", format!("cannot write 64 MB to {place}: {error}"), fix);
    }
    let speed = disk.bytes_per_second.unwrap_or(0.0);
    let found = format!(
        "{place}: {:.1} GB free, {:.0} MB/s; a checkpoint is {:.0} MB, {:.1} s, {:.0} MB are kept in all",
        free as f64 / 1e9,
        speed / MB,
        one as f64 / MB,
        one as f64 / speed,
        all as f64 / MB
    );
    match needed.judge(free) {
        Space::TooLittle => Check::red("disk", found, fix),
        Space::Tight => Check::yellow("disk", found, fix),
        Space::Enough if speed < 20.0 * MB => {
            Check::yellow("disk", found, "set run.dir to a faster disk, or raise run.checkpoint_every")
        }
        Space::Enough => Check::green("disk", found),
    }
}

fn check_signals(signalled: Option<Vec<bool>>) -> Check {
    let fix = "send SIGUSR2 to the ranks themselves, or create a file named stop in the run directory";
    match signalled {
        None => Check::red("signals", "ranks ended before they reported SIGUSR2", fix),
        Some(ranks) => match ranks.iter().position(|came| !came) {
            Some(rank) => {
                Check::red("signals", format!("mpirun's SIGUSR2 does not come to rank {rank}"), fix)
            }
            None => {
                Check::green("signals", "mpirun passes SIGUSR2 on to every rank: checkpoint, and exit 75")
            }
        },
    }
}

/// mpirun's own time between SIGTERM and SIGKILL, without codinet-launch.
pub fn check_grace(measured: Option<Duration>) -> Option<Check> {
    let seconds = measured?.as_secs_f64();
    let found = format!("mpirun itself leaves ranks {seconds:.1} s between SIGTERM and SIGKILL");
    let fix = "stop a run through codinet-launch, which has --grace, or by SIGUSR2 to mpirun, never by SIGTERM to mpirun";
    Some(if seconds < 5.0 { Check::yellow("grace", found, fix) } else { Check::green("grace", found) })
}

/// Variables that bind OpenMP's threads.
pub fn check_binding_variables() -> Option<Check> {
    let variables = [env::OMP_PROC_BIND, env::OMP_PLACES, env::GOMP_CPU_AFFINITY];
    let set = variables.into_iter().find(|&variable| env::is_set(variable))?;
    let found = format!(
        "{} is set; codinet-train removes it, because it would bind all threads to one core",
        set.name
    );
    Some(Check::green("threads", found))
}

/// SLURM, inside a SLURM job.
pub fn check_scheduler() -> Vec<Check> {
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
    let mut checks = vec![match output("srun", &["--mpi=list"]) {
        None => Check::red(
            "srun",
            "this allocation is SLURM's, but srun is not on PATH",
            "run outside the container, or start codinet-train with srun --mpi=pmix",
        ),
        Some(kinds) if kinds.contains("pmix") => Check::green("srun", "srun has --mpi=pmix"),
        Some(_) => Check::yellow(
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
        let fix = "sbatch --signal=USR2@300 asks for a checkpoint early enough";
        checks.push(if seconds < 30 {
            Check::yellow("killwait", found, fix)
        } else {
            Check::green("killwait", found)
        });
    }
    checks
}

/// The links between this machine's GPUs, by nvidia-smi.
pub fn check_gpu_links(gpus: usize) -> Option<Check> {
    if gpus < 2 {
        return None;
    }
    let Ok(output) = Command::new("nvidia-smi").args(["topo", "-m"]).output() else {
        return Some(Check::yellow(
            "links",
            "there is no nvidia-smi to list the links between GPUs",
            "install it",
        ));
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let rows = text.lines().filter(|line| line.starts_with("GPU"));
    let kinds: BTreeSet<&str> = rows
        .flat_map(|row| row.split_whitespace().skip(1).take(gpus))
        .filter(|word| *word != "X" && !word.starts_with("GPU"))
        .collect();
    let found = format!("{gpus} GPUs linked by {}", kinds.iter().copied().collect::<Vec<_>>().join(", "));
    let nvlink = !kinds.is_empty() && kinds.iter().all(|kind| kind.starts_with("NV"));
    Some(if nvlink {
        Check::green("links", found)
    } else {
        let fix = "GPUs without NVLink communicate over PCIe: collective.wire=bf16 halves the bytes";
        Check::yellow("links", found, fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn probe(change: impl Fn(&mut serde_json::Value)) -> Probe {
        let rank = |rank: usize| {
            json!({
                "rank": rank, "local": rank, "local_ranks": 2, "host": "a", "cpus": 16, "cpu_list": "0-15",
                "host_cpus": 16, "threads": 8, "decode_threads": 8, "gpus": 2, "gpus_installed": 2, "without_gpu": "make setup CUDA=1",
                "driver": "580", "gpu": {"Ok": "H200"}, "nccl": {"Ok": "2.27.3"}, "samples": {"data.train": 9}, "problems": [],
                "disk": {"dir": "/d", "free": 10_000_000_000u64, "bytes_per_second": 1e9, "error": null},
            })
        };
        let mut output = json!({
            "backend": "MPI", "library": "Open MPI", "pmix": "4.2", "world": 2,
            "config": {"device": "cuda", "space": {"bytes": 300_000_000u64, "checkpoints": 5}},
            "all_reduce": {"microseconds": 9.0, "bytes": 16_777_216, "bytes_per_second": 1e9},
            "gpu_all_reduce": {"Ok": {"microseconds": 20.0, "bytes": 67_108_864, "bytes_per_second": 3e11}},
            "ranks": [rank(0), rank(1)],
        });
        change(&mut output);
        serde_json::from_value(output).unwrap()
    }

    /// Names and results of the checks that are not green.
    fn problems(change: impl Fn(&mut serde_json::Value)) -> Vec<(&'static str, State)> {
        let result = ProbeResult {
            probe: Some(probe(change)),
            signalled: Some(vec![true, true]),
            code: Some(0),
            lines: Vec::new(),
        };
        let checks = check_ranks(result, 2).into_iter().filter(|check| check.state != State::Green);
        checks
            .inspect(|check| assert!(check.fix.is_some(), "{check:?}"))
            .map(|check| (check.name, check.state))
            .collect()
    }

    #[test]
    fn good_machine_is_green() {
        assert_eq!(problems(|_| {}), []);
    }

    #[test]
    fn simulated_faults_are_red_or_yellow() {
        let red = |name| vec![(name, State::Red)];
        let yellow = |name| vec![(name, State::Yellow)];
        // No GPU on one rank; GPUs that libtorch does not see; GPUs that are shared.
        assert_eq!(
            problems(|probe| {
                probe["ranks"][1]["gpus"] = 0.into();
                probe["ranks"][1]["gpus_installed"] = 0.into();
            }),
            red("gpus")
        );
        assert_eq!(problems(|probe| probe["ranks"][1]["gpus"] = 0.into()), red("gpus"));
        assert_eq!(problems(|probe| probe["ranks"][0]["local_ranks"] = 3.into()), red("gpus"));
        assert_eq!(problems(|probe| probe["ranks"][1]["nccl"] = json!({"Err": "none"})), yellow("nccl"));
        // A GPU that cannot compute, and one of unknown driver; GPUs that do not reach each other.
        assert_eq!(problems(|probe| probe["ranks"][1]["gpu"] = json!({"Err": "CUDA error"})), red("gpus"));
        assert_eq!(problems(|probe| probe["ranks"][0]["driver"] = json!(null)), yellow("gpus"));
        assert_eq!(problems(|probe| probe["gpu_all_reduce"] = json!({"Err": "over MPI"})), red("nccl"));
        assert_eq!(problems(|probe| probe["gpu_all_reduce"] = json!(null)), yellow("nccl"));
        assert_eq!(
            problems(|probe| probe["all_reduce"]["bytes_per_second"] = 1e6.into()),
            yellow("all-reduce")
        );
        assert_eq!(problems(|probe| probe["ranks"][0]["disk"]["free"] = 500_000_000.into()), red("disk"));
        assert_eq!(problems(|probe| probe["ranks"][0]["disk"]["free"] = 900_000_000.into()), yellow("disk"));
        assert_eq!(
            problems(|probe| probe["ranks"][0]["disk"]["bytes_per_second"] = 1e6.into()),
            yellow("disk")
        );
        assert_eq!(problems(|probe| probe["ranks"][0]["decode_threads"] = 64.into()), yellow("cores"));
        let bound = |probe: &mut serde_json::Value| {
            for rank in 0..2 {
                probe["ranks"][rank]["cpus"] = 1.into();
                probe["ranks"][rank]["cpu_list"] = rank.to_string().into();
            }
        };
        assert_eq!(problems(bound), red("cores"));
        // What keeps a run from starting: once for all ranks, and a full disk by its own check.
        let unshared = |probe: &mut serde_json::Value| {
            for rank in 0..2 {
                probe["ranks"][rank]["problems"] = json!([{"key": "optim.batch_size", "message": "a.yaml:8: optim.batch_size is 7, which 2 ranks"}]);
            }
        };
        assert_eq!(problems(unshared), red("config"));
        let lost = json!([{"key": "data.val", "message": "data.val: no shards"}]);
        assert_eq!(problems(|probe| probe["ranks"][1]["problems"] = lost.clone()), red("data"));
        let full = |probe: &mut serde_json::Value| {
            probe["ranks"][0]["problems"] = json!([{"key": "run.dir", "message": "run.dir: too little"}]);
            probe["ranks"][0]["disk"]["free"] = 500_000_000.into();
        };
        assert_eq!(problems(full), red("disk"));
    }

    #[test]
    fn undelivered_signals_are_red() {
        for (signalled, state) in
            [(None, State::Red), (Some(vec![true, false]), State::Red), (Some(vec![true]), State::Green)]
        {
            assert_eq!(check_signals(signalled).state, state);
        }
        assert_eq!(check_grace(Some(Duration::from_secs(1))).unwrap().state, State::Yellow);
        assert!(check_grace(None).is_none());
    }
}
