//! The compute budget of Section 3.3, "γ is tuned adaptive": γ as the price that makes the network's MACs meet the
//! budget, and the bias on all gates that takes up what is left.

use crate::config::Config;
use crate::data::Input;
use crate::dist::{self, World};
use crate::model::{Costs, Decisions, Net, Statistics, hard};
use crate::sys::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

/// How much of the running mean of MACs is kept each step.
const MEMORY: f64 = 0.95;
/// How many steps' worth of movement γ leads by, so that it settles and does not swing.
const LEAD: f64 = 50.0;
/// How many steps' worth of movement γ may lie from 0, so that what cannot be met does not drive it away for ever.
const MOST_STEPS: f64 = 5000.0;
/// How far a bias on all gates may go.
const MOST_BIAS: f64 = 8.0;
/// Halvings of that range: to 16/2¹⁴ = 0.001.
const HALVINGS: usize = 14;

/// Where γ stands; part of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// γ as the next step uses it.
    pub gamma: f64,
    /// The part of γ that has been added up over the steps.
    base: f64,
    /// Running mean of the network's MACs with hard decisions, in billions; `None` before the first step.
    pub gmacs: Option<f64>,
}

impl Price {
    /// A price that has not moved yet.
    pub fn new(gamma: f64) -> Self {
        Self { gamma, base: gamma, gmacs: None }
    }

    /// Dual ascent on mean MACs = budget: γ rises by `step` for each 100 % that the MACs of the last steps lie above
    /// the budget, and falls likewise, below 0 if need be, where blocks are paid for running. A second term follows
    /// the gap itself and damps the swings (Stooke et al., arXiv 2007.03964).
    pub fn follow(&mut self, gmacs: f64, budget: f64, step: f64) {
        let mean = self.gmacs.map_or(gmacs, |mean| MEMORY * mean + (1.0 - MEMORY) * gmacs);
        let gap = (mean - budget) / budget;
        self.gmacs = Some(mean);
        self.base = (self.base + step * gap).clamp(-MOST_STEPS * step, MOST_STEPS * step);
        self.gamma = self.base + LEAD * step * gap;
    }
}

/// Refuses a config whose budget no path of its network meets.
pub fn check(config: &Config, costs: &Costs) -> Result<()> {
    config.budget().map_or(Ok(()), |budget| refuse_unmet(costs, "cost.budget_gmacs", budget))
}

/// Refuses a budget, which `setting` names, that no path meets.
pub fn refuse_unmet(costs: &Costs, setting: &str, budget: f64) -> Result<()> {
    let (none, all) = costs.gmacs_range();
    if (none..=all).contains(&budget) {
        return Ok(());
    }
    let what =
        format!("{setting} is {budget}, but this network takes {none:.4} (no block run) to {all:.4} (all)");
    Err(Error::new(Exit::Config, what))
}

/// All ranks: sets one bias on all gates so that the mean MACs on the held-out training images meet the budget; says
/// what came of it.
pub fn calibrate(world: &World, config: &Config, net: &Net, input: &Input, budget: f64) -> Result<String> {
    world.broadcast(net.params.flat_buffers(), 0)?;
    let read = input.held_out(config, world).and_then(|batches| batches.collect::<Result<Vec<_>>>());
    let read = read.and_then(|batches| {
        batches.iter().try_for_each(|batch| input.note_bad(&batch.bad))?;
        Ok(batches)
    });
    let batches = dist::agree(world, read)?;
    let gates = net.costs.gated().count() as i64;
    let gmacs = || -> Result<f64> {
        let mut sums = Tensor::zeros([1 + gates], (Kind::Double, tch::Device::Cpu));
        for batch in batches.iter().filter(|batch| !batch.samples.is_empty()) {
            let (images, _) = input.tensors(batch);
            let out = no_grad(|| net.forward(&images, Decisions::Hard, Statistics::Running));
            let ran = hard(&out.gate_logits).sum_dim_intlist([0].as_slice(), false, Kind::Double);
            let count = Tensor::full([1], images.size()[0] as f64, (Kind::Double, ran.device()));
            sums += Tensor::cat(&[count, ran], 0).to_device(tch::Device::Cpu);
        }
        world.all_reduce_sum(&sums)?;
        let sums = Vec::<f64>::try_from(&sums).expect("a vector of numbers");
        let rates: Vec<f64> = sums[1..].iter().map(|sum| sum / sums[0]).collect();
        Ok(net.costs.mean_macs(&rates) / 1e9)
    };
    let mut now = 0.0;
    let (bias, found) = nearest_bias(budget, |bias| {
        net.shift_gates(bias - now);
        now = bias;
        gmacs()
    })?;
    net.shift_gates(bias - now);
    Ok(format!(
        "a bias of {:+.4} on all gates gives {:.4} GMACs on {} images held out from training, {:+.2} % off the budget",
        bias,
        found,
        config.cost.calibration_samples,
        100.0 * (found - budget) / budget
    ))
}

/// The bias on all gates, within ±8, that comes nearest to `budget`, and what it gives: `gmacs` of a bias, which rises with it.
pub fn nearest_bias(budget: f64, mut gmacs: impl FnMut(f64) -> Result<f64>) -> Result<(f64, f64)> {
    let (mut low, mut high, mut bias) = (-MOST_BIAS, MOST_BIAS, 0.0);
    let mut best = (f64::INFINITY, 0.0, 0.0);
    for _ in 0..HALVINGS {
        let found = gmacs(bias)?;
        if (found - budget).abs() < best.0 {
            best = ((found - budget).abs(), bias, found);
        }
        if found > budget {
            high = bias;
        } else {
            low = bias;
        }
        bias = (low + high) / 2.0;
    }
    Ok((best.1, best.2))
}

#[cfg(test)]
mod tests {
    use super::Price;

    #[test]
    fn a_price_rises_above_the_budget_and_holds_at_it() {
        let mut price = Price::new(0.01);
        price.follow(2.0, 1.0, 0.001);
        assert!((price.gamma - (0.01 + 0.001 + 0.05)).abs() < 1e-12 && price.gmacs == Some(2.0));
        price.follow(1.0, 1.0, 0.001); // the mean is 1.95 now
        assert!((price.gamma - (0.011 + 0.95 * 0.001 + 0.05 * 0.95)).abs() < 1e-12);
        // A network whose MACs fall as γ rises, with a lag, is led to its budget.
        let (mut price, mut gmacs) = (Price::new(0.0), 1.0);
        for _ in 0..20_000 {
            gmacs += 0.02 * ((1.0 - 10.0 * price.gamma).clamp(0.1, 1.0) - gmacs);
            price.follow(gmacs, 0.6, 2e-4);
        }
        assert!(
            (gmacs - 0.6).abs() < 1e-3 && (price.gamma - 0.04).abs() < 1e-3,
            "{gmacs} at {}",
            price.gamma
        );
        // And one that would take less than its budget is paid to take more.
        let mut price = Price::new(0.0);
        (0..100).for_each(|_| price.follow(0.5, 0.6, 2e-4));
        assert!(price.gamma < 0.0);
    }
}
