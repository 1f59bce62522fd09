//! Distillation: the network's classes are as probable as a teacher's.

use super::Term;
use tch::{Kind, Tensor};

pub(super) const TERM: Term = Term {
    name: "distill",
    diagnostics: &[],
    weight: |config, _, _| config.distill.active_weight(),
    evaluate: |config, inputs| match inputs.teacher {
        Some(teacher) => distillation(inputs.logits, teacher, config.distill.temperature).into(),
        None => Tensor::zeros([], (inputs.logits.kind(), inputs.logits.device())).into(),
    },
};

/// T²·KL(p ‖ q), the mean over inputs, where p and q are the softmax of `teacher`/T and `logits`/T, `[N, classes]` (Hinton et al.,
/// arXiv 1503.02531).
pub fn distillation(logits: &Tensor, teacher: &Tensor, temperature: f64) -> Tensor {
    let log_p = (teacher / temperature).log_softmax(-1, None::<Kind>);
    let log_q = (logits / temperature).log_softmax(-1, None::<Kind>);
    let divergence = (log_p.exp() * (log_p - log_q)).sum_dim_intlist([-1].as_slice(), false, None);
    divergence.mean(None) * temperature.powi(2)
}
