//! What tch lacks of libtorch: hooks on gradients, a mean over ranks that autograd sees through, the fused update, and
//! streams. The C++ half is `native/shim.cpp`.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use std::ffi::{CStr, c_char, c_int, c_void};
use tch::{Device, Tensor};
use torch_sys::C_tensor;

type Release = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn codinet_error() -> *const c_char;
    fn codinet_hook_gradient(
        parameter: *mut C_tensor,
        gradient: *mut C_tensor,
        ready: unsafe extern "C" fn(*mut c_void),
        data: *mut c_void,
        release: Release,
    ) -> bool;
    fn codinet_mean(
        in_place: unsafe extern "C" fn(*mut c_void, *mut C_tensor),
        data: *mut c_void,
        release: Release,
    ) -> *mut c_void;
    fn codinet_mean_free(mean: *mut c_void);
    fn codinet_mean_apply(mean: *mut c_void, x: *mut C_tensor) -> *mut C_tensor;
    fn codinet_fused_sgd(
        weights: *const *const C_tensor,
        gradients: *const *const C_tensor,
        momenta: *const *const C_tensor,
        n: usize,
        lr: f64,
        momentum: f64,
        weight_decay: f64,
        nesterov: bool,
        divisor: *const C_tensor,
        skip: *const C_tensor,
    ) -> bool;
    fn codinet_event_record(device: c_int) -> *mut c_void;
    fn codinet_event_block(event: *mut c_void) -> bool;
    fn codinet_event_query(event: *mut c_void) -> c_int;
    fn codinet_event_synchronize(event: *mut c_void) -> bool;
    fn codinet_event_free(event: *mut c_void);
    fn codinet_side_stream(device: c_int) -> bool;
    fn codinet_stream_handle(device: c_int) -> *mut c_void;
}

/// Panics with libtorch's words where a call failed: what these functions refuse is a bug or a lost device.
fn expect(succeeded: bool, call: &str) {
    if !succeeded {
        // SAFETY: a NUL-terminated string that this thread's next failing call overwrites, copied at once.
        let what = unsafe { CStr::from_ptr(codinet_error()) }.to_string_lossy().into_owned();
        panic!("{call}: {what}");
    }
}

/// Gives `parameter` the buffer `gradient`, of its shape and strides, to add its gradient to, and calls `ready` in each
/// backward pass when the gradient is whole; on a thread of autograd's.
pub fn on_gradient(parameter: &Tensor, gradient: &Tensor, ready: impl Fn() + Send + Sync + 'static) {
    type Ready = Box<dyn Fn() + Send + Sync>;
    unsafe extern "C" fn call(data: *mut c_void) {
        // SAFETY: `data` is the box below, until `release`.
        unsafe { (*data.cast::<Ready>())() }
    }
    unsafe extern "C" fn release(data: *mut c_void) {
        // SAFETY: called once, by the hook's destructor.
        drop(unsafe { Box::from_raw(data.cast::<Ready>()) });
    }
    let data = Box::into_raw(Box::new(Box::new(ready) as Ready)).cast();
    // SAFETY: both tensors are alive; the hook owns `data` from here on and releases it once, even where this fails.
    let hooked = unsafe {
        codinet_hook_gradient(parameter.as_ptr() as _, gradient.as_ptr() as _, call, data, release)
    };
    expect(hooked, "a hook on a gradient");
}

/// The mean over ranks, as an operation whose gradient is the mean over ranks of the gradients.
#[derive(Debug)]
pub struct RankMean {
    handle: *mut c_void,
    /// How many ranks there are.
    pub ranks: usize,
}

impl RankMean {
    /// `in_place` replaces a tensor by its mean over ranks; all ranks call it in the same order, in forward passes and, on a
    /// thread of autograd's, in backward passes.
    pub fn new(ranks: usize, in_place: impl Fn(&Tensor) + Send + Sync + 'static) -> Self {
        type InPlace = Box<dyn Fn(&Tensor) + Send + Sync>;
        unsafe extern "C" fn call(data: *mut c_void, tensor: *mut C_tensor) {
            // SAFETY: `data` is the box below, until `release`; `tensor` is alive through the call, and the clone
            // takes part in its reference count.
            unsafe { (*data.cast::<InPlace>())(&Tensor::clone_from_ptr(tensor)) }
        }
        unsafe extern "C" fn release(data: *mut c_void) {
            // SAFETY: called once, when the last graph that uses the operation is gone.
            drop(unsafe { Box::from_raw(data.cast::<InPlace>()) });
        }
        let data = Box::into_raw(Box::new(Box::new(in_place) as InPlace)).cast();
        // SAFETY: the handle owns `data`, and shares it with the graphs that it is used in.
        Self { handle: unsafe { codinet_mean(call, data, release) }, ranks }
    }

