//! What `codinet-launch doctor` wants to know of every rank: measured where training would run, started as training is
//! started, printed as lines of JSON. Judging is the launcher's.

use crate::config::{self, Config, DeviceChoice};
use crate::dist::device;
use crate::dist::{Nccl, World, agree, all_gather_objects};
use crate::env;
use crate::host;
use crate::model::Net;
use crate::run::Console;
use crate::sys::error::{Error, Result};
use codinet_dataloader::Dataset;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long ranks wait for the signal that the launcher sends once it has read the first line.
const SIGNAL: Duration = Duration::from_secs(20);
/// Bytes that are written to the run directory's disk.
const WRITTEN: usize = 64 << 20;

/// All ranks: measures, and rank 0 prints. A first line tells everything but whether SIGUSR2 comes through; after it a
/// second one tells that.
pub fn run(name: Option<&str>, sets: &[String], world: &World, stop: &AtomicBool) -> Result<()> {
    let config = name.map(|name| agree(world, config::load(name, sets).map_err(Error::from))).transpose()?;
    let mine = of_rank(config.as_ref(), world)?;
    let ranks = all_gather_objects(world, &mine)?;
    let all_reduce = all_reduce(world)?;
    let mut console = Console::new(world.rank());
    let mut speak = |what: Value| console.say(&what.to_string());
    let facts = config.as_ref().map(|config| {
        let net = Net::from_config(config, Device::Cpu);
        let copies = 2 + i64::from(config.optim.ema_decay.is_some());
        json!({
            "device": config.run.device,
            "checkpoint_bytes": 4 * net.params.count() * copies,
            "checkpoints": config.run.keep_last + usize::from(config.run.keep_best) + 1,
        })
    });
    speak(json!({"probe": {
        "backend": world.backend(), "library": world.library_version(), "pmix": env::get(env::PMIX_VERSION),
        "world": world.ranks(), "config": facts, "all_reduce": all_reduce, "ranks": ranks,
    }}));
    let start = Instant::now();
    while !stop.load(Ordering::Relaxed) && start.elapsed() < SIGNAL {
        std::thread::sleep(Duration::from_millis(20));
    }
    let signalled = all_gather_objects(world, &stop.load(Ordering::Relaxed))?;
    speak(json!({"signalled": signalled}));
    Ok(())
}

/// All ranks: what is so on this one.
fn of_rank(config: Option<&Config>, world: &World) -> Result<Value> {
    let driver = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    // Threads as training would have them; GPUs are told of below, and judged by who asks.
    device::prepare(world, DeviceChoice::Cpu, "run.device", config.and_then(|config| config.run.threads))?;
    let threads = tch::get_num_threads();
    Ok(json!({
        "rank": world.rank(),
        "local_ranks": world.local_rank().count,
        "host": host::name(),
        "cpus": device::cores(),
        "cpu_list": host::allowed_cpus(),
        "host_cpus": device::host_cpus(),
        "threads": threads,
        "decode_threads": config.and_then(|config| config.data.decode_threads).unwrap_or(threads as usize),
        "gpus": tch::Cuda::device_count(),
        "gpus_installed": host::installed_gpus(),
        "without_gpu": device::without_gpu(),
        "driver": driver.lines().next(),
        "nccl": Nccl::open().map(|nccl| nccl.version()).map_err(|error| error.message),
        "data": config.map(data),
        // Rank 0 writes, unless every rank has a share of the optimiser's state.
        "disk": config.filter(|config| world.rank() == 0 || config.run.shard_optimizer).map(disk),
    }))
}

/// Whether the samples can be read, as far as the indices tell.
fn data(config: &Config) -> Value {
    let open = |pattern: &str| match Dataset::open_with(pattern, &config.dataset_options()) {
        Ok(dataset) => match dataset.check_labels(config.data.classes as usize) {
            Ok(()) => json!({"samples": dataset.len()}),
            Err(error) => json!({"error": error.to_string()}),
        },
        Err(error) => json!({"error": error.to_string()}),
    };
    json!({"data.train": open(&config.data.train), "data.val": open(&config.data.val)})
}

/// Free space of the run directory's disk, and how fast a file is written there; nothing is left behind.
fn disk(config: &Config) -> Value {
    let wanted = Path::new(config.run.dir.as_deref().unwrap_or("runs"));
    let here = std::env::current_dir().unwrap_or_default().join(wanted);
    let dir = here.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let free = rustix::fs::statvfs(dir).map(|disk| disk.f_bavail * disk.f_frsize).ok();
    let path = dir.join(format!(".codinet-doctor-{}", std::process::id()));
    let write = || {
        let start = Instant::now();
        let mut file = File::create(&path)?;
        file.write_all(&vec![1; WRITTEN])?;
        file.sync_all()?;
        Ok::<f64, io::Error>(WRITTEN as f64 / start.elapsed().as_secs_f64())
    };
    let written = write();
    let _ = fs::remove_file(&path);
    json!({
        "dir": dir, "free": free, "bytes_per_second": written.as_ref().ok(),
        "error": written.err().map(|error| error.to_string()),
    })
}

/// All ranks: how long the smallest all-reduce takes, and how much of a large one passes a second.
fn all_reduce(world: &World) -> Result<Value> {
    let time = |elements: i64, times: u32| -> Result<f64> {
        let tensor = Tensor::ones([elements], (Kind::Float, Device::Cpu));
        world.all_reduce_sum(&tensor)?;
        world.barrier()?;
        let start = Instant::now();
        for _ in 0..times {
            world.all_reduce_sum(&tensor)?;
        }
        Ok(start.elapsed().as_secs_f64() / f64::from(times))
    };
    let (small, large) = (1, 4 << 20);
    let (latency, seconds) = (time(small, 200)?, time(large, 5)?);
    Ok(
        json!({"microseconds": latency * 1e6, "bytes": 4 * large, "bytes_per_second": (4 * large) as f64 / seconds}),
    )
}
