//! Tests of whole networks.

use super::{BnMode, Decisions, Net};
use crate::config::{self, Arch, CostUnit, Gates, StrideIn};
use tch::{Device, Kind, Tensor};

const CPU_FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn net(arch: Arch, gates: Gates, stride_in: StrideIn) -> Net {
    let model = config::Model { arch, gates, stride_in, ..Default::default() };
    let small =
        [Arch::ResNet20, Arch::ResNet32, Arch::ResNet44, Arch::ResNet56, Arch::ResNet74, Arch::ResNet110];
    let (size, classes) = if small.contains(&arch) { (32, 10) } else { (224, 1000) };
    Net::new(&model, 3, size, classes, 0, Device::Cpu)
}

fn gated_resnet20() -> Net {
    net(Arch::ResNet20, Gates::All, StrideIn::Conv2)
}

/// Counts from the paper's Table 5 and from torchvision, to the last digit; for gated networks that the paper does not have,
/// from the independent implementation in tests/golden/reference.py.
#[test]
fn parameters_and_macs_equal_published_counts() {
    use StrideIn::{Conv1, Conv2};
    for (arch, stride_in, static_params, gated_params, macs) in [
        (Arch::ResNet20, Conv2, 269_722, 285_644, 0.040551),
        (Arch::ResNet32, Conv2, 464_154, 491_512, 0.068863),
        (Arch::ResNet44, Conv2, 658_586, 697_380, 0.097174),
        (Arch::ResNet56, Conv2, 853_018, 903_248, 0.125486),
        (Arch::ResNet74, Conv2, 1_144_666, 1_212_050, 0.167953),
        (Arch::ResNet110, Conv2, 1_727_962, 1_829_654, 0.252888),
        (Arch::ResNet18, Conv2, 11_689_512, 12_306_040, 1.814073),
        (Arch::ResNet34, Conv2, 21_797_672, 22_980_936, 3.663761),
        (Arch::ResNet152, Conv2, 60_192_808, 111_542_348, 11.513627),
        (Arch::ResNet50, Conv1, 25_557_032, 44_302_344, 3.857973),
        (Arch::ResNet50, Conv2, 25_557_032, 44_302_344, 4.089184),
        (Arch::ResNet101, Conv1, 44_549_160, 81_172_522, 7.570194),
        (Arch::ResNet101, Conv2, 44_549_160, 81_172_522, 7.801405),
    ] {
        let plain = net(arch, Gates::None, stride_in);
        assert_eq!(plain.params.count(), static_params, "{arch} static");
        let gated = net(arch, Gates::All, stride_in);
        assert_eq!(gated.params.count(), gated_params, "{arch} gated");
        for net in [&plain, &gated] {
            let gmacs = net.costs.static_macs() as f64 / 1e9;
            assert_eq!(format!("{gmacs:.6}"), format!("{macs:.6}"), "{arch}");
        }
        println!(
            "{arch:<10} {stride_in:?}  static {static_params:>11}  gated {gated_params:>11}  {macs:.6} GMACs"
        );
        let blocks = &gated.costs.blocks;
        let in_blocks: i64 =
            blocks.iter().map(|block| gated.params.count_prefixed(&format!("{}.", block.name))).sum();
        let ends: i64 =
            ["conv1.", "bn1.", "fc."].map(|prefix| gated.params.count_prefixed(prefix)).iter().sum();
        assert_eq!(in_blocks + ends, gated_params, "{arch}: the parts add up to the whole");
    }
}

