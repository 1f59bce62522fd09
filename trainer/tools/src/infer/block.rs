//! A block in inference on a CPU: computed for the images that run it, replaced by its skip branch for the others.

use super::activation::CachedActivation;
use super::layer::Layer;
use super::router::FastRouter;
use super::rows;
use codinet_trainer::model::{Block, Shortcut};
use codinet_trainer::sys::channels_last;
use tch::Tensor;

/// Batch norm is folded into the convolutions.
pub type InferenceBlock<'a> = Block<Layer, FastRouter<'a>>;

/// Elements of one image's activation, per thread, above which moving images together costs more than computing convolutions
/// one image at a time.
const LARGE: usize = 1 << 18;

/// Replaces `x` by the block's output for images whose `run` is true, and by the skip branch's for the others.
pub fn step(block: &InferenceBlock, x: &mut CachedActivation, run: &[bool]) {
    let rows_with = |runs: bool| -> Vec<usize> { (0..run.len()).filter(|&n| run[n] == runs).collect() };
    let rows = rows_with(true);
    let others = rows_with(false);
    let keeps_shape = matches!(block.shortcut, Shortcut::Identity);
    let moves_cheaply = x.x().numel() / run.len() < LARGE * tch::get_num_threads() as usize;
    if others.is_empty() && keeps_shape {
        let _ = forward(block, x.x()); // in place
        x.mark_changed(&rows);
    } else if others.is_empty() {
        x.set(forward(block, x.x()));
    } else if rows.is_empty() {
        if !keeps_shape {
            x.set(skip(block, x.x()));
        }
    } else if keeps_shape && !moves_cheaply {
        // In place, without moving images.
        for neighbours in rows.chunk_by(|a, b| a + 1 == *b) {
            let _ = forward(block, &x.x().narrow(0, neighbours[0] as i64, neighbours.len() as i64));
        }
        x.mark_changed(&rows);
    } else if keeps_shape {
        let y = convolve(&block.convs, &rows::gather(x.x(), &rows));
        x.add_relu(&rows, &y);
    } else {
        let y = forward(block, &rows::gather(x.x(), &rows));
        let z = skip(block, &rows::gather(x.x(), &others));
        let (_, c, h, w) = y.size4().expect("[N, C, H, W]");
        let all = Tensor::empty([run.len() as i64, h, w, c], (y.kind(), y.device())).permute([0, 3, 1, 2]);
        rows::scatter(&all, &rows, &y);
        rows::scatter(&all, &others, &z);
        x.set(all);
    }
}

/// F(x); in the memory of `x` if the block keeps the shape.
pub fn forward(block: &InferenceBlock, x: &Tensor) -> Tensor {
    let Some((last, others)) = block.convs.split_last() else { return skip(block, x) };
    let mut h = x.shallow_clone();
    for conv in others {
        h = conv.forward(&h, true);
    }
    let y = match &block.shortcut {
        Shortcut::Identity => x.shallow_clone(),
        shortcut => channels_last(&shortcut.forward(x, |conv| conv.forward(x, false))),
    };
    last.add_to(&y, &h);
    y
}

/// The convolutions of `x`, with a ReLU between every two.
pub fn convolve(convs: &[Layer], x: &Tensor) -> Tensor {
    let last = convs.len() - 1;
    let mut h = x.shallow_clone();
    for (i, conv) in convs.iter().enumerate() {
        h = conv.forward(&h, i < last);
    }
    h
}

/// skip(x), where the block changes the shape.
pub fn skip(block: &InferenceBlock, x: &Tensor) -> Tensor {
    let projection = block.gate.as_ref().and_then(|gate| gate.skip.as_ref());
    let y = match (projection, &block.shortcut) {
        (Some(conv), _) | (None, Shortcut::Conv(conv)) => conv.forward(x, true),
        (None, shortcut) => shortcut.forward(x, |conv| conv.forward(x, false)).relu(),
    };
    channels_last(&y)
}
