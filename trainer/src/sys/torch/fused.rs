//! PyTorch's fused updates of weights, and the norms of many tensors at once.
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
    fn codinet_fused_adamw(
        weight: *mut C_tensor,
        gradient: *mut C_tensor,
        mean: *mut C_tensor,
        square: *mut C_tensor,
        step: *mut C_tensor,
        lr: f64,
        beta_1: f64,
        beta_2: f64,
        weight_decay: f64,
        epsilon: f64,
        divisor: *const C_tensor,
        skip: *const C_tensor,
    ) -> bool;
    fn codinet_norms(tensors: *const *const C_tensor, n: usize) -> *mut C_tensor;
}

/// The settings of one update by SGD.
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

/// The settings of one update by AdamW.
#[derive(Clone, Copy, Debug)]
pub struct AdamUpdate<'a> {
    pub lr: f64,
    pub betas: (f64, f64),
    /// λ.
    pub weight_decay: f64,
    /// ε.
    pub epsilon: f64,
    /// Updates so far, this one included, f32 `[]`.
    pub step: &'a Tensor,
    /// Divides the gradient, f32 `[]`; `None` for 1.
    pub divisor: Option<&'a Tensor>,
    /// f32 `[]`, read on the device: 1 leaves the tensors as they are.
    pub skip: &'a Tensor,
}

/// Updates `weight` along `gradient`, and the means of gradients and of their squares, in one pass over memory. The four tensors
/// share shape and strides.
pub fn fused_adamw(weight: &Tensor, gradient: &Tensor, mean: &Tensor, square: &Tensor, update: AdamUpdate) {
    // SAFETY: tensors that are alive during the call.
    let updated = unsafe {
        codinet_fused_adamw(
            weight.as_ptr() as _,
            gradient.as_ptr() as _,
            mean.as_ptr() as _,
            square.as_ptr() as _,
            update.step.as_ptr() as _,
            update.lr,
            update.betas.0,
            update.betas.1,
            update.weight_decay,
            update.epsilon,
            update.divisor.map_or(std::ptr::null(), |divisor| divisor.as_ptr() as _),
            update.skip.as_ptr() as _,
        )
    };
    panic_on_error(updated, "fused AdamW");
}

/// The L² norm of each of `tensors`, `[tensors]`: on a GPU a few kernels for all of them.
pub fn norms(tensors: &[Tensor]) -> Tensor {
    let pointers: Vec<_> = tensors.iter().map(|tensor| tensor.as_ptr()).collect();
    // SAFETY: an array of tensors that are alive during the call; the caller owns the new one.
    let norms = unsafe { codinet_norms(pointers.as_ptr(), pointers.len()) };
    panic_on_error(!norms.is_null(), "norms of tensors");
    // SAFETY: not null, and owned by nobody else.
    unsafe { Tensor::from_ptr(norms) }
}
