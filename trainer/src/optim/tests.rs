//! The optimisers and the moving average against hand-worked values and PyTorch's.

use super::{Ema, Gradient, Optimizer, Sgd, new_optimizer};
use crate::config::{Optim, OptimizerKind, Routers};
use crate::dist::{self, World};
use crate::model::{Params, Role};
use serde::Deserialize;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, no_grad};

fn params() -> Params {
    let mut params = Params::default();
    let role = |norm_or_bias| Role { router: false, norm_or_bias, head: false };
    let _ = params.register_parameter("w".into(), Tensor::from_slice(&[1.0f32, -2.0, 0.5]), role(false));
    let _ = params.register_parameter("b".into(), Tensor::from_slice(&[0.25f32, 4.0]), role(true));
    let _ = params.register_buffer("mean".into(), Tensor::from_slice(&[1.0f32]));
    params.flatten(Device::Cpu);
    params
}

fn one() -> Tensor {
    Tensor::from(1.0f32)
}

/// One step along `flat`, whose norm is `norm`.
fn step(
    world: &World,
    optimizer: &mut dyn Optimizer,
    params: &Params,
    [flat, norm, finite]: [&Tensor; 3],
    lr: f64,
    routers: Routers,
) {
    optimizer.step(world, params, Gradient { flat, norm, finite }, lr, routers).unwrap();
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
        let options = Optim {
            momentum: 0.9,
            weight_decay: 0.1,
            nesterov,
            decay_norm_and_bias: Some(decay_norm_and_bias),
            ..Optim::default()
        };
        let mut sgd = Sgd::new(&params, &options);
        let world = dist::join().unwrap();
        for k in 1..=3 {
            step(&world, &mut sgd, &params, [&(&gradient * k), &one(), &one()], 0.5, Routers::Train);
        }
        close(params.flat(), &expected);
    }
}

#[test]
fn gradient_above_the_norm_limit_is_clipped() {
    let params = params();
    let options = Optim { momentum: 0.0, weight_decay: 0.0, clip_norm: Some(1.0), ..Optim::default() };
    let gradient = Tensor::from_slice(&[3.0f32, 0.0, 0.0, 4.0, 0.0]); // divided in place
    let world = dist::join().unwrap();
    let sgd_step = |gradient: &Tensor, norm: f32| {
        let mut sgd = Sgd::new(&params, &options);
        let norm = Tensor::from(norm);
        step(&world, &mut sgd, &params, [gradient, &norm, &one()], 1.0, Routers::Train);
    };
    sgd_step(&gradient, 5.0);
    close(params.flat(), &[1.0 - 0.6, -2.0, 0.5, 0.25 - 0.8, 4.0]);
    sgd_step(&Tensor::from_slice(&[0.3f32, 0.0, 0.0, 0.4, 0.0]), 0.5);
    close(params.flat(), &[0.4 - 0.3, -2.0, 0.5, -0.55 - 0.4, 4.0]);
}

#[test]
fn nonfinite_step_changes_nothing() {
    let world = dist::join().unwrap();
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW, OptimizerKind::Lamb] {
        for clip_norm in [None, Some(1.0)] {
            let params = params();
            let options = Optim { optimizer, weight_decay: 0.1, clip_norm, ..Optim::default() };
            let mut optimizer = new_optimizer(&params, &options);
            let mut ema = Ema::new(&params, 0.75);
            let constant_step = |optimizer: &mut dyn Optimizer, x: f32, finite: f32| {
                let gradient = Tensor::full([5], f64::from(x), (Kind::Float, Device::Cpu));
                let gradient = [&gradient, &gradient.norm(), &Tensor::from(finite)];
                step(&world, optimizer, &params, gradient, 0.5, Routers::Train);
            };
            let first_weights = params.flat().copy();
            let first_state = optimizer.state().copy();
            constant_step(optimizer.as_mut(), f32::NAN, 0.0);
            assert!(first_weights.equal(params.flat()) && first_state.equal(optimizer.state()));
            constant_step(optimizer.as_mut(), 0.2, 1.0);
            let weights = params.flat().copy();
            let state = optimizer.state().copy();
            let mean = ema.flat.copy();
            for x in [f32::NAN, f32::INFINITY] {
                constant_step(optimizer.as_mut(), x, 0.0);
                ema.update(&params, &Tensor::from(0.0f32));
            }
            assert!(weights.equal(params.flat()) && state.equal(optimizer.state()) && mean.equal(&ema.flat));
            constant_step(optimizer.as_mut(), 0.2, 1.0);
            assert!(!weights.equal(params.flat()));
        }
    }
}

/// AdamW's first step is lr·g/(|g| + ε) after the decay. LAMB's is |w|/|u|·lr·u with u = sign(g) + λ·w: here of one weight tensor,
/// w = (1, −2, ½) and signs (1, −1, 1), and of a bias without ratio or decay.
#[test]
fn first_step_equals_hand_worked_values() {
    let world = dist::join().unwrap();
    let first_step = |optimizer| {
        let params = params();
        let options = Optim { optimizer, weight_decay: 0.1, eps: Some(1e-12), ..Optim::default() };
        let gradient = Tensor::from_slice(&[0.3f32, -0.1, 0.2, -0.5, 0.25]);
        let gradient = [&gradient, &gradient.norm(), &one()];
        let mut optimizer = new_optimizer(&params, &options);
        step(&world, optimizer.as_mut(), &params, gradient, 0.5, Routers::Train);
        params.flat().copy()
    };
    close(&first_step(OptimizerKind::AdamW), &[0.95 - 0.5, -1.9 + 0.5, 0.475 - 0.5, 0.75, 3.5]);
    let update = [1.1, -1.2, 1.05f64];
    let norm = update.iter().map(|u| u * u).sum::<f64>().sqrt();
    let rate = 0.5 * (1.0f64 + 4.0 + 0.25).sqrt() / norm;
    let expected = [1.0 - rate * update[0], -2.0 - rate * update[1], 0.5 - rate * update[2], 0.75, 3.5];
    close(&first_step(OptimizerKind::Lamb), &expected);
}

