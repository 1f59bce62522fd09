//! Eq. 9: different samples shall take different paths.

use super::{Found, Outcome, Over, Term, while_routers_train};
use tch::{Kind, Tensor};

pub(super) const TERM: Term = Term {
    name: "div",
    beside: Some("centre_distance"),
    over: Over::Pairs,
    weight: |config, stage, _| stage.beta.unwrap_or(while_routers_train(stage, config.diversity.weight)),
    find: |config, outcome| {
        let Outcome { centres, keys, first, .. } = *outcome;
        let (loss, apart) = separation(centres, keys, first, config.diversity.margin);
        Found { loss, beside: Some(apart) }
    },
};

/// Eq. 9, one rank's share: P_r = 1/(G(G−1)) Σ_{i on r} Σ_{j≠i} \[m_d − ‖c_i − key_j‖\]₊².
///
/// `centres` `[L, n]` are this rank's, with gradient; `keys` `[G, n]` every rank's, in rank order, without;
/// `first` is the place of this rank's first centre among the keys. L_div = Σ_r P_r, and since each pair is
/// seen from both its ends, ∂L_div/∂c_i = 2 · ∂P_r/∂c_i: see [`Over::Pairs`].
pub fn diversity(centres: &Tensor, keys: &Tensor, first: i64, margin: f64) -> Tensor {
    separation(centres, keys, first, margin).0
}

/// What [`diversity`] gives, and, without gradient, the same share of the mean distance between two samples' centres:
/// 1/(G(G−1)) Σ_{i on r} Σ_{j≠i} ‖c_i − key_j‖.
fn separation(centres: &Tensor, keys: &Tensor, first: i64, margin: f64) -> (Tensor, Tensor) {
    let (own, all, n) = (centres.size()[0], keys.size()[0], centres.size()[1]);
    if all < 2 || n == 0 {
        let nothing = (centres * 0.0).sum(None);
        return (nothing.shallow_clone(), nothing.detach());
    }
    // The gradient is written out rather than recorded, some rows at a time: memory stays flat however many keys.
    let (fixed, wide_keys) = (centres.detach(), keys.to_kind(Kind::Double));
    let rows = (PAIRS_AT_ONCE / all).clamp(1, own);
    let columns = Tensor::arange(all, (Kind::Int64, centres.device()));
    let zero = || Tensor::zeros([], (centres.kind(), centres.device()));
    let (mut value, mut apart, mut slopes) = (zero(), zero(), Vec::new());
    for start in (0..own).step_by(rows as usize) {
        let part = fixed.narrow(0, start, rows.min(own - start));
        let distances = Tensor::cdist(&part, keys, 2.0, BY_DIFFERENCES); // [R, G]
        apart += distances.sum(None);
        let itself = Tensor::arange(part.size()[0], (Kind::Int64, centres.device())) + (first + start);
        let others = itself.unsqueeze(1).not_equal_tensor(&columns.unsqueeze(0)).to_kind(centres.kind());
        let hinge = (-&distances + margin).relu() * others;
        value += hinge.square().sum(None);
        // ∂[m − d]₊²/∂c_i = −2 [m − d]₊ (c_i − key_j)/d; 0 where d = 0.
        let one = Tensor::ones_like(&distances);
        let slope = hinge * -2.0 / distances.where_self(&distances.gt(0.0), &one);
        // Σ_j s_ij (c_i − key_j), by products of matrices; in f64, for it is a difference of large sums.
        let (part, slope) = (part.to_kind(Kind::Double), slope.to_kind(Kind::Double));
        let away = part * slope.sum_dim_intlist([1].as_slice(), true, None) - slope.matmul(&wide_keys);
        slopes.push(away.to_kind(centres.kind()));
    }
    let pairs = (all * (all - 1)) as f64;
    let loss = value / pairs + (Tensor::cat(&slopes, 0) / pairs * (centres - fixed)).sum(None);
    (loss, apart / pairs)
}

/// Pairs of centres looked at at once: 1 MB of distances.
const PAIRS_AT_ONCE: i64 = 1 << 18;
/// `cdist`'s mode without matrix products: two centres that are the same are at distance 0.
const BY_DIFFERENCES: i64 = 2;
