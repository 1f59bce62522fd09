//! L_cls of Eq. 12.

use super::{LossInputs, Term, repeat_per_view};
use crate::config::LossKind;
use tch::{Reduction, Tensor};

pub(super) const TERM: Term = Term {
    name: "ce",
    diagnostics: &[],
    weight: |config, _, _| 1.0 - config.distill.active_weight(),
    evaluate: |config, inputs| {
        let LossInputs { logits, labels, views, .. } = *inputs;
        let smoothing = config.optim.label_smoothing;
        match config.optim.loss {
            LossKind::CrossEntropy => classification(logits, labels, views, smoothing).into(),
            LossKind::BinaryCrossEntropy => {
                binary_cross_entropy(logits, labels, views, smoothing, config.optim.bce_threshold).into()
            }
        }
    },
};

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
        let labels = repeat_per_view(labels, views);
        logits.cross_entropy_loss(&labels, None::<&Tensor>, Reduction::Mean, -100, smoothing)
    };
    match &labels.partner {
        None => ce(&labels.own),
        Some((partner, share)) => ce(&labels.own) * *share + ce(partner) * (1.0 - share),
    }
}

/// L_cls with `optim.loss: binary_cross_entropy`, as timm's `BinaryCrossEntropy`: the mean over inputs and classes of
/// −t·ln σ(z) − (1 − t)·ln(1 − σ(z)), for `logits` z `[L·M, classes]`. With λ = 1 where nothing is mixed, the target t of a class is
/// (1 − ε)·(λ·\[y\] + (1 − λ)·\[y'\]) + ε/classes, with a `threshold` 1 if that is above it, else 0.
pub fn binary_cross_entropy(
    logits: &Tensor,
    labels: &Labels,
    views: i64,
    smoothing: f64,
    threshold: Option<f64>,
) -> Tensor {
    let one_hot = |labels: &Tensor| {
        let labels = repeat_per_view(labels, views).unsqueeze(1);
        logits.zeros_like().scatter_value(1, &labels, 1.0)
    };
    let shares = match &labels.partner {
        None => one_hot(&labels.own),
        Some((partner, share)) => one_hot(&labels.own) * *share + one_hot(partner) * (1.0 - share),
    };
    let smoothed = shares * (1.0 - smoothing) + smoothing / logits.size()[1] as f64;
    let targets = match threshold {
        None => smoothed,
        Some(threshold) => smoothed.gt(threshold).to_kind(logits.kind()),
    };
    logits.binary_cross_entropy_with_logits(&targets, None::<&Tensor>, None::<&Tensor>, Reduction::Mean)
}
