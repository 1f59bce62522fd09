//! Dynamic inference: hard decisions (Eq. 13), and a block really skipped. Each block runs on those images of the batch
//! that take it, and on none if nobody does; batch norm is folded into the convolutions.
//!
//! The network is [`codinet_trainer::model`]'s own, as [`Net::folded`] gives it.

mod bench;
pub mod cli;
mod curve;
mod layer;
mod predict;
mod router;
mod rows;
mod source;
mod state;

use codinet_trainer::model::router::Memory;
use codinet_trainer::model::{Costs, Folded, FoldedBlock, FoldedGate, Net, Way};
use codinet_trainer::optim::calibration::fit_bias;
use codinet_trainer::sys::channels_last;
use codinet_trainer::sys::error::{Error, Exit, Result};
use layer::Layer;
use router::Decider;
use state::State;
use tch::Tensor;

/// Numbers in one image's activation, for each thread, from which on convolutions lose less by taking images one at a time
/// than they would by having them moved together.
const LARGE: usize = 1 << 18;

/// A network ready for inference.
#[derive(Debug)]
pub struct Engine<'a> {
    /// What each part costs.
    pub costs: &'a Costs,
    /// Added to every gate's logit: above 0, more blocks run.
    pub bias: f64,
    stem: Layer,
    pool: bool,
    blocks: Vec<Block<'a>>,
    head: &'a codinet_trainer::model::layers::Linear,
}

/// Which blocks run.
#[derive(Clone, Copy, Debug)]
pub enum Paths<'a> {
    /// Those that the routers choose.
    Routed,
    /// These, `[N, n]`, whatever the routers say, which are asked all the same: what a network with such paths would cost.
    Forced(&'a [bool]),
    /// All, and no router is asked: the static backbone.
    All,
}

/// What a pass over a batch gives.
#[derive(Debug)]
pub struct Passed {
    /// f32 `[N, classes]`.
    pub logits: Tensor,
    /// Which blocks ran, `[N, n]`.
    pub path: Vec<bool>,
}

#[derive(Debug)]
struct Block<'a> {
    convs: Vec<Layer>,
    shortcut: Route,
    gate: Option<Gate<'a>>,
}

#[derive(Debug)]
struct Gate<'a> {
    decider: Decider<'a>,
    /// None: the shortcut.
    skip: Option<Route>,
}

#[derive(Debug)]
enum Route {
    Identity,
    Pad { stride: i64, before: i64, behind: i64 },
    Conv(Layer),
}

impl<'a> Engine<'a> {
    /// By `net`'s present weights.
    pub fn new(net: &'a Net) -> Self {
        let Folded { stem, pool, blocks, head } = net.folded();
        let blocks = blocks.into_iter().map(Block::new).collect();
        Self { costs: &net.costs, bias: 0.0, stem: Layer::new(stem), pool, blocks, head }
    }

    /// How many gates there are: n.
    pub fn gates(&self) -> usize {
        self.blocks.iter().filter(|block| block.gate.is_some()).count()
    }

    /// MACs of one image on `path`, `[n]`, routers and skip branches included.
    pub fn macs(&self, path: &[bool]) -> f64 {
        let rates: Vec<f64> = path.iter().map(|&run| f64::from(u8::from(run))).collect();
        self.costs.mean_macs(&rates)
    }

    /// `x` is f32 `[N, C, H, W]`, normalised; N is at least 1.
    pub fn forward(&self, x: &Tensor, paths: Paths) -> Passed {
        tch::no_grad(|| self.pass(x, paths))
    }

    /// Sets the bias that meets `budget` in GMACs on `batches`, as near as may be; what it gives.
    pub fn meet(&mut self, budget: f64, batches: &[Tensor]) -> Result<f64> {
        let (bias, found) = fit_bias(budget, |bias| {
            self.bias = bias;
            let mut rates = (0.0, vec![0.0; self.gates()]);
            for x in batches {
                let passed = self.forward(x, Paths::Routed);
                rates.0 += x.size()[0] as f64;
                for path in passed.path.chunks(self.gates().max(1)) {
                    rates.1.iter_mut().zip(path).for_each(|(rate, &run)| *rate += f64::from(u8::from(run)));
                }
            }
            let rates: Vec<f64> = rates.1.iter().map(|sum| sum / rates.0).collect();
            Ok(self.costs.mean_macs(&rates) / 1e9)
        })?;
        self.bias = bias;
        Ok(found)
    }

    /// Refuses a network that has nothing to choose.
    pub fn need_gates(&self) -> Result<()> {
        let what = "the network has no gates: every block runs for every image; name a gated one";
        if self.gates() > 0 { Ok(()) } else { Err(Error::new(Exit::Config, what)) }
    }

