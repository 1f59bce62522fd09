//! libtorch's CUDA half, a library of its own that is loaded if it is installed, so that one program serves machines with and
//! without GPUs. Not yet run on a GPU.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use super::{allow_tf32, library_error};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::sync::OnceLock;

/// Why the CUDA half could not be loaded; none if it was.
static LOAD_ERROR: OnceLock<Option<String>> = OnceLock::new();

/// Registers the CUDA backend with libtorch, if `libtorch_cuda.so` is found. Call it before the first tensor is created.
pub fn load_cuda() {
    LOAD_ERROR.get_or_init(|| {
        // SAFETY: the library's constructors register its kernels with libtorch, which is loaded, and do nothing else.
        match unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                std::mem::forget(library); // it stays registered until the process ends
                None
            }
            Err(error) => Some(library_error(&error)),
        }
    });
}

/// Why libtorch finds no GPU, and what the user can do.
pub fn no_gpu_reason() -> String {
    match LOAD_ERROR.get().and_then(Option::as_ref) {
        Some(error) => format!("{error}; make setup CUDA=1 fetches libtorch's CUDA half"),
        None => "libtorch's CUDA half finds no GPU; check the driver (580 or newer) and CUDA_VISIBLE_DEVICES"
            .into(),
    }
}

/// Lets cuDNN time its algorithms for each shape and keep the fastest, because shapes are the same in every step. The choice,
/// and with it the last bits of results, may differ from run to run. Allows TF32 in fp32 products unless
/// `NVIDIA_TF32_OVERRIDE=0` is set.
pub fn configure_cuda() {
    tch::Cuda::cudnn_set_benchmark(true);
    allow_tf32();
}

#[cfg(test)]
mod tests {
    #[test]
    fn libtorch_accepts_the_settings() {
        super::configure_cuda(); // panics if it does not; without a GPU the settings have no effect
    }
}
