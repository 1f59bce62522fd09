//! What moves the weights: the optimisers, the learning rate's schedule, the moving average of weights, and the controller of γ.

mod adamw;
pub mod calibration;
mod ema;
mod gamma;
mod lamb;
mod moments;
pub mod schedule;
mod sgd;
mod spans;
#[cfg(test)]
mod tests;

pub use adamw::AdamW;
pub use ema::Ema;
pub use gamma::GammaController;
pub use lamb::Lamb;
pub use sgd::Sgd;

use crate::config::{Optim, OptimizerKind, Routers};
use crate::dist::World;
use crate::model::Params;
use crate::sys::error::Result;
use tch::Tensor;

/// What moves the weights along a gradient. It works on the flat buffer, so that a step takes few kernels however many tensors
/// there are.
pub trait Optimizer {
    /// All ranks: one step of learning rate `lr`. If the gradient is not finite, nothing changes; the device decides, so the host
    /// does not wait. Frozen routers never change. With bit-identical inputs the weights stay bit-identical over ranks.
    fn step(
        &mut self,
        world: &World,
        params: &Params,
        gradient: Gradient,
        lr: f64,
        routers: Routers,
    ) -> Result<()>;

    /// All of its state, f32 `[elements]`.
    fn state(&self) -> &Tensor;

    /// Named views of the state, one after another: the contents of an optimiser file.
    fn named_state(&self, params: &Params) -> Vec<(String, Tensor)>;
}

/// A step's mean gradient over all ranks.
#[derive(Clone, Copy, Debug)]
pub struct Gradient<'a> {
    /// Laid out as [`Params::flat`]; the optimiser may scale it in place.
    pub flat: &'a Tensor,
    /// Its L² norm, `[]`; bit-identical on all ranks if [`Optim::norm_limit`] limits it.
    pub norm: &'a Tensor,
    /// 1 if it is finite, else 0, f32 `[]`.
    pub finite: &'a Tensor,
}

impl Gradient<'_> {
    /// The divisor that scales it down to the limit of its norm, f32 `[]`; `None` without a limit.
    fn divisor(&self, options: &Optim) -> Option<Tensor> {
        options.norm_limit().map(|limit| (self.norm / limit).clamp_min(1.0))
    }
}

/// The optimiser that `options` ask for, before its first step.
pub fn new_optimizer(params: &Params, options: &Optim) -> Box<dyn Optimizer> {
    match options.optimizer {
        OptimizerKind::Sgd => Box::new(Sgd::new(params, options)),
        OptimizerKind::AdamW => Box::new(AdamW::new(params, options)),
        OptimizerKind::Lamb => Box::new(Lamb::new(params, options)),
    }
}
