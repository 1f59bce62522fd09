//! `--probe`: measures for `codinet-launch doctor` what each rank finds, where training would run and started as training is
//! started. The launcher judges.

use crate::config::probe::{
    AllReduceSpeed, ConfigNeeds, DataSetProbe, DiskProbe, Probe, ProbeLine, RankProbe,
};
use crate::config::{self, Config};
use crate::dist::device::set_thread_count;
use crate::dist::{Nccl, World, agree, all_gather_objects};
use crate::env;
use crate::host;
use crate::model::Net;
use crate::run::Console;
use crate::run_dir::RUNS;
use crate::sys::error::{Error, Result};
use crate::sys::no_gpu_reason;
use codinet_dataloader::Dataset;
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
    let own = probe_rank(config.as_ref(), world)?;
    let probe = Probe {
        backend: world.backend().into(),
        library: world.library_version().into(),
        pmix: env::get(env::PMIX_VERSION),
        world: world.ranks(),
        config: config.as_ref().map(config_needs),
        all_reduce: measure_all_reduce(world)?,
        ranks: all_gather_objects(world, &own)?,
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

/// The disk space that a run of `config` needs.
fn config_needs(config: &Config) -> ConfigNeeds {
    let net = Net::from_config(config, Device::Cpu);
    let copies = 2 + i64::from(config.optim.ema_decay.is_some()); // weights, momenta, moving average
    ConfigNeeds {
        device: config.run.device,
        checkpoint_bytes: (4 * net.params.count() * copies) as u64,
        checkpoints: (config.run.keep_last + usize::from(config.run.keep_best) + 1) as u64,
    }
}

/// All ranks: what this rank finds. It sets its compute threads as training would.
fn probe_rank(config: Option<&Config>, world: &World) -> Result<RankProbe> {
    let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    set_thread_count(world, config.and_then(|config| config.run.threads))?;
    let threads = tch::get_num_threads() as usize;
    let writes = |config: &&Config| world.rank() == 0 || config.run.shard_optimizer;
    Ok(RankProbe {
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
        data: config.map(probe_data),
        disk: config.filter(writes).map(probe_disk),
    })
}

/// Opens the data sets' indices, without reading the samples.
fn probe_data(config: &Config) -> BTreeMap<String, DataSetProbe> {
    let open = |pattern: &str| {
        let dataset = Dataset::open_with(pattern, &config.dataset_options())?;
        dataset.check_labels(config.data.classes as usize)?;
        Ok::<_, codinet_dataloader::Error>(dataset.len() as u64)
    };
    let probe = |pattern: &str| match open(pattern) {
        Ok(samples) => DataSetProbe { samples: Some(samples), error: None },
        Err(error) => DataSetProbe { samples: None, error: Some(error.to_string()) },
    };
    let sets = [("data.train", &config.data.train), ("data.val", &config.data.val)];
    sets.into_iter().map(|(key, pattern)| (key.to_owned(), probe(pattern))).collect()
}

/// Measures the run directory's disk with a file that is removed again.
fn probe_disk(config: &Config) -> DiskProbe {
    let configured = Path::new(config.run.dir.as_deref().unwrap_or(RUNS));
    let absolute = std::env::current_dir().unwrap_or_default().join(configured);
    let dir = absolute.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
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
        free: rustix::fs::statvfs(dir).map(|disk| disk.f_bavail * disk.f_frsize).ok(),
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
