//! A penalty that keeps the mean cost of a batch at the compute budget.

use super::Term;
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "budget",
    diagnostics: &[],
    weight: |config, stage, _| if config.penalizes(stage) { config.cost.penalty } else { 0.0 },
    evaluate: |_, inputs| match inputs.budget {
        Some(limits) => budget(inputs.decisions, inputs.rates, limits).into(),
        None => Tensor::zeros([], (inputs.decisions.kind(), inputs.decisions.device())).into(),
    },
};

/// A budget of the mean cost of a batch, in shares of the static network's.
#[derive(Clone, Debug)]
pub struct Budget<'a> {
    /// What a gate adds when its block runs, `[n]`.
    pub gates: &'a Tensor,
    /// If no block runs.
    pub fixed: f64,
    /// The budget. A cost below it is too low.
    pub least: f64,
    /// A cost above it is too high: the budget or, on its ramp, more.
    pub most: f64,
}

/// (F − θ)², as in DynConv (Verelst & Tuytelaars, CVPR 2020) and LAUDNet (arXiv 2308.15949): F is the batch's mean cost over all
/// ranks' views, by v, and θ the nearest cost within the budget; 0 within it.
///
/// `decisions` `[N, n]` are this rank's v, with gradient; `rates` `[n]` are the means of v over all ranks, without gradient. The
/// mean over ranks of the ranks' gradients is the loss's gradient.
pub fn budget(decisions: &Tensor, rates: &Tensor, budget: &Budget) -> Tensor {
    let cost = |rates: &Tensor| (rates * budget.gates).sum(None) + budget.fixed;
    let all = cost(rates);
    let excess = (&all - budget.most).clamp_min(0.0) + (&all - budget.least).clamp_max(0.0);
    let slope = &excess * 2.0 * cost(&decisions.mean_dim([0].as_slice(), false, None));
    excess.square() + &slope - slope.detach()
}
