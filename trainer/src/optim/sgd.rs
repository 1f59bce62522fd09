//! SGD with momentum.

use super::spans::{Span, spans};
use super::{Gradient, Optimizer};
use crate::config::{Optim, Routers};
use crate::dist::World;
use crate::model::Params;
use crate::sys::error::Result;
use crate::sys::{SgdUpdate, fused_sgd};
use tch::Tensor;

/// Stochastic gradient descent with momentum and weight decay, as PyTorch has it (dampening 0):
/// g ← g + λ·w, b ← μ·b + g, w ← w − lr·b, or with Nesterov's momentum w ← w − lr·(g + μ·b).
#[derive(Debug)]
pub struct Sgd {
    /// b, laid out as [`Params::flat`].
    pub momentum: Tensor,
    spans: Vec<Span>,
    options: Optim,
}

impl Sgd {
    /// An optimiser with zero momentum.
    pub fn new(params: &Params, options: &Optim) -> Self {
        let momentum = params.flat().zeros_like();
        Self { momentum, spans: spans(params, options), options: options.clone() }
    }
}

impl Optimizer for Sgd {
    fn step(
        &mut self,
        _world: &World,
        params: &Params,
        gradient: Gradient,
        lr: f64,
        routers: Routers,
    ) -> Result<()> {
        let skip = 1.0 - gradient.finite;
        let divisor = gradient.divisor(&self.options);
        for span in self.spans.iter().filter(|span| span.trains(routers)) {
            fused_sgd(
                &[(span.part(params.flat()), span.part(gradient.flat), span.part(&self.momentum))],
                SgdUpdate {
                    lr: lr * span.lr_factor,
                    momentum: self.options.momentum,
                    weight_decay: span.weight_decay,
                    nesterov: self.options.nesterov,
                    divisor: divisor.as_ref(),
                    skip: &skip,
                },
            );
        }
        Ok(())
    }

    fn state(&self) -> &Tensor {
        &self.momentum
    }

    fn named_state(&self, params: &Params) -> Vec<(String, Tensor)> {
        params.named_views(&self.momentum)
    }
}
