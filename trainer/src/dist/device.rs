//! The device and the threads that a rank computes with.

use super::agreement::all_gather_objects;
use super::world::World;
use crate::config::DeviceChoice;
use crate::env;
use crate::host;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Driver, configure_cuda, no_gpu_reason, set_device};
use std::sync::OnceLock;
use tch::Device;

/// This rank's GPU, once it is chosen.
static GPU: OnceLock<usize> = OnceLock::new();

/// All ranks: sets the number of this rank's compute threads. By default, ranks that may run on the same cores share them
/// evenly.
pub fn set_thread_count(world: &World, threads: Option<usize>) -> Result<()> {
    let own = (host::name(), host::allowed_cpus());
    let sharing = all_gather_objects(world, &own)?.iter().filter(|other| **other == own).count();
    let usable = host::usable_cpu_count();
    let installed = host::cpu_count();
    let ranks = world.local_rank().count;
    let bound = ranks > 1 && sharing == 1;
    if world.rank() == 0 && bound && usable * ranks * 2 <= installed {
        crate::eprint_line!(
            "note: the launcher binds each of {ranks} ranks to {usable} of {installed} cores, for computing and decoding; to \
             use all cores, start with codinet-launch or mpirun --bind-to none"
        );
    }
    tch::set_num_threads(threads.unwrap_or((usable / sharing).max(1)) as i32);
    Ok(())
}

/// All ranks: the device of this rank, as `choice` asks for it; a GPU becomes the current one and is configured. `setting` is
/// where the user made the choice, for messages.
pub fn choose_device(world: &World, choice: DeviceChoice, setting: &str) -> Result<Device> {
    let device = choose_local_device(choice, setting, gpu_index(world)?)?;
    if let Device::Cuda(index) = device {
        let _ = GPU.set(index);
        set_device(device);
        configure_cuda();
    }
    Ok(device)
}

/// This rank's GPU and host, for messages: "GPU 3 of node7".
pub fn describe_gpu() -> String {
    let index = GPU.get().map_or_else(String::new, |index| format!(" {index}"));
    format!("GPU{index} of {}", host::name())
}

/// All ranks: this rank's number among those of its host that see the same GPUs. SLURM may show the ranks of each socket only
/// that socket's GPUs.
fn gpu_index(world: &World) -> Result<usize> {
    let indices = 0..tch::Cuda::device_count() as usize;
    let visible = Driver::open()
        .map(|driver| indices.filter_map(|index| driver.uuid(index).ok()).collect::<Vec<_>>())
        .unwrap_or_default();
    let own = (host::name(), visible);
    let all = all_gather_objects(world, &own)?;
    Ok(all[..world.rank()].iter().filter(|other| **other == own).count())
}

/// The device of process `index` of those on this host that see the same GPUs, as `choice` asks for it.
pub fn choose_local_device(choice: DeviceChoice, setting: &str, index: usize) -> Result<Device> {
    let gpus = tch::Cuda::device_count() as usize;
    match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda if gpus == 0 => {
            let what = format!("{setting} is cuda, but {}; or set it to cpu", no_gpu_reason());
            Err(Error::new(Exit::Config, what))
        }
        DeviceChoice::Auto if gpus == 0 => {
            let hidden =
                env::is_set(env::CUDA_VISIBLE_DEVICES) && env::get(env::CUDA_VISIBLE_DEVICES).is_none();
            if index == 0 && host::installed_gpus() > 0 && !hidden {
                crate::eprint_line!(
                    "note: {} has a GPU, which is not used: {}",
                    host::name(),
                    no_gpu_reason()
                );
            }
            Ok(Device::Cpu)
        }
        // Each rank may see only its own GPU, or all ranks share the only one.
        _ if gpus == 1 => Ok(Device::Cuda(0)),
        _ if index < gpus => Ok(Device::Cuda(index)),
        _ => {
            let host = host::name();
            let what = format!(
                "{host} has {gpus} GPUs, but this is rank {index} of it, counted from 0; start one rank per GPU, or set \
                 {setting} to cpu"
            );
            Err(Error::new(Exit::Config, what))
        }
    }
}
