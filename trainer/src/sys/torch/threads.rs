//! libtorch's own threads.
#![expect(unsafe_code, reason = "a closure crosses libtorch's C++ interface")]

use super::panic_on_error;
use std::ffi::c_void;

unsafe extern "C" {
    fn codinet_parallel_for(
        tasks: usize,
        task: unsafe extern "C" fn(*mut c_void, usize),
        data: *mut c_void,
    ) -> bool;
}

/// Calls `task(0)` to `task(tasks − 1)` once each on libtorch's threads, and returns when all are done.
pub fn parallel_for<F: Fn(usize) + Sync>(tasks: usize, task: F) {
    unsafe extern "C" fn call<F: Fn(usize)>(data: *mut c_void, index: usize) {
        // SAFETY: `data` is the closure below, which outlives the loop and may be shared by threads.
        unsafe { (*data.cast::<F>())(index) }
    }
    // SAFETY: as above; the loop is over when the call returns.
    let done = unsafe { codinet_parallel_for(tasks, call::<F>, (&raw const task).cast_mut().cast()) };
    panic_on_error(done, "a parallel loop");
}
