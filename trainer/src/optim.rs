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
