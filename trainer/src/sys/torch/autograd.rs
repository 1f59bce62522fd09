//! Autograd: hooks on gradients, and operations whose backward pass is a Rust closure.
#![expect(unsafe_code, reason = "closures cross libtorch's C++ interface")]

use super::panic_on_error;
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use tch::Tensor;
use torch_sys::C_tensor;

type Release = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn codinet_hook_gradient(
        parameter: *mut C_tensor,
        receive: unsafe extern "C" fn(*mut c_void, *mut C_tensor),
        data: *mut c_void,
        release: Release,
    ) -> bool;
    fn codinet_attach_backward(
        inputs: *const *const C_tensor,
        n_inputs: usize,
        outputs: *const *const C_tensor,
        n_outputs: usize,
        backward: unsafe extern "C" fn(*mut c_void, *const *mut C_tensor, *mut *mut C_tensor),
        data: *mut c_void,
        release: Release,
    ) -> bool;
}

/// From now on each backward pass gives the gradient of `parameter`, of its shape, to `receive` on an autograd thread, and does not
/// keep it. A parameter has one such hook, the last.
pub fn hook_gradient(parameter: &Tensor, receive: impl Fn(Tensor) + Send + Sync + 'static) {
    type Receive = Box<dyn Fn(Tensor) + Send + Sync>;
    unsafe extern "C" fn call(data: *mut c_void, gradient: *mut C_tensor) {
        // SAFETY: `data` is the box below, until `release`; the gradient is a tensor of ours from here on.
        unsafe { (*data.cast::<Receive>())(Tensor::from_ptr(gradient)) }
    }
    unsafe extern "C" fn release(data: *mut c_void) {
        // SAFETY: called once, by the hook's destructor.
        drop(unsafe { Box::from_raw(data.cast::<Receive>()) });
    }
    let data = Box::into_raw(Box::new(Box::new(receive) as Receive)).cast();
    // SAFETY: the tensor is alive; the hook owns `data` from here on and releases it once, even if this call fails.
    let hooked = unsafe { codinet_hook_gradient(parameter.as_ptr() as _, call, data, release) };
    panic_on_error(hooked, "a hook on a gradient");
}

/// Gives `outputs`, computed from `inputs` without autograd, a backward pass. `backward` maps the outputs' gradients (`None`
/// where one is zero) to the inputs' gradients, in order. It is called at most once, on an autograd thread; its captures are
/// freed right after that call, or with the graph.
pub fn attach_backward<const I: usize, const O: usize>(
    inputs: [&Tensor; I],
    outputs: [&Tensor; O],
    backward: impl Fn([Option<Tensor>; O]) -> [Option<Tensor>; I] + Send + 'static,
) {
    type Backward = Box<dyn Fn(*const *mut C_tensor, *mut *mut C_tensor) + Send>;
    unsafe extern "C" fn call(
        data: *mut c_void,
        of_outputs: *const *mut C_tensor,
        of_inputs: *mut *mut C_tensor,
    ) {
        // SAFETY: `data` is the box below, until `release`.
        unsafe { (*data.cast::<Backward>())(of_outputs, of_inputs) }
    }
    unsafe extern "C" fn release(data: *mut c_void) {
        // SAFETY: called once, after the backward pass or by the node's destructor.
        drop(unsafe { Box::from_raw(data.cast::<Backward>()) });
    }
    let closure = move |of_outputs: *const *mut C_tensor, of_inputs: *mut *mut C_tensor| {
        let gradients = std::array::from_fn(|i| {
            // SAFETY: one pointer per output, null or to a tensor that is alive during the call; the clone shares its
            // reference count.
            unsafe {
                let gradient = *of_outputs.add(i);
                (!gradient.is_null()).then(|| Tensor::clone_from_ptr(gradient))
            }
        });
        for (i, gradient) in backward(gradients).into_iter().enumerate() {
            let gradient = gradient
                .map_or(std::ptr::null_mut(), |gradient| ManuallyDrop::new(gradient).as_ptr().cast_mut());
            // SAFETY: room for one pointer per input; the caller owns each new tensor from here on.
            unsafe { *of_inputs.add(i) = gradient };
        }
    };
    let data = Box::into_raw(Box::new(Box::new(closure) as Backward)).cast();
    let inputs = inputs.map(|x| x.as_ptr() as _);
    let outputs = outputs.map(|x| x.as_ptr() as _);
    // SAFETY: arrays of living tensors, of the lengths given. The node owns `data` from here on and releases it once, also
    // where no input needs a gradient or this call fails.
    let attached =
        unsafe { codinet_attach_backward(inputs.as_ptr(), I, outputs.as_ptr(), O, call, data, release) };
    panic_on_error(attached, "an operation's backward pass");
}
