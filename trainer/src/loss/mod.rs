//! The paper's objective, Eqs. 8 to 12, and what is added to it for comparison: a sum of terms, each of which stands in a
//! file of its own, once.

mod classification;
mod consistency;
mod cost;
mod diversity;
mod run_rate;
mod target_rate;

pub use classification::{Labels, classification};
pub use consistency::consistency;
pub use cost::{cost, gamma};
pub use diversity::diversity;
pub use run_rate::run_rate;
pub use target_rate::target_rate;

use crate::config::{Config, Routers, Stage};
use tch::Tensor;

/// The terms, in the order in which they are added up and told.
pub const TERMS: &[Term] = &[
    classification::TERM,
    consistency::TERM,
    diversity::TERM,
    cost::TERM,
    target_rate::TERM,
    run_rate::TERM,
];

/// A term of the objective.
pub struct Term {
    /// What `metrics.jsonl` and TensorBoard call it.
    pub name: &'static str,
    /// What is measured beside it, under which name.
    pub beside: Option<&'static str>,
    over: Over,
    /// Its weight in a stage, where γ stands at that much.
    weight: fn(&Config, &Stage, f64) -> f64,
    find: fn(&Config, &Outcome) -> Found,
}

/// How ranks' values become the global batch's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    /// It is their mean.
    Mean,
    /// It is their sum, over pairs of samples of which a rank has those with its own samples in first place. Each pair is seen
    /// from both its ends, but only one is the rank's own, so the gradient is twice that of the sum.
    Pairs,
}

/// A term over a micro-batch, each `[]`.
struct Found {
    /// With gradient.
    loss: Tensor,
    /// Without.
    beside: Option<Tensor>,
}

impl Found {
    fn loss(loss: Tensor) -> Self {
        Self { loss, beside: None }
    }
}

/// What a forward pass of a micro-batch came to, of which terms are made: L samples, M views each, n gates.
#[derive(Debug)]
pub struct Outcome<'a> {
    /// `[L·M, classes]`.
    pub logits: &'a Tensor,
    /// Of L samples.
    pub labels: &'a Labels,
    /// M.
    pub views: i64,
    /// r: what the gates decided, `[L·M, n]`.
    pub paths: &'a Tensor,
    /// r̄: their means over views, `[L, n]`.
    pub centres: &'a Tensor,
    /// The centres of all samples that are told apart, over all ranks in rank order, without gradient, `[G, n]`.
    pub keys: &'a Tensor,
    /// The place of this micro-batch's first centre among them.
    pub first: i64,
    /// How many micro-batches of this rank share the keys; of pairs, each has its own share.
    pub sharers: f64,
    /// c_k of Eq. 11, `[n]`.
    pub costs: &'a Tensor,
}

/// Eq. 12, and what is added to it for comparison: the terms with their weights.
#[derive(Clone, Debug)]
pub struct Objective<'a> {
    config: &'a Config,
    weights: Vec<f64>,
}

/// The terms on one rank, as [`TERMS`] orders them.
#[derive(Debug)]
pub struct Parts {
    /// Each with its gradient, `[]`.
    pub losses: Vec<Tensor>,
    /// What is measured beside them, for all ranks' mean, `[]` each.
    pub beside: Vec<Tensor>,
}

impl<'a> Objective<'a> {
    /// As it holds in `stage`, where γ now stands at `gamma`.
    pub fn new(config: &'a Config, stage: &Stage, gamma: f64) -> Self {
        Self { config, weights: TERMS.iter().map(|term| (term.weight)(config, stage, gamma)).collect() }
    }

    /// The terms over a micro-batch on one of `ranks` ranks.
    ///
    /// Where a rank's micro-batches share the keys, their mean is what is taken in the end: so each one's share of pairs
    /// counts that many times.
    pub fn parts(&self, outcome: &Outcome, ranks: usize) -> Parts {
        let mut parts = Parts { losses: Vec::new(), beside: Vec::new() };
        for term in TERMS {
            let Found { loss, beside } = (term.find)(self.config, outcome);
            let share = |value: Tensor| match term.over {
                Over::Mean => value,
                Over::Pairs => value * outcome.sharers,
            };
            parts.losses.push(share(loss));
            parts.beside.extend(beside.map(|value| term.over.reported(&share(value), ranks)));
        }
        parts
    }

    /// What this rank back-propagates: ce + α·con + 2·W·β·P_r + γ·cost, and the baselines' terms.
    ///
    /// Averaged over the W ranks, its gradient is that of Eq. 12 over the whole global batch: the means are
    /// exact as they are, and 2·W turns the mean of the shares' gradients into L_div's.
    pub fn total(&self, parts: &Parts, ranks: usize) -> Tensor {
        self.sum(parts, |over| match over {
            Over::Mean => 1.0,
            Over::Pairs => 2.0 * ranks as f64,
        })
    }

    /// The objective's value on this rank: its mean over ranks is Eq. 12 over the global batch.
    pub fn value(&self, parts: &Parts, ranks: usize) -> Tensor {
        self.sum(parts, |over| match over {
            Over::Mean => 1.0,
            Over::Pairs => ranks as f64,
        })
    }

    fn sum(&self, parts: &Parts, factor: impl Fn(Over) -> f64) -> Tensor {
        let terms = TERMS.iter().zip(&parts.losses).zip(&self.weights);
        terms
            .map(|((term, loss), weight)| loss * (factor(term.over) * weight))
            .reduce(|a, b| a + b)
            .expect("terms")
    }
}

impl Parts {
    /// Each term in a form whose mean over `ranks` ranks is the global batch's, `[]` each.
    pub fn reported(&self, ranks: usize) -> impl Iterator<Item = Tensor> {
        TERMS.iter().zip(&self.losses).map(move |(term, loss)| term.over.reported(loss, ranks))
    }
}

impl Over {
    /// A rank's value in a form whose mean over ranks is the global batch's.
    fn reported(self, value: &Tensor, ranks: usize) -> Tensor {
        match self {
            Self::Mean => value.shallow_clone(),
            Self::Pairs => value * ranks as f64,
        }
    }
}

/// A weight that holds where routers train.
fn while_routers_train(stage: &Stage, weight: f64) -> f64 {
    if stage.routers == Routers::Train { weight } else { 0.0 }
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
