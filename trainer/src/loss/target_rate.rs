//! Conv-AIG's loss, a baseline: each block runs for a given share of the inputs.

use super::{Term, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "target",
    diagnostics: &[],
    weight: |config, stage, _| while_routers_train(stage, config.target_rate.weight),
    evaluate: |config, inputs| target_rate(inputs.decisions, inputs.rates, config.target_rate.rate).into(),
};

/// Conv-AIG's loss (Veit & Belongie, ECCV 2018): Σ_k (r_k − rate)², r_k the mean of v_k over all ranks' views.
///
/// `decisions` `[N, n]` are this rank's v, with gradient; `rates` `[n]` are r, without gradient. The gradient on each rank is
/// 2(r_k − rate)·∂(own mean of v_k); its mean over ranks is the loss's gradient.
pub fn target_rate(decisions: &Tensor, rates: &Tensor, rate: f64) -> Tensor {
    let excess = rates - rate;
    let slope = (&excess * 2.0 * decisions.mean_dim([0].as_slice(), false, None)).sum(None);
    excess.square().sum(None) + &slope - slope.detach()
}