    /// All ranks: the mean of `x`.
    pub fn of(&self, x: &Tensor) -> Tensor {
        // SAFETY: the handle and the tensor are alive; the result is a new tensor that tch takes over.
        let mean = unsafe { codinet_mean_apply(self.handle, x.as_ptr() as _) };
        expect(!mean.is_null(), "the mean over ranks");
        // SAFETY: as above.
        unsafe { Tensor::from_ptr(mean) }
    }
}

impl Drop for RankMean {
    fn drop(&mut self) {
        // SAFETY: made by codinet_mean, freed once.
        unsafe { codinet_mean_free(self.handle) };
    }
}

/// The settings of an update.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Learning rate.
    pub lr: f64,
    /// μ.
    pub momentum: f64,
    /// λ.
    pub weight_decay: f64,
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Divides the gradients, f32 `[]`; none: 1.
    pub divisor: Option<&'a Tensor>,
    /// 1: nothing moves, f32 `[]`. Read on the device.
    pub skip: &'a Tensor,
}

/// PyTorch's fused SGD over `(weight, gradient, momentum)`, all of one shape and stride each: one pass over memory.
pub fn fused_sgd(parts: &[(Tensor, Tensor, Tensor)], update: Update) {
    let pointers = |of: fn(&(Tensor, Tensor, Tensor)) -> &Tensor| -> Vec<*const C_tensor> {
        parts.iter().map(|part| of(part).as_ptr() as _).collect()
    };
    let (weights, gradients, momenta) =
        (pointers(|part| &part.0), pointers(|part| &part.1), pointers(|part| &part.2));
    // SAFETY: three arrays of as many tensors as `parts`, alive through the call, as are divisor and skip.
    let updated = unsafe {
        codinet_fused_sgd(
            weights.as_ptr(),
            gradients.as_ptr(),
            momenta.as_ptr(),
            parts.len(),
            update.lr,
            update.momentum,
            update.weight_decay,
            update.nesterov,
            update.divisor.map_or(std::ptr::null(), |divisor| divisor.as_ptr() as _),
            update.skip.as_ptr() as _,
        )
    };
    expect(updated, "fused SGD");
}

/// A moment in a device's current stream; on a CPU, where everything has happened by then, nothing.
#[derive(Debug)]
pub struct Event(*mut c_void);

// SAFETY: a CUDA event may be waited for from any thread; methods that change it take `&mut` or consume it.
unsafe impl Send for Event {}

impl Event {
    /// Now, on the stream that this thread uses.
    pub fn record(device: Device) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        // SAFETY: no arguments but a number; the result is checked.
        let event = unsafe { codinet_event_record(index as c_int) };
        expect(!event.is_null(), "recording an event");
        Some(Self(event))
    }

    /// What this thread's stream does next happens after the event; the host goes on.
    pub fn block(&self) {
        // SAFETY: the event is alive.
        expect(unsafe { codinet_event_block(self.0) }, "waiting for an event");
    }

    /// Whether it has come.
    pub fn is_over(&self) -> bool {
        // SAFETY: the event is alive.
        let answer = unsafe { codinet_event_query(self.0) };
        expect(answer != 0, "asking for an event");
        answer == 1
    }

    /// The host waits for the event.
    pub fn synchronize(&self) {
        // SAFETY: the event is alive.
        expect(unsafe { codinet_event_synchronize(self.0) }, "waiting for an event");
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by codinet_event_record, freed once.
        unsafe { codinet_event_free(self.0) };
    }
}

/// From here on this thread's work on `device` goes to a stream of its own.
pub fn use_side_stream(device: Device) {
    if let Device::Cuda(index) = device {
        // SAFETY: no arguments but a number; the result is checked.
        expect(unsafe { codinet_side_stream(index as c_int) }, "a stream of its own");
    }
}

/// The `cudaStream_t` that this thread uses.
pub fn stream_handle(device: usize) -> *mut c_void {
    // SAFETY: no arguments but a number; the result is checked.
    let stream = unsafe { codinet_stream_handle(device as c_int) };
    expect(!stream.is_null(), "the current stream");
    stream
}
