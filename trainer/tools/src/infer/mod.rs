//! Dynamic inference: hard decisions (Eq. 13), and skipped blocks that are not computed. Each block is computed only for the images
//! that run it. The network is [`codinet_trainer::model`]'s own, with batch norm folded into the convolutions.

mod activation;
mod bench;
mod block;
pub mod cli;
mod compute;
mod curve;
mod gpu;
mod layer;
mod output;
mod path;
mod predict;
mod router;
mod rows;
mod source;

use activation::CachedActivation;
use codinet_trainer::model::{ConvNorm, Costs, LstmState, Net, ResNet};
use codinet_trainer::optim::calibration::fit_bias;
use codinet_trainer::sys::channels_last;
use codinet_trainer::sys::error::{Error, Exit, Result};
use gpu::Capacities;
use layer::Layer;
use router::FastRouter;
use tch::{Kind, Tensor};

/// A network ready for inference.
#[derive(Debug)]
pub struct Engine<'a> {
    /// MACs.
    pub costs: &'a Costs,
    /// Added to every gate's logit: above 0, more blocks run.
    pub bias: f64,
    layers: ResNet<Layer, FastRouter<'a>>,
    /// Of convolutions and activations.
    kind: Kind,
    /// For the pass on a GPU; `None`: on a CPU.
    capacities: Option<Capacities>,
}

/// Which blocks run.
#[derive(Clone, Copy, Debug)]
pub enum Paths<'a> {
    /// The routers decide.
    Routed,
    /// These, `[N, n]`. The routers run too, so that the time is that of a network with these paths.
    Forced(&'a [bool]),
    /// All, without routers: the static backbone.
    All,
}

/// The results of a pass over a batch.
#[derive(Debug)]
pub struct InferenceOutput {
    /// f32 `[N, classes]`.
    pub logits: Tensor,
    /// Which blocks ran, `[N, n]`.
    pub path: Vec<bool>,
}

impl<'a> Engine<'a> {
    /// Takes `net`'s present weights.
    pub fn new(net: &'a Net) -> Self {
        let layers = net.layers.map(|conv: &ConvNorm| Layer::new(conv.fold()), FastRouter::new);
        Self { costs: &net.costs, bias: 0.0, layers, kind: Kind::Float, capacities: None }
    }

    /// The same for a GPU, in f32 or bf16. A block that is expected to run for at most this share of a batch's images is computed for
    /// them only.
    pub fn on_gpu(net: &'a Net, kind: Kind, gather: f64) -> Self {
        let layer = |conv: &ConvNorm| Layer::new(conv.fold().to_kind(kind));
        let layers = net.layers.map(layer, FastRouter::new);
        Self { costs: &net.costs, bias: 0.0, layers, kind, capacities: Some(Capacities::new(gather)) }
    }

    /// How many gates there are: n.
    pub fn gates(&self) -> usize {
        self.layers.gates()
    }

    /// MACs of one image on `path`, `[n]`, routers and skip branches included.
    pub fn macs(&self, path: &[bool]) -> f64 {
        let rates: Vec<f64> = path.iter().map(|&run| f64::from(u8::from(run))).collect();
        self.costs.mean_macs(&rates)
    }

    /// `x` is f32 `[N, C, H, W]`, normalised; N is at least 1.
    pub fn forward(&self, x: &Tensor, paths: Paths) -> InferenceOutput {
        tch::no_grad(|| match &self.capacities {
            Some(capacities) => gpu::pass(self, capacities, x, paths),
            None => self.pass(x, paths),
        })
    }

    /// Sets the bias with which the mean GMACs on `batches` are closest to `budget`; returns those GMACs.
    pub fn fit_bias_to_budget(&mut self, budget: f64, batches: &[Tensor]) -> Result<f64> {
        let (bias, gmacs) = fit_bias(budget, |bias| {
            self.bias = bias;
            let mut images = 0.0;
            let mut runs = vec![0.0; self.gates()];
            for x in batches {
                let output = self.forward(x, Paths::Routed);
                images += x.size()[0] as f64;
                for path in output.path.chunks(self.gates().max(1)) {
                    runs.iter_mut().zip(path).for_each(|(runs, &run)| *runs += f64::from(u8::from(run)));
                }
            }
            let rates: Vec<f64> = runs.iter().map(|runs| runs / images).collect();
            Ok(self.costs.mean_macs(&rates) / 1e9)
        })?;
        self.bias = bias;
        Ok(gmacs)
    }

    /// An error if the network has no gates.
    pub fn require_gates(&self) -> Result<()> {
        let what = "the network has no gates: every block runs for every image; choose a gated network";
        if self.gates() > 0 { Ok(()) } else { Err(Error::new(Exit::Config, what)) }
    }

    fn pass(&self, x: &Tensor, paths: Paths) -> InferenceOutput {
        let images = x.size()[0] as usize;
        let gates = self.gates();
        let mut x = self.layers.stem.forward(&channels_last(x), true);
        if self.layers.pool {
            x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
        }
        let mut x = CachedActivation::new(channels_last(&x));
        let mut path = vec![true; images * gates];
        let mut lstm: LstmState = None;
        let mut k = 0;
        for block in &self.layers.blocks {
            let mut run = vec![true; images];
            if let Some(gate) = &block.gate {
                if !matches!(paths, Paths::All) {
                    let logits = gate.router.logits(&mut x, &mut lstm);
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
            block::step(block, &mut x, &run);
        }
        InferenceOutput { logits: self.layers.head.forward(&x.mean_tensor()).detach(), path }
    }
}
