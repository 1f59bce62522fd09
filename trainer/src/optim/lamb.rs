//! LAMB.

use super::moments::Moments;
use super::spans::{Span, spans};
use super::{Gradient, Optimizer};
use crate::config::{Optim, Routers};
use crate::dist::World;
use crate::model::Params;
use crate::sys::error::Result;
use crate::sys::norms;
use tch::{Kind, Tensor, no_grad};

/// LAMB (arXiv 1904.00962), as timm's `Lamb`. With g scaled down to an L² norm of 1, or `optim.clip_norm`, and m̂ and v̂ as in
/// [`AdamW`](super::AdamW), the update of a tensor is u = m̂/(√v̂ + ε) + λ·w and its step w ← w − lr·r·u. The trust ratio r is |w|/|u|,
/// and 1 where either norm or λ is 0.
#[derive(Debug)]
pub struct Lamb {
    moments: Moments,
    spans: Vec<Span>,
    options: Optim,
}

impl Lamb {
    /// An optimiser before its first step.
    pub fn new(params: &Params, options: &Optim) -> Self {
        Self { moments: Moments::new(params), spans: spans(params, options), options: options.clone() }
    }

    /// u of a span for the gradient `g`, after m and v have moved.
    fn update(&self, span: &Span, weights: &Tensor, g: &Tensor, finite: &Tensor) -> Tensor {
        let (beta_1, beta_2) = self.options.betas;
        let mut mean = span.part(&self.moments.mean);
        let mut square = span.part(&self.moments.square);
        // A share of 0 leaves a mean as it is.
        let _ = mean.lerp_tensor_(g, &(finite * (1.0 - beta_1)));
        let _ = square.lerp_tensor_(&(g * g), &(finite * (1.0 - beta_2)));
        // 1 − βᵗ in f64: f32 would lose most digits while t is small. t is 0 if no gradient has been finite yet.
        let steps = self.moments.steps(span).to_kind(Kind::Double).clamp_min(1.0);
        let correction = |beta: f64| -(&steps * beta.ln()).expm1();
        let mut update = mean / correction(beta_1);
        let _ = update.g_div_(&((square / correction(beta_2)).sqrt() + self.options.epsilon()));
        if span.weight_decay > 0.0 {
            let _ = update.g_add_(&(weights * span.weight_decay));
        }
        update
    }
}

impl Optimizer for Lamb {
    fn step(
        &mut self,
        world: &World,
        params: &Params,
        gradient: Gradient,
        lr: f64,
        routers: Routers,
    ) -> Result<()> {
        let finite = gradient.finite;
        let infinite = finite.eq(0.0);
        let divisor = gradient.divisor(&self.options).expect("LAMB limits the gradient's norm");
        self.moments.count_step(finite, routers);
        for span in self.spans.iter().filter(|span| span.trains(routers)) {
            let mut weights = span.part(params.flat());
            let g = (span.part(gradient.flat) / &divisor).masked_fill(&infinite, 0.0); // 0 times NaN would be NaN
            let mut update = no_grad(|| self.update(span, &weights, &g, finite));
            if span.weight_decay > 0.0 {
                let _ = update.g_mul_(&trust_ratios(world, &weights, &update, &span.lens)?);
            }
            let step = update * (finite * (lr * span.lr_factor));
            let _ = weights.g_sub_(&step);
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

/// All ranks: r of neighbouring tensors of `lens` elements, repeated for each of a tensor's elements.
fn trust_ratios(world: &World, weights: &Tensor, update: &Tensor, lens: &[i64]) -> Result<Tensor> {
    let tensors: Vec<Tensor> =
        [weights, update].into_iter().flat_map(|flat| flat.split_with_sizes(lens, 0)).collect();
    let norms = norms(&tensors);
    // Each rank sums its own norms, perhaps in another order; the weights must stay bit-identical.
    world.broadcast(&norms, 0)?;
    let norms = norms.view([2, -1]);
    let weights = norms.get(0);
    let update = norms.get(1);
    let positive = weights.gt(0.0).logical_and(&update.gt(0.0));
    let ratios = (weights / update).where_scalarother(&positive, 1.0);
    let repeated = |(index, &len): (usize, &i64)| ratios.get(index as i64).expand([len], false);
    Ok(Tensor::cat(&lens.iter().enumerate().map(repeated).collect::<Vec<_>>(), 0))
}