#[derive(Deserialize)]
struct Golden {
    cases: Vec<GoldenCase>,
}

#[derive(Deserialize)]
struct GoldenCase {
    options: Optim,
    lr: f64,
    /// After all steps.
    weights: BTreeMap<String, Vec<f64>>,
}

/// The tensors of `tests/golden/optimizers.py`, and its schedule: eight steps. The sixth is not finite; routers are
/// frozen in the first three.
const SHAPES: [(&str, &[i64]); 8] = [
    ("conv.weight", &[6, 3, 3, 3]),
    ("bn.weight", &[6]),
    ("bn.bias", &[6]),
    ("fc.weight", &[4, 6]),
    ("fc.bias", &[4]),
    ("router.weight", &[2, 6]),
    ("router.bias", &[2]),
    ("zero.weight", &[3, 2]),
];

fn wave(shape: &[i64], phase: f64) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Double, Device::Cpu)) * 0.7 + phase).sin().view(shape)
}

/// The largest difference of a weight to the golden one.
fn largest_difference(world: &World, case: &GoldenCase) -> f64 {
    let mut params = Params::default();
    for (k, (name, shape)) in SHAPES.iter().enumerate() {
        let role = Role {
            router: name.starts_with("router"),
            norm_or_bias: shape.len() == 1,
            head: name.starts_with("fc"),
        };
        let scale = if name.starts_with("zero") { 0.0 } else { 1.0 };
        let value = (wave(shape, k as f64) * scale).to_kind(Kind::Float);
        let _ = params.register_parameter(name.to_string(), value, role);
    }
    params.flatten(Device::Cpu);
    let mut optimizer = new_optimizer(&params, &case.options);
    let routers_of = |params: &Params| {
        let views = params.named_views(&params.flat().copy());
        views.into_iter().find(|(name, _)| name == "router.weight").unwrap().1
    };
    let frozen = routers_of(&params);
    for index in 0..8 {
        let routers = if index < 3 { Routers::Freeze } else { Routers::Train };
        let gradient = params.flat().zeros_like();
        for (name, view) in params.named_views(&gradient) {
            let k = SHAPES.iter().position(|(known, _)| *known == name).unwrap();
            let scale = [0.05, 0.5, 3.0][index % 3];
            let value = wave(SHAPES[k].1, 2.0 * k as f64 + 1.3 * index as f64) * scale;
            let trains = !name.starts_with("router") || routers == Routers::Train;
            no_grad(|| view.shallow_clone().copy_(&(value * f64::from(u8::from(trains)))));
        }
        let finite = index != 5;
        if !finite {
            let _ = gradient.get(0).fill_(f64::NAN);
        }
        let finite = Tensor::from(f32::from(u8::from(finite)));
        let gradient = [&gradient, &gradient.norm(), &finite];
        step(world, optimizer.as_mut(), &params, gradient, case.lr, routers);
        assert_eq!(routers_of(&params).equal(&frozen), index < 3, "routers change when they train");
    }
    let difference = |(name, found): (String, Tensor)| {
        let expected = Tensor::from_slice(&case.weights[&name]);
        f64::try_from((found.reshape([-1]).to_kind(Kind::Double) - expected).abs().max()).unwrap()
    };
    params.named_views(params.flat()).into_iter().map(difference).fold(0.0, f64::max)
}

#[test]
fn adamw_and_lamb_equal_pytorch() {
    let world = dist::join().unwrap();
    let golden: Golden = serde_json::from_str(include_str!("../../../tests/golden/optimizers.json")).unwrap();
    assert_eq!(golden.cases.len(), 8);
    for case in &golden.cases {
        let difference = largest_difference(&world, case);
        println!("{:?}: {difference:.1e}", case.options.optimizer);
        assert!(difference < 2e-6, "{:?}: {difference}", case.options);
    }
}

#[test]
fn rates_of_parts_scale_their_steps() {
    let world = dist::join().unwrap();
    for optimizer in [OptimizerKind::Sgd, OptimizerKind::AdamW, OptimizerKind::Lamb] {
        let change = |routers: f64, head: f64| {
            let mut params = Params::default();
            for (name, router, head) in [("w", false, false), ("fc", false, true), ("r", true, false)] {
                let role = Role { router, norm_or_bias: false, head };
                let value = Tensor::from_slice(&[1.0f32, -2.0]);
                let _ = params.register_parameter(name.into(), value, role);
            }
            params.flatten(Device::Cpu);
            let before = params.flat().copy();
            let mut options = Optim { optimizer, ..Optim::default() };
            options.lr_factors.routers = routers;
            options.lr_factors.head = head;
            let gradient = Tensor::from_slice(&[0.1f32, 0.2, 0.1, 0.2, 0.1, 0.2]);
            let gradient = [&gradient, &gradient.norm(), &one()];
            step(&world, new_optimizer(&params, &options).as_mut(), &params, gradient, 0.125, Routers::Train);
            Vec::<f64>::try_from((params.flat() - before).to_kind(Kind::Double)).unwrap()
        };
        let plain = change(1.0, 1.0);
        let scaled = change(0.5, 2.0);
        for (index, factor) in [1.0, 1.0, 2.0, 2.0, 0.5, 0.5].into_iter().enumerate() {
            let expected = plain[index] * factor;
            assert!((scaled[index] - expected).abs() < 1e-6, "{optimizer}: {plain:?}, {scaled:?}");
        }
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