    fn pass(&self, x: &Tensor, paths: Paths) -> Passed {
        let (images, gates) = (x.size()[0] as usize, self.gates());
        let mut x = self.stem.forward(&channels_last(x), true);
        if self.pool {
            x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        let mut state = State::new(channels_last(&x));
        let mut path = vec![true; images * gates];
        let mut memory: Memory = None;
        let mut k = 0;
        for block in &self.blocks {
            let mut run = vec![true; images];
            if let Some(gate) = &block.gate {
                if !matches!(paths, Paths::All) {
                    let logits = gate.decider.logits(&mut state, &mut memory);
                    for (n, logit) in logits.into_iter().enumerate() {
                        run[n] = match paths {
                            Paths::Forced(path) => path[n * gates + k],
                            _ => f64::from(logit) + self.bias >= 0.0,
                        };
                        path[n * gates + k] = run[n];
                    }
                }
                k += 1;
            }
            block.step(&mut state, &run);
        }
        Passed { logits: self.head.forward(&state.mean()).detach(), path }
    }
}

impl<'a> Block<'a> {
    fn new(block: FoldedBlock<'a>) -> Self {
        let route = |way: Way| match way {
            Way::Identity => Route::Identity,
            Way::Pad { stride, before, behind } => Route::Pad { stride, before, behind },
            Way::Conv(conv) => Route::Conv(Layer::new(conv)),
        };
        let gate = block
            .gate
            .map(|FoldedGate { router, skip }| Gate { decider: Decider::new(router), skip: skip.map(route) });
        let convs = block.convs.into_iter().map(Layer::new).collect();
        Self { convs, shortcut: route(block.shortcut), gate }
    }

    /// Runs the block on the images of which `run` says so, and the way around on the others.
    fn step(&self, state: &mut State, run: &[bool]) {
        let chosen = |taken: bool| -> Vec<usize> { (0..run.len()).filter(|&n| run[n] == taken).collect() };
        let (rows, others) = (chosen(true), chosen(false));
        let keeps_shape = matches!(self.shortcut, Route::Identity);
        if others.is_empty() && keeps_shape {
            let _ = self.run(state.x()); // in place
            state.changed(&rows);
        } else if others.is_empty() {
            state.set(self.run(state.x()));
        } else if rows.is_empty() {
            if !keeps_shape {
                state.set(self.skip(state.x()));
            }
        } else if keeps_shape && state.x().numel() / run.len() >= LARGE * tch::get_num_threads() as usize {
            // Where they lie.
            for together in rows.chunk_by(|a, b| a + 1 == *b) {
                let _ = self.run(&state.x().narrow(0, together[0] as i64, together.len() as i64));
            }
            state.changed(&rows);
        } else if keeps_shape {
            let y = self.convolve(&rows::gather(state.x(), &rows), true);
            state.add(&rows, &y);
        } else {
            let y = self.run(&rows::gather(state.x(), &rows));
            let z = self.skip(&rows::gather(state.x(), &others));
            let (_, c, h, w) = y.size4().expect("[N, C, H, W]");
            let x = Tensor::empty([run.len() as i64, h, w, c], (y.kind(), y.device())).permute([0, 3, 1, 2]);
            rows::scatter(&x, &rows, &y);
            rows::scatter(&x, &others, &z);
            state.set(x);
        }
    }

    /// F(x), of `x`'s own memory where it keeps the shape.
    fn run(&self, x: &Tensor) -> Tensor {
        let h = self.convolve(x, false);
        let y = self.shortcut.forward(x, false);
        self.convs.last().expect("a block has convolutions").add_to(&y, &h);
        y
    }

    /// The convolutions of `x`; but for the last one, unless `all`.
    fn convolve(&self, x: &Tensor, all: bool) -> Tensor {
        let last = self.convs.len() - 1;
        let mut h = x.shallow_clone();
        for (i, conv) in self.convs[..last + usize::from(all)].iter().enumerate() {
            h = conv.forward(&h, i < last);
        }
        h
    }

    /// What stands in for the block where it changes the shape.
    fn skip(&self, x: &Tensor) -> Tensor {
        let skip = self.gate.as_ref().and_then(|gate| gate.skip.as_ref());
        skip.unwrap_or(&self.shortcut).forward(x, true)
    }
}

impl Route {
    fn forward(&self, x: &Tensor, relu: bool) -> Tensor {
        match self {
            Self::Identity => x.shallow_clone(),
            Self::Conv(conv) => channels_last(&conv.forward(x, relu)),
            Self::Pad { stride, before, behind } => {
                let picked = x.slice(2, None, None, *stride).slice(3, None, None, *stride);
                let y = channels_last(&picked.constant_pad_nd([0, 0, 0, 0, *before, *behind]));
                if relu { y.relu() } else { y }
            }
        }
    }
}
