//! What tch lacks of libtorch: hooks on gradients, operations with a backward pass of their own, its threads, the fused
//! update, streams and pinned memory. The C++ half is `native/shim.cpp`. What needs a GPU is untested: none has run it yet.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use tch::kind::Element;
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
    fn codinet_function(
        inputs: *const *const C_tensor,
        n_inputs: usize,
        outputs: *const *const C_tensor,
        n_outputs: usize,
        backward: unsafe extern "C" fn(*mut c_void, *const *mut C_tensor, *mut *mut C_tensor),
        data: *mut c_void,
        release: Release,
    ) -> bool;
    fn codinet_parallel(
        tasks: usize,
        task: unsafe extern "C" fn(*mut c_void, usize),
        data: *mut c_void,
    ) -> bool;
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
    fn codinet_pack_weight(
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        input: *const i64,
    ) -> *mut C_tensor;
    fn codinet_convolve(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        relu: bool,
    ) -> *mut C_tensor;
    fn codinet_convolve_onto(
        onto: *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
    ) -> bool;
    fn codinet_event_record(device: c_int, timed: bool) -> *mut c_void;
    fn codinet_event_block(event: *mut c_void) -> bool;
    fn codinet_event_query(event: *mut c_void) -> c_int;
    fn codinet_event_synchronize(event: *mut c_void) -> bool;
    fn codinet_event_between(earlier: *mut c_void, later: *mut c_void, milliseconds: *mut f64) -> bool;
    fn codinet_event_free(event: *mut c_void);
    fn codinet_use_device(device: c_int) -> bool;
    fn codinet_side_stream(device: c_int) -> bool;
    fn codinet_stream_new(device: c_int) -> *mut c_void;
    fn codinet_stream_exchange(stream: *mut c_void) -> bool;
    fn codinet_stream_free(stream: *mut c_void);
    fn codinet_pinned(tensor: *const C_tensor) -> *mut C_tensor;
    fn codinet_used_here(tensor: *mut C_tensor) -> bool;
    fn codinet_allow_tf32() -> bool;
    fn codinet_stream_handle(device: c_int, handle: *mut *mut c_void) -> bool;
}

