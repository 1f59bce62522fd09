//! oneDNN's convolutions on a CPU, without autograd: weights repacked once, ReLU and addition fused.
#![expect(unsafe_code, reason = "libtorch's C++ interface is called through C functions")]

use super::{last_error, panic_on_error};
use tch::Tensor;
use torch_sys::C_tensor;

unsafe extern "C" {
    fn codinet_pack_weight(
        weight: *const C_tensor,
        stride: i64,
        padding: i64,
        input: *const i64,
    ) -> *mut C_tensor;
    fn codinet_conv_forward(
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
        relu: bool,
    ) -> *mut C_tensor;
    fn codinet_conv_forward_add(
        onto: *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        stride: i64,
        padding: i64,
    ) -> bool;
}

/// A convolution whose weight is in oneDNN's layout.
#[derive(Debug)]
pub struct PackedConv {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
    padding: i64,
}

impl PackedConv {
    /// Packs `weight` `[C', C, k, k]` for inputs of `x`'s shape, f32 `[N, C, H, W]`; `None` if libtorch has no oneDNN.
    pub fn new(weight: &Tensor, bias: &Tensor, stride: i64, padding: i64, x: &Tensor) -> Option<Self> {
        let input = x.size();
        assert_eq!(input.len(), 4);
        // SAFETY: a living tensor and four numbers; the caller owns the new tensor.
        let packed = unsafe { codinet_pack_weight(weight.as_ptr() as _, stride, padding, input.as_ptr()) };
        if packed.is_null() {
            panic_on_error(last_error().is_empty(), "packing a convolution's weight");
            return None;
        }
        // SAFETY: not null, and owned by nobody else.
        let weight = unsafe { Tensor::from_ptr(packed) };
        Some(Self { weight, bias: bias.shallow_clone(), stride, padding })
    }

    /// The convolution of `x`, followed by ReLU if `relu`.
    pub fn forward(&self, x: &Tensor, relu: bool) -> Tensor {
        let [x, weight, bias] = [x, &self.weight, &self.bias].map(Tensor::as_ptr);
        // SAFETY: living tensors; the caller owns the new one.
        let y = unsafe { codinet_conv_forward(x, weight, bias, self.stride, self.padding, relu) };
        panic_on_error(!y.is_null(), "a convolution");
        // SAFETY: not null, and owned by nobody else.
        unsafe { Tensor::from_ptr(y) }
    }

    /// Replaces `sum` by ReLU(sum + the convolution of `x`).
    pub fn forward_add(&self, sum: &Tensor, x: &Tensor) {
        let [x, weight, bias] = [x, &self.weight, &self.bias].map(Tensor::as_ptr);
        let sum = sum.as_ptr().cast_mut();
        // SAFETY: living tensors; `sum` shares no memory with `x`.
        let done = unsafe { codinet_conv_forward_add(sum, x, weight, bias, self.stride, self.padding) };
        panic_on_error(done, "a convolution with addition");
    }
}
