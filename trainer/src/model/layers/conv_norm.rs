//! A convolution and its batch norm.

use super::activation::{Activation, Shape};
use super::batch_norm::{BatchNorm, BnMode};
use super::conv::Conv;
use crate::model::kernels::Epilogue;
use tch::{Kind, Tensor};

/// A convolution without bias and the batch norm that follows it.
#[derive(Debug)]
pub struct ConvNorm {
    /// The convolution.
    pub conv: Conv,
    /// Normalises its output.
    pub norm: BatchNorm,
}

impl ConvNorm {
    /// `[N, C, H, W]` → `[N, C', H', W']`.
    pub fn forward(&self, x: &Tensor, mode: BnMode) -> Tensor {
        self.norm.forward(&self.conv.forward(x), mode)
    }

    /// [`ConvNorm::forward`], followed by `epilogue`.
    pub(crate) fn forward_with(&self, x: &Tensor, mode: BnMode, epilogue: Epilogue) -> Activation {
        self.norm.forward_with(&self.conv.forward(x), mode, epilogue)
    }

    /// This layer in evaluation (with running statistics) as one convolution: weight scale·W, bias shift.
    pub fn fold(&self) -> Conv {
        let (scale, shift) = self.norm.scale_and_shift();
        let weight = self.conv.weight.detach().to_kind(Kind::Double) * scale.view([-1, 1, 1, 1]);
        Conv {
            weight: weight.to_kind(Kind::Float),
            bf16: None,
            bias: Some(shift.to_kind(Kind::Float)),
            stride: self.conv.stride,
            padding: self.conv.padding,
        }
    }

    /// As [`Conv::output_shape`].
    pub fn output_shape(&self, input: Shape) -> Shape {
        self.conv.output_shape(input)
    }

    /// As [`Conv::macs`]: batch norm is not counted, because inference folds it into the convolution.
    pub fn macs(&self, input: Shape) -> i64 {
        self.conv.macs(input)
    }
}
