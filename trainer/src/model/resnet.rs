//! Residual networks, static or gated: the 32×32 family of He et al. (arXiv 1512.03385, Section 4.2; option-A
//! shortcuts) and the ImageNet family, with torchvision's names.

mod folded;

pub use folded::{Folded, FoldedBlock, FoldedGate, Way};

use super::gate::{Decisions, Gate};
use super::layers::{BatchNorm, Builder, Conv, Linear, Shape, Statistics};
use super::params::Params;
use super::router::{Memory, RouterBuilder};
use crate::config::{self, Arch, CostUnit, Gates};
use crate::model::kernels::Then;
use tch::{Device, Kind, Tensor};

/// A ResNet, gated or static.
#[derive(Debug)]
pub struct Net {
    /// Its tensors.
    pub params: Params,
    /// What each part costs.
    pub costs: Costs,
    stem: (Conv, BatchNorm),
    /// Whether 3×3 max pooling of stride 2 follows the first convolution, as in the ImageNet family.
    pub pool: bool,
    blocks: Vec<Block>,
    head: Linear,
    /// The last biases of the routers, `[2]` each.
    router_biases: Vec<Tensor>,
}

/// What a forward pass gives.
#[derive(Debug)]
pub struct Output {
    /// `[N, classes]`.
    pub logits: Tensor,
    /// What the classifier sees: the mean over pixels of the last block's output, `[N, C]`.
    pub features: Tensor,
    /// U[1] − U[0] of every gate, `[N, n]`.
    pub gate_logits: Tensor,
    /// The decisions that the blocks were blended by, v or u: the routing path, `[N, n]`.
    pub path: Tensor,
}

/// Multiply-accumulates of one image, part by part.
#[derive(Debug)]
pub struct Costs {
    /// Everything before the first block.
    pub stem: i64,
    /// The classifier.
    pub head: i64,
    /// Block by block.
    pub blocks: Vec<BlockCost>,
}

/// One block's books.
#[derive(Debug)]
pub struct BlockCost {
    /// Its name, such as `layer1.0`.
    pub name: String,
    /// The shape that it gives.
    pub shape: Shape,
    /// Trained numbers, the gate's included.
    pub params: i64,
    /// MACs of the block itself with its shortcut: F_k.
    pub run: i64,
    /// MACs of its way around.
    pub skip: i64,
    /// MACs of its router; `None` for a block that always runs.
    pub router: Option<i64>,
}

#[derive(Debug)]
struct Block {
    layers: Vec<(Conv, BatchNorm)>,
    shortcut: Shortcut,
    gate: Option<Gate>,
}

/// The residual connection inside a block.
#[derive(Debug)]
enum Shortcut {
    Identity,
    /// Option A: every `stride`-th pixel, the new channels zero.
    Pad {
        stride: i64,
        channels: i64,
    },
    Project(Conv, BatchNorm),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// 32×32 inputs: 3×3 stem, three stages of basic blocks, option-A shortcuts.
    Small,
    /// 224×224 inputs: 7×7 stem and pooling, four stages of basic blocks.
    Basic,
    /// As `Basic`, of bottleneck blocks.
    Bottleneck,
}

/// The kind of blocks, and how many each stage has.
fn plan(arch: Arch) -> (Family, &'static [i64]) {
    match arch {
        Arch::ResNet20 => (Family::Small, &[3; 3]),
        Arch::ResNet32 => (Family::Small, &[5; 3]),
        Arch::ResNet44 => (Family::Small, &[7; 3]),
        Arch::ResNet56 => (Family::Small, &[9; 3]),
        Arch::ResNet74 => (Family::Small, &[12; 3]),
        Arch::ResNet110 => (Family::Small, &[18; 3]),
        Arch::ResNet18 => (Family::Basic, &[2, 2, 2, 2]),
        Arch::ResNet34 => (Family::Basic, &[3, 4, 6, 3]),
        Arch::ResNet50 => (Family::Bottleneck, &[3, 4, 6, 3]),
        Arch::ResNet101 => (Family::Bottleneck, &[3, 4, 23, 3]),
        Arch::ResNet152 => (Family::Bottleneck, &[3, 8, 36, 3]),
    }
}

