//! The exponential moving average of weights.

use crate::model::Params;
use tch::{Tensor, no_grad};

/// Exponential moving average of weights and running statistics: e ← d·e + (1 − d)·w each step (Polyak averaging).
#[derive(Debug)]
pub struct Ema {
    /// The average of [`Params::flat`].
    pub flat: Tensor,
    /// The average of [`Params::flat_buffers`].
    pub buffers: Tensor,
    decay: f64,
}

impl Ema {
    /// Starts at the parameters' values.
    pub fn new(params: &Params, decay: f64) -> Self {
        Self { flat: params.flat().copy(), buffers: params.flat_buffers().copy(), decay }
    }

    /// Updates the average after a step; does nothing if `finite`, f32 `[]`, is 0.
    pub fn update(&mut self, params: &Params, finite: &Tensor) {
        let share = finite * (1.0 - self.decay);
        no_grad(|| {
            let _ = self.flat.lerp_tensor_(params.flat(), &share);
            let _ = self.buffers.lerp_tensor_(params.flat_buffers(), &share);
        });
    }

    /// Exchanges the parameters' values and their average; a second call undoes it.
    pub fn exchange(&mut self, params: &Params) {
        no_grad(|| {
            for (mean, value) in [(&mut self.flat, params.flat()), (&mut self.buffers, params.flat_buffers())]
            {
                let before = value.copy();
                value.shallow_clone().copy_(mean);
                mean.copy_(&before);
            }
        });
    }
}
