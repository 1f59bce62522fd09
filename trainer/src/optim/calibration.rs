//! One bias on all gates that makes the network meet its compute budget (Section 3.3).

use crate::config::Config;
use crate::data::Datasets;
use crate::dist::{self, World};
use crate::model::{BnMode, Costs, Decisions, Net, hard_decisions};
use crate::sys::error::{Error, Exit, Result};
use codinet_dataloader::Batch;
use tch::{Device, Kind, Tensor, no_grad};

/// The largest bias on all gates.
const MAX_BIAS: f64 = 8.0;
/// Steps of the bisection: to a resolution of 16/2¹⁴ = 0.001.
const BISECTIONS: usize = 14;
/// Passes over the held-out images at most: one a step, and one at each end.
pub const PASSES: u64 = BISECTIONS as u64 + 2;

/// Checks that the config's budget, if it has one, is within the network's range.
pub fn check_budget(config: &Config, costs: &Costs) -> Result<()> {
    config.budget().map_or(Ok(()), |budget| check_reachable(costs, "cost.budget_gmacs", budget))
}

/// Checks that `budget`, the value of `setting`, is within the network's range.
pub fn check_reachable(costs: &Costs, setting: &str, budget: f64) -> Result<()> {
    let (none, all) = costs.gmacs_range();
    if (none..=all).contains(&budget) {
        return Ok(());
    }
    let message =
        format!("{setting} is {budget}, but this network takes {none:.4} (no block run) to {all:.4} (all)");
    Err(Error::new(Exit::Config, message))
}

/// All ranks: adds one bias to all gates, so that the mean MACs on the training images held out for it meet the budget;
/// returns a line for the log.
pub fn calibrate(world: &World, config: &Config, net: &Net, data: &Datasets, budget: f64) -> Result<String> {
    world.broadcast(net.params.flat_buffers(), 0)?;
    let batches = data.held_out(config, world).and_then(|batches| batches.collect::<Result<Vec<Batch>>>());
    let batches = batches.and_then(|batches| {
        batches.iter().try_for_each(|batch| data.record_bad(&batch.bad))?;
        Ok(batches)
    });
    let batches = dist::agree(world, batches)?;
    let mut current = 0.0;
    let (bias, gmacs) = fit_bias(budget, |bias| {
        net.shift_gates(bias - current);
        current = bias;
        mean_gmacs(world, net, data, &batches)
    })?;
    net.shift_gates(bias - current);
    Ok(format!(
        "a bias of {:+.4} on all gates gives {:.4} GMACs on {} images held out from training, {:+.2} % off the budget",
        bias,
        gmacs,
        config.cost.calibration_samples,
        100.0 * (gmacs - budget) / budget
    ))
}

/// All ranks: the network's mean GMACs on all ranks' `batches`, by hard decisions.
fn mean_gmacs(world: &World, net: &Net, data: &Datasets, batches: &[Batch]) -> Result<f64> {
    let gates = net.costs.gated().count() as i64;
    let mut sums = Tensor::zeros([1 + gates], (Kind::Double, Device::Cpu)); // images, then how many ran each block
    for batch in batches.iter().filter(|batch| !batch.samples.is_empty()) {
        let (images, _) = data.tensors(batch);
        let output = no_grad(|| net.forward(&images, Decisions::Hard, BnMode::Running));
        let ran = hard_decisions(&output.gate_logits).sum_dim_intlist([0].as_slice(), false, Kind::Double);
        let count = Tensor::full([1], images.size()[0] as f64, (Kind::Double, ran.device()));
        sums += Tensor::cat(&[count, ran], 0).to_device(Device::Cpu);
    }
    world.all_reduce_sum(&sums)?;
    let sums = Vec::<f64>::try_from(&sums).expect("a vector of numbers");
    let rates: Vec<f64> = sums[1..].iter().map(|sum| sum / sums[0]).collect();
    Ok(net.costs.mean_macs(&rates) / 1e9)
}

/// Bisects for the bias on all gates, within ±[`MAX_BIAS`], whose cost is nearest to `budget`: the bias and its cost.
/// `gmacs_at` is the cost at a bias and rises with it.
pub fn fit_bias(budget: f64, mut gmacs_at: impl FnMut(f64) -> Result<f64>) -> Result<(f64, f64)> {
    let mut low = -MAX_BIAS;
    let mut high = MAX_BIAS;
    let mut bias = 0.0;
    let mut best = (0.0, f64::INFINITY);
    for _ in 0..BISECTIONS {
        let gmacs = gmacs_at(bias)?;
        if (gmacs - budget).abs() < (best.1 - budget).abs() {
            best = (bias, gmacs);
        }
        if gmacs > budget {
            high = bias;
        } else {
            low = bias;
        }
        bias = (low + high) / 2.0;
    }
    Ok(best)
}
