//! L_con, Eq. 8: the views of one sample take similar paths.

use super::{Term, TermValue, group_by_sample, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "con",
    diagnostics: &["spread", "views_outside"],
    weight: |config, stage, _| stage.alpha.unwrap_or(while_routers_train(stage, config.consistency.weight)),
    evaluate: |config, inputs| {
        let distances = distances_to_centre(inputs.paths, inputs.centres, inputs.views);
        let margin = config.consistency.margin;
        let loss = squared_hinge(&distances, margin);
        let distances = distances.detach();
        let outside = distances.gt(margin).mean(distances.kind());
        TermValue { loss, diagnostics: vec![distances.mean(None), outside] }
    },
};

/// Eq. 8: L_con = 1/(L·M) Σ_i Σ_j \[‖r_ij − r̄_i‖ − m_c\]₊². `paths` is `[L·M, n]`, `centres` `[L, n]`.
pub fn consistency(paths: &Tensor, centres: &Tensor, views: i64, margin: f64) -> Tensor {
    squared_hinge(&distances_to_centre(paths, centres, views), margin)
}

fn squared_hinge(distances: &Tensor, margin: f64) -> Tensor {
    (distances - margin).relu().square().mean(None)
}

/// ‖r_ij − r̄_i‖: the distance of each view's path from its sample's centre, `[L, M]`.
fn distances_to_centre(paths: &Tensor, centres: &Tensor, views: i64) -> Tensor {
    row_norm(&(group_by_sample(paths, views) - centres.unsqueeze(1)))
}

/// L² norm over the last dimension, with gradient 0, not NaN, at 0.
fn row_norm(x: &Tensor) -> Tensor {
    let squared = x.square().sum_dim_intlist([-1].as_slice(), false, None);
    let positive = squared.gt(0.0);
    // The inner `where` keeps √0, whose derivative is infinite, out of the graph.
    squared.where_scalarother(&positive, 1.0).sqrt() * positive.to_kind(x.kind())
}
