//! The paper's objective, Eqs. 8 to 12; each equation stands here once.

use crate::config::{Config, Routers, Stage};
use tch::{Kind, Reduction, Tensor};

/// The weights of Eq. 12, and of what is added to it for comparison, with the settings of each term.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Weights {
    /// α: weight of the consistency loss.
    pub alpha: f64,
    /// β: weight of the diversity loss.
    pub beta: f64,
    /// γ: weight of the cost loss.
    pub gamma: f64,
    /// Weight of Conv-AIG's target-rate loss.
    pub target: f64,
    /// Weight of SkipNet's penalty.
    pub run_rate: f64,
    /// m_c: how far a view's path may lie from its sample's centre at no loss.
    pub consistency_margin: f64,
    /// m_d: how far apart two samples' centres have to lie.
    pub diversity_margin: f64,
    /// The rate that Conv-AIG's loss aims at.
    pub target_rate: f64,
    /// ε of label smoothing.
    pub label_smoothing: f64,
}

impl Weights {
    /// The weights as they hold in `stage`, where γ now stands at `gamma`.
    pub fn new(config: &Config, stage: &Stage, gamma: f64) -> Self {
        let trains = |weight: f64| if stage.routers == Routers::Train { weight } else { 0.0 };
        let on = |enabled: bool, weight: f64| if enabled { weight } else { 0.0 };
        let (consistency, diversity) = (&config.consistency, &config.diversity);
        Self {
            alpha: on(consistency.enabled, stage.alpha.unwrap_or(trains(consistency.weight))),
            beta: on(diversity.enabled, stage.beta.unwrap_or(trains(diversity.weight))),
            gamma: stage.gamma.unwrap_or(trains(gamma)),
            target: trains(config.target_rate.weight),
            run_rate: trains(config.run_rate.weight),
            consistency_margin: consistency.margin,
            diversity_margin: diversity.margin,
            target_rate: config.target_rate.rate,
            label_smoothing: config.optim.label_smoothing,
        }
    }
}

/// The parts of the objective on one rank.
#[derive(Debug)]
pub struct Parts {
    /// L_cls: mean cross entropy over the rank's views.
    pub ce: Tensor,
    /// L_con over the rank's samples.
    pub con: Tensor,
    /// This rank's share P_r of L_div: L_div = Σ_r P_r. Where a rank's A micro-batches share the keys, A times the
    /// micro-batch's share, for the mean over micro-batches is taken in the end.
    pub div: Tensor,
    /// L_cost: mean over the rank's views.
    pub cost: Tensor,
    /// Conv-AIG's loss over all ranks' views.
    pub target: Tensor,
    /// SkipNet's penalty: mean over the rank's views.
    pub run_rate: Tensor,
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

/// The classes of a batch's samples, `[L]` each, shared by a sample's M views.
#[derive(Debug)]
pub struct Labels {
    /// y.
    pub own: Tensor,
    /// Where samples are mixtures of two (mixup, CutMix): y', and λ, the share of y.
    pub partner: Option<(Tensor, f64)>,
}

impl From<Tensor> for Labels {
    fn from(own: Tensor) -> Self {
        Self { own, partner: None }
    }
}

impl Labels {
    /// The labels of each of `count` equal parts of the batch.
    pub fn chunk(&self, count: i64) -> Vec<Self> {
        let partners = self.partner.as_ref().map(|(labels, share)| (labels.chunk(count, 0), *share));
        let parts = self.own.chunk(count, 0).into_iter().enumerate();
        let part = |i: usize| partners.as_ref().map(|(labels, share)| (labels[i].shallow_clone(), *share));
        parts.map(|(i, own)| Self { own, partner: part(i) }).collect()
    }
}

/// L_cls: mean cross entropy; of mixtures λ·CE(y) + (1 − λ)·CE(y').
pub fn classification(logits: &Tensor, labels: &Labels, views: i64, smoothing: f64) -> Tensor {
    let ce = |labels: &Tensor| {
        let labels = by_view(labels, views);
        logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, smoothing)
    };
    match &labels.partner {
        None => ce(&labels.own),
        Some((partner, share)) => ce(&labels.own) * *share + ce(partner) * (1.0 - share),
    }
}