/// Panics with libtorch's words where a call failed: what these functions refuse is a bug or a lost device.
pub(crate) fn expect(succeeded: bool, call: &str) {
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

/// Makes `outputs`, which were computed from `inputs` without autograd's knowing, an operation of autograd's: `backward`
/// turns the gradients of the outputs, `None` where one is zero, into those of the inputs, in order. Called at most once,
/// on a thread of autograd's; what it holds is freed right after, or with the graph.
pub fn function<const I: usize, const O: usize>(
    inputs: [&Tensor; I],
    outputs: [&Tensor; O],
    backward: impl Fn([Option<Tensor>; O]) -> [Option<Tensor>; I] + Send + 'static,
) {
    type Backward = Box<dyn Fn(*const *mut C_tensor, *mut *mut C_tensor) + Send>;
    unsafe extern "C" fn call(data: *mut c_void, gradients: *const *mut C_tensor, found: *mut *mut C_tensor) {
        // SAFETY: `data` is the box below, until `release`.
        unsafe { (*data.cast::<Backward>())(gradients, found) }
    }
    unsafe extern "C" fn release(data: *mut c_void) {
        // SAFETY: called once, after the backward pass or by the node's destructor.
        drop(unsafe { Box::from_raw(data.cast::<Backward>()) });
    }
    let closure = move |gradients: *const *mut C_tensor, found: *mut *mut C_tensor| {
        let given = std::array::from_fn(|i| {
            // SAFETY: as many pointers as outputs, null or to a tensor alive through the call, whose reference count
            // the clone takes part in.
            unsafe {
                let gradient = *gradients.add(i);
                (!gradient.is_null()).then(|| Tensor::clone_from_ptr(gradient))
            }
        });
        for (i, gradient) in backward(given).into_iter().enumerate() {
            let gradient =
                gradient.map_or(std::ptr::null_mut(), |one| ManuallyDrop::new(one).as_ptr().cast_mut());
            // SAFETY: room for as many pointers as inputs; each new tensor is the caller's from here on.
            unsafe { *found.add(i) = gradient };
        }
    };
    let data = Box::into_raw(Box::new(Box::new(closure) as Backward)).cast();
    let (inputs, outputs) = (inputs.map(|x| x.as_ptr() as _), outputs.map(|x| x.as_ptr() as _));
    // SAFETY: arrays of living tensors, of the lengths given; the node owns `data` from here on and releases it once, also
    // where no input needs a gradient or this fails.
    let made = unsafe { codinet_function(inputs.as_ptr(), I, outputs.as_ptr(), O, call, data, release) };
    expect(made, "an operation's backward pass");
}

/// Calls `task(0)` to `task(tasks − 1)`, each once, on libtorch's own threads, as many as it is set to use.
pub fn parallel<F: Fn(usize) + Sync>(tasks: usize, task: F) {
    unsafe extern "C" fn call<F: Fn(usize)>(data: *mut c_void, index: usize) {
        // SAFETY: `data` is the closure below, which outlives the loop and may be shared by threads.
        unsafe { (*data.cast::<F>())(index) }
    }
    // SAFETY: as above; the loop is over when the call returns.
    let done = unsafe { codinet_parallel(tasks, call::<F>, (&raw const task).cast_mut().cast()) };
    expect(done, "a parallel loop");
}

/// A convolution on a CPU by oneDNN: its weight in the layout that oneDNN wants, what follows it done with it. Without
/// autograd.
#[derive(Debug)]
pub struct Convolution {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl Convolution {
    /// For inputs like `x`, f32 `[N, C, H, W]`; `None` where libtorch is without oneDNN.
    pub fn new(weight: &Tensor, bias: &Tensor, stride: i64, padding: i64, x: &Tensor) -> Option<Self> {
        let input = x.size();
        assert_eq!(input.len(), 4);
        // SAFETY: a living tensor and four numbers; the new tensor is the caller's.
        let packed = unsafe { codinet_pack_weight(weight.as_ptr() as _, stride, padding, input.as_ptr()) };
        // SAFETY: a NUL-terminated string.
        let failed = packed.is_null() && unsafe { *codinet_error() != 0 };
        expect(!failed, "a convolution's weight");
        // SAFETY: not null, and nobody else's.
        let weight = (!packed.is_null()).then(|| unsafe { Tensor::from_ptr(packed) })?;
        Some(Self { weight, bias: bias.shallow_clone(), stride, padding })
    }

    /// The convolution of `x`, and ReLU where asked for.
    pub fn of(&self, x: &Tensor, relu: bool) -> Tensor {
        let [x, weight, bias] = [x, &self.weight, &self.bias].map(Tensor::as_ptr);
        // SAFETY: living tensors; the new one is the caller's.
        let made = unsafe { codinet_convolve(x, weight, bias, self.stride, self.padding, relu) };
        expect(!made.is_null(), "a convolution");
        // SAFETY: not null, and nobody else's.
        unsafe { Tensor::from_ptr(made) }
    }

    /// `onto` becomes ReLU(onto + the convolution of `x`), in place.
    pub fn onto(&self, onto: &Tensor, x: &Tensor) {
        let [x, weight, bias] = [x, &self.weight, &self.bias].map(Tensor::as_ptr);
        let onto = onto.as_ptr().cast_mut();
        // SAFETY: living tensors; `onto` shares no memory with `x`, of which it may be read.
        let done = unsafe { codinet_convolve_onto(onto, x, weight, bias, self.stride, self.padding) };
        expect(done, "a convolution onto a tensor");
    }
}

/// The mean over ranks, as an operation of autograd's.
pub struct RankMean {
    in_place: Arc<dyn Fn(&Tensor) + Send + Sync>,
    /// How many ranks there are.
    pub ranks: usize,
}

impl RankMean {
    /// `in_place` replaces a tensor by its mean over ranks; all ranks call it in the same order, in forward passes and, on a
    /// thread of autograd's, in backward passes.
    pub fn new(ranks: usize, in_place: impl Fn(&Tensor) + Send + Sync + 'static) -> Self {
        Self { in_place: Arc::new(in_place), ranks }
    }

    /// All ranks: the mean of `x`. It is linear, and each rank's gradient is averaged in the end: its gradient is the mean
    /// of the gradients.
    pub fn of(&self, x: &Tensor) -> Tensor {
        let mean = |in_place: &dyn Fn(&Tensor), x: &Tensor| {
            let y = x.detach().contiguous().copy();
            in_place(&y);
            y
        };
        let y = mean(&*self.in_place, x);
        let in_place = self.in_place.clone();
        function([x], [&y], move |[gradient]| [gradient.map(|gradient| mean(&*in_place, &gradient))]);
        y
    }
}

impl fmt::Debug for RankMean {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("RankMean").field("ranks", &self.ranks).finish_non_exhaustive()
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

/// `x` `[N, C, H, W]`, or a copy of it, with channels innermost.
pub fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// A moment in a device's current stream; on a CPU, where everything has happened by then, nothing.
#[derive(Debug)]
pub struct Event(*mut c_void);

// SAFETY: a CUDA event may be waited for from any thread; methods that change it take `&mut` or consume it.
unsafe impl Send for Event {}

impl Event {
    /// Now, on the stream that this thread uses.
    pub fn record(device: Device) -> Option<Self> {
        Self::new(device, false)
    }

    /// The same, for [`Event::since`].
    pub fn record_timed(device: Device) -> Option<Self> {
        Self::new(device, true)
    }

    fn new(device: Device, timed: bool) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        // SAFETY: no arguments but a number and a flag; the result is checked.
        let event = unsafe { codinet_event_record(index as c_int, timed) };
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

    /// Milliseconds since an earlier one, both timed; the host waits for them.
    pub fn since(&self, earlier: &Self) -> f64 {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and the number outlives the call.
        let done = unsafe { codinet_event_between(earlier.0, self.0, &raw mut milliseconds) };
        expect(done, "the time between two events");
        milliseconds
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by codinet_event_record, freed once.
        unsafe { codinet_event_free(self.0) };
    }
}

/// From here on this thread is `device`'s: what names no device runs there, and nothing makes a context on GPU 0.
pub fn use_device(device: Device) {
    if let Device::Cuda(index) = device {
        // SAFETY: no arguments but a number; the result is checked.
        expect(unsafe { codinet_use_device(index as c_int) }, "a thread's device");
    }
}

/// From here on this thread's work on `device` goes to a stream of its own.
pub fn use_side_stream(device: Device) {
    if let Device::Cuda(index) = device {
        // SAFETY: no arguments but a number; the result is checked.
        expect(unsafe { codinet_side_stream(index as c_int) }, "a stream of its own");
    }
}

/// A stream beside the one that this thread uses.
#[derive(Debug)]
pub struct Stream(*mut c_void);

impl Stream {
    /// One of libtorch's pool; none on a CPU.
    pub fn beside(device: Device) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        // SAFETY: no arguments but a number; the result is checked.
        let stream = unsafe { codinet_stream_new(index as c_int) };
        expect(!stream.is_null(), "a stream");
        Some(Self(stream))
    }

    /// What `work` gives the device goes to this stream.
    pub fn run<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.exchange();
        let done = work();
        self.exchange();
        done
    }

    /// A panic between two calls ends the job.
    fn exchange(&mut self) {
        // SAFETY: the stream is alive, and no other thread's.
        expect(unsafe { codinet_stream_exchange(self.0) }, "a change of stream");
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by codinet_stream_new, freed once.
        unsafe { codinet_stream_free(self.0) };
    }
}

/// A copy of `values`, `[values]`, in pinned memory, as [`pinned_tensor`]'s.
pub fn pinned<T: Element>(values: &[T]) -> Tensor {
    let shape = [values.len() as i64];
    // SAFETY: as many elements as it says, which are only read, and outlive the tensor.
    pinned_tensor(&unsafe { Tensor::from_blob(values.as_ptr().cast(), &shape, &[1], T::KIND, Device::Cpu) })
}

/// A copy of a CPU's tensor in pinned memory, from which a GPU copies while the host goes on. libtorch keeps the memory until
/// copies that were started from it are over, by their events, and then uses it again. Needs a GPU.
pub fn pinned_tensor(tensor: &Tensor) -> Tensor {
    // SAFETY: a living tensor; the new one is the caller's.
    let copy = unsafe { codinet_pinned(tensor.as_ptr() as _) };
    expect(!copy.is_null(), "pinned memory");
    // SAFETY: not null, and nobody else's.
    unsafe { Tensor::from_ptr(copy) }
}

/// The memory of `tensor`, which another stream's work made, is used again only after what this thread's stream has been
/// given by the time it is freed.
pub fn used_here(tensor: &Tensor) {
    // SAFETY: a living tensor of a GPU.
    expect(unsafe { codinet_used_here(tensor.as_ptr() as _) }, "a tensor's use on another stream");
}

/// fp32 convolutions and products of matrices may round what they multiply to TF32, on GPUs that have it.
pub fn allow_tf32() {
    // SAFETY: no arguments; the result is checked.
    expect(unsafe { codinet_allow_tf32() }, "TF32");
}

/// The `cudaStream_t` that this thread uses; the default stream's is null.
pub fn stream_handle(device: usize) -> *mut c_void {
    let mut stream = std::ptr::null_mut();
    // SAFETY: a number, and room for the handle that is written.
    expect(unsafe { codinet_stream_handle(device as c_int, &mut stream) }, "the current stream");
    stream
}
