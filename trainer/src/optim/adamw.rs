//! AdamW.

use super::moments::Moments;
use super::spans::{Span, spans};
use super::{Gradient, Optimizer};
use crate::config::{Optim, Routers};
use crate::dist::World;
use crate::model::Params;
use crate::sys::error::Result;
use crate::sys::{AdamUpdate, fused_adamw};
use tch::Tensor;

/// Adam with decoupled weight decay (arXiv 1711.05101), as torch.optim.AdamW: w ← w − lr·λ·w, m ← β₁·m + (1 − β₁)·g,
/// v ← β₂·v + (1 − β₂)·g², w ← w − lr·m̂/(√v̂ + ε), with m̂ = m/(1 − β₁ᵗ) and v̂ = v/(1 − β₂ᵗ) at update t.
#[derive(Debug)]
pub struct AdamW {
    moments: Moments,
    spans: Vec<Span>,
    options: Optim,
}

impl AdamW {
    /// An optimiser before its first step.
    pub fn new(params: &Params, options: &Optim) -> Self {
        Self { moments: Moments::new(params), spans: spans(params, options), options: options.clone() }
    }
}

impl Optimizer for AdamW {
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
        self.moments.count_step(gradient.finite, routers);
        for span in self.spans.iter().filter(|span| span.trains(routers)) {
            fused_adamw(
                &span.part(params.flat()),
                &span.part(gradient.flat),
                &span.part(&self.moments.mean),
                &span.part(&self.moments.square),
                AdamUpdate {
                    lr: lr * span.lr_factor,
                    betas: self.options.betas,
                    weight_decay: span.weight_decay,
                    epsilon: self.options.epsilon(),
                    step: &self.moments.steps(span),
                    divisor: divisor.as_ref(),
                    skip: &skip,
                },
            );
        }
        Ok(())
    }

    fn state(&self) -> &Tensor {
        &self.moments.state
    }

    fn named_state(&self, params: &Params) -> Vec<(String, Tensor)> {
        self.moments.named(params)
    }
}
