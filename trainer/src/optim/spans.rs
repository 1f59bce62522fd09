//! The parts of the flat buffer that an optimiser treats differently.

use crate::config::{Optim, Routers};
use crate::model::Params;
use tch::Tensor;

/// Neighbouring parameters with the same settings.
#[derive(Clone, Debug)]
pub(super) struct Span {
    start: i64,
    /// The number of elements of each of its tensors.
    pub lens: Vec<i64>,
    /// Whether they belong to routers.
    pub router: bool,
    norm_or_bias: bool,
    /// Their learning rate, as a factor of the step's.
    pub lr_factor: f64,
    /// λ.
    pub weight_decay: f64,
}

impl Span {
    /// Its part of `flat`, which has the layout of [`Params::flat`].
    pub fn part(&self, flat: &Tensor) -> Tensor {
        flat.detach().narrow(0, self.start, self.lens.iter().sum())
    }

    /// Whether it changes in a step.
    pub fn trains(&self, routers: Routers) -> bool {
        !self.router || routers == Routers::Train
    }
}

/// The spans of the flat buffer, in order.
pub(super) fn spans(params: &Params, options: &Optim) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    let mut start = 0;
    for parameter in &params.parameters {
        let role = parameter.role;
        let len = parameter.tensor.numel() as i64;
        let lr_factor = match (role.router, role.head) {
            (true, _) => options.lr_factors.routers,
            (_, true) => options.lr_factors.head,
            _ => 1.0,
        };
        let continues = |span: &Span| {
            (span.router, span.norm_or_bias, span.lr_factor) == (role.router, role.norm_or_bias, lr_factor)
        };
        match spans.last_mut().filter(|span| continues(span)) {
            Some(span) => span.lens.push(len),
            None => {
                let decays = !role.norm_or_bias || options.decays_norm_and_bias();
                spans.push(Span {
                    start,
                    lens: vec![len],
                    router: role.router,
                    norm_or_bias: role.norm_or_bias,
                    lr_factor,
                    weight_decay: if decays { options.weight_decay } else { 0.0 },
                });
            }
        }
        start += len;
    }
    spans
}
