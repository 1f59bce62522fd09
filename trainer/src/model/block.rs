//! A residual block and its gate, generic over the type of convolutions and routers.

use super::builder::{Builder, ConvSpec};
use super::costs::BlockCost;
use super::gate::Decisions;
use super::kernels::Epilogue;
use super::layers::{Activation, BatchNorm, BnMode, ConvNorm, Shape};
use super::partition::Partition;
use super::router::{LstmState, Router, RouterBuilder};
use crate::config::{self, SkipBranch};
use tch::Tensor;

/// A residual block, `[N, C, H, W]` → `[N, C', H', W']`: F(x) = ReLU(`convs`(x) + `shortcut`(x)), with a ReLU between every two
/// convolutions. With a gate, training blends v·F(x) + (1 − v)·skip(x) (Eq. 7); inference computes either F(x) or skip(x)
/// (Eq. 13).
///
/// `C` is a convolution: [`ConvNorm`] in training, [`super::Conv`] with the batch norm folded in for export, a packed
/// convolution in inference. `R` is a router.
#[derive(Debug)]
pub struct Block<C, R> {
    /// None of a block that is always skipped and changes the shape: F(x) = ReLU(`shortcut`(x)).
    pub convs: Vec<C>,
    /// The residual connection.
    pub shortcut: Shortcut<C>,
    /// `None`: the block runs for every image.
    pub gate: Option<Gate<C, R>>,
}

/// A residual connection, `[N, C, H, W]` → `[N, C', H', W']`.
#[derive(Debug)]
pub enum Shortcut<C> {
    /// x.
    Identity,
    /// Every `stride`-th pixel, with channels of zeros before and after (option A of He et al., arXiv 1512.03385).
    Pad {
        /// Of height and width.
        stride: i64,
        /// Zero channels before x's.
        before: i64,
        /// Zero channels after x's.
        after: i64,
    },
    /// A 1×1 convolution.
    Conv(C),
}

/// Decides whether a block runs, and replaces a block that does not.
#[derive(Debug)]
pub struct Gate<C, R> {
    /// Computes the logit.
    pub router: R,
    /// skip(x) = ReLU(this 1×1 convolution of x). `None`: skip(x) = ReLU(shortcut(x)), which for the identity is x, because a
    /// block's input is never negative.
    pub skip: Option<C>,
}

impl<C, R> Block<C, R> {
    /// The same block with other convolutions and routers.
    pub fn map<'a, D, S>(&'a self, conv: impl Fn(&'a C) -> D, router: impl Fn(&'a R) -> S) -> Block<D, S> {
        Block {
            convs: self.convs.iter().map(&conv).collect(),
            shortcut: match &self.shortcut {
                Shortcut::Identity => Shortcut::Identity,
                &Shortcut::Pad { stride, before, after } => Shortcut::Pad { stride, before, after },
                Shortcut::Conv(shortcut) => Shortcut::Conv(conv(shortcut)),
            },
            gate: self
                .gate
                .as_ref()
                .map(|gate| Gate { router: router(&gate.router), skip: gate.skip.as_ref().map(&conv) }),
        }
    }
}

impl<C> Shortcut<C> {
    /// The connection of `x`, where `convolve` applies its convolution.
    pub fn forward(&self, x: &Tensor, convolve: impl FnOnce(&C) -> Tensor) -> Tensor {
        match self {
            Self::Identity => x.shallow_clone(),
            Self::Pad { stride, before, after } => {
                let pixels = x.slice(2, None, None, *stride).slice(3, None, None, *stride);
                pixels.constant_pad_nd([0, 0, 0, 0, *before, *after])
            }
            Self::Conv(conv) => convolve(conv),
        }
    }
}

/// Whether a block runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockKind {
    /// Its gate decides.
    Gated,
    /// For every image.
    Run,
    /// For no image: its skip branch replaces it.
    Skipped,
}

/// The form of a block to make.
pub(super) struct BlockSpec<'a> {
    /// Such as `layer1.0`.
    pub name: &'a str,
    pub input: Shape,
    pub convs: &'a [ConvSpec],
    /// Whether a shortcut that changes the shape pads with zeros; otherwise it is a convolution.
    pub pads: bool,
    pub kind: BlockKind,
}

