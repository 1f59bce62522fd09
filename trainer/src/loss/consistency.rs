//! Eq. 8: views of one sample shall take like paths.

use super::{Found, Outcome, Over, Term, by_sample, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "con",
    beside: Some("spread"),
    over: Over::Mean,
    weight: |config, stage, _| stage.alpha.unwrap_or(while_routers_train(stage, config.consistency.weight)),
    find: |config, outcome| {
        let Outcome { paths, centres, views, .. } = *outcome;
        let spread = spread(paths, centres, views);
        let loss = beyond(&spread, config.consistency.margin);
        Found { loss, beside: Some(spread.detach().mean(None)) }
    },
};

/// Eq. 8: L_con = 1/(L·M) Σ_i Σ_j \[‖r_ij − r̄_i‖ − m_c\]₊². `paths` is `[L·M, n]`, `centres` `[L, n]`.
pub fn consistency(paths: &Tensor, centres: &Tensor, views: i64, margin: f64) -> Tensor {
    beyond(&spread(paths, centres, views), margin)
}

fn beyond(spread: &Tensor, margin: f64) -> Tensor {
    (spread - margin).relu().square().mean(None)
}

/// ‖r_ij − r̄_i‖: how far each view's path lies from its sample's centre, `[L, M]`.
fn spread(paths: &Tensor, centres: &Tensor, views: i64) -> Tensor {
    norm(&(by_sample(paths, views) - centres.unsqueeze(1)))
}

/// Row-wise L² norm over the last dimension, whose gradient at 0 is 0 and not NaN.
fn norm(x: &Tensor) -> Tensor {
    let squared = x.square().sum_dim_intlist([-1].as_slice(), false, None);
    let positive = squared.gt(0.0);
    let one = Tensor::ones_like(&squared);
    // The inner `where` keeps √0, whose derivative is infinite, out of the graph.
    squared.where_self(&positive, &one).sqrt() * positive.to_kind(x.kind())
}
