//! What AdamW and LAMB remember of the gradients.

use super::spans::Span;
use crate::config::Routers;
use crate::model::Params;
use tch::{Kind, Tensor, no_grad};

/// Moving means of the gradient and of its square, and the number of updates in them.
#[derive(Debug)]
pub(super) struct Moments {
    /// `mean`, `square` and `steps`, one after another.
    pub state: Tensor,
    /// m, laid out as [`Params::flat`].
    pub mean: Tensor,
    /// v, likewise.
    pub square: Tensor,
    /// The updates of all but the routers, and of the routers, which may be frozen for some: f32 `[2]`, exact up to 2²⁴.
    steps: Tensor,
}

impl Moments {
    /// Before the first step: zeros.
    pub fn new(params: &Params) -> Self {
        let flat = params.flat();
        let count = flat.numel() as i64;
        let state = Tensor::zeros([2 * count + 2], (Kind::Float, flat.device()));
        let part = |start, len| state.narrow(0, start, len);
        Self { mean: part(0, count), square: part(count, count), steps: part(2 * count, 2), state }
    }

    /// Counts a step, unless `finite`, f32 `[]`, is 0.
    pub fn count_step(&self, finite: &Tensor, routers: Routers) {
        let counted = if routers == Routers::Train { 2 } else { 1 };
        let _ = no_grad(|| self.steps.narrow(0, 0, counted).g_add_(finite));
    }

    /// The number of updates of a span, f32 `[]`.
    pub fn steps(&self, span: &Span) -> Tensor {
        self.steps.get(i64::from(span.router))
    }

    /// The contents of an optimiser file, by PyTorch's names.
    pub fn named(&self, params: &Params) -> Vec<(String, Tensor)> {
        let prefixed = |prefix: &str, flat: &Tensor| {
            let views = params.named_views(flat).into_iter();
            views.map(|(name, view)| (format!("{prefix}.{name}"), view)).collect::<Vec<_>>()
        };
        let mut named = prefixed("exp_avg", &self.mean);
        named.extend(prefixed("exp_avg_sq", &self.square));
        named.push(("step".into(), self.steps.shallow_clone()));
        named
    }
}
