//! SGD and the running mean of weights, over the flat buffer: a handful of kernels a step, however many tensors there
//! are.

use crate::config::{Optim, Routers};
use crate::model::Params;
use tch::{Tensor, no_grad};

/// Stochastic gradient descent with momentum and weight decay, as PyTorch has it (dampening 0):
/// g ← g + λ·w, b ← μ·b + g, w ← w − lr·b, or with Nesterov's momentum w ← w − lr·(g + μ·b).
#[derive(Debug)]
pub struct Sgd {
    /// b, laid out as [`Params::flat`].
    pub momentum: Tensor,
    options: Optim,
}

impl Sgd {
    /// An optimiser at rest.
    pub fn new(params: &Params, options: &Optim) -> Self {
        Self { momentum: params.flat().zeros_like(), options: options.clone() }
    }

    /// One step along `gradient`, laid out as [`Params::flat`], whose norm is `norm`; frozen routers stay as they are.
    pub fn step(&mut self, params: &Params, gradient: &Tensor, norm: f64, lr: f64, routers: Routers) {
        let Optim { momentum: mu, weight_decay, nesterov, .. } = self.options;
        no_grad(|| {
            let gradient = match self.options.clip_norm {
                Some(most) if norm > most => gradient * (most / norm),
                _ => gradient.shallow_clone(),
            };
            for group in params.groups() {
                if group.role.router && routers == Routers::Freeze {
                    continue;
                }
                let part = |flat: &Tensor| flat.narrow(0, group.start, group.len);
                let (mut weight, mut momentum) = (part(params.flat()), part(&self.momentum));
                let decays = self.options.decay_norm_and_bias || !group.role.norm_or_bias;
                let gradient = part(&gradient) + &weight * if decays { weight_decay } else { 0.0 };
                let _ = momentum.g_mul_scalar_(mu);
                momentum += &gradient;
                match nesterov {
                    true => weight -= (gradient + &momentum * mu) * lr,
                    false => weight -= momentum * lr,
                }
            }
        });
    }
}

/// The running mean of weights and running statistics: e ← d·e + (1 − d)·w each step (Polyak averaging).
#[derive(Debug)]
pub struct Ema {
    /// The mean of [`Params::flat`].
    pub flat: Tensor,
    /// The mean of [`Params::flat_buffers`].
    pub buffers: Tensor,
    decay: f64,
}

impl Ema {
    /// Starts at the parameters' values.
    pub fn new(params: &Params, decay: f64) -> Self {
        Self { flat: params.flat().copy(), buffers: params.flat_buffers().copy(), decay }
    }

    /// Takes in the parameters' values after a step.
    pub fn update(&mut self, params: &Params) {
        no_grad(|| {
            let _ = self.flat.lerp_(params.flat(), 1.0 - self.decay);
            let _ = self.buffers.lerp_(params.flat_buffers(), 1.0 - self.decay);
        });
    }

    /// Exchanges the parameters' values and the mean; a second time undoes it.
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

    fn close(found: &Tensor, expected: &[f64]) {
        let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-5;
        assert!(found.iter().zip(expected).all(near), "{found:?}, {expected:?}");
    }

    /// Three steps of torch.optim.SGD(lr=0.5, momentum=0.9, weight_decay=0.1) on gradients of once, twice and three
    /// times these, with and without Nesterov's momentum, with and without decay of the second parameter.
    #[test]
    fn sgd_is_pytorchs() {
        let gradient = Tensor::from_slice(&[0.3f32, -0.1, 0.2, -0.5, 0.25]);
        for (nesterov, decay_norm_and_bias, expected) in [
            (false, true, [-0.652, -1.001625, -0.5565625, 2.4884688, 1.7726875]),
            (true, false, [-1.4235745, -0.5779129, -1.0542934, 3.88975, 2.180125]),
        ] {
            let params = params();
            let options =
                Optim { momentum: 0.9, weight_decay: 0.1, nesterov, decay_norm_and_bias, ..Optim::default() };
            let mut sgd = Sgd::new(&params, &options);
            for k in 1..=3 {
                sgd.step(&params, &(&gradient * k), 1.0, 0.5, Routers::Train);
            }
            close(params.flat(), &expected);
        }
    }

    #[test]
    fn a_long_gradient_is_clipped() {
        let params = params();
        let options = Optim { momentum: 0.0, weight_decay: 0.0, clip_norm: Some(1.0), ..Optim::default() };
        let gradient = Tensor::from_slice(&[3.0f32, 0.0, 0.0, 4.0, 0.0]);
        Sgd::new(&params, &options).step(&params, &gradient, 5.0, 1.0, Routers::Train);
        close(params.flat(), &[1.0 - 0.6, -2.0, 0.5, 0.25 - 0.8, 4.0]);
        Sgd::new(&params, &options).step(&params, &(gradient * 0.1), 0.5, 1.0, Routers::Train);
        close(params.flat(), &[0.4 - 0.3, -2.0, 0.5, -0.55 - 0.4, 4.0]);
    }

    #[test]
    fn the_mean_of_weights_follows_them_and_changes_places() {
        let params = params();
        let mut ema = Ema::new(&params, 0.75);
        no_grad(|| {
            let _ = params.flat().shallow_clone().g_add_scalar_(1.0);
            let _ = params.flat_buffers().shallow_clone().g_add_scalar_(4.0);
        });
        ema.update(&params);
        close(&ema.flat, &[1.25, -1.75, 0.75, 0.5, 4.25]);
        close(&ema.buffers, &[2.0]);
        ema.exchange(&params);
        close(params.flat(), &[1.25, -1.75, 0.75, 0.5, 4.25]);
        close(&ema.flat, &[2.0, -1.0, 1.5, 1.25, 5.0]);
        ema.exchange(&params);
        close(params.flat_buffers(), &[5.0]);
    }
}