impl Net {
    /// Builds the network for images of `channels × size × size`, its first values a function of `seed`, and
    /// moves it to `device`.
    pub fn new(
        model: &config::Model,
        channels: i64,
        size: i64,
        classes: i64,
        seed: u64,
        device: Device,
    ) -> Self {
        let (family, depths) = plan(model.arch);
        let mut builder = Builder::new(seed);
        let b = &mut builder;
        let image = Shape { c: channels, h: size, w: size };
        let (width, pool) = if family == Family::Small { (16, false) } else { (64, true) };
        let (conv, mut shape) =
            b.conv("conv1", image, width, if pool { 7 } else { 3 }, if pool { 2 } else { 1 });
        let stem = (conv, b.norm("bn1", width, 1.0));
        let mut routers = RouterBuilder::new(&model.router);
        if pool {
            (shape.h, shape.w) = ((shape.h + 1) / 2, (shape.w + 1) / 2);
        }
        let mut costs = Costs { stem: b.macs, head: 0, blocks: Vec::new() };
        let mut blocks = Vec::new();
        for (stage, &depth) in depths.iter().enumerate() {
            for index in 0..depth {
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let name = format!("layer{}.{index}", stage + 1);
                let place = Place { family, from: shape, width: width << stage, stride };
                let (block, cost) = Block::new(b, model, &mut routers, name, place);
                shape = cost.shape;
                blocks.push(block);
                costs.blocks.push(cost);
            }
        }
        let before = b.macs;
        let head = b.linear("fc", shape.c, classes);
        costs.head = b.macs - before;
        let router_biases = routers.biases;
        let mut params = builder.params;
        params.flatten(device);
        Self { params, costs, stem, pool, blocks, head, router_biases }
    }

    /// The network that a run of `config` trains, with its first values.
    pub fn of(config: &config::Config, device: Device) -> Self {
        let (data, model) = (&config.data, &config.model);
        Self::new(model, data.channels.into(), data.image_size.into(), data.classes, config.run.seed, device)
    }

    /// `x` is `[N, C, H, W]`, normalised; convolutions and activations are of its kind, gates and logits fp32.
    pub fn forward(&self, x: &Tensor, decisions: Decisions, statistics: Statistics) -> Output {
        let mut x = self.stem.1.forward_then(&self.stem.0.forward(x), statistics, Then::Relu);
        if self.pool {
            x = x.x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false).into();
        }
        let (mut gates, mut path) = (Vec::new(), Vec::new());
        let mut memory: Memory = None;
        for block in &self.blocks {
            let shortcut = &block.shortcut(&x.x, statistics);
            let (h, norm) = block.before_last_norm(&x.x, statistics);
            let Some(gate) = &block.gate else {
                x = norm.forward_then(&h, statistics, Then::AddRelu { shortcut });
                continue;
            };
            let logit = gate.router.logit(&x, &mut memory);
            let v = decisions.decide(&logit, gates.len() as i64);
            // Eq. 7: a_k = v·F_k(a_{k−1}) + (1 − v)·skip(a_{k−1}).
            let skip = gate.skip(&x.x, shortcut, statistics);
            x = norm.forward_then(&h, statistics, Then::Blend { shortcut, skip: skip.as_ref(), v: &v });
            gates.push(logit);
            path.push(v);
        }
        let features = x.mean();
        let logits = self.head.forward(&features);
        let (batch, device) = (logits.size()[0], logits.device());
        let stack = |columns: Vec<Tensor>| match columns.is_empty() {
            true => Tensor::zeros([batch, 0], (Kind::Float, device)),
            false => Tensor::stack(&columns, 1),
        };
        Output { logits, features, gate_logits: stack(gates), path: stack(path) }
    }

    /// Adds `by` to every gate's logit: above 0, more blocks run.
    pub fn shift_gates(&self, by: f64) {
        tch::no_grad(|| {
            for bias in &self.router_biases {
                let _ = bias.select(0, 1).g_add_scalar_(by);
            }
        });
    }
}

/// Where a block stands.
#[derive(Clone, Copy)]
struct Place {
    family: Family,
    from: Shape,
    width: i64,
    stride: i64,
}

