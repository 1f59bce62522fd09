//! `--probe`: measures for `codinet-launch doctor` what each rank finds, where training would run and started as training is
//! started. The launcher judges.

use crate::config::probe::{
    AllReduceSpeed, CheckpointSpace, ConfigNeeds, DiskProbe, Probe, ProbeLine, RankProbe, StartProblem,
};
use crate::config::{self, Config, Resume};
use crate::data::{TRAIN, VAL};
use crate::dist::device::set_thread_count;
use crate::dist::{Nccl, World, agree, all_gather_objects};
use crate::env;
use crate::host;
use crate::model::Net;
use crate::run::{Console, checkpoint_space, existing_folder, free_bytes};
use crate::run_dir::{self, RUNS};
use crate::sys::error::{Error, Result};
use crate::sys::no_gpu_reason;
use crate::train::{Directory, Start};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long ranks wait for the signal, which the launcher sends after it has read the first line.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes written to the run directory's disk.
const WRITTEN_BYTES: usize = 64 << 20;
/// Elements of the large all-reduce.
const LARGE_ALL_REDUCE: i64 = 4 << 20;

/// All ranks: measure, and rank 0 prints two lines of JSON: the measurements, and later whether SIGUSR2 has arrived.
pub fn run(name: Option<&str>, settings: &[String], world: &World, stop: &AtomicBool) -> Result<()> {
    let load = |name| agree(world, config::load(name, settings).map_err(Error::from));
    let config = name.map(load).transpose()?;
    set_thread_count(world, config.as_ref().and_then(|config| config.run.threads))?;
    let start = config.as_ref().map(|config| probe_start(config, name.unwrap_or_default(), settings, world));
    let probe = Probe {
        backend: world.backend().into(),
        library: world.library_version().into(),
        pmix: env::get(env::PMIX_VERSION),
        world: world.ranks(),
        config: config
            .as_ref()
            .zip(start.as_ref())
            .map(|(config, start)| ConfigNeeds { device: config.run.device, space: start.space }),
        all_reduce: measure_all_reduce(world)?,
        ranks: all_gather_objects(world, &probe_rank(config.as_ref(), start, world))?,
    };
    let mut console = Console::new(world.rank());
    let mut print = |line| console.say(&serde_json::to_string(&line).expect("a probe is JSON"));
    print(ProbeLine::Probe(Box::new(probe)));
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) && start.elapsed() < SIGNAL_TIMEOUT {
        std::thread::sleep(Duration::from_millis(20));
    }
    print(ProbeLine::Signalled(all_gather_objects(world, &stop.load(Ordering::Relaxed))?));
    Ok(())
}

/// What this rank finds about the start of a run.
struct StartProbe {
    problems: Vec<StartProblem>,
    /// Samples of the data sets.
    samples: BTreeMap<String, u64>,
    space: CheckpointSpace,
}

/// This rank: checks whether a run of `config`, read from `name` and `settings`, would start or resume.
fn probe_start(config: &Config, name: &str, settings: &[String], world: &World) -> StartProbe {
    let net = Net::from_config(config, Device::Cpu);
    let start = Start {
        config,
        rank: world.rank(),
        ranks: world.ranks(),
        device: Some(Device::Cpu), // the launcher judges the ranks' GPUs
        has_data: true,
        directory: Some(Directory { stem: &run_dir::stem(name), resume: &Resume::Auto }),
        place: &|key| config::place_of(name, settings, key),
    };
    let checked = start.check(&net);
    let lines = checked.problems.lines(start.place).into_iter();
    let sets = checked.data.map(|data| [(TRAIN, data.train.len()), (VAL, data.val.set.len())]);
    let samples = sets.into_iter().flatten().map(|(key, samples)| (key.to_owned(), samples as u64));
    StartProbe {
        problems: lines.map(|(key, message)| StartProblem { key: key.into(), message }).collect(),
        samples: samples.collect(),
        space: checkpoint_space(config, &net.params),
    }
}

/// What this rank finds, with the compute threads of training.
fn probe_rank(config: Option<&Config>, start: Option<StartProbe>, world: &World) -> RankProbe {
    let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let (problems, samples) = start.map(|start| (start.problems, start.samples)).unwrap_or_default();
    let threads = tch::get_num_threads() as usize;
    let writes = |config: &&Config| world.rank() == 0 || config.run.shard_optimizer;
    RankProbe {
        rank: world.rank(),
        local_ranks: world.local_rank().count,
        host: host::name(),
        cpus: host::usable_cpu_count(),
        cpu_list: host::allowed_cpus(),
        host_cpus: host::cpu_count(),
        threads,
        decode_threads: config.and_then(|config| config.data.decode_threads).unwrap_or(threads),
        gpus: tch::Cuda::device_count() as usize,
        gpus_installed: host::installed_gpus(),
        without_gpu: no_gpu_reason(),
        driver: driver.lines().next().map(Into::into),
        nccl: Nccl::open().map(|nccl| nccl.version()).map_err(|error| error.message),
        samples,
        problems,
        disk: config.filter(writes).map(probe_disk),
    }
}

/// Measures the run directory's disk with a file that is removed again.
fn probe_disk(config: &Config) -> DiskProbe {
    let configured = Path::new(config.run.dir.as_deref().unwrap_or(RUNS));
    let dir = existing_folder(configured);
    let path = dir.join(format!(".codinet-doctor-{}", std::process::id()));
    let write = || {
        let start = Instant::now();
        let mut file = File::create(&path)?;
        file.write_all(&vec![1; WRITTEN_BYTES])?;
        file.sync_all()?;
        Ok::<f64, io::Error>(WRITTEN_BYTES as f64 / start.elapsed().as_secs_f64())
    };
    let speed = write();
    let _ = fs::remove_file(&path);
    DiskProbe {
        dir: dir.display().to_string(),
        free: free_bytes(&dir),
        bytes_per_second: speed.as_ref().ok().copied(),
        error: speed.err().map(|error| error.to_string()),
    }
}

/// All ranks: the latency of the smallest all-reduce, and the speed of a large one.
fn measure_all_reduce(world: &World) -> Result<AllReduceSpeed> {
    let time = |elements: i64, repeats: u32| -> Result<f64> {
        let tensor = Tensor::ones([elements], (Kind::Float, Device::Cpu));
        world.all_reduce_sum(&tensor)?;
        world.barrier()?;
        let start = Instant::now();
        for _ in 0..repeats {
            world.all_reduce_sum(&tensor)?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(repeats))
    };
    let bytes = 4 * LARGE_ALL_REDUCE as u64;
    Ok(AllReduceSpeed {
        microseconds: 1e6 * time(1, 200)?,
        bytes,
        bytes_per_second: bytes as f64 / time(LARGE_ALL_REDUCE, 5)?,
    })
}