/// ‖r_ij − r̄_i‖: how far each view's path lies from its sample's centre, `[L, M]`.
pub fn spread(paths: &Tensor, centres: &Tensor, views: i64) -> Tensor {
    norm(&(by_sample(paths, views) - centres.unsqueeze(1)))
}

/// Eq. 8: L_con = 1/(L·M) Σ_i Σ_j \[‖r_ij − r̄_i‖ − m_c\]₊². `paths` is `[L·M, n]`, `centres` `[L, n]`.
pub fn consistency(paths: &Tensor, centres: &Tensor, views: i64, margin: f64) -> Tensor {
    (spread(paths, centres, views) - margin).relu().square().mean(None)
}

/// Eq. 9, one rank's share: P_r = 1/(G(G−1)) Σ_{i on r} Σ_{j≠i} \[m_d − ‖c_i − key_j‖\]₊².
///
/// `centres` `[L, n]` are this rank's, with gradient; `keys` `[G, n]` every rank's, in rank order, without;
/// `first` is the place of this rank's first centre among the keys. L_div = Σ_r P_r, and since each pair is
/// seen from both its ends, ∂L_div/∂c_i = 2 · ∂P_r/∂c_i: see [`total`].
pub fn diversity(centres: &Tensor, keys: &Tensor, first: i64, margin: f64) -> Tensor {
    separation(centres, keys, first, margin).0
}

/// What [`diversity`] gives, and, without gradient, the same share of the mean distance between two samples' centres:
/// 1/(G(G−1)) Σ_{i on r} Σ_{j≠i} ‖c_i − key_j‖.
pub fn separation(centres: &Tensor, keys: &Tensor, first: i64, margin: f64) -> (Tensor, Tensor) {
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

/// Eq. 11: L_cost = Σ_k c_k·v_k, the mean over inputs. `paths` is `[N, n]`, `costs` `[n]`.
pub fn cost(paths: &Tensor, costs: &Tensor) -> Tensor {
    (paths * costs).sum_dim_intlist([1].as_slice(), false, None).mean(None)
}

/// Conv-AIG's loss (Veit & Belongie, ECCV 2018): Σ_k (r_k − rate)², r_k the mean of v_k over all ranks' views.
///
/// `paths` `[N, n]` are this rank's, with gradient; `keys` `[G, n]` every rank's centres, without, whose mean is r. The
/// gradient on each rank is 2(r_k − rate)·∂(own mean of v_k), of which the mean over ranks is the loss's own.
pub fn target_rate(paths: &Tensor, keys: &Tensor, rate: f64) -> Tensor {
    let off = keys.mean_dim([0].as_slice(), false, None) - rate;
    let slope = (&off * 2.0 * paths.mean_dim([0].as_slice(), false, None)).sum(None);
    off.square().sum(None) + &slope - slope.detach()
}

/// SkipNet's penalty (Wang et al., ECCV 2018): the mean of v over inputs and blocks; 0 without blocks.
pub fn run_rate(paths: &Tensor) -> Tensor {
    match paths.size()[1] {
        0 => paths.sum(None),
        _ => paths.mean(None),
    }
}

impl Parts {
    /// What rank r back-propagates: ce + α·con + 2·W·β·P_r + γ·cost, and the baselines' terms.
    ///
    /// Averaged over the W ranks, its gradient is that of Eq. 12 over the whole global batch: the means are
    /// exact as they are, and 2·W turns the mean of the shares' gradients into L_div's.
    pub fn total(&self, weights: &Weights, world: usize) -> Tensor {
        &self.ce
            + &self.con * weights.alpha
            + &self.div * (2.0 * world as f64 * weights.beta)
            + &self.cost * weights.gamma
            + &self.target * weights.target
            + &self.run_rate * weights.run_rate
    }
}