#[test]
fn closed_gate_excludes_its_block() {
    let net = gated_resnet20();
    let x = Tensor::randn([2, 3, 32, 32], CPU_FLOAT);
    let closed = Tensor::full([2, 9], -1e9, CPU_FLOAT);
    let open = Tensor::full([2, 9], 1e9, CPU_FLOAT);
    let run = |noise: &Tensor| {
        let relaxation = config::Relaxation::Gumbel;
        let decisions = Decisions::Relaxed { noise: Some(noise), temperature: 1.0, relaxation };
        net.forward(&x, decisions, BnMode::Running)
    };
    assert_eq!(f64::try_from(run(&closed).path.sum(Kind::Float)).unwrap(), 0.0);
    assert_eq!(f64::try_from(run(&open).path.sum(Kind::Float)).unwrap(), 18.0);
    // Other weights in a block change the logits if its gate is open, and not if it is closed.
    let before_closed = run(&closed).logits;
    let before_open = run(&open).logits;
    let weight = net.params.parameters.iter().find(|p| p.name == "layer1.1.conv1.weight").unwrap();
    tch::no_grad(|| {
        let _ = weight.tensor.shallow_clone().fill_(0.3);
    });
    assert!(run(&closed).logits.equal(&before_closed));
    assert!(!run(&open).logits.equal(&before_open));
}

/// bf16 has a mantissa of 8 bits: a network of twenty layers is off by some per cent. Gates and logits are fp32.
#[test]
fn bf16_is_close_to_fp32() {
    let net = gated_resnet20();
    let x = Tensor::randn([8, 3, 32, 32], CPU_FLOAT);
    let run = |x: &Tensor| net.forward(x, Decisions::Hard, BnMode::BATCH);
    let exact = run(&x);
    let rounded = run(&x.to_kind(Kind::BFloat16));
    assert_eq!(rounded.logits.kind(), Kind::Float);
    assert_eq!(rounded.gate_logits.kind(), Kind::Float);
    let error = f64::try_from((&rounded.logits - &exact.logits).norm() / exact.logits.norm()).unwrap();
    assert!(error > 1e-5 && error < 0.05, "off by {error}");
    rounded.logits.sum(Kind::Float).backward();
    let gradient = net.params.parameters[0].tensor.grad();
    assert!(gradient.kind() == Kind::Float && f64::try_from(gradient.norm()).unwrap() > 0.0);
}

#[test]
fn running_statistics_change_only_if_asked() {
    let net = gated_resnet20();
    let x = Tensor::randn([4, 3, 32, 32], CPU_FLOAT);
    let before = net.params.flat_buffers().copy();
    let without = net.forward(&x, Decisions::Hard, BnMode::Batch { update_running: false, sync: None });
    assert!(net.params.flat_buffers().equal(&before));
    let with = net.forward(&x, Decisions::Hard, BnMode::BATCH);
    assert!(with.logits.equal(&without.logits) && !net.params.flat_buffers().equal(&before));
}

/// Also with `rnn` routers, whose blocks share their last layer.
#[test]
fn shift_moves_all_gate_logits_equally() {
    for kind in [config::RouterKind::Fc, config::RouterKind::Cnn, config::RouterKind::Rnn] {
        let router = config::Router { kind, ..Default::default() };
        let model = config::Model { router, ..Default::default() };
        let net = Net::new(&model, 1, 16, 4, 0, Device::Cpu);
        let x = Tensor::randn([4, 1, 16, 16], CPU_FLOAT);
        let noise = Tensor::full([4, 9], 1e9, CPU_FLOAT); // all blocks run, before and after
        let relaxation = config::Relaxation::Gumbel;
        let open = Decisions::Relaxed { noise: Some(&noise), temperature: 1.0, relaxation };
        let before = net.forward(&x, open, BnMode::Running).gate_logits;
        net.shift_gates(-0.75);
        let after = net.forward(&x, open, BnMode::Running).gate_logits;
        assert!((before - after).allclose(&Tensor::from(0.75f32), 0.0, 1e-5, false), "{kind:?}");
    }
}

