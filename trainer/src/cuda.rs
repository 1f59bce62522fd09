//! libtorch's CUDA half, loaded where it is installed, so that one binary serves machines with GPUs and without.
#![expect(unsafe_code, reason = "loading a library runs its constructors")]

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// Registers the CUDA backend with libtorch; without `libtorch_cuda.so` nothing happens. To be called before the
/// first tensor is made. Untested: no machine with a GPU has run it yet.
pub fn register() {
    // SAFETY: the library's constructors register its kernels with libtorch, which is loaded, and do nothing else.
    if let Ok(library) = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) } {
        std::mem::forget(library); // registered for as long as the process lives
    }
}
