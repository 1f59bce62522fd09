//! L_div, Eq. 9: different samples take different paths.

use super::{Term, TermValue, while_routers_train};
use tch::{Kind, Tensor};

pub(super) const TERM: Term = Term {
    name: "div",
    diagnostics: &["centre_distance", "pairs_inside"],
    weight: |config, stage, _| stage.beta.unwrap_or(while_routers_train(stage, config.diversity.weight)),
    evaluate: |config, inputs| {
        compare_pairs(inputs.centres, inputs.peers, inputs.offset, config.diversity.margin)
    },
};

/// Elements of a block of the distance matrix: 1 MB.
const PAIRS_PER_BLOCK: i64 = 1 << 18;
/// The mode of `cdist` without matrix products: identical centres have distance 0.
const DIRECT_DIFFERENCES: i64 = 2;

/// Eq. 9 on one of the S = G/L micro-batches that share `peers`:
/// S/(G(G−1)) Σ_{i here} Σ_{j≠i} \[m_d − ‖c_i − c_j‖\]₊².
///
/// `centres` `[L, n]` are this micro-batch's, with gradient; `peers` `[G, n]` are those of all S, without gradient;
/// `offset` is the row of the first of `centres` in `peers`. G = 1 gives 0.
///
/// The mean over the S micro-batches is Eq. 9 over all G samples. So is the mean of the gradients: it is written out
/// rather than recorded by autograd, and counts each pair from both of its ends, though its other end is a constant here.
pub fn diversity(centres: &Tensor, peers: &Tensor, offset: i64, margin: f64) -> Tensor {
    compare_pairs(centres, peers, offset, margin).loss
}

/// [`diversity`] and, in the same scale, the mean distance between two samples' centres, and the share of pairs that are nearer
/// than the margin: those that have a gradient.
fn compare_pairs(centres: &Tensor, peers: &Tensor, offset: i64, margin: f64) -> TermValue {
    let (own, gates) = centres.size2().expect("[L, n]");
    let all = peers.size()[0];
    if all < 2 || gates == 0 {
        let zero = (centres * 0.0).sum(None);
        let diagnostics = vec![zero.detach(), zero.detach()];
        return TermValue { loss: zero, diagnostics };
    }
    // Some rows at a time, so that memory does not grow with the number of ranks.
    let constant = centres.detach();
    let peers_f64 = peers.to_kind(Kind::Double);
    let rows = (PAIRS_PER_BLOCK / all).clamp(1, own);
    let mut sums: Option<[Tensor; 3]> = None; // of squared hinges, of distances, and of pairs within the margin
    let mut gradients = Vec::new();
    for start in (0..own).step_by(rows as usize) {
        let block = constant.narrow(0, start, rows.min(own - start));
        let distances = Tensor::cdist(&block, peers, 2.0, DIRECT_DIFFERENCES); // [R, G]
        let hinge = (margin - &distances).relu();
        let _ = hinge.diagonal(offset + start, 0, 1).zero_(); // a sample and itself
        let of_block = [hinge.square().sum(None), distances.sum(None), hinge.gt(0.0).sum(centres.kind())];
        sums = Some(match sums {
            None => of_block,
            Some(sums) => std::array::from_fn(|i| &sums[i] + &of_block[i]),
        });
        // ∂[m − d]₊²/∂c_i = −2 [m − d]₊ (c_i − c_j)/d; 0 where d = 0.
        let slope = hinge * -2.0 / distances.where_scalarother(&distances.gt(0.0), 1.0);
        // Σ_j s_ij (c_i − c_j) as matrix products, in f64 because it is a difference of large sums.
        let block = block.to_kind(Kind::Double);
        let slope = slope.to_kind(Kind::Double);
        let gradient = &block * slope.sum_dim_intlist([1].as_slice(), true, None) - slope.matmul(&peers_f64);
        gradients.push(gradient.to_kind(centres.kind()));
    }
    let pairs = (all * (all - 1)) as f64;
    let shares = all as f64 / own as f64;
    let gradient = Tensor::cat(&gradients, 0) / pairs * (2.0 * shares);
    let [loss, distance, inside] = sums.expect("at least one block");
    // The second term is 0; it gives the loss its gradient.
    let loss = loss / pairs * shares + (gradient * (centres - constant)).sum(None);
    TermValue { loss, diagnostics: vec![distance / pairs * shares, inside / pairs * shares] }
}
