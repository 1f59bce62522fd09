//! A pass on a GPU. The host waits once, for the results: decisions stay on the GPU, and no size depends on them.
//!
//! A block is computed for a fixed number of images, its capacity; images that run the block come first. Earlier batches suggest the
//! capacity. Where it is near N, the block is computed for all images, and a mask selects. The results show whether more
//! images ran a block than its capacity. Then the batch is computed again, with masks.

use super::block::{InferenceBlock, convolve, forward, skip};
use super::{Engine, InferenceOutput, Paths};
use codinet_trainer::data::copy_to_device;
use codinet_trainer::model::{Activation, LstmState, Shortcut};
use codinet_trainer::sys::channels_last;
use std::cell::RefCell;
use tch::{Device, Kind, Tensor};

/// The weight of the newest batch in the rates.
const NEWEST: f64 = 0.3;

/// Capacities are multiples of N / STEPS, so that cuDNN tries its algorithms for few sizes.
const STEPS: usize = 8;

/// Suggests capacities.
#[derive(Debug)]
pub struct Capacities {
    /// A block whose capacity is a larger share of the images is computed for all.
    gather: f64,
    /// The share of images that run each gated block, `[n]`; empty before the first batch.
    rates: RefCell<Vec<f64>>,
}

impl Capacities {
    pub fn new(gather: f64) -> Self {
        Self { gather, rates: RefCell::default() }
    }

    /// Of each gated block, `[n]`: three standard deviations of `images` independent decisions above their mean.
    fn suggest(&self, images: usize, gates: usize) -> Vec<usize> {
        let rates = self.rates.borrow();
        if rates.is_empty() {
            return vec![images; gates];
        }
        let n = images as f64;
        let capacity = |rate: &f64| {
            let most = rate * n + 3.0 * (rate * (1.0 - rate) * n).sqrt();
            let step = images.div_ceil(STEPS);
            let capacity = ((most / step as f64).ceil() as usize).max(1) * step;
            if capacity as f64 > self.gather * n { images } else { capacity }
        };
        rates.iter().map(capacity).collect()
    }

    /// `runs`: how many of the `images` ran each gated block.
    fn update(&self, runs: &[usize], images: usize) {
        let mut rates = self.rates.borrow_mut();
        if rates.is_empty() {
            rates.extend(runs.iter().map(|&runs| runs as f64 / images as f64));
        }
        for (rate, &runs) in rates.iter_mut().zip(runs) {
            *rate += NEWEST * (runs as f64 / images as f64 - *rate);
        }
    }
}

/// As [`Engine::forward`]. The logits are on the CPU.
pub fn pass(engine: &Engine, capacities: &Capacities, x: &Tensor, paths: Paths) -> InferenceOutput {
    let images = x.size()[0] as usize;
    let gates = engine.gates();
    let suggested = capacities.suggest(images, gates);
    let mut output = pass_with(engine, &suggested, x, paths);
    if matches!(paths, Paths::All) || gates == 0 {
        return output;
    }
    let count = |path: &[bool], k: usize| path.iter().skip(k).step_by(gates).filter(|&&run| run).count();
    if (0..gates).any(|k| count(&output.path, k) > suggested[k]) {
        output = pass_with(engine, &vec![images; gates], x, paths);
    }
    let runs: Vec<usize> = (0..gates).map(|k| count(&output.path, k)).collect();
    capacities.update(&runs, images);
    output
}

fn pass_with(engine: &Engine, capacities: &[usize], x: &Tensor, paths: Paths) -> InferenceOutput {
    let images = x.size()[0];
    let gates = engine.gates() as i64;
    let forced = match paths {
        Paths::Forced(path) => Some(copy_to_device(path, x.device()).view([images, gates])),
        Paths::Routed | Paths::All => None,
    };
    let mut x = engine.layers.stem.forward(&channels_last(&x.to_kind(engine.kind)), true);
    if engine.layers.pool {
        x = x.max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false);
    }
    let mut runs: Vec<Tensor> = Vec::new();
    let mut lstm: LstmState = None;
    for block in &engine.layers.blocks {
        let Some(gate) = block.gate.as_ref().filter(|_| !matches!(paths, Paths::All)) else {
            x = forward(block, &x);
            continue;
        };
        let logit = gate.router.logit(&Activation::with_mean(x.shallow_clone(), mean(&x)), &mut lstm);
        let k = runs.len();
        let run = match &forced {
            Some(path) => path.select(1, k as i64),
            None => (logit + engine.bias).ge(0.0),
        };
        x = step(block, &x, &run, capacities[k] as i64);
        runs.push(run);
    }
    let logits = engine.layers.head.forward(&mean(&x));
    let classes = logits.size()[1];
    runs.iter_mut().for_each(|run| *run = run.to_kind(Kind::Float).unsqueeze(1));
    let columns: Vec<Tensor> = std::iter::once(logits).chain(runs).collect();
    let results = Tensor::cat(&columns, 1).to_device(Device::Cpu); // waits for the GPU
    let path = match paths {
        Paths::All => vec![true; (images * gates) as usize],
        _ => Vec::try_from(results.narrow(1, classes, gates).gt(0.5).flatten(0, 1)).expect("bits"),
    };
    InferenceOutput { logits: results.narrow(1, 0, classes).detach(), path }
}

/// The mean over H and W, f32 `[N, C]`.
fn mean(x: &Tensor) -> Tensor {
    x.mean_dim([2, 3].as_slice(), false, Kind::Float)
}

/// The block's output for images whose `run`, bool `[N]`, is true, and the skip branch's for the others.
fn step(block: &InferenceBlock, x: &Tensor, run: &Tensor, capacity: i64) -> Tensor {
    let keeps_shape = matches!(block.shortcut, Shortcut::Identity);
    let skipped = if keeps_shape { x.shallow_clone() } else { skip(block, x) };
    let mask = |run: &Tensor| run.view([-1, 1, 1, 1]);
    if capacity == run.size()[0] {
        return computed(block, x).where_self(&mask(run), &skipped);
    }
    let order = run.to_kind(Kind::Int).argsort_stable(true, 0, true);
    let rows = order.narrow(0, 0, capacity);
    let inputs = select(x, &rows);
    let unchanged = if keeps_shape { inputs.shallow_clone() } else { select(&skipped, &rows) };
    let outputs = computed(block, &inputs).where_self(&mask(&run.index_select(0, &rows)), &unchanged);
    let _ = images_first(&skipped).index_copy_(0, &rows, &images_first(&outputs));
    skipped
}

/// The block's output, in memory of its own.
fn computed(block: &InferenceBlock, x: &Tensor) -> Tensor {
    match block.shortcut {
        Shortcut::Identity => convolve(&block.convs, x).g_add_(x).relu_(),
        _ => forward(block, x),
    }
}

/// The images at `rows`, channels last.
fn select(x: &Tensor, rows: &Tensor) -> Tensor {
    images_first(x).index_select(0, rows).permute([0, 3, 1, 2])
}

/// `[N, H, W, C]`: contiguous if `x` is channels last, so that images are copied as they are.
fn images_first(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1])
}
