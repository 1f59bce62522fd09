//! L_cost, Eq. 11: the expected cost of the blocks that run.

use super::{Term, while_routers_train};
use crate::config::Stage;
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "cost",
    diagnostics: &[],
    weight: |_, stage, gamma| self::gamma(stage, gamma),
    evaluate: |_, inputs| cost(inputs.decisions, inputs.costs).into(),
};

/// γ of Eq. 12 in a stage, where the run's γ is `gamma`.
pub fn gamma(stage: &Stage, gamma: f64) -> f64 {
    stage.gamma.unwrap_or(while_routers_train(stage, gamma))
}

/// Eq. 11: L_cost = Σ_k c_k·v_k, the mean over inputs. `paths` is `[N, n]`, `costs` `[n]`.
pub fn cost(paths: &Tensor, costs: &Tensor) -> Tensor {
    (paths * costs).sum_dim_intlist([1].as_slice(), false, None).mean(None)
}
