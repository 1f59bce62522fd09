//! What steps measured. It stays on the device until a log line or a checkpoint needs it: then all ranks' rows meet in
//! one collective, and the host waits once for many steps.

use crate::collective::World;
use crate::error::Result;
use crate::native::Event;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// What a row holds before the gates' rates, in the order in which [`crate::step::Step::gradient`] writes it.
const NAMES: [&str; 12] = [
    "gradient norm",
    "finite",
    "cross entropy",
    "consistency",
    "diversity",
    "cost",
    "target rate",
    "run rate",
    "loss",
    "top-1",
    "spread",
    "centre distance",
];
/// Which of these a rank's own row may be blamed for.
const PARTS: std::ops::Range<usize> = 2..8;

/// A tensor on its way to the host.
pub struct Later(Tensor, Option<Event>);

impl Later {
    /// Starts the copy.
    pub fn new(tensor: &Tensor) -> Self {
        let copy = tensor.detach().internal_to_copy((Kind::Double, Device::Cpu), true);
        Self(copy, Event::record(tensor.device()))
    }

    /// Its numbers, once what the device had to do before has been done.
    pub fn read(self) -> Vec<f64> {
        if let Some(copied) = self.1 {
            copied.synchronize();
        }
        Vec::try_from(self.0.view(-1)).expect("a vector of numbers")
    }
}

/// Steps' rows that nobody has read yet.
#[derive(Debug, Default)]
pub struct Meter {
    rows: Vec<(u64, Tensor)>,
}

/// What one step measured, or the mean over some steps: means over all ranks.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The step, counted from 1.
    pub step: u64,
    /// L² norm of the averaged gradient.
    pub grad_norm: f64,
    /// Whether the averaged gradient was finite; where it was not, the step moved nothing.
    pub finite: bool,
    /// L_cls.
    pub ce: f64,
    /// L_con.
    pub con: f64,
    /// L_div.
    pub div: f64,
    /// L_cost.
    pub cost: f64,
    /// Conv-AIG's loss.
    pub target: f64,
    /// SkipNet's penalty.
    pub run_rate: f64,
    /// The objective: Eq. 12, and what the baselines add.
    pub loss: f64,
    /// Share of views whose class came first.
    pub top1: f64,
    /// Mean of ‖r_ij − r̄_i‖, the distance of a view's path from its sample's centre.
    pub spread: f64,
    /// Mean distance between two samples' centres.
    pub centre_distance: f64,
    /// Mean decision of each gate, `[n]`.
    pub rates: Vec<f64>,
    /// Mean of what each gate would have decided in inference (Eq. 13), `[n]`.
    pub hard_rates: Vec<f64>,
    /// Where something was not finite: what, and on which ranks.
    pub blame: Option<String>,
}

impl Meter {
    /// Keeps a step's row for later.
    pub fn push(&mut self, step: u64, row: Tensor) {
        self.rows.push((step, row));
    }

    /// All ranks: what the steps since the last call measured; to the bit the same on all ranks.
    pub fn read(&mut self, world: &World) -> Result<Vec<Measured>> {
        let rows = std::mem::take(&mut self.rows);
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let own = Tensor::stack(&rows.iter().map(|(_, row)| row).collect::<Vec<_>>(), 0);
        let all = world.all_gather(&own)?; // [W, steps, row]
        let width = own.size()[1] as usize;
        let values = Vec::<f64>::try_from(all.to_kind(Kind::Double).to_device(Device::Cpu).view(-1));
        let values = values.expect("a vector of numbers");
        let ranks: Vec<&[f64]> = values.chunks(rows.len() * width).collect();
        let measured = rows.iter().enumerate().map(|(i, (step, _))| {
            let of_ranks: Vec<&[f64]> = ranks.iter().map(|rank| &rank[i * width..(i + 1) * width]).collect();
            Measured::new(*step, &of_ranks)
        });
        Ok(measured.collect())
    }
}

