//! Whether the ranks use our CUDA kernels.

use super::agreement::all_gather_objects;
use super::world::World;
use crate::config::Config;
use crate::model::GpuKernels;
use crate::sys::error::Result;
use tch::Device;

/// All ranks, once each has its device: with `run.cuda_kernels`, enables our CUDA kernels if every rank's GPU can compile
/// them. Otherwise all ranks use libtorch's operations, and rank 0 prints the reason.
pub fn enable_kernels(config: &Config, world: &World, device: Device) -> Result<()> {
    if !config.run.cuda_kernels {
        return Ok(()); // on all ranks, because they have one config
    }
    let kernels = match device {
        Device::Cuda(index) => GpuKernels::compile(index).map(Some),
        _ => Ok(None), // the CPU's need no compiler
    };
    let own = kernels.as_ref().err().cloned();
    let obstacles = all_gather_objects(world, &own)?;
    let first = obstacles.iter().enumerate().find_map(|(rank, reason)| Some((rank, reason.as_ref()?)));
    if let Some((rank, reason)) = first {
        if world.rank() == 0 {
            let reason = reason.lines().next().unwrap_or_default();
            crate::eprint_line!(
                "note: run.cuda_kernels: rank {rank}: {reason}; all ranks use libtorch's operations instead"
            );
        }
    } else if let Ok(Some(kernels)) = kernels {
        kernels.enable();
    }
    Ok(())
}
