//! libtorch's CUDA half, loaded where it is installed, so that one binary serves machines with GPUs and without; and how it
//! shall compute.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use crate::native::allow_tf32;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Registers the CUDA backend with libtorch; without `libtorch_cuda.so` nothing happens. To be called before the
/// first tensor is made. Untested: no machine with a GPU has run it yet.
pub fn register() {
    // SAFETY: the library's constructors register its kernels with libtorch, which is loaded, and do nothing else.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        std::mem::forget(library); // registered for as long as the process lives
    }
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