impl Measured {
    /// One step, of which every rank has a row.
    fn new(step: u64, ranks: &[&[f64]]) -> Self {
        let mean = |column: usize| ranks.iter().map(|row| row[column]).sum::<f64>() / ranks.len() as f64;
        let mut measured = Self::of(step, (0..ranks[0].len()).map(mean).collect());
        if !measured.finite || !measured.loss.is_finite() {
            let of_rank = |(rank, row): (usize, &&[f64])| {
                let part = PARTS.clone().find(|&part| !row[part].is_finite());
                part.map(|part| format!("{} of rank {rank}", NAMES[part]))
            };
            let said: Vec<String> = ranks.iter().enumerate().filter_map(of_rank).collect();
            let Self { ce, con, div, cost, grad_norm, .. } = measured;
            measured.blame = Some(format!(
                "not finite: {} (ce {ce}, con {con}, div {div}, cost {cost}, gradient norm {grad_norm})",
                if said.is_empty() { "the gradient".into() } else { said.join(", ") }
            ));
        }
        measured
    }

    fn of(step: u64, values: Vec<f64>) -> Self {
        let [
            grad_norm,
            finite,
            ce,
            con,
            div,
            cost,
            target,
            run_rate,
            loss,
            top1,
            spread,
            centre_distance,
            ref rates @ ..,
        ] = values[..]
        else {
            unreachable!("a row holds {NAMES:?} and the rates")
        };
        let (rates, hard_rates) = rates.split_at(rates.len() / 2);
        let (rates, hard_rates) = (rates.to_vec(), hard_rates.to_vec());
        let (finite, blame) = (finite == 1.0, None);
        Self {
            step,
            grad_norm,
            finite,
            ce,
            con,
            div,
            cost,
            target,
            run_rate,
            loss,
            top1,
            spread,
            centre_distance,
            rates,
            hard_rates,
            blame,
        }
    }

    fn values(&self) -> Vec<f64> {
        let Self { grad_norm, ce, con, div, cost, target, run_rate, loss, top1, .. } = *self;
        let losses = [grad_norm, 1.0, ce, con, div, cost, target, run_rate, loss, top1];
        let scalars = losses.into_iter().chain([self.spread, self.centre_distance]);
        scalars.chain(self.rates.iter().chain(&self.hard_rates).copied()).collect()
    }
}

/// The sum over the steps since the last log line; part of a checkpoint, so that the line does not forget what came
/// before a stop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    steps: u64,
    sums: Vec<f64>,
}

impl Tally {
    /// Takes in a step; one that was not finite counts for nothing.
    pub fn add(&mut self, measured: &Measured) {
        if measured.blame.is_some() {
            return;
        }
        let values = measured.values();
        self.sums.resize(values.len(), 0.0);
        self.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        self.steps += 1;
    }

    /// The mean over these steps, the last of them `step`, and a new start; none where there was none.
    pub fn mean(&mut self, step: u64) -> Option<Measured> {
        let Self { steps, sums } = std::mem::take(self);
        (steps > 0).then(|| Measured::of(step, sums.iter().map(|sum| sum / steps as f64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collective;

    #[test]
    fn rows_wait_and_are_averaged_over_steps() {
        let world = collective::join().unwrap();
        let (mut meter, mut tally) = (Meter::default(), Tally::default());
        let row = |base: f32| {
            let mut values: Vec<f32> = (0..16).map(|i| base + i as f32).collect();
            values[1] = 1.0;
            values
        };
        let mut broken = row(3.0);
        (broken[1], broken[4]) = (0.0, f32::NAN);
        for (step, values) in [row(1.0), row(2.0), broken].iter().enumerate() {
            meter.push(step as u64 + 1, Tensor::from_slice(values));
        }
        let measured = meter.read(&world).unwrap();
        assert!(meter.read(&world).unwrap().is_empty());
        assert_eq!((measured[0].ce, measured[1].loss, measured[1].top1), (3.0, 10.0, 11.0));
        assert_eq!((measured[0].spread, measured[0].centre_distance), (11.0, 12.0));
        assert_eq!(
            (&measured[0].rates[..], &measured[0].hard_rates[..]),
            (&[13.0, 14.0][..], &[15.0, 16.0][..])
        );
        assert!(measured[1].blame.is_none() && !measured[2].finite);
        assert!(measured[2].blame.as_ref().unwrap().starts_with("not finite: diversity of rank 0 (ce 5"));
        measured.iter().for_each(|measured| tally.add(measured));
        let mean = tally.mean(3).unwrap();
        assert_eq!((mean.step, mean.ce, mean.grad_norm, mean.hard_rates[1]), (3, 3.5, 1.5, 16.5));
        assert!(tally.mean(4).is_none());
    }
}
