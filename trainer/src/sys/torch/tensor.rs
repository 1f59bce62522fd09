//! Tensors' memory: the channels-last layout, pinned memory, and memory that several streams use.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use super::panic_on_error;
use tch::kind::Element;
use tch::{Device, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn codinet_add_all(sums: *const *const C_tensor, terms: *const *const C_tensor, n: usize) -> bool;
    fn codinet_copy_all(to: *const *const C_tensor, from: *const *const C_tensor, n: usize) -> bool;
    fn codinet_pin_memory(tensor: *const C_tensor) -> *mut C_tensor;
    fn codinet_record_stream(tensor: *mut C_tensor) -> bool;
}

/// `x` `[N, C, H, W]` with channels innermost in memory: `x` itself if it is so already, otherwise a copy.
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Copies `values` to pinned memory, `[values]`, as [`pin_memory`] does.
pub fn pin_slice<T: Element>(values: &[T]) -> Tensor {
    let shape = [values.len() as i64];
    // SAFETY: the blob has the shape of the slice, is only read, and is copied before the slice's borrow ends.
    pin_memory(&unsafe { Tensor::from_blob(values.as_ptr().cast(), &shape, &[1], T::KIND, Device::Cpu) })
}

/// Copies a CPU tensor to pinned memory, from which a GPU can copy while the host goes on. libtorch reuses that memory only
/// after all copies started from it are complete. Needs a GPU.
pub fn pin_memory(tensor: &Tensor) -> Tensor {
    // SAFETY: a living tensor; the caller owns the new one.
    let copy = unsafe { codinet_pin_memory(tensor.as_ptr() as _) };
    panic_on_error(!copy.is_null(), "pinned memory");
    // SAFETY: not null, and owned by nobody else.
    unsafe { Tensor::from_ptr(copy) }
}

/// Adds to each tensor of `sums` the one at its place in `terms`, of the same shape, in one call: on a GPU a few launches, however
/// many tensors there are. No tensor is twice in `sums`.
pub fn add_all(sums: &[&Tensor], terms: &[Tensor]) {
    for_each_pair(codinet_add_all, sums, terms, "adding tensors");
}

/// Copies to each tensor of `to` the one at its place in `from`, of the same shape, in the same way. The kinds may differ.
pub fn copy_all(to: &[&Tensor], from: &[Tensor]) {
    for_each_pair(codinet_copy_all, to, from, "copying tensors");
}

type ForEachPair = unsafe extern "C" fn(*const *const C_tensor, *const *const C_tensor, usize) -> bool;

fn for_each_pair(operation: ForEachPair, to: &[&Tensor], from: &[Tensor], what: &str) {
    assert_eq!(to.len(), from.len());
    if to.is_empty() {
        return;
    }
    let to: Vec<_> = to.iter().map(|tensor| tensor.as_ptr()).collect();
    let from: Vec<_> = from.iter().map(|tensor| tensor.as_ptr()).collect();
    // SAFETY: two arrays of as many living tensors.
    let done = unsafe { operation(to.as_ptr().cast(), from.as_ptr().cast(), to.len()) };
    panic_on_error(done, what);
}

/// Tells libtorch's allocator that this thread's current stream uses `tensor`, which was allocated on another stream: after
/// `tensor` is freed, its memory is reused only once this stream's work up to that point is complete.
pub fn record_stream(tensor: &Tensor) {
    // SAFETY: a living tensor of a GPU.
    let recorded = unsafe { codinet_record_stream(tensor.as_ptr() as _) };
    panic_on_error(recorded, "a tensor's use on another stream");
}
