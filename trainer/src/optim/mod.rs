//! SGD and the running mean of weights, over the flat buffer: a handful of kernels a step, however many tensors there
//! are. What must not be done after a step that is not finite is masked on the device; the host does not wait to know.

pub mod budget;

use crate::config::{Optim, Routers};
use crate::model::Params;
use crate::sys::native::{Update, fused_sgd};
use tch::{Tensor, no_grad};

/// Stochastic gradient descent with momentum and weight decay, as PyTorch has it (dampening 0):
/// g ← g + λ·w, b ← μ·b + g, w ← w − lr·b, or with Nesterov's momentum w ← w − lr·(g + μ·b).
#[derive(Debug)]
pub struct Sgd {
    /// b, laid out as [`Params::flat`].
    pub momentum: Tensor,
    options: Optim,
}

impl Sgd {
    /// An optimiser at rest.
    pub fn new(params: &Params, options: &Optim) -> Self {
        Self { momentum: params.flat().zeros_like(), options: options.clone() }
    }

    /// One step along `gradient`, laid out as [`Params::flat`], whose norm is `norm`, `[]`; nothing moves where `finite`,
    /// f32 `[]`, is 0; frozen routers stay as they are.
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
        let divisor = self.options.clip_norm.map(|most| (norm / most).clamp_min(1.0));
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
                Update {
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

/// A learning rate for a person to read: 0.0500, 2.3e-5.
pub fn shown(lr: f64) -> String {
    if lr == 0.0 || lr >= 1e-3 { format!("{lr:.4}") } else { format!("{lr:.1e}") }
}

/// The running mean of weights and running statistics: e ← d·e + (1 − d)·w each step (Polyak averaging).
#[derive(Debug)]
pub struct Ema {
    /// The mean of [`Params::flat`].
    pub flat: Tensor,
    /// The mean of [`Params::flat_buffers`].
    pub buffers: Tensor,
    decay: f64,
}

impl Ema {
    /// Starts at the parameters' values.
    pub fn new(params: &Params, decay: f64) -> Self {
        Self { flat: params.flat().copy(), buffers: params.flat_buffers().copy(), decay }
    }

    /// Takes in the parameters' values after a step; stays as it is where `finite`, f32 `[]`, is 0.
    pub fn update(&mut self, params: &Params, finite: &Tensor) {
        let share = finite * (1.0 - self.decay);
        no_grad(|| {
            let _ = self.flat.lerp_tensor_(params.flat(), &share);
            let _ = self.buffers.lerp_tensor_(params.flat_buffers(), &share);
        });
    }

    /// Exchanges the parameters' values and the mean; a second time undoes it.
    pub fn exchange(&mut self, params: &Params) {
        no_grad(|| {
            for (mean, value) in [(&mut self.flat, params.flat()), (&mut self.buffers, params.flat_buffers())]
            {
                let before = value.copy();
                value.shallow_clone().copy_(mean);
                mean.copy_(&before);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::params::Role;
    use tch::{Device, Kind};

    fn params() -> Params {
        let mut params = Params::default();
        let role = |norm_or_bias| Role { router: false, norm_or_bias };
        let _ = params.train("w".into(), Tensor::from_slice(&[1.0f32, -2.0, 0.5]), role(false));
        let _ = params.train("b".into(), Tensor::from_slice(&[0.25f32, 4.0]), role(true));
        let _ = params.keep("mean".into(), Tensor::from_slice(&[1.0f32]));
        params.flatten(Device::Cpu);
        params
    }

    fn one() -> Tensor {
        Tensor::from(1.0f32)
    }

    fn close(found: &Tensor, expected: &[f64]) {
        let found = Vec::<f64>::try_from(found.to_kind(Kind::Double)).unwrap();
        let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-5;
        assert!(found.iter().zip(expected).all(near), "{found:?}, {expected:?}");
    }

    /// Three steps of torch.optim.SGD(lr=0.5, momentum=0.9, weight_decay=0.1) on gradients of once, twice and three
    /// times these, with and without Nesterov's momentum, with and without decay of the second parameter.
    #[test]
    fn sgd_is_pytorchs() {
        let gradient = Tensor::from_slice(&[0.3f32, -0.1, 0.2, -0.5, 0.25]);
        for (nesterov, decay_norm_and_bias, expected) in [
            (false, true, [-0.652, -1.001625, -0.5565625, 2.4884688, 1.7726875]),
            (true, false, [-1.4235745, -0.5779129, -1.0542934, 3.88975, 2.180125]),
        ] {
            let params = params();
            let options =
                Optim { momentum: 0.9, weight_decay: 0.1, nesterov, decay_norm_and_bias, ..Optim::default() };
            let mut sgd = Sgd::new(&params, &options);
            for k in 1..=3 {
                sgd.step(&params, &(&gradient * k), &Tensor::from(1.0f32), &one(), 0.5, Routers::Train);
            }
            close(params.flat(), &expected);
        }
    }

    #[test]
    fn a_long_gradient_is_clipped() {
        let params = params();
        let options = Optim { momentum: 0.0, weight_decay: 0.0, clip_norm: Some(1.0), ..Optim::default() };
        let gradient = Tensor::from_slice(&[3.0f32, 0.0, 0.0, 4.0, 0.0]); // divided in place
        let step = |gradient: &Tensor, norm: f32| {
            let norm = Tensor::from(norm);
            Sgd::new(&params, &options).step(&params, gradient, &norm, &one(), 1.0, Routers::Train);
        };
        step(&gradient, 5.0);
        close(params.flat(), &[1.0 - 0.6, -2.0, 0.5, 0.25 - 0.8, 4.0]);
        step(&Tensor::from_slice(&[0.3f32, 0.0, 0.0, 0.4, 0.0]), 0.5);
        close(params.flat(), &[0.4 - 0.3, -2.0, 0.5, -0.55 - 0.4, 4.0]);
    }

    #[test]
    fn a_step_that_is_not_finite_moves_nothing() {
        for clip_norm in [None, Some(1.0)] {
            let params = params();
            let options = Optim { momentum: 0.9, weight_decay: 0.1, clip_norm, ..Optim::default() };
            let (mut sgd, mut ema) = (Sgd::new(&params, &options), Ema::new(&params, 0.75));
            let step = |sgd: &mut Sgd, x: f32, finite: f32| {
                let gradient = Tensor::full([5], f64::from(x), (Kind::Float, Device::Cpu));
                let norm = gradient.norm();
                sgd.step(&params, &gradient, &norm, &Tensor::from(finite), 0.5, Routers::Train);
            };
            step(&mut sgd, 0.2, 1.0);
            let (weights, momentum, mean) = (params.flat().copy(), sgd.momentum.copy(), ema.flat.copy());
            for x in [f32::NAN, f32::INFINITY] {
                step(&mut sgd, x, 0.0);
                ema.update(&params, &Tensor::from(0.0f32));
            }
            assert!(weights.equal(params.flat()) && momentum.equal(&sgd.momentum) && mean.equal(&ema.flat));
            step(&mut sgd, 0.2, 1.0);
            assert!(!weights.equal(params.flat()));
        }
    }

    #[test]
    fn the_mean_of_weights_follows_them_and_changes_places() {
        let params = params();
        let mut ema = Ema::new(&params, 0.75);
        no_grad(|| {
            let _ = params.flat().shallow_clone().g_add_scalar_(1.0);
            let _ = params.flat_buffers().shallow_clone().g_add_scalar_(4.0);
        });
        ema.update(&params, &one());
        close(&ema.flat, &[1.25, -1.75, 0.75, 0.5, 4.25]);
        close(&ema.buffers, &[2.0]);
        ema.exchange(&params);
        close(params.flat(), &[1.25, -1.75, 0.75, 0.5, 4.25]);
        close(&ema.flat, &[2.0, -1.0, 1.5, 1.25, 5.0]);
        ema.exchange(&params);
        close(params.flat_buffers(), &[5.0]);
    }
}
