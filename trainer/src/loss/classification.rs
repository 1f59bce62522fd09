//! L_cls of Eq. 12.

use super::{Term, repeat_per_view};
use tch::{Reduction, Tensor};

pub(super) const TERM: Term = Term {
    name: "ce",
    diagnostics: &[],
    weight: |config, _, _| 1.0 - config.distill.active_weight(),
    evaluate: |config, inputs| {
        classification(inputs.logits, inputs.labels, inputs.views, config.optim.label_smoothing).into()
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
