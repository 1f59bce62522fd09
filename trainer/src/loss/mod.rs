//! The objective: Eq. 12, the baselines' terms and distillation, a weighted sum of terms, each in a file of its own.
//!
//! Scale: every term is a mean. A rank evaluates it on a micro-batch; the mean of these values over all ranks and
//! micro-batches of a step is the term over the global batch, and the mean of their gradients is its gradient. So
//! gradients and metrics are averaged over ranks, and nothing else has to know how many ranks there are.

mod budget;
mod classification;
mod consistency;
mod cost;
mod distillation;
mod diversity;
mod run_rate;
mod target_rate;

pub use budget::{Budget, budget};
pub use classification::{Labels, binary_cross_entropy, classification};
pub use consistency::consistency;
pub use cost::{cost, gamma};
pub use distillation::distillation;
pub use diversity::diversity;
pub use run_rate::run_rate;
pub use target_rate::target_rate;

use crate::config::{Config, Routers, Stage};
use tch::{Tensor, no_grad};

/// The terms, in the order of summation and of the log's columns.
pub const TERMS: &[Term] = &[
    classification::TERM,
    consistency::TERM,
    diversity::TERM,
    cost::TERM,
    budget::TERM,
    target_rate::TERM,
    run_rate::TERM,
    distillation::TERM,
];

/// A term of the objective.
pub struct Term {
    /// Its name in `metrics.jsonl` and TensorBoard.
    pub name: &'static str,
    /// The names of further numbers that it measures, without gradient.
    pub diagnostics: &'static [&'static str],
    /// Its weight in a stage, for the current γ.
    weight: fn(&Config, &Stage, f64) -> f64,
    evaluate: fn(&Config, &LossInputs) -> TermValue,
}

/// A term on one micro-batch, each `[]`.
struct TermValue {
    /// With gradient.
    loss: Tensor,
    /// Without.
    diagnostics: Vec<Tensor>,
}

impl From<Tensor> for TermValue {
    fn from(loss: Tensor) -> Self {
        Self { loss, diagnostics: Vec::new() }
    }
}

/// A forward pass of one micro-batch: L samples, M views each, n gates, path vectors of d numbers.
#[derive(Debug)]
pub struct LossInputs<'a> {
    /// `[L·M, classes]`.
    pub logits: &'a Tensor,
    /// Of L samples.
    pub labels: &'a Labels,
    /// M.
    pub views: i64,
    /// The teacher's logits, `[L·M, classes]`, if there is one.
    pub teacher: Option<&'a Tensor>,
    /// v: the gates' decisions, `[L·M, n]`.
    pub decisions: &'a Tensor,
    /// The means of v over all views of the G samples below, without gradient, `[n]`.
    pub rates: &'a Tensor,
    /// r: the path vectors that L_con and L_div compare, `[L·M, d]`.
    pub paths: &'a Tensor,
    /// r̄: their means over views, `[L, d]`.
    pub centres: &'a Tensor,
    /// The centres of all samples that L_div compares, in rank order and without gradient, `[G, d]`. G/L micro-batches
    /// share them.
    pub peers: &'a Tensor,
    /// The row of this micro-batch's first centre in `peers`.
    pub offset: i64,
    /// c_k of Eq. 11, `[n]`.
    pub costs: &'a Tensor,
    /// The compute budget.
    pub budget: Option<&'a Budget<'a>>,
}

/// The weighted sum of the terms in a stage.
#[derive(Clone, Debug)]
pub struct Objective<'a> {
    config: &'a Config,
    weights: Vec<f64>,
    /// The compute budget, if the objective has a penalty for it.
    pub budget: Option<Budget<'a>>,
}

/// The objective on one micro-batch, each number `[]`.
#[derive(Debug)]
pub struct TermValues {
    /// The weighted sum, with gradient.
    pub total: Tensor,
    /// The terms, in the order of [`TERMS`].
    pub terms: Vec<Tensor>,
    /// The terms' diagnostics, in the order of [`TERMS`].
    pub diagnostics: Vec<Tensor>,
}

impl<'a> Objective<'a> {
    /// The objective of `stage`, for the current `gamma`.
    pub fn new(config: &'a Config, stage: &Stage, gamma: f64) -> Self {
        let weights = TERMS.iter().map(|term| (term.weight)(config, stage, gamma)).collect();
        Self { config, weights, budget: None }
    }

    /// Evaluates all terms.
    pub fn evaluate(&self, inputs: &LossInputs) -> TermValues {
        let mut terms = Vec::new();
        let mut diagnostics = Vec::new();
        for (term, &weight) in TERMS.iter().zip(&self.weights) {
            let evaluate = || (term.evaluate)(self.config, inputs);
            let value = if weight == 0.0 { no_grad(evaluate) } else { evaluate() };
            terms.push(value.loss);
            diagnostics.extend(value.diagnostics);
        }
        TermValues { total: self.weighted_sum(&terms), terms, diagnostics }
    }

    /// Eq. 12: ce + α·con + β·div + γ·cost, the baselines' terms, and distillation, which takes a share of ce; `terms` in the
    /// order of [`TERMS`].
    pub fn weighted_sum(&self, terms: &[Tensor]) -> Tensor {
        let minimised = terms.iter().zip(&self.weights).filter(|(_, weight)| **weight != 0.0);
        let weighted =
            minimised.map(|(term, &weight)| if weight == 1.0 { term.shallow_clone() } else { term * weight });
        weighted.reduce(|sum, term| sum + term).expect("at least one term")
    }
}

/// `weight` while routers train, 0 once they are frozen.
fn while_routers_train(stage: &Stage, weight: f64) -> f64 {
    if stage.routers == Routers::Train { weight } else { 0.0 }
}

/// The path centres r̄_i: means over the M views, `[L·M, n]` → `[L, n]`.
pub fn path_centres(paths: &Tensor, views: i64) -> Tensor {
    group_by_sample(paths, views).mean_dim([1].as_slice(), false, None)
}

/// `[L·M, n]` → `[L, M, n]`.
fn group_by_sample(paths: &Tensor, views: i64) -> Tensor {
    let (rows, gates) = paths.size2().expect("[L·M, n]");
    paths.view([rows / views, views, gates])
}

/// Each sample's label for each of its views, `[L]` → `[L·M]`.
pub fn repeat_per_view(labels: &Tensor, views: i64) -> Tensor {
    labels.unsqueeze(1).expand([-1, views], false).reshape([-1])
}