impl Block {
    fn new(
        b: &mut Builder,
        model: &config::Model,
        routers: &mut RouterBuilder,
        name: String,
        place: Place,
    ) -> (Self, BlockCost) {
        let Place { family, from, width, stride } = place;
        let (macs, params) = (b.macs, b.params.count());
        let v1 = model.stride_in == config::StrideIn::Conv1;
        // Kernel, channels and stride of each convolution.
        let plan: &[(i64, i64, i64)] = match family {
            Family::Bottleneck if v1 => &[(1, width, stride), (3, width, 1), (1, 4 * width, 1)],
            Family::Bottleneck => &[(1, width, 1), (3, width, stride), (1, 4 * width, 1)],
            _ => &[(3, width, stride), (3, width, 1)],
        };
        let mut layers = Vec::new();
        let mut shape = from;
        for (i, &(k, c, stride)) in plan.iter().enumerate() {
            let (conv, next) = b.conv(&format!("{name}.conv{}", i + 1), shape, c, k, stride);
            let last = i + 1 == plan.len();
            let scale = if last && model.zero_init_last_norm { 0.0 } else { 1.0 };
            layers.push((conv, b.norm(&format!("{name}.bn{}", i + 1), c, scale)));
            shape = next;
        }
        let before = b.macs;
        let shortcut = if from == shape {
            Shortcut::Identity
        } else if family == Family::Small {
            Shortcut::Pad { stride, channels: shape.c - from.c }
        } else {
            let (conv, _) = b.conv(&format!("{name}.downsample.0"), from, shape.c, 1, stride);
            Shortcut::Project(conv, b.norm(&format!("{name}.downsample.1"), shape.c, 1.0))
        };
        let shortcut_macs = b.macs - before;
        let run = b.macs - macs;
        let gated = match model.gates {
            Gates::All => true,
            Gates::SameShape => from == shape,
            Gates::None => false,
        };
        let (gate, router, skip) = if gated {
            let (gate, router, skip) = Gate::new(b, routers, &name, from, shape, model.skip, shortcut_macs);
            (Some(gate), Some(router), skip)
        } else {
            (None, None, 0)
        };
        let cost = BlockCost { name, shape, params: b.params.count() - params, run, skip, router };
        (Self { layers, shortcut, gate }, cost)
    }

    /// The residual connection.
    fn shortcut(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        match &self.shortcut {
            Shortcut::Identity => x.shallow_clone(),
            Shortcut::Pad { stride, channels } => {
                let picked = x.slice(2, None, None, *stride).slice(3, None, None, *stride);
                let before = channels / 2;
                picked.constant_pad_nd([0, 0, 0, 0, before, channels - before])
            }
            Shortcut::Project(conv, norm) => norm.forward(&conv.forward(x), statistics),
        }
    }

    /// The convolutions, and the batch norm that the last one's output still has to go through.
    fn before_last_norm(&self, x: &Tensor, statistics: Statistics) -> (Tensor, &BatchNorm) {
        let (last, layers) = self.layers.split_last().expect("a block has layers");
        let mut y = x.shallow_clone();
        for (conv, norm) in layers {
            y = norm.forward_then(&conv.forward(&y), statistics, Then::Relu).x;
        }
        (last.0.forward(&y), &last.1)
    }
}

impl Costs {
    /// MACs of the network without its routers and skip branches: the static backbone's.
    pub fn static_macs(&self) -> i64 {
        self.stem + self.head + self.blocks.iter().map(|block| block.run).sum::<i64>()
    }

    /// Mean MACs per image where gate k runs its block for a share `rates[k]` of the images:
    /// stem + head + routers + Σ (u_k·F_k + (1 − u_k)·skip_k).
    pub fn mean_macs(&self, rates: &[f64]) -> f64 {
        let mut rates = rates.iter();
        let block = |block: &BlockCost| match block.router {
            None => block.run as f64,
            Some(router) => {
                let rate = rates.next().expect("a rate for every gate");
                router as f64 + rate * block.run as f64 + (1.0 - rate) * block.skip as f64
            }
        };
        (self.stem + self.head) as f64 + self.blocks.iter().map(block).sum::<f64>()
    }

