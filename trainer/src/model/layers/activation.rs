//! Activations between layers.

use crate::sys::attach_backward;
use tch::{Kind, Tensor};

/// The shape of one image's activation, `[C, H, W]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub c: i64,
    /// Height in pixels.
    pub h: i64,
    /// Width in pixels.
    pub w: i64,
}

/// An activation, `[N, C, H, W]`, and its mean over H and W if a kernel computed it along the way.
#[derive(Debug)]
pub struct Activation {
    /// `[N, C, H, W]`.
    pub values: Tensor,
    mean: Option<Tensor>,
}

impl From<Tensor> for Activation {
    fn from(values: Tensor) -> Self {
        Self { values, mean: None }
    }
}

impl Activation {
    /// An activation with its mean over H and W, f32 `[N, C]`.
    pub fn with_mean(values: Tensor, mean: Tensor) -> Self {
        Self { values, mean: Some(mean) }
    }

    /// The mean over H and W, f32 `[N, C]`, if a kernel has computed it.
    pub fn computed_mean(&self) -> Option<&Tensor> {
        self.mean.as_ref()
    }

    /// The mean over H and W, f32 `[N, C]`: the input of routers and of the classifier.
    pub fn mean(&self) -> Tensor {
        self.mean.as_ref().map_or_else(|| mean_over_pixels(&self.values), Tensor::shallow_clone)
    }
}

/// The mean of `x` `[N, C, H, W]` over H and W, f32 `[N, C]`. Its gradient is a broadcast view of one number per channel; the
/// gradient of libtorch's own mean is as large as `x` and has channels first.
fn mean_over_pixels(x: &Tensor) -> Tensor {
    let mean = tch::no_grad(|| x.mean_dim([2, 3].as_slice(), false, Kind::Float));
    let shape = x.size();
    let kind = x.kind();
    let pixels: i64 = shape[2..].iter().product();
    attach_backward([x], [&mean], move |[gradient]| {
        let by_channel = gradient.map(|gradient| (gradient / pixels as f64).to_kind(kind));
        [by_channel.map(|gradient| gradient.unsqueeze(2).unsqueeze(3).expand(&shape, false))]
    });
    mean
}
