//! The network's compute cost: multiply-accumulates (MACs) of one image, part by part.

use super::layers::Shape;
use crate::config::CostUnit;

/// MACs of one image.
#[derive(Debug)]
pub struct Costs {
    /// Everything before the first block.
    pub stem: i64,
    /// The classifier.
    pub head: i64,
    /// In the order of the network.
    pub blocks: Vec<BlockCost>,
}

/// MACs of one image in one block.
#[derive(Debug)]
pub struct BlockCost {
    /// Such as `layer1.0`.
    pub name: String,
    /// The shape of the block's output.
    pub shape: Shape,
    /// F_k: the convolutions and the shortcut.
    pub run: i64,
    /// The skip branch.
    pub skip: i64,
    /// The router; `None` for a block without a gate.
    pub router: Option<i64>,
}

impl Costs {
    /// MACs of the static backbone: the network without routers and skip branches.
    pub fn static_macs(&self) -> i64 {
        self.stem + self.head + self.blocks.iter().map(|block| block.run).sum::<i64>()
    }

    /// Mean MACs per image if gate k runs its block for a share `rates[k]` of the images:
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

    /// MACs of one image in a training step's forward pass, which computes each gated block and its skip branch.
    pub fn training_macs(&self) -> i64 {
        let block = |block: &BlockCost| block.run + block.router.map_or(0, |router| router + block.skip);
        self.stem + self.head + self.blocks.iter().map(block).sum::<i64>()
    }

    /// Mean GMACs per image if no gated block runs, and if all do: the range of possible budgets.
    pub fn gmacs_range(&self) -> (f64, f64) {
        let gmacs = |rate: f64| self.mean_macs(&vec![rate; self.gated().count()]) / 1e9;
        (gmacs(0.0), gmacs(1.0))
    }

    /// The blocks with gates, in the order of a path's elements.
    pub fn gated(&self) -> impl Iterator<Item = &BlockCost> {
        self.blocks.iter().filter(|block| block.router.is_some())
    }

    /// What each gate adds when its block runs and is not skipped, in shares of the static network, `[n]`.
    pub fn gate_shares(&self) -> Vec<f32> {
        let share = |block: &BlockCost| (block.run - block.skip) as f64 / self.static_macs() as f64;
        self.gated().map(|block| share(block) as f32).collect()
    }

    /// c_k of Eq. 11, `[n]`: the MACs of each gated block in `unit`. In `blocks`, Σ c_k = n.
    pub fn gate_costs(&self, unit: CostUnit) -> Vec<f32> {
        let runs: Vec<f64> = self.gated().map(|block| block.run as f64).collect();
        let macs_per_unit = match unit {
            CostUnit::Blocks => runs.iter().sum::<f64>() / runs.len() as f64,
            CostUnit::Fraction => self.static_macs() as f64,
            CostUnit::Gmacs => 1e9,
        };
        runs.iter().map(|run| (run / macs_per_unit) as f32).collect()
    }
}
