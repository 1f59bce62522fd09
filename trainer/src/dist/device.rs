//! Where tensors live and what computes: a rank's device and threads, libtorch's CUDA half, loaded where it is installed, so
//! that one binary serves machines with GPUs and without, how a GPU shall compute, and kernels of our own. What needs a GPU
//! is untested: none has run it yet.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use crate::config::{Config, DeviceChoice};
use crate::dist::{World, all_gather_lists};
use crate::env;
use crate::host;
use crate::model::GpuKernels;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Driver, allow_tf32, library_error, set_device};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::fs;
use std::sync::OnceLock;
use tch::Device;

/// Where a network runs that is used, not trained.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Hardware {
    /// Where tensors live.
    #[arg(long, value_name = "auto|cpu|cuda", default_value = "auto", value_parser = choice)]
    pub device: DeviceChoice,

    /// Threads that compute and decode [default: as many as there are cores for this process].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

fn choice(text: &str) -> Result<DeviceChoice, String> {
    serde_json::from_value(text.into()).map_err(|_| "expected auto, cpu or cuda".to_owned())
}

impl Hardware {
    /// For a program that runs alone: sets the number of threads; returns it, and the device.
    pub fn prepare(&self) -> Result<(usize, Device)> {
        let threads = self.threads.map_or_else(cores, usize::from);
        tch::set_num_threads(threads as i32);
        Ok((threads, choose(self.device, "--device", 0)?))
    }
}

/// Why libtorch has no CUDA half here; empty where it has one.
static LACKS: OnceLock<String> = OnceLock::new();

/// Registers the CUDA backend with libtorch, where there is `libtorch_cuda.so`. To be called before the first tensor is made.
pub fn register() {
    // SAFETY: the library's constructors register its kernels with libtorch, which is loaded, and do nothing else.
    let lacks = match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        Ok(library) => {
            std::mem::forget(library); // registered for as long as the process lives
            String::new()
        }
        Err(error) => library_error(&error),
    };
    let _ = LACKS.set(lacks); // the same, where it is called again
}

/// Where libtorch finds no GPU: why, and what mends it.
pub fn without_gpu() -> String {
    match LACKS.get().filter(|lacks| !lacks.is_empty()) {
        Some(lacks) => format!("{lacks}; make setup CUDA=1 fetches libtorch's CUDA half"),
        None => "libtorch's CUDA half finds no GPU; check the driver (580 or newer) and CUDA_VISIBLE_DEVICES"
            .into(),
    }
}

/// All ranks: chooses the rank's device, as `setting` wants it, and the number of its compute threads.
pub fn prepare(world: &World, wanted: DeviceChoice, setting: &str, threads: Option<usize>) -> Result<Device> {
    // Ranks that may run on the same cores share them; a launcher that binds leaves each rank cores of its own.
    let mine = host::name() + &host::allowed_cpus();
    let sharers = all_gather_lists(world, mine.as_bytes())?;
    let sharers = sharers.iter().filter(|theirs| **theirs == mine.as_bytes()).count();
    let (cores, all, ranks) = (cores(), host_cpus(), world.local_rank().count);
    if world.rank() == 0 && sharers == 1 && ranks > 1 && cores * ranks * 2 <= all {
        eprintln!(
            "note: the launcher binds each of {ranks} ranks to {cores} of {all} cores, for computing and decoding; \
             mpirun --bind-to none, or codinet-launch, leaves them all"
        );
    }
    tch::set_num_threads(threads.unwrap_or((cores / sharers).max(1)) as i32);
    let device = choose(wanted, setting, number(world)?)?;
    if device.is_cuda() {
        set_device(device);
        settings();
    }
    Ok(device)
}

/// All ranks: this rank's number among those of its host that see the same GPUs: SLURM may show each socket's ranks its own.
fn number(world: &World) -> Result<usize> {
    let gpus = 0..tch::Cuda::device_count() as usize;
    let seen = Driver::open().map(|driver| gpus.filter_map(|gpu| driver.uuid(gpu).ok()).collect::<String>());
    let mine = host::name() + &seen.unwrap_or_default();
    let all = all_gather_lists(world, mine.as_bytes())?;
    Ok(all[..world.rank()].iter().filter(|theirs| **theirs == mine.as_bytes()).count())
}

/// The device that `setting` wants, of the process with this number among those that see the same GPUs.
fn choose(wanted: DeviceChoice, setting: &str, number: usize) -> Result<Device> {
    let refuse = |what: String| Err(Error::new(Exit::Config, what));
    match (wanted, tch::Cuda::device_count() as usize) {
        (DeviceChoice::Cpu, _) => Ok(Device::Cpu),
        (DeviceChoice::Cuda, 0) => {
            refuse(format!("{setting} is cuda, but {}; or set it to cpu", without_gpu()))
        }
        (DeviceChoice::Auto, 0) => {
            let hidden =
                env::is_set(env::CUDA_VISIBLE_DEVICES) && env::get(env::CUDA_VISIBLE_DEVICES).is_none();
            if number == 0 && host::installed_gpus() > 0 && !hidden {
                eprintln!("note: {} has a GPU, which is not used: {}", host::name(), without_gpu());
            }
            Ok(Device::Cpu)
        }
        // All ranks of a host may share the one GPU that they are shown, or be shown one each.
        (_, 1) => Ok(Device::Cuda(0)),
        (_, gpus) if number < gpus => Ok(Device::Cuda(number)),
        (_, gpus) => refuse(format!(
            "{} has {gpus} GPUs, but this is rank {number} of it, counted from 0; start one rank per GPU, or set {setting} to cpu",
            host::name()
        )),
    }
}

/// The cores that this process may use.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get())
}

/// How many cores the host has.
pub fn host_cpus() -> usize {
    let all = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    all.lines().filter(|line| line.starts_with("processor")).count()
}

/// All ranks: `run.cuda_kernels`, where every rank's GPU has them; else libtorch's operations on all, and rank 0 says why. To
/// be called once the rank's device is chosen.
pub fn choose_kernels(config: &Config, world: &World, device: Device) -> Result<()> {
    if !config.run.cuda_kernels {
        return Ok(()); // on all ranks, for they have one config
    }
    let found = match device {
        Device::Cuda(index) => GpuKernels::compile(index).map(Some),
        _ => Ok(None), // a CPU has its own
    };
    let mine = found.as_ref().err().cloned().unwrap_or_default();
    let all = all_gather_lists(world, mine.as_bytes())?;
    match all.iter().position(|reason| !reason.is_empty()) {
        None => found.into_iter().flatten().for_each(GpuKernels::enable),
        Some(rank) if world.rank() == 0 => eprintln!(
            "note: run.cuda_kernels: rank {rank}: {}; all ranks use libtorch's operations instead",
            String::from_utf8_lossy(&all[rank]).lines().next().unwrap_or_default()
        ),
        Some(_) => {}
    }
    Ok(())
}

/// Shapes are the same in every step, so cuDNN may time its algorithms once for each and keep the fastest; which that is may
/// differ from run to run, and with it the last bits. fp32 may be multiplied as TF32, but where `NVIDIA_TF32_OVERRIDE=0` forbids it.
fn settings() {
    tch::Cuda::cudnn_set_benchmark(true);
    allow_tf32();
}

#[cfg(test)]
mod tests {
    #[test]
    fn libtorch_knows_the_settings() {
        super::settings(); // fails where they did not take; without a GPU they mean nothing
    }
}
