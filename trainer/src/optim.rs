//! SGD over the flat buffer: a handful of kernels a step, however many tensors there are.

use crate::config::{Optim, Routers};
use crate::model::Params;
use tch::{Tensor, no_grad};

/// Stochastic gradient descent with momentum and weight decay, as PyTorch has it (dampening 0):
/// b ← μ·b + g + λ·w, w ← w − lr·b.
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

    /// One step along `gradient`, laid out as [`Params::flat`]; frozen routers stay as they are.
    pub fn step(&mut self, params: &Params, gradient: &Tensor, lr: f64, routers: Routers) {
        no_grad(|| {
            for group in params.groups() {
                if group.role.router && routers == Routers::Freeze {
                    continue;
                }
                let part = |flat: &Tensor| flat.narrow(0, group.start, group.len);
                let (mut weight, mut momentum) = (part(params.flat()), part(&self.momentum));
                let decays = self.options.decay_norm_and_bias || !group.role.norm_or_bias;
                let decay = if decays { self.options.weight_decay } else { 0.0 };
                let _ = momentum.g_mul_scalar_(self.options.momentum);
                momentum += &part(gradient);
                momentum += &weight * decay;
                weight -= momentum * lr;
            }
        });
    }
}
