//! Conv-AIG's loss, a baseline: each block runs for a given share of the inputs.

use super::{Term, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "target",
    diagnostic: None,
    weight: |config, stage, _| while_routers_train(stage, config.target_rate.weight),
    evaluate: |config, inputs| target_rate(inputs.paths, inputs.peers, config.target_rate.rate).into(),
};

/// Conv-AIG's loss (Veit & Belongie, ECCV 2018): Σ_k (r_k − rate)², r_k the mean of v_k over all ranks' views.
///
/// `paths` `[N, n]` are this rank's, with gradient; `peers` `[G, n]` are all ranks' centres, without gradient. Their mean
/// is r. The gradient on each rank is 2(r_k − rate)·∂(own mean of v_k); its mean over ranks is the loss's gradient.
pub fn target_rate(paths: &Tensor, peers: &Tensor, rate: f64) -> Tensor {
    let excess = peers.mean_dim([0].as_slice(), false, None) - rate;
    let slope = (&excess * 2.0 * paths.mean_dim([0].as_slice(), false, None)).sum(None);
    excess.square().sum(None) + &slope - slope.detach()
}
