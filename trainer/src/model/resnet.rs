//! Residual networks, static or gated, with torchvision's names: the family for 32×32 images of He et al. (arXiv 1512.03385,
//! Section 4.2) and the family for ImageNet.

use super::block::{Block, BlockKind, BlockSpec};
use super::builder::{Builder, ConvSpec};
use super::costs::Costs;
use super::gate::Decisions;
use super::kernels::Epilogue;
use super::layers::{BnMode, ConvNorm, Linear, Shape};
use super::params::Params;
use super::router::{LstmState, Router, RouterBuilder};
use crate::config::{self, Arch, Precision, Routing, StrideIn};
use tch::{Device, Kind, Tensor};

/// A ResNet's layers, `[N, C, H, W]` → `[N, classes]`. `C` is a convolution and `R` a router, as in [`Block`].
#[derive(Debug)]
pub struct ResNet<C, R> {
    /// The first convolution; ReLU follows.
    pub stem: C,
    /// Whether 3×3 max pooling of stride 2 follows the stem, as in the family for ImageNet.
    pub pool: bool,
    /// In order.
    pub blocks: Vec<Block<C, R>>,
    /// The classifier; its input is the mean over H and W of the last block's output.
    pub head: Linear,
}

impl<C, R> ResNet<C, R> {
    /// The same network with other convolutions and routers.
    pub fn map<'a, D, S>(&'a self, conv: impl Fn(&'a C) -> D, router: impl Fn(&'a R) -> S) -> ResNet<D, S> {
        ResNet {
            stem: conv(&self.stem),
            pool: self.pool,
            blocks: self.blocks.iter().map(|block| block.map(&conv, &router)).collect(),
            head: self.head.shallow_clone(),
        }
    }

    /// How many gates there are: n.
    pub fn gates(&self) -> usize {
        self.blocks.iter().filter(|block| block.gate.is_some()).count()
    }
}

/// A network with its parameters.
#[derive(Debug)]
pub struct Net {
    /// All tensors of `layers`.
    pub params: Params,
    /// MACs of `layers`.
    pub costs: Costs,
    /// The layers, in the form that is trained.
    pub layers: ResNet<ConvNorm, Router>,
    /// How many gates the network has with routers.
    pub possible_gates: usize,
    /// The last biases of the routers, `[2]` each.
    router_biases: Vec<Tensor>,
}

/// The results of a forward pass.
#[derive(Debug)]
pub struct NetOutput {
    /// `[N, classes]`.
    pub logits: Tensor,
    /// The classifier's input: the mean over H and W of the last block's output, `[N, C]`.
    pub features: Tensor,
    /// U[1] − U[0] of every gate, `[N, n]`.
    pub gate_logits: Tensor,
    /// The routing path: the decisions v or u by which blocks were blended, `[N, n]`.
    pub path: Tensor,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    /// 32×32 images: 3×3 stem, three stages of basic blocks, shortcuts padded with zeros.
    Small,
    /// 224×224 images: 7×7 stem and pooling, four stages of basic blocks.
    Basic,
    /// As `Basic`, of bottleneck blocks.
    Bottleneck,
}

