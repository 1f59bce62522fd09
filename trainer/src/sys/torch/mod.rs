//! The parts of libtorch that tch does not offer, one subject a file. The C++ half is `native/shim.cpp`. The paths for GPUs
//! are untested: no machine with a GPU has run them yet.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

mod autograd;
mod convolution;
mod fused;
mod stream;
mod tensor;
mod threads;

pub(crate) use autograd::{attach_backward, hook_gradient};
pub use convolution::PackedConv;
pub(crate) use fused::{AdamUpdate, SgdUpdate, fused_adamw, fused_sgd, norms};
pub(crate) use stream::{Event, SideStream, current_stream_handle, set_device, set_side_stream};
pub use tensor::channels_last;
pub(crate) use tensor::{add_all, copy_all, pin_memory, pin_slice, record_stream};
pub use threads::parallel_for;

use std::ffi::{CStr, c_char};

unsafe extern "C" {
    fn codinet_last_error() -> *const c_char;
    fn codinet_allow_tf32() -> bool;
}

/// Panics with libtorch's message unless `succeeded`. A failed call is a bug or a lost device, so no caller can recover.
pub(crate) fn panic_on_error(succeeded: bool, call: &str) {
    if !succeeded {
        panic!("{call}: {}", last_error());
    }
}

/// The message of this thread's last failed call; empty where [`codinet_last_error`] was cleared since.
fn last_error() -> String {
    // SAFETY: a NUL-terminated string, copied before this thread's next call can overwrite it.
    unsafe { CStr::from_ptr(codinet_last_error()) }.to_string_lossy().into_owned()
}

/// Allows fp32 convolutions and matrix products to round their inputs to TF32 on GPUs that have it.
pub(crate) fn allow_tf32() {
    // SAFETY: no arguments; the result is checked.
    let allowed = unsafe { codinet_allow_tf32() };
    panic_on_error(allowed, "allowing TF32");
}
