//! `--probe`: measures for `codinet-launch doctor` what each rank finds, where training would run and started as training is
//! started. The launcher judges.

use crate::config::probe::{
    AllReduceSpeed, CheckpointSpace, ConfigNeeds, DiskProbe, Probe, ProbeLine, RankProbe, StartProblem,
};
use crate::config::{self, Config, DeviceChoice, Resume};
use crate::data::{TRAIN, VAL};
use crate::dist::device::{choose_device, set_thread_count};
use crate::dist::{Nccl, World, agree, all_gather_objects, use_device};
use crate::env;
use crate::host;
use crate::model::Net;
use crate::run::{Console, checkpoint_space, existing_folder, free_bytes};
use crate::run_dir::{self, RUNS};
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Driver, no_gpu_reason, shorten};
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
/// Elements of the large all-reduce on the host.
const LARGE_ALL_REDUCE: i64 = 4 << 20;
/// Elements of the large all-reduce between GPUs.
const LARGE_GPU_ALL_REDUCE: i64 = 16 << 20;
/// How far a GPU's convolution may be off, relative to its largest value: TF32 has 10 bits.
const GPU_TOLERANCE: f64 = 5e-3;

/// All ranks: measure, and rank 0 prints two lines of JSON: the measurements, and later whether SIGUSR2 has arrived.
pub fn run(name: Option<&str>, settings: &[String], world: &mut World, stop: &AtomicBool) -> Result<()> {
    let load = |name| agree(world, config::load(name, settings).map_err(Error::from));
    let config = name.map(load).transpose()?;
    let choice = config.as_ref().map_or(DeviceChoice::Auto, |config| config.run.device);
    set_thread_count(world, config.as_ref().and_then(|config| config.run.threads))?;
    let start = config.as_ref().map(|config| probe_start(config, name.unwrap_or_default(), settings, world));
    let all_reduce = measure_all_reduce(world, Device::Cpu, LARGE_ALL_REDUCE)?;
    let device = choose_device(world, choice, "run.device").ok(); // the launcher judges the ranks' GPUs
    let own = probe_rank(config.as_ref(), start.as_ref(), device, world);
    let ranks = all_gather_objects(world, &own)?;
    let probe = Probe {
        backend: world.backend().into(),
        library: world.library_version().into(),
        pmix: env::get(env::PMIX_VERSION),
        world: world.ranks(),
        config: config
            .as_ref()
            .zip(start.as_ref())
            .map(|(config, start)| ConfigNeeds { device: config.run.device, space: start.space }),
        all_reduce,
        gpu_all_reduce: measure_nccl(world, device, &ranks)?,
        ranks,
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
fn probe_rank(
    config: Option<&Config>,
    start: Option<&StartProbe>,
    device: Option<Device>,
    world: &World,
) -> RankProbe {
    let samples = start.map(|start| start.samples.clone()).unwrap_or_default();
    let problems = start.map(|start| start.problems.clone()).unwrap_or_default();
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
        driver: driver_version(),
        gpu: match device {
            Some(Device::Cuda(index)) => Some(probe_gpu(index)),
            _ => None,
        },
        nccl: Nccl::open().map(|nccl| nccl.version()).map_err(|error| error.message),
        samples,
        problems,
        disk: config.filter(writes).map(probe_disk),
    }
}

/// The driver's version; by the driver itself where /proc does not have it, as in some containers.
fn driver_version() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let cuda = || Some(format!("driver for CUDA {}", Driver::open().ok()?.cuda_version().ok()?));
    text.lines().next().map(Into::into).or_else(cuda)
}

/// The name of GPU `index`, if a convolution on it has the CPU's result.
fn probe_gpu(index: usize) -> Result<String, String> {
    let name = Driver::open()?.name(index)?;
    let x = Tensor::randn([8, 64, 28, 28], (Kind::Float, Device::Cpu));
    let weight = Tensor::randn([64, 64, 3, 3], (Kind::Float, Device::Cpu));
    let convolve = |device| {
        let weight = weight.f_to_device(device)?;
        let y = x.f_to_device(device)?.f_conv2d(&weight, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1)?;
        y.f_to_device(Device::Cpu)
    };
    let reference = convolve(Device::Cpu).map_err(|error| error.to_string())?;
    let found = convolve(Device::Cuda(index)).map_err(|error| shorten(&error.to_string()).to_owned())?;
    let largest = |x: &Tensor| x.abs().max().double_value(&[]);
    let difference = largest(&(found - &reference)) / largest(&reference);
    if difference <= GPU_TOLERANCE {
        Ok(name)
    } else {
        Err(format!("{name}: a convolution differs from the CPU's by {difference:.1e} of its largest value"))
    }
}

/// All ranks: the speed of an all-reduce between the ranks' GPUs, if each rank has one and they can use NCCL.
fn measure_nccl(
    world: &mut World,
    device: Option<Device>,
    ranks: &[RankProbe],
) -> Result<Option<Result<AllReduceSpeed, String>>> {
    let all_compute = ranks.iter().all(|rank| matches!(rank.gpu, Some(Ok(_))));
    let Some(device) = device.filter(|_| all_compute && world.ranks() > 1) else { return Ok(None) };
    use_device(world, device, config::Backend::Auto)?;
    if world.backend() == "NCCL" {
        return Ok(Some(Ok(measure_all_reduce(world, device, LARGE_GPU_ALL_REDUCE)?)));
    }
    Ok(Some(Err(format!("GPUs communicate over {}", world.backend()))))
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

/// All ranks: the latency of the smallest all-reduce, and the speed of one of `large` elements, on `device`.
fn measure_all_reduce(world: &World, device: Device, large: i64) -> Result<AllReduceSpeed> {
    let time = |elements: i64, repeats: u32| -> Result<f64> {
        let mut tensor = Tensor::ones([elements], (Kind::Float, device));
        world.all_reduce_sum(&tensor)?;
        let sum = tensor.double_value(&[elements - 1]);
        if sum != world.ranks() as f64 {
            let what = format!(
                "an all-reduce of ones over {} ranks by {} gave {sum}",
                world.ranks(),
                world.backend()
            );
            return Err(Error::new(Exit::Communication, what));
        }
        let _ = tensor.zero_();
        world.barrier()?;
        let start = Instant::now();
        for _ in 0..repeats {
            world.all_reduce_sum(&tensor)?;
        }
        tensor.double_value(&[0]); // waits for a GPU
        Ok(start.elapsed().as_secs_f64() / f64::from(repeats))
    };
    let bytes = 4 * large as u64;
    Ok(AllReduceSpeed {
        microseconds: 1e6 * time(1, 200)?,
        bytes,
        bytes_per_second: bytes as f64 / time(large, 5)?,
    })
}