/// With factor s for all blocks a static network is the one whose blocks' last norms have s·γ and s·β; each view has its own factors.
#[test]
fn drop_path_scales_the_residual_branches() {
    let build = |arch| {
        let model = config::Model { arch, gates: Gates::None, ..Default::default() };
        Net::new(&model, 1, 32, 4, 0, Device::Cpu)
    };
    for (arch, blocks, last) in [(Arch::ResNet20, 9, ".bn2."), (Arch::ResNet50, 16, ".bn3.")] {
        let net = build(arch);
        let x = Tensor::randn([2, 1, 32, 32], CPU_FLOAT);
        let logits =
            |net: &Net, decisions| tch::no_grad(|| net.forward(&x, decisions, BnMode::Running).logits);
        let scaled = |scale: f64| {
            let net = build(arch);
            tch::no_grad(|| {
                for (name, mut tensor) in net.params.state_dict() {
                    if name.contains(last) && !name.contains("running") {
                        let _ = tensor.g_mul_scalar_(scale);
                    }
                }
            });
            logits(&net, Decisions::Hard)
        };
        let factors = Tensor::full([2, blocks], 2.0, CPU_FLOAT);
        let _ = factors.get(1).fill_(0.0);
        let found = logits(&net, Decisions::DropPath(&factors));
        assert!(found.get(0).allclose(&scaled(2.0).get(0), 1e-4, 1e-4, false), "{arch}: twice");
        assert!(found.get(1).allclose(&scaled(0.0).get(1), 1e-4, 1e-4, false), "{arch}: dropped");
        assert!(!found.get(1).allclose(&scaled(1.0).get(1), 1e-3, 1e-3, false), "{arch}: it matters");
    }
}

/// The bias of "run" over "skip" is added to each logit: by default blocks run with probability σ(2) = 0.88 at first, without it
/// with about ½.
#[test]
fn open_bias_is_the_first_logit_of_a_gate() {
    let x = Tensor::randn([4, 1, 16, 16], CPU_FLOAT);
    let logits = |kind, open_bias| {
        let router = config::Router { kind, open_bias, ..Default::default() };
        let model = config::Model { router, ..Default::default() };
        Net::new(&model, 1, 16, 4, 0, Device::Cpu).forward(&x, Decisions::Hard, BnMode::Running).gate_logits
    };
    for kind in [config::RouterKind::Fc, config::RouterKind::Cnn, config::RouterKind::Rnn] {
        let first = logits(kind, 0.0).select(1, 0);
        assert!((logits(kind, 2.0).select(1, 0) - &first).allclose(&Tensor::from(2f32), 0.0, 1e-5, false));
        let probability = first.sigmoid().mean(Kind::Double).double_value(&[]);
        assert!((probability - 0.5).abs() < 0.25, "{kind:?}: {probability}");
    }
}

/// A network of the first gate's block only: every other block is its skip branch, so a gated network with the same weights and
/// only that gate open has the same logits. MACs by hand for 16×16 images: F = 2·16·16·16·16·9, projections as below.
#[test]
fn fixed_path_is_the_static_network_of_its_blocks() {
    use config::{Routing, SkipBranch};
    for skip in [SkipBranch::Project, SkipBranch::Shortcut] {
        let build = |routing| {
            let model = config::Model { routing, skip, ..Default::default() };
            Net::new(&model, 1, 16, 4, 0, Device::Cpu)
        };
        let fixed = build(Routing::Fixed(vec![0]));
        let gated = build(Routing::Routers);
        let weights: std::collections::HashMap<_, _> = gated.params.state_dict().into_iter().collect();
        tch::no_grad(|| {
            for (name, mut tensor) in fixed.params.state_dict() {
                tensor.copy_(&weights[&name]);
            }
        });
        let x = Tensor::randn([3, 1, 16, 16], CPU_FLOAT);
        let noise = Tensor::full([3, 9], -1e9, CPU_FLOAT);
        let _ = noise.select(1, 0).fill_(1e9);
        let expected = gated.forward(&x, Decisions::Sampled(&noise), BnMode::Running).logits;
        let found = fixed.forward(&x, Decisions::Hard, BnMode::Running);
        assert!(found.logits.allclose(&expected, 1e-5, 1e-5, false), "{skip:?}");
        assert_eq!((found.path.size(), fixed.possible_gates), (vec![3, 0], 9));
        let skips = if skip == SkipBranch::Project { 8 * 8 * 16 * 32 + 4 * 4 * 32 * 64 } else { 0 };
        let ends = 16 * 16 * 16 * 9 + 64 * 4;
        assert_eq!(fixed.costs.static_macs(), ends + 2 * 16 * 16 * 16 * 16 * 9 + skips);
        assert_eq!(fixed.costs.mean_macs(&[]), fixed.costs.static_macs() as f64);
    }
    let all = config::Model { routing: Routing::Fixed((0..9).collect()), ..Default::default() };
    let plain = config::Model { gates: Gates::None, ..Default::default() };
    let [all, plain] = [all, plain].map(|model| Net::new(&model, 1, 16, 4, 0, Device::Cpu));
    assert!(all.params.flat().equal(plain.params.flat()), "with every gate it is the static backbone");
}

