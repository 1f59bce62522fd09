//! The paper's objective, Eqs. 8 to 12; each equation stands here once.

use tch::{Kind, Reduction, Tensor};

/// α, β, γ of Eq. 12 and the margins of Eqs. 8 and 9.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// α: weight of the consistency loss.
    pub alpha: f64,
    /// β: weight of the diversity loss.
    pub beta: f64,
    /// γ: weight of the cost loss.
    pub gamma: f64,
    /// m_c: how far a view's path may lie from its sample's centre at no loss.
    pub consistency_margin: f64,
    /// m_d: how far apart two samples' centres have to lie.
    pub diversity_margin: f64,
}

/// The parts of Eq. 12 on one rank.
#[derive(Debug)]
pub struct Parts {
    /// L_cls: mean cross entropy over the rank's views.
    pub ce: Tensor,
    /// L_con over the rank's samples.
    pub con: Tensor,
    /// This rank's share P_r of L_div: L_div = Σ_r P_r.
    pub div: Tensor,
    /// L_cost: mean over the rank's views.
    pub cost: Tensor,
}

/// Row-wise L² norm over the last dimension, whose gradient at 0 is 0 and not NaN.
fn norm(x: &Tensor) -> Tensor {
    let squared = x.square().sum_dim_intlist([-1].as_slice(), false, None);
    let positive = squared.gt(0.0);
    let one = Tensor::ones_like(&squared);
    // The inner `where` keeps √0, whose derivative is infinite, out of the graph.
    squared.where_self(&positive, &one).sqrt() * positive.to_kind(x.kind())
}

/// Path centres r̄_i: the mean over the M views, `[L·M, n]` → `[L, n]`.
pub fn centres(paths: &Tensor, views: i64) -> Tensor {
    by_sample(paths, views).mean_dim([1].as_slice(), false, None)
}

fn by_sample(paths: &Tensor, views: i64) -> Tensor {
    let (rows, n) = (paths.size()[0], paths.size()[1]);
    paths.view([rows / views, views, n])
}

/// Every sample's label for each of its views, `[L]` → `[L·M]`.
pub fn by_view(labels: &Tensor, views: i64) -> Tensor {
    labels.unsqueeze(1).expand([-1, views], false).reshape([-1])
}

/// L_cls: mean cross entropy; `labels` is `[L]`, shared by a sample's M views.
pub fn classification(logits: &Tensor, labels: &Tensor, views: i64) -> Tensor {
    let labels = by_view(labels, views);
    logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, 0.0)
}

/// Eq. 8: L_con = 1/(L·M) Σ_i Σ_j \[‖r_ij − r̄_i‖ − m_c\]₊². `paths` is `[L·M, n]`, `centres` `[L, n]`.
pub fn consistency(paths: &Tensor, centres: &Tensor, views: i64, margin: f64) -> Tensor {
    let distances = norm(&(by_sample(paths, views) - centres.unsqueeze(1)));
    (distances - margin).relu().square().mean(None)
}

/// Eq. 9, one rank's share: P_r = 1/(G(G−1)) Σ_{i on r} Σ_{j≠i} \[m_d − ‖c_i − key_j‖\]₊².
///
/// `centres` `[L, n]` are this rank's, with gradient; `keys` `[G, n]` every rank's, in rank order, without;
/// `first` is the place of this rank's first centre among the keys. L_div = Σ_r P_r, and since each pair is
/// seen from both its ends, ∂L_div/∂c_i = 2 · ∂P_r/∂c_i: see [`total`].
pub fn diversity(centres: &Tensor, keys: &Tensor, first: i64, margin: f64) -> Tensor {
    let (own, all) = (centres.size()[0], keys.size()[0]);
    if all < 2 || centres.size()[1] == 0 {
        return (centres * 0.0).sum(None);
    }
    let distances = norm(&(centres.unsqueeze(1) - keys.unsqueeze(0))); // [L, G]
    let options = (Kind::Int64, centres.device());
    let (rows, columns) = (Tensor::arange(own, options) + first, Tensor::arange(all, options));
    let others = rows.unsqueeze(1).not_equal_tensor(&columns.unsqueeze(0)).to_kind(centres.kind());
    let hinge = (-distances + margin).relu().square() * others;
    hinge.sum(None) / (all * (all - 1)) as f64
}

/// Eq. 11: L_cost = Σ_k c_k·v_k, the mean over inputs. `paths` is `[N, n]`, `costs` `[n]`.
pub fn cost(paths: &Tensor, costs: &Tensor) -> Tensor {
    (paths * costs).sum_dim_intlist([1].as_slice(), false, None).mean(None)
}

impl Parts {
    /// What rank r back-propagates: ce + α·con + 2·W·β·P_r + γ·cost.
    ///
    /// Averaged over the W ranks, its gradient is that of Eq. 12 over the whole global batch: the means are
    /// exact as they are, and 2·W turns the mean of the shares' gradients into L_div's.
    pub fn total(&self, weights: &Weights, world: usize) -> Tensor {
        &self.ce
            + &self.con * weights.alpha
            + &self.div * (2.0 * world as f64 * weights.beta)
            + &self.cost * weights.gamma
    }
}
