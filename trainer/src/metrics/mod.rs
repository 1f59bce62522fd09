//! What steps measured. It stays on the device until a log line or a checkpoint needs it: then all ranks' rows meet in
//! one collective, and the host waits once for many steps.

pub mod routing;

use crate::dist::World;
use crate::loss::TERMS;
use crate::sys::error::Result;
use crate::sys::native::Event;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// What a row holds between whether the gradient was finite and the gates' rates, in the order in which
/// [`crate::train::gradient::Step::gradient`] writes it.
fn names() -> impl Iterator<Item = &'static str> {
    let terms = TERMS.iter().map(|term| term.name);
    let beside = TERMS.iter().filter_map(|term| term.beside);
    std::iter::once("grad_norm").chain(terms).chain(["loss", "top1"]).chain(beside)
}

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
    /// By name: the averaged gradient's L² norm (`grad_norm`), the terms of the objective ([`TERMS`]), their weighted sum
    /// (`loss`), the share of views whose class came first (`top1`), and what terms measure beside.
    pub scalars: Vec<(&'static str, f64)>,
    /// Whether the averaged gradient was finite; where it was not, the step moved nothing.
    pub finite: bool,
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
        let mut measured = Self::of(step, &(0..ranks[0].len()).map(mean).collect::<Vec<f64>>());
        if !measured.finite || !measured.get("loss").is_finite() {
            let of_rank = |(rank, row): (usize, &&[f64])| {
                let mut terms = names().zip(&row[1..]).filter(|(name, _)| is_term(name));
                terms.find(|(_, value)| !value.is_finite()).map(|(name, _)| format!("{name} of rank {rank}"))
            };
            let said: Vec<String> = ranks.iter().enumerate().filter_map(of_rank).collect();
            let what = if said.is_empty() { "the gradient".into() } else { said.join(", ") };
            let terms = measured.scalars.iter().filter(|(name, _)| is_term(name));
            let values: String = terms.map(|(name, value)| format!("{name} {value}, ")).collect();
            let norm = measured.get("grad_norm");
            measured.blame = Some(format!("not finite: {what} ({values}gradient norm {norm})"));
        }
        measured
    }

    fn of(step: u64, row: &[f64]) -> Self {
        let (finite, row) = (row[0] == 1.0, &row[1..]);
        let scalars: Vec<_> = names().zip(row.iter().copied()).collect();
        let rates = &row[scalars.len()..];
        let (rates, hard_rates) = rates.split_at(rates.len() / 2);
        Self { step, scalars, finite, rates: rates.to_vec(), hard_rates: hard_rates.to_vec(), blame: None }
    }

    /// The scalar of this name.
    pub fn get(&self, name: &str) -> f64 {
        let found = self.scalars.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{name} is not measured")).1
    }

    fn row(&self) -> impl Iterator<Item = f64> {
        let scalars = self.scalars.iter().map(|(_, value)| *value);
        std::iter::once(f64::from(u8::from(self.finite)))
            .chain(scalars)
            .chain(self.rates.iter().chain(&self.hard_rates).copied())
    }
}

fn is_term(name: &str) -> bool {
    TERMS.iter().any(|term| term.name == name)
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
        let values: Vec<f64> = measured.row().collect();
        self.sums.resize(values.len(), 0.0);
        self.sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        self.steps += 1;
    }

    /// The mean over these steps, the last of them `step`, and a new start; none where there was none.
    pub fn mean(&mut self, step: u64) -> Option<Measured> {
        let Self { steps, sums } = std::mem::take(self);
        (steps > 0)
            .then(|| Measured::of(step, &sums.iter().map(|sum| sum / steps as f64).collect::<Vec<f64>>()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist;

    #[test]
    fn rows_wait_and_are_averaged_over_steps() {
        let world = dist::join().unwrap();
        let (mut meter, mut tally) = (Meter::default(), Tally::default());
        let row = |base: f32| {
            let mut values: Vec<f32> = (0..16).map(|i| base + i as f32).collect();
            values[0] = 1.0;
            values
        };
        let mut broken = row(3.0);
        (broken[0], broken[4]) = (0.0, f32::NAN);
        for (step, values) in [row(1.0), row(2.0), broken].iter().enumerate() {
            meter.push(step as u64 + 1, Tensor::from_slice(values));
        }
        let measured = meter.read(&world).unwrap();
        assert!(meter.read(&world).unwrap().is_empty());
        let get = |step: usize, name| measured[step].get(name);
        assert_eq!((get(0, "ce"), get(1, "loss"), get(1, "top1")), (3.0, 10.0, 11.0));
        assert_eq!((get(0, "spread"), get(0, "centre_distance")), (11.0, 12.0));
        assert_eq!(
            (&measured[0].rates[..], &measured[0].hard_rates[..]),
            (&[13.0, 14.0][..], &[15.0, 16.0][..])
        );
        assert!(measured[1].blame.is_none() && !measured[2].finite);
        assert!(measured[2].blame.as_ref().unwrap().starts_with("not finite: div of rank 0 (ce 5"));
        measured.iter().for_each(|measured| tally.add(measured));
        let mean = tally.mean(3).unwrap();
        assert_eq!(
            (mean.step, mean.get("ce"), mean.get("grad_norm"), mean.hard_rates[1]),
            (3, 3.5, 2.5, 16.5)
        );
        assert!(tally.mean(4).is_none());
    }
}