impl BlockSpec<'_> {
    /// C'.
    pub fn channels(&self) -> i64 {
        self.convs.last().expect("a block has convolutions").channels
    }

    fn stride(&self) -> i64 {
        self.convs.iter().map(|conv| conv.stride).product()
    }

    /// Whether the output has the shape of the input.
    pub fn keeps_shape(&self) -> bool {
        self.stride() == 1 && self.channels() == self.input.c
    }
}

/// What a gate computed in a forward pass, `[N]` each.
pub(super) struct GateOutput {
    /// U[1] − U[0].
    pub logit: Tensor,
    /// v or u.
    pub decision: Tensor,
}

impl Gate<ConvNorm, Router> {
    /// The decision for `x`, as gate number `k` of the network.
    fn decide(&self, x: &Activation, lstm: &mut LstmState, k: usize, decisions: Decisions) -> GateOutput {
        let logit = self.router.logit(x, lstm);
        let decision = decisions.decide(&logit, k);
        let logit = match self.router {
            Router::Random(_) => decisions.add_noise(&logit, k), // its sign decides in inference, too
            _ => logit,
        };
        GateOutput { logit, decision }
    }
}

impl Shortcut<ConvNorm> {
    fn output_shape(&self, input: Shape) -> Shape {
        match self {
            Self::Identity => input,
            &Self::Pad { stride, before, after } => Shape {
                c: before + input.c + after,
                h: (input.h + stride - 1) / stride,
                w: (input.w + stride - 1) / stride,
            },
            Self::Conv(conv) => conv.output_shape(input),
        }
    }
}