/// The family of `arch`, and the number of blocks of each stage.
fn family_and_depths(arch: Arch) -> (Family, &'static [i64]) {
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

/// The convolutions of a block that halves the resolution if `stride` is 2.
fn block_convs(family: Family, width: i64, stride: i64, stride_in: StrideIn) -> Vec<ConvSpec> {
    let conv = |kernel, channels, stride| ConvSpec { kernel, channels, stride };
    match (family, stride_in) {
        (Family::Small | Family::Basic, _) => vec![conv(3, width, stride), conv(3, width, 1)],
        (Family::Bottleneck, StrideIn::Conv1) => {
            vec![conv(1, width, stride), conv(3, width, 1), conv(1, 4 * width, 1)]
        }
        (Family::Bottleneck, StrideIn::Conv2) => {
            vec![conv(1, width, 1), conv(3, width, stride), conv(1, 4 * width, 1)]
        }
    }
}

impl Net {
    /// Builds the network for images of `channels × size × size` on `device`. Initial values depend only on `seed`.
    pub fn new(
        model: &config::Model,
        channels: i64,
        size: i64,
        classes: i64,
        seed: u64,
        device: Device,
    ) -> Self {
        let (family, depths) = family_and_depths(model.arch);
        let mut builder = Builder::new(seed);
        let mut routers = RouterBuilder::new(model);
        let mut possible_gates = 0;
        let image = Shape { c: channels, h: size, w: size };
        let pool = family != Family::Small;
        let stem = if pool {
            ConvSpec { kernel: 7, channels: 64, stride: 2 }
        } else {
            ConvSpec { kernel: 3, channels: 16, stride: 1 }
        };
        let width = stem.channels;
        let stem = builder.conv_norm(["conv1", "bn1"], channels, stem, 1.0);
        let mut shape = stem.output_shape(image);
        if pool {
            shape.h = (shape.h + 1) / 2;
            shape.w = (shape.w + 1) / 2;
        }
        let mut blocks = Vec::new();
        let mut block_costs = Vec::new();
        for (stage, &depth) in depths.iter().enumerate() {
            for index in 0..depth {
                let name = format!("layer{}.{index}", stage + 1);
                let stride = if stage > 0 && index == 0 { 2 } else { 1 };
                let convs = block_convs(family, width << stage, stride, model.stride_in);
                let mut spec = BlockSpec {
                    name: &name,
                    input: shape,
                    convs: &convs,
                    pads: family == Family::Small,
                    kind: BlockKind::Run,
                };
                if model.gates.include(spec.keeps_shape()) {
                    spec.kind = match &model.routing {
                        Routing::Fixed(run) if run.contains(&possible_gates) => BlockKind::Run,
                        Routing::Fixed(_) => BlockKind::Skipped,
                        Routing::Routers | Routing::Random(_) => BlockKind::Gated,
                    };
                    possible_gates += 1;
                }
                if spec.kind == BlockKind::Skipped && spec.keeps_shape() {
                    continue; // the skip branch is the identity
                }
                let block = Block::new(&mut builder, &mut routers, model, &spec);
                let cost = block.cost(name, shape);
                shape = cost.shape;
                block_costs.push(cost);
                blocks.push(block);
            }
        }
        builder.in_head = true;
        let head = builder.linear("fc", shape.c, classes);
        let costs = Costs { stem: stem.macs(image), head: head.macs(), blocks: block_costs };
        let mut params = builder.params;
        params.flatten(device);
        let layers = ResNet { stem, pool, blocks, head };
        Self { params, costs, layers, possible_gates, router_biases: routers.biases }
    }

    /// The network that a run of `config` trains, with its initial values.
    pub fn from_config(config: &config::Config, device: Device) -> Self {
        let config::Config { data, model, run, .. } = config;
        let mut net =
            Self::new(model, data.channels.into(), data.eval_size().into(), data.classes, run.seed, device);
        if run.precision == Precision::Bf16 {
            net.params.keep_bf16_copy();
        }
        net
    }

    /// `x` `[N, C, H, W]` is normalised. Convolutions and activations have its kind; gates and logits are fp32.
    pub fn forward(&self, x: &Tensor, decisions: Decisions, mode: BnMode) -> NetOutput {
        if x.kind() == Kind::BFloat16 {
            self.params.update_bf16_copy();
        }
        let mut x = self.layers.stem.forward_with(x, mode, Epilogue::Relu { pool: !self.layers.pool });
        if self.layers.pool {
            x = x.values.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false).into();
        }
        let mut gate_logits = Vec::new();
        let mut path = Vec::new();
        let mut lstm: LstmState = None;
        let drops = matches!(decisions, Decisions::DropPath(_));
        for (index, block) in self.layers.blocks.iter().enumerate() {
            let k = if drops { index } else { path.len() };
            let (y, gate) = block.forward(&x, &mut lstm, k, decisions, mode);
            x = y;
            if let Some(gate) = gate {
                gate_logits.push(gate.logit);
                path.push(gate.decision);
            }
        }
        let features = x.mean();
        let logits = self.layers.head.forward(&features);
        let images = logits.size()[0];
        let device = logits.device();
        let stack = |columns: Vec<Tensor>| {
            if columns.is_empty() {
                Tensor::zeros([images, 0], (Kind::Float, device))
            } else {
                Tensor::stack(&columns, 1)
            }
        };
        NetOutput { logits, features, gate_logits: stack(gate_logits), path: stack(path) }
    }

    /// Adds `bias` to every gate's logit. Positive values make more blocks run.
    pub fn shift_gates(&self, bias: f64) {
        tch::no_grad(|| {
            for router_bias in &self.router_biases {
                let _ = router_bias.select(0, 1).g_add_scalar_(bias);
            }
        });
    }
}
