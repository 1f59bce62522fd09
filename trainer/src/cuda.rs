//! What a GPU needs before a run: libtorch's CUDA half, loaded where it is installed, so that one binary serves machines with
//! GPUs and without; how it shall compute; and kernels of our own.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use crate::collective::{World, all_gather_bytes};
use crate::config::Config;
use crate::error::Result;
use crate::fused;
use crate::native::allow_tf32;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::Device;

/// Registers the CUDA backend with libtorch; without `libtorch_cuda.so` nothing happens. To be called before the
/// first tensor is made. Untested: no machine with a GPU has run it yet.
pub fn register() {
    // SAFETY: the library's constructors register its kernels with libtorch, which is loaded, and do nothing else.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        std::mem::forget(library); // registered for as long as the process lives
    }
}

/// All ranks: `run.cuda_kernels`, where every rank's GPU has them; else libtorch's operations on all, and rank 0 says why. To
/// be called once the rank's device is chosen. Untested on a GPU, as they are.
pub fn choose_kernels(config: &Config, world: &World, device: Device) -> Result<()> {
    if !config.run.cuda_kernels {
        return Ok(()); // on all ranks, for they have one config
    }
    let found = match device {
        Device::Cuda(index) => fused::kernels_for(index).map(Some),
        _ => Ok(None), // a CPU has its own
    };
    let mine = found.as_ref().err().cloned().unwrap_or_default();
    let all = all_gather_bytes(world, mine.as_bytes())?;
    match all.iter().position(|reason| !reason.is_empty()) {
        None => found.into_iter().flatten().for_each(fused::use_on_gpu),
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
/// Untested, as above.
pub fn settings() {
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