    /// MACs of an image in a training step's forward pass: both ways of each gated block are computed.
    pub fn training_macs(&self) -> i64 {
        let block = |block: &BlockCost| block.run + block.router.map_or(0, |router| router + block.skip);
        self.stem + self.head + self.blocks.iter().map(block).sum::<i64>()
    }

    /// Mean GMACs per image where no gated block runs, and where all do: the least and the most of a budget.
    pub fn gmacs_range(&self) -> (f64, f64) {
        let at = |rate: f64| self.mean_macs(&vec![rate; self.gated().count()]) / 1e9;
        (at(0.0), at(1.0))
    }

    /// The gated blocks, in the order of a path's elements.
    pub fn gated(&self) -> impl Iterator<Item = &BlockCost> {
        self.blocks.iter().filter(|block| block.router.is_some())
    }

    /// c_k of Eq. 11, `[n]`: each gated block's MACs. In `blocks`, Σ c_k = n.
    pub fn table(&self, unit: CostUnit) -> Vec<f32> {
        let runs: Vec<f64> = self.gated().map(|block| block.run as f64).collect();
        let one = match unit {
            CostUnit::Blocks => runs.iter().sum::<f64>() / runs.len() as f64,
            CostUnit::Fraction => self.static_macs() as f64,
            CostUnit::Gmacs => 1e9,
        };
        runs.into_iter().map(|run| (run / one) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(arch: Arch, gates: Gates, stride_in: config::StrideIn) -> Net {
        let model = config::Model { arch, gates, stride_in, ..Default::default() };
        let (size, classes) = if plan(arch).0 == Family::Small { (32, 10) } else { (224, 1000) };
        Net::new(&model, 3, size, classes, 0, Device::Cpu)
    }

    /// The counts known from the paper's Table 5 and from torchvision, to the last digit; those of gated networks that
    /// the paper does not have, by the independent version in tests/golden/reference.py.
    #[test]
    fn parameters_and_macs_are_the_known_ones() {
        use config::StrideIn::{Conv1, Conv2};
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
                assert_eq!(
                    format!("{:.6}", net.costs.static_macs() as f64 / 1e9),
                    format!("{macs:.6}"),
                    "{arch}"
                );
            }
            println!(
                "{arch:<10} {stride_in:?}  static {static_params:>11}  gated {gated_params:>11}  {macs:.6} GMACs"
            );
            let parts: i64 = gated.costs.blocks.iter().map(|block| block.params).sum();
            let ends: i64 = gated
                .params
                .trained
                .iter()
                .filter(|p| !p.name.starts_with("layer"))
                .map(|p| p.tensor.numel() as i64)
                .sum();
            assert_eq!(parts + ends, gated_params, "{arch}: the table's rows add up");
        }
    }

    #[test]
    fn a_gate_that_is_shut_leaves_the_block_out() {
        let net = net(Arch::ResNet20, Gates::All, config::StrideIn::Conv2);
        let x = Tensor::randn([2, 3, 32, 32], (Kind::Float, Device::Cpu));
        let shut = Tensor::full([2, 9], -1e9, (Kind::Float, Device::Cpu));
        let open = Tensor::full([2, 9], 1e9, (Kind::Float, Device::Cpu));
        let run = |noise: &Tensor| {
            let (noise, relaxation) = (Some(noise), config::Relaxation::Gumbel);
            net.forward(&x, Decisions::Relaxed { noise, temperature: 1.0, relaxation }, Statistics::Running)
        };
        assert_eq!(f64::try_from(run(&shut).path.sum(Kind::Float)).unwrap(), 0.0);
        assert_eq!(f64::try_from(run(&open).path.sum(Kind::Float)).unwrap(), 18.0);
        // Changing a block's weights must change nothing where its gate is shut, and something where not.
        let (before_shut, before_open) = (run(&shut).logits, run(&open).logits);
        let weight = net.params.trained.iter().find(|p| p.name == "layer1.1.conv1.weight").unwrap();
        tch::no_grad(|| {
            let _ = weight.tensor.shallow_clone().fill_(0.3);
        });
        assert!(run(&shut).logits.equal(&before_shut));
        assert!(!run(&open).logits.equal(&before_open));
    }