/// The same logits and gradients, up to rounding, where some images run a block, all of them, or none.
#[test]
fn skipping_equals_masking() {
    use config::{RouterKind, Skip, SkipBranch};
    for (arch, kind, gates, skip, size) in [
        (Arch::ResNet20, RouterKind::Fc, Gates::All, SkipBranch::Project, 16),
        (Arch::ResNet20, RouterKind::Rnn, Gates::All, SkipBranch::Shortcut, 16),
        (Arch::ResNet18, RouterKind::Cnn, Gates::All, SkipBranch::Shortcut, 32),
        (Arch::ResNet50, RouterKind::Fc, Gates::All, SkipBranch::Project, 32),
    ] {
        let router = config::Router { kind, open_bias: 0.5, ..Default::default() };
        let model = config::Model { arch, gates, skip, router, ..Default::default() };
        let net = Net::new(&model, 3, size, 7, 0, Device::Cpu);
        let n = net.possible_gates as i64;
        let x = Tensor::randn([6, 3, size, size], CPU_FLOAT);
        let noise = super::evaluation_noise(3, &[0, 1, 2, 3, 4, 5], n as usize);
        let _ = noise.select(1, 1).fill_(-1e9);
        let _ = noise.select(1, n - 1).fill_(1e9);
        let pass = |skip| {
            let output = net.forward(&x, Decisions::hard(Some(&noise), skip), BnMode::Running);
            (output.logits.square().sum(Kind::Float)).backward();
            let gradients: Vec<Tensor> = net
                .params
                .parameters
                .iter()
                .map(|parameter| {
                    let mut gradient = parameter.tensor.grad();
                    let found =
                        if gradient.defined() { gradient.copy() } else { parameter.tensor.zeros_like() };
                    if gradient.defined() {
                        let _ = gradient.zero_();
                    }
                    found
                })
                .collect();
            (output, gradients)
        };
        let (masked, expected) = pass(Skip::Masked);
        let (skipping, found) = pass(Skip::Real);
        assert!(
            skipping.path.equal(&masked.path) && skipping.logits.allclose(&masked.logits, 1e-4, 1e-5, false)
        );
        let rates = Vec::<f64>::try_from(masked.path.mean_dim([0].as_slice(), false, Kind::Double)).unwrap();
        assert!(
            rates.iter().any(|&rate| rate > 0.0 && rate < 1.0),
            "{arch}: some images run a block: {rates:?}"
        );
        for (parameter, (found, expected)) in net.params.parameters.iter().zip(found.iter().zip(&expected)) {
            let largest = expected.abs().max().double_value(&[]);
            let error = (found - expected).abs().max().double_value(&[]);
            assert!(error <= 1e-4 * largest.max(1e-3), "{arch} {}: {error} of {largest}", parameter.name);
        }
    }
}

/// The first gate's block normalises with the statistics of the images that run it, and the second moves no running statistics,
/// because no image does.
#[test]
fn images_that_skip_a_block_have_no_part_in_its_statistics() {
    let net = gated_resnet20();
    let x = Tensor::randn([6, 3, 32, 32], CPU_FLOAT);
    let noise = Tensor::full([6, 9], 1e9, CPU_FLOAT);
    let _ = noise.select(1, 0).slice(0, 2, None, 1).fill_(-1e9); // images 0 and 1 run
    let _ = noise.select(1, 1).fill_(-1e9);
    let statistics = |name: &str| -> Tensor {
        let state = net.params.state_dict();
        state.into_iter().find(|(found, _)| found == name).expect("a buffer of this name").1.copy()
    };
    let before = statistics("layer1.1.bn2.running_mean");
    let still = BnMode::Batch { update_running: false, sync: None };
    let stem = tch::no_grad(|| net.layers.stem.forward(&x, still).relu());
    let h = tch::no_grad(|| net.layers.blocks[0].convs[0].conv.forward(&stem.narrow(0, 0, 2)));
    net.forward(&x, Decisions::Skipping(Some(&noise)), BnMode::BATCH);
    let expected = h.mean_dim([0, 2, 3].as_slice(), false, Kind::Float) * 0.1; // momentum 0.1, from 0
    assert!(statistics("layer1.0.bn1.running_mean").allclose(&expected, 1e-4, 1e-6, false));
    assert!(statistics("layer1.1.bn2.running_mean").equal(&before));
    assert!(
        statistics("layer1.1.bn1.running_var").equal(&statistics("layer1.1.bn1.running_var").ones_like())
    );
}

