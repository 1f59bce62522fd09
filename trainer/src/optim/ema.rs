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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::params::Role;
    use tch::{Device, Kind};

    fn params() -> Params {
        let mut params = Params::default();
        let role = |norm_or_bias| Role { router: false, norm_or_bias };
        let _ = params.train("w".into(), Tensor::from_slice(&[1.0f32, -2.0, 0.5]), role(false));
        let _ = params.train("b".into(), Tensor::from_slice(&[0.25f32, 4.0]), role(true));
        let _ = params.keep("mean".into(), Tensor::from_slice(&[1.0f32]));
        params.flatten(Device::Cpu);
        params
    }

    fn one() -> Tensor {
        Tensor::from(1.0f32)
    }

    fn close(found: &Tensor, expected: &[f64]) {
        let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-5;
        assert!(found.iter().zip(expected).all(near), "{found:?}, {expected:?}");
    }

    #[test]
    fn average_follows_the_weights_and_exchanges_with_them() {
        let params = params();
        let mut ema = Ema::new(&params, 0.75);
        no_grad(|| {
            let _ = params.flat().shallow_clone().g_add_scalar_(1.0);
            let _ = params.flat_buffers().shallow_clone().g_add_scalar_(4.0);
        });
        ema.update(&params, &one());
        close(&ema.flat, &[1.25, -1.75, 0.75, 0.5, 4.25]);
        close(&ema.buffers, &[2.0]);
        ema.exchange(&params);
        close(params.flat(), &[1.25, -1.75, 0.75, 0.5, 4.25]);
        close(&ema.flat, &[2.0, -1.0, 1.5, 1.25, 5.0]);
        ema.exchange(&params);
        close(params.flat_buffers(), &[5.0]);
    }
}
