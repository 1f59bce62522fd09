//! A network as inference and export need it.

use super::{Block, Net, Shortcut};
use crate::model::gate::{Gate, Skip};
use crate::model::layers::{Conv, Linear};
use crate::model::router::Router;

/// A network as inference and export need it: with its running statistics folded into its convolutions.
#[derive(Debug)]
pub struct Folded<'a> {
    /// The first convolution, which ReLU follows.
    pub stem: Conv,
    /// Whether 3×3 max pooling of stride 2 comes next.
    pub pool: bool,
    /// The blocks.
    pub blocks: Vec<FoldedBlock<'a>>,
    /// The classifier, of the mean over H and W.
    pub head: &'a Linear,
}

/// ReLU(convolutions + shortcut), or where its gate says so, what stands in for it.
#[derive(Debug)]
pub struct FoldedBlock<'a> {
    /// The convolutions; ReLU follows each but the last.
    pub convs: Vec<Conv>,
    /// The residual connection.
    pub shortcut: Way,
    /// What decides whether it runs; none: it always does.
    pub gate: Option<FoldedGate<'a>>,
}

/// A block's router and its way around the block.
#[derive(Debug)]
pub struct FoldedGate<'a> {
    /// What decides.
    pub router: &'a Router,
    /// The way around, which ReLU follows unless it is the identity; none: as the shortcut.
    pub skip: Option<Way>,
}

/// A way past a block's convolutions.
#[derive(Debug)]
pub enum Way {
    /// The input itself.
    Identity,
    /// Every `stride`-th pixel, with channels of zeros before and behind.
    Pad {
        /// Of height and width.
        stride: i64,
        /// How many channels go before.
        before: i64,
        /// How many go behind.
        behind: i64,
    },
    /// A 1×1 convolution.
    Conv(Conv),
}

impl Net {
    /// This network for inference, by its present weights and running statistics.
    pub fn folded(&self) -> Folded<'_> {
        let blocks = self.blocks.iter().map(Block::folded).collect();
        Folded { stem: self.stem.0.folded(&self.stem.1), pool: self.pool, blocks, head: &self.head }
    }
}

impl Block {
    fn folded(&self) -> FoldedBlock<'_> {
        let shortcut = match &self.shortcut {
            Shortcut::Identity => Way::Identity,
            Shortcut::Pad { stride, channels } => {
                let before = channels / 2;
                Way::Pad { stride: *stride, before, behind: channels - before }
            }
            Shortcut::Project(conv, norm) => Way::Conv(conv.folded(norm)),
        };
        let gate = self.gate.as_ref().map(|Gate { router, skip }| {
            let skip = match skip {
                Skip::Identity => Some(Way::Identity),
                Skip::Project(conv, norm) => Some(Way::Conv(conv.folded(norm))),
                Skip::Shortcut => None,
            };
            FoldedGate { router, skip }
        });
        let convs = self.layers.iter().map(|(conv, norm)| conv.folded(norm)).collect();
        FoldedBlock { convs, shortcut, gate }
    }
}
