//! PyTorch's fused SGD.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use super::panic_on_error;
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
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
}

/// The settings of one update.
#[derive(Clone, Copy, Debug)]
pub struct SgdUpdate<'a> {
    pub lr: f64,
    /// μ.
    pub momentum: f64,
    /// λ.
    pub weight_decay: f64,
    pub nesterov: bool,
    /// Divides the gradients, f32 `[]`; `None` for 1.
    pub divisor: Option<&'a Tensor>,
    /// f32 `[]`, read on the device: 1 leaves weights and momenta as they are.
    pub skip: &'a Tensor,
}

/// Updates every `(weight, gradient, momentum)`, whose three tensors share shape and strides, in one pass over memory.
pub fn fused_sgd(parameters: &[(Tensor, Tensor, Tensor)], update: SgdUpdate) {
    let weights: Vec<_> = parameters.iter().map(|(weight, ..)| weight.as_ptr()).collect();
    let gradients: Vec<_> = parameters.iter().map(|(_, gradient, _)| gradient.as_ptr()).collect();
    let momenta: Vec<_> = parameters.iter().map(|(.., momentum)| momentum.as_ptr()).collect();
    // SAFETY: three arrays of one tensor per parameter; all of them, `divisor` and `skip` are alive during the call.
    let updated = unsafe {
        codinet_fused_sgd(
            weights.as_ptr(),
            gradients.as_ptr(),
            momenta.as_ptr(),
            parameters.len(),
            update.lr,
            update.momentum,
            update.weight_decay,
            update.nesterov,
            update.divisor.map_or(std::ptr::null(), |divisor| divisor.as_ptr() as _),
            update.skip.as_ptr() as _,
        )
    };
    panic_on_error(updated, "fused SGD");
}
