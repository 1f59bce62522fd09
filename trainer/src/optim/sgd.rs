//! SGD over the flat parameter buffer: a handful of kernels a step, however many tensors there are.

use crate::config::{Optim, Routers};
use crate::model::Params;
use crate::sys::{SgdUpdate, fused_sgd};
use tch::Tensor;

/// Stochastic gradient descent with momentum and weight decay, as PyTorch has it (dampening 0):
/// g ← g + λ·w, b ← μ·b + g, w ← w − lr·b, or with Nesterov's momentum w ← w − lr·(g + μ·b).
#[derive(Debug)]
pub struct Sgd {
    /// b, laid out as [`Params::flat`].
    pub momentum: Tensor,
    options: Optim,
}

impl Sgd {
    /// An optimiser with zero momentum.
    pub fn new(params: &Params, options: &Optim) -> Self {
        Self { momentum: params.flat().zeros_like(), options: options.clone() }
    }

    /// One step along `gradient`, laid out as [`Params::flat`], with norm `norm`, `[]`. Nothing changes if `finite`,
    /// f32 `[]`, is 0; the device decides, so the host does not wait. Frozen routers never change.
    pub fn step(
        &mut self,
        params: &Params,
        gradient: &Tensor,
        norm: &Tensor,
        finite: &Tensor,
        lr: f64,
        routers: Routers,
    ) {
        let skip = 1.0 - finite;
        let divisor = self.options.clip_norm.map(|limit| (norm / limit).clamp_min(1.0));
        let frozen = |router: bool| router && routers == Routers::Freeze;
        for norm_or_bias in [false, true] {
            let groups = params
                .groups()
                .into_iter()
                .filter(|group| group.role.norm_or_bias == norm_or_bias && !frozen(group.role.router));
            let parts: Vec<_> = groups
                .map(|group| {
                    let part = |flat: &Tensor| flat.narrow(0, group.start, group.len);
                    (part(params.flat()), part(gradient), part(&self.momentum))
                })
                .collect();
            let decays = self.options.decay_norm_and_bias || !norm_or_bias;
            fused_sgd(
                &parts,
                SgdUpdate {
                    lr,
                    momentum: self.options.momentum,
                    weight_decay: if decays { self.options.weight_decay } else { 0.0 },
                    nesterov: self.options.nesterov,
                    divisor: divisor.as_ref(),
                    skip: &skip,
                },
            );
        }
    }
}