    /// bf16 has 8 bits of mantissa: a network of twenty layers is within some per cent, and gates and logits are fp32.
    #[test]
    fn bf16_is_near_fp32() {
        let net = net(Arch::ResNet20, Gates::All, config::StrideIn::Conv2);
        let x = Tensor::randn([8, 3, 32, 32], (Kind::Float, Device::Cpu));
        let run = |x: &Tensor| net.forward(x, Decisions::Hard, Statistics::BATCH);
        let (exact, near) = (run(&x), run(&x.to_kind(Kind::BFloat16)));
        assert_eq!((near.logits.kind(), near.gate_logits.kind()), (Kind::Float, Kind::Float));
        let off = f64::try_from((&near.logits - &exact.logits).norm() / exact.logits.norm()).unwrap();
        assert!(off > 1e-5 && off < 0.05, "off by {off}");
        near.logits.sum(Kind::Float).backward();
        let gradient = net.params.trained[0].tensor.grad();
        assert!(gradient.kind() == Kind::Float && f64::try_from(gradient.norm()).unwrap() > 0.0);
    }

    #[test]
    fn a_pass_may_leave_the_running_statistics_alone() {
        let net = net(Arch::ResNet20, Gates::All, config::StrideIn::Conv2);
        let x = Tensor::randn([4, 3, 32, 32], (Kind::Float, Device::Cpu));
        let before = net.params.flat_buffers().copy();
        let unseen = net.forward(&x, Decisions::Hard, Statistics::Batch { seen: false, over: None });
        assert!(net.params.flat_buffers().equal(&before));
        let seen = net.forward(&x, Decisions::Hard, Statistics::BATCH);
        assert!(seen.logits.equal(&unseen.logits) && !net.params.flat_buffers().equal(&before));
    }

    /// The bias is one for all gates, also where an `rnn` router's blocks share their last layer.
    #[test]
    fn gates_are_shifted_alike() {
        for kind in [config::RouterKind::Fc, config::RouterKind::Cnn, config::RouterKind::Rnn] {
            let router = config::Router { kind, ..Default::default() };
            let model = config::Model { router, ..Default::default() };
            let net = Net::new(&model, 1, 16, 4, 0, Device::Cpu);
            let x = Tensor::randn([4, 1, 16, 16], (Kind::Float, Device::Cpu));
            let noise = Tensor::full([4, 9], 1e9, (Kind::Float, Device::Cpu)); // all run, before and after
            let relaxation = config::Relaxation::Gumbel;
            let open = Decisions::Relaxed { noise: Some(&noise), temperature: 1.0, relaxation };
            let before = net.forward(&x, open, Statistics::Running).gate_logits;
            net.shift_gates(-0.75);
            let after = net.forward(&x, open, Statistics::Running).gate_logits;
            assert!((before - after).allclose(&Tensor::from(0.75f32), 0.0, 1e-5, false), "{kind:?}");
        }
    }

    #[test]
    fn rates_give_macs() {
        let costs = net(Arch::ResNet20, Gates::All, config::StrideIn::Conv2).costs;
        let routers: i64 = costs.gated().map(|block| block.router.unwrap()).sum();
        let skips: i64 = costs.gated().map(|block| block.skip).sum();
        assert_eq!(costs.mean_macs(&[1.0; 9]), (costs.static_macs() + routers) as f64);
        assert_eq!(costs.mean_macs(&[0.0; 9]), (costs.stem + costs.head + routers + skips) as f64);
        assert!((costs.table(CostUnit::Blocks).iter().sum::<f32>() - 9.0).abs() < 1e-5);
        let blocks: i64 = costs.gated().map(|block| block.run).sum();
        let share = blocks as f32 / costs.static_macs() as f32;
        assert!((costs.table(CostUnit::Fraction).iter().sum::<f32>() - share).abs() < 1e-5);
        assert!((costs.table(CostUnit::Gmacs).iter().sum::<f32>() - blocks as f32 / 1e9).abs() < 1e-5);
    }
}
