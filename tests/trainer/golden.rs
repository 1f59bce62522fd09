//! The network, the losses and their gradients against an independent PyTorch version, `golden/reference.py`. Weights, inputs
//! and noise are sines of their indices in both, so that the golden file holds only results.

use codinet_trainer::config::{
    self, Arch, Collective, CostUnit, Gates, Hidden, HiddenActivation, Model, PathOutputs, PathValue,
    Relaxation, Router, RouterKind, Routers, Scope, SkipBranch, StrideIn,
};
use codinet_trainer::dist;
use codinet_trainer::dist::Reducer;
use codinet_trainer::loss::{self, Budget, Objective};
use codinet_trainer::metrics::MetricsBuffer;
use codinet_trainer::model::{BnMode, Decisions, Net, PathVectors};
use codinet_trainer::train::step::{MicroBatch, TrainStep};
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    case: String,
    name: Arch,
    channels: i64,
    size: i64,
    classes: i64,
    samples: i64,
    views: i64,
    stride_in: StrideIn,
    batch_statistics: bool,
    router: RouterKind,
    hidden: Option<i64>,
    activation: HiddenActivation,
    relaxation: Relaxation,
    temperature: f64,
    path_value: PathValue,
    path_outputs: PathOutputs,
    gated: Gates,
    skip: SkipBranch,
    label_smoothing: f64,
    /// Weight of Conv-AIG's loss, and its rate.
    target_rate: (f64, f64),
    run_rate: f64,
    /// The share of the gated blocks' cost at which the penalty for a budget is 0.
    budget: Option<f64>,
    logits: Vec<Vec<f64>>,
    gates: Vec<Vec<f64>>,
    path: Vec<Vec<f64>>,
    hard_logits: Vec<Vec<f64>>,
    hard_path: Vec<Vec<f64>>,
    margin: f64,
    ce: f64,
    con: f64,
    div: f64,
    cost: f64,
    target: f64,
    run: f64,
    loss: f64,
    /// For each parameter's gradient: its norm, its product with `wave`, and the error that rounding may add to both where it
    /// moves a ReLU's input across 0.
    grads: HashMap<String, (f64, f64, f64)>,
}

/// sin(12.9898 j + 78.233 k) for j in 0..n.
fn wave(n: i64, k: usize) -> Tensor {
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * 12.9898 + 78.233 * k as f64).sin()
}

fn sines(n: i64, step: f64, phase: f64) -> Tensor {
    (Tensor::arange(n, (Kind::Double, Device::Cpu)) * step + phase).sin()
}

fn fill_with_waves(net: &Net) {
    let gain = if net.costs.blocks.len() < 10 { 0.5 } else { 0.2 }; // keeps activations of deep networks small
    let mut tensors = net.params.state_dict();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    for (k, (name, tensor)) in tensors.iter().enumerate() {
        let shape = tensor.size();
        let wave = wave(tensor.numel() as i64, k).view(shape.as_slice());
        let value = match shape[..] {
            [out, _, h, w] => wave * (2.0 / ((out * h * w) as f64).sqrt()),
            [_, inputs] => wave * (1.7 / (inputs as f64).sqrt()),
            _ if name.ends_with("running_var") => wave * 0.5 + 1.0,
            _ if name.ends_with("weight") => (wave * 0.4 + 1.0) * gain,
            _ => wave * 0.1,
        };
        tch::no_grad(|| tensor.shallow_clone().copy_(&value));
    }
}

/// Largest difference to the expected rows, divided by their largest value (at least 1).
fn relative_error(found: &Tensor, expected: &[Vec<f64>]) -> f64 {
    let found = Vec::<Vec<f64>>::try_from(found.to_kind(Kind::Double)).unwrap();
    assert_eq!(found.len(), expected.len());
    let pairs = || found.iter().flatten().zip(expected.iter().flatten());
    let largest = pairs().fold(1f64, |most, (_, expected)| most.max(expected.abs()));
    pairs().fold(0f64, |worst, (found, expected)| worst.max((found - expected).abs())) / largest
}

