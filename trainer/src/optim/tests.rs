//! SGD and the moving average against hand-worked values and PyTorch's.

use super::{Ema, Sgd};
use crate::config::{Optim, Routers};
use crate::model::Params;
use crate::model::Role;
use tch::{Device, Kind, Tensor, no_grad};

fn params() -> Params {
    let mut params = Params::default();
    let role = |norm_or_bias| Role { router: false, norm_or_bias };
    let _ = params.register_parameter("w".into(), Tensor::from_slice(&[1.0f32, -2.0, 0.5]), role(false));
    let _ = params.register_parameter("b".into(), Tensor::from_slice(&[0.25f32, 4.0]), role(true));
    let _ = params.register_buffer("mean".into(), Tensor::from_slice(&[1.0f32]));
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
fn sgd_equals_pytorch() {
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
fn gradient_above_the_norm_limit_is_clipped() {
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
fn nonfinite_step_changes_nothing() {
    for clip_norm in [None, Some(1.0)] {
        let params = params();
        let options = Optim { momentum: 0.9, weight_decay: 0.1, clip_norm, ..Optim::default() };
        let mut sgd = Sgd::new(&params, &options);
        let mut ema = Ema::new(&params, 0.75);
        let step = |sgd: &mut Sgd, x: f32, finite: f32| {
            let gradient = Tensor::full([5], f64::from(x), (Kind::Float, Device::Cpu));
            let norm = gradient.norm();
            sgd.step(&params, &gradient, &norm, &Tensor::from(finite), 0.5, Routers::Train);
        };
        step(&mut sgd, 0.2, 1.0);
        let weights = params.flat().copy();
        let momentum = sgd.momentum.copy();
        let mean = ema.flat.copy();
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
fn average_follows_the_weights_and_exchanges_with_them() {
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
