//! Conv-AIG's loss, for comparison: each block shall run for a given share of inputs.

use super::{Found, Over, Term, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "target",
    beside: None,
    over: Over::Mean,
    weight: |config, stage, _| while_routers_train(stage, config.target_rate.weight),
    find: |config, outcome| Found::loss(target_rate(outcome.paths, outcome.keys, config.target_rate.rate)),
};

/// Conv-AIG's loss (Veit & Belongie, ECCV 2018): Σ_k (r_k − rate)², r_k the mean of v_k over all ranks' views.
///
/// `paths` `[N, n]` are this rank's, with gradient; `keys` `[G, n]` every rank's centres, without, whose mean is r. The
/// gradient on each rank is 2(r_k − rate)·∂(own mean of v_k), of which the mean over ranks is the loss's own.
pub fn target_rate(paths: &Tensor, keys: &Tensor, rate: f64) -> Tensor {
    let off = keys.mean_dim([0].as_slice(), false, None) - rate;
    let slope = (&off * 2.0 * paths.mean_dim([0].as_slice(), false, None)).sum(None);
    off.square().sum(None) + &slope - slope.detach()
}