fn check_case(case: &Case) {
    let name = &case.case;
    let router = Router {
        kind: case.router,
        activation: case.activation,
        hidden: case.hidden.map_or(Hidden::Ratio(1.0), Hidden::Units),
        ..Router::default()
    };
    let model = Model {
        arch: case.name,
        stride_in: case.stride_in,
        gates: case.gated,
        skip: case.skip,
        router,
        ..Model::default()
    };
    let net = Net::new(&model, case.channels, case.size, case.classes, 0, Device::Cpu);
    fill_with_waves(&net);
    let n = case.samples * case.views;
    let gates = case.gates[0].len() as i64;
    let side = case.size;
    let images = sines(n * case.channels * side * side, 0.7, 2.0).to_kind(Kind::Float).view([
        n,
        case.channels,
        side,
        side,
    ]);
    let images = images * (Tensor::arange(n, (Kind::Float, Device::Cpu)) * 0.15 + 0.8).view([n, 1, 1, 1]);
    let noise = (sines(n * gates, 1.3, 0.0) * 2.0).to_kind(Kind::Float).view([n, gates]);
    let labels = Tensor::arange(case.samples, (Kind::Int64, Device::Cpu)).remainder(case.classes);

    let hard = tch::no_grad(|| net.forward(&images, Decisions::Hard, BnMode::Running));
    assert!(relative_error(&hard.path, &case.hard_path) == 0.0, "{name}: hard path");
    assert!(relative_error(&hard.logits, &case.hard_logits) < 1e-4, "{name}: hard logits");

    let decisions = Decisions::Relaxed {
        noise: Some(&noise),
        temperature: case.temperature,
        relaxation: case.relaxation,
    };
    let statistics = if case.batch_statistics { BnMode::BATCH } else { BnMode::Running };
    let out = tch::no_grad(|| net.forward(&images, decisions, statistics));
    for (what, found, expected) in [
        ("logits", &out.logits, &case.logits),
        ("gates", &out.gate_logits, &case.gates),
        ("path", &out.path, &case.path),
    ] {
        assert!(
            relative_error(found, expected) < 1e-4,
            "{name}: relative error of {what} is {}",
            relative_error(found, expected)
        );
    }
    let scalar = |tensor: Tensor| f64::try_from(tensor).unwrap();
    let assert_close = |what: &str, found: f64, expected: f64| {
        assert!(
            (found - expected).abs() < 1e-4 * expected.abs().max(1.0),
            "{name}: {what} {found}, {expected}"
        );
    };
    let ce =
        loss::classification(&out.logits, &labels.shallow_clone().into(), case.views, case.label_smoothing);
    assert_close("ce", scalar(ce), case.ce);

    let world = dist::join().unwrap();
    let costs = Tensor::from_slice(&net.costs.gate_costs(CostUnit::Blocks));
    let set = [
        "consistency={weight: 0.7, margin: 0.1}".into(),
        format!("diversity={{weight: 0.9, margin: {}}}", case.margin),
        format!("target_rate={{weight: {}, rate: {}}}", case.target_rate.0, case.target_rate.1),
        format!("run_rate.weight={}", case.run_rate),
        format!("paths={}", json!({"values": case.path_value, "outputs": case.path_outputs})),
        format!("optim.label_smoothing={}", case.label_smoothing),
        format!("cost.budget_gmacs={}", if case.budget.is_some() { "1" } else { "null" }),
    ];
    let config = config::load("fashion_r20.yaml", &set).unwrap();
    let reducer = Reducer::new(&net.params, &world, &Collective::default());
    let shares = &costs / costs.size()[0] as f64;
    let mut objective = Objective::new(&config, &config.stages[0], 0.02);
    objective.budget =
        case.budget.map(|share| Budget { gates: &shares, fixed: 0.0, least: share, most: share });
    let step = TrainStep {
        world: &world,
        net: &net,
        teacher: None,
        reducer: &reducer,
        costs: &costs,
        objective,
        path_vectors: PathVectors::new(&config),
        routers: Routers::Train,
        views: case.views,
        scope: Scope::MicroBatch,
        statistics,
    };
    let micro_batch = MicroBatch { images, labels: labels.into(), decisions };
    let mut buffer = MetricsBuffer::default();
    buffer.push(1, step.forward_backward(&[micro_batch], false).unwrap().metrics);
    let metrics = &buffer.gather(&world).unwrap()[0];
    for (name, expected) in [
        ("con", case.con),
        ("div", case.div),
        ("cost", case.cost),
        ("target", case.target),
        ("run_rate", case.run),
        ("loss", case.loss),
    ] {
        assert_close(name, metrics.get(name), expected);
    }
    let gradients = net.params.named_views(reducer.flat());
    assert_eq!(gradients.len(), case.grads.len());
    // The second term allows for gradients that are 0 except for rounding.
    let scale = case.grads.values().fold(0f64, |most, (norm, ..)| most.max(*norm));
    for (parameter, gradient) in gradients {
        let (norm, product, jump) = case.grads[&parameter];
        let gradient = gradient.to_kind(Kind::Double).reshape([-1]);
        let found_norm = scalar(gradient.norm());
        let found_product = scalar((&gradient * wave(gradient.size()[0], 0)).sum(None));
        let bound = 1e-3 * norm + 1e-8 * scale + 2.0 * jump;
        assert!((found_norm - norm).abs() < bound, "{name}: |∂{parameter}| {found_norm}, {norm}");
        assert!(
            (found_product - product).abs() < bound,
            "{name}: ∂{parameter}·wave {found_product}, {product}"
        );
    }
}

#[test]
fn forward_losses_and_gradients_equal_pytorch() {
    tch::set_num_threads(1);
    let golden: Golden = serde_json::from_str(include_str!("../golden/golden.json")).unwrap();
    assert_eq!(golden.cases.len(), 14);
    golden.cases.iter().for_each(check_case);
}