impl Block<ConvNorm, Router> {
    pub(super) fn new(
        builder: &mut Builder,
        routers: &mut RouterBuilder,
        model: &config::Model,
        spec: &BlockSpec,
    ) -> Self {
        let BlockSpec { name, input, kind, .. } = *spec;
        let mut convs = Vec::new();
        let mut inputs = input.c;
        let specs = if kind == BlockKind::Skipped { &[] } else { spec.convs };
        for (i, &conv) in specs.iter().enumerate() {
            let is_last = i + 1 == specs.len();
            let scale = if is_last && model.zero_init_last_norm { 0.0 } else { 1.0 };
            let names = [format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1)];
            convs.push(builder.conv_norm(names.each_ref().map(String::as_str), inputs, conv, scale));
            inputs = conv.channels;
        }
        let channels = spec.channels();
        let stride = spec.stride();
        let keeps_shape = spec.keeps_shape();
        let projects = !keeps_shape && model.skip == SkipBranch::Project;
        let project = |builder: &mut Builder, branch: &str| {
            let names = [format!("{name}.{branch}.0"), format!("{name}.{branch}.1")];
            let projection = ConvSpec { kernel: 1, channels, stride };
            builder.conv_norm(names.each_ref().map(String::as_str), input.c, projection, 1.0)
        };
        let shortcut = if keeps_shape {
            Shortcut::Identity
        } else if kind == BlockKind::Skipped && projects {
            Shortcut::Conv(project(builder, "skip"))
        } else if spec.pads {
            let before = (channels - input.c) / 2;
            Shortcut::Pad { stride, before, after: channels - input.c - before }
        } else {
            Shortcut::Conv(project(builder, "downsample"))
        };
        let gate = (kind == BlockKind::Gated).then(|| {
            let router = routers.build(builder, name, input.c);
            Gate { router, skip: projects.then(|| project(builder, "skip")) }
        });
        Self { convs, shortcut, gate }
    }

    /// The block's output for `x`, by the decisions of its gate, which is number `k` of the network. With stochastic depth, `k` is the
    /// block's own number.
    pub(super) fn forward(
        &self,
        x: &Activation,
        lstm: &mut LstmState,
        k: usize,
        decisions: Decisions,
        mode: BnMode,
    ) -> (Activation, Option<GateOutput>) {
        if self.convs.is_empty() {
            return (self.project(&x.values, mode).relu().into(), None);
        }
        let Some(gate) = &self.gate else {
            let shortcut = self.project(&x.values, mode);
            let output = match decisions {
                Decisions::DropPath(factors) => {
                    self.run_scaled(&x.values, &shortcut, &factors.select(1, k as i64), mode)
                }
                _ => self.run(&x.values, &shortcut, mode),
            };
            return (output, None);
        };
        if let Decisions::Skipping(_) = decisions {
            let decided = gate.decide(x, lstm, k, decisions);
            return (self.forward_chosen(x, gate, &decided.decision, mode), Some(decided));
        }
        // Both branches for all inputs, blended by v (Eq. 7).
        let shortcut = &self.project(&x.values, mode);
        let (h, norm) = self.convolve(&x.values, mode);
        let decided = gate.decide(x, lstm, k, decisions);
        let skip = match (&gate.skip, &self.shortcut) {
            (Some(projection), _) => {
                Some(projection.forward_with(&x.values, mode, Epilogue::Relu { pool: false }).values)
            }
            (None, Shortcut::Identity) => None,
            (None, _) => Some(shortcut.relu()),
        };
        let blend = Epilogue::Blend { shortcut, skip: skip.as_ref(), v: &decided.decision };
        (norm.forward_with(&h, mode, blend), Some(decided))
    }

    /// F(x) for the inputs that run, and skip(x) for the others (Eq. 13). Both are computed even for no input: then they cost
    /// nothing, their gradients are zero, and all ranks take part in the collectives of synchronised batch norm.
    fn forward_chosen(
        &self,
        x: &Activation,
        gate: &Gate<ConvNorm, Router>,
        decisions: &Tensor,
        mode: BnMode,
    ) -> Activation {
        let partition = Partition::new(decisions);
        let [run, skipped] = partition.split(x);
        let (shortcut, skip) = match (&gate.skip, &self.shortcut) {
            (Some(projection), _) => {
                let skip = projection.forward_with(&skipped.values, mode, Epilogue::Relu { pool: true });
                (self.project(&run.values, mode), skip)
            }
            (None, Shortcut::Identity) => (run.values.shallow_clone(), skipped),
            (None, _) => {
                // All inputs need the shortcut.
                let [shortcut, skip] = partition.split(&self.project(&x.values, mode).into());
                (shortcut.values, skip.values.relu().into())
            }
        };
        let run = self.run(&run.values, &shortcut, mode);
        partition.join(&run, &skip)
    }

    /// The residual connection of `x`.
    fn project(&self, x: &Tensor, mode: BnMode) -> Tensor {
        self.shortcut.forward(x, |conv| conv.forward(x, mode))
    }

    /// F(x), for the residual connection of x.
    fn run(&self, x: &Tensor, shortcut: &Tensor, mode: BnMode) -> Activation {
        let (h, norm) = self.convolve(x, mode);
        norm.forward_with(&h, mode, Epilogue::AddRelu { shortcut })
    }

    /// ReLU(s·`convs`(x) + shortcut), where stochastic depth scales each input's branch by s, f32 `[N]`.
    fn run_scaled(&self, x: &Tensor, shortcut: &Tensor, scales: &Tensor, mode: BnMode) -> Activation {
        let (h, norm) = self.convolve(x, mode);
        let branch = norm.forward(&h, mode);
        let scales = scales.view([-1, 1, 1, 1]).to_kind(branch.kind());
        (branch * scales + shortcut).relu().into()
    }

    /// `convs`(x) before the last batch norm, and that norm.
    fn convolve(&self, x: &Tensor, mode: BnMode) -> (Tensor, &BatchNorm) {
        let (last, others) = self.convs.split_last().expect("a block that runs has convolutions");
        let mut h = x.shallow_clone();
        for conv in others {
            h = conv.forward_with(&h, mode, Epilogue::Relu { pool: false }).values;
        }
        (last.conv.forward(&h), &last.norm)
    }

    /// The block's MACs and the shape of its output, for an input of shape `input`.
    pub(super) fn cost(&self, name: String, input: Shape) -> BlockCost {
        let mut shape = input;
        let mut run = 0;
        for conv in &self.convs {
            run += conv.macs(shape);
            shape = conv.output_shape(shape);
        }
        let shortcut = match &self.shortcut {
            Shortcut::Conv(conv) => conv.macs(input),
            Shortcut::Identity | Shortcut::Pad { .. } => 0,
        };
        if self.convs.is_empty() {
            shape = self.shortcut.output_shape(input);
        }
        let skip = self.gate.as_ref().map_or(0, |gate| match &gate.skip {
            Some(projection) => projection.macs(input),
            None => shortcut,
        });
        let router = self.gate.as_ref().map(|gate| gate.router.macs(input));
        BlockCost { name, shape, run: run + shortcut, skip, router }
    }
}