/// Gates of probability ¾ have the logit ln 3, no layers and no MACs, and what they drew is their logit's sign.
#[test]
fn random_gates_run_with_their_probability() {
    let model = config::Model { routing: config::Routing::Random(0.75), ..Default::default() };
    let net = Net::new(&model, 1, 16, 4, 0, Device::Cpu);
    assert!(net.costs.gated().all(|block| block.router == Some(0)));
    assert!(net.params.parameters.iter().all(|parameter| !parameter.name.contains("router")));
    let noise = super::evaluation_noise(3, &(0..400).collect::<Vec<u32>>(), 9);
    let x = Tensor::randn([400, 1, 16, 16], CPU_FLOAT);
    let output = tch::no_grad(|| net.forward(&x, Decisions::Sampled(&noise), BnMode::Running));
    assert!(output.path.equal(&(&noise + 3f64.ln()).ge(0.0).to_kind(Kind::Float)));
    assert!(output.path.equal(&super::hard_decisions(&output.gate_logits)));
    let rate = output.path.mean(Kind::Double).double_value(&[]);
    assert!((rate - 0.75).abs() < 0.03, "{rate}");
}

#[test]
fn mean_macs_follow_from_rates() {
    let costs = gated_resnet20().costs;
    let routers: i64 = costs.gated().map(|block| block.router.unwrap()).sum();
    let skips: i64 = costs.gated().map(|block| block.skip).sum();
    assert_eq!(costs.mean_macs(&[1.0; 9]), (costs.static_macs() + routers) as f64);
    assert_eq!(costs.mean_macs(&[0.0; 9]), (costs.stem + costs.head + routers + skips) as f64);
    assert!((costs.gate_costs(CostUnit::Blocks).iter().sum::<f32>() - 9.0).abs() < 1e-5);
    let blocks: i64 = costs.gated().map(|block| block.run).sum();
    let share = blocks as f32 / costs.static_macs() as f32;
    assert!((costs.gate_costs(CostUnit::Fraction).iter().sum::<f32>() - share).abs() < 1e-5);
    assert!((costs.gate_costs(CostUnit::Gmacs).iter().sum::<f32>() - blocks as f32 / 1e9).abs() < 1e-5);
}

/// All routers, skip branches and shortcuts: MACs of the skip branch and of the router, computed by hand for 16×16 images.
#[test]
fn gate_macs_follow_from_input_shapes() {
    use config::{RouterKind, SkipBranch};
    let costs = |kind, skip| {
        let router = config::Router { kind, ..Default::default() };
        let model = config::Model { router, skip, ..Default::default() };
        Net::new(&model, 1, 16, 4, 0, Device::Cpu).costs
    };
    let rnn = costs(RouterKind::Rnn, SkipBranch::Shortcut);
    let routers: Vec<i64> = rnn.gated().map(|block| block.router.unwrap()).collect();
    assert_eq!(routers[..4], [16 * 10 + 800 + 20; 4]);
    assert_eq!(routers[4], 32 * 10 + 800 + 20);
    assert!(rnn.gated().all(|block| block.skip == 0), "padding and the identity cost nothing");
    let projected = costs(RouterKind::Fc, SkipBranch::Project);
    let skips: Vec<i64> = projected.gated().map(|block| block.skip).collect();
    assert_eq!(skips, [0, 0, 0, 8 * 8 * 16 * 32, 0, 0, 4 * 4 * 32 * 64, 0, 0]);
}
