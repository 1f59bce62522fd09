//! Convolutions.

use super::activation::Shape;
use tch::{Kind, Tensor};

/// A convolution. Its weight is cast to the kind of its input.
#[derive(Debug)]
pub struct Conv {
    /// `[C', C, k, k]`.
    pub weight: Tensor,
    /// The weight in bf16, empty where it is not kept (see [`crate::model::Params::keep_bf16_copy`]).
    pub bf16: Option<Tensor>,
    /// `[C']`.
    pub bias: Option<Tensor>,
    /// Of height and width.
    pub stride: i64,
    /// Zeros at every edge.
    pub padding: i64,
}

impl Conv {
    /// `[N, C, H, W]` → `[N, C', H', W']`, of the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let kept = self.bf16.as_ref().filter(|bf16| kind == Kind::BFloat16 && bf16.numel() > 0);
        let weight = kept.map_or_else(|| self.weight.to_kind(kind), Tensor::shallow_clone);
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        x.conv2d(&weight, bias.as_ref(), [self.stride; 2], [self.padding; 2], [1, 1], 1)
    }

    /// A copy without bf16 weights of its own, whose weight and bias are of this kind.
    pub fn to_kind(&self, kind: Kind) -> Self {
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        Self { weight: self.weight.to_kind(kind), bf16: None, bias, ..*self }
    }

    /// The output's shape: H' = ⌊(H + 2·padding − k) / stride⌋ + 1, W' likewise.
    pub fn output_shape(&self, input: Shape) -> Shape {
        let (channels, _, k, _) = self.weight.size4().expect("[C', C, k, k]");
        let length = |input: i64| (input + 2 * self.padding - k) / self.stride + 1;
        Shape { c: channels, h: length(input.h), w: length(input.w) }
    }

    /// MACs of one image: H'·W'·C'·C·k².
    pub fn macs(&self, input: Shape) -> i64 {
        let output = self.output_shape(input);
        output.h * output.w * self.weight.numel() as i64
    }
}
