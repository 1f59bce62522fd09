//! The parts of libtorch, CUDA and the operating system that tch and std do not offer.

mod cuda;
mod driver;
pub mod error;
mod memory;
mod span;
mod startup;
mod torch;
mod torch_message;

pub use cuda::{configure_cuda, load_cuda, no_gpu_reason};
pub(crate) use driver::{Driver, Handle, library_error, load_function, open_library};
pub(crate) use memory::{PeakMemory, available_memory, format_gib, held_memory, peak_memory, release_memory};
pub(crate) use span::{Phase, Span, range, save_trace, start_recording, start_trace, stop_recording};
pub use startup::{Allocator, restart_with_settings};
pub(crate) use torch::{
    AdamUpdate, Event, SgdUpdate, SideStream, add_all, allow_tf32, attach_backward, copy_all,
    current_stream_handle, fused_adamw, fused_sgd, hook_gradient, norms, pin_memory, pin_slice,
    record_stream, set_device, set_side_stream,
};
pub use torch::{PackedConv, channels_last, parallel_for};
pub use torch_message::OOM_ADVICE;
pub(crate) use torch_message::{is_gpu_error, is_out_of_memory, shorten};
