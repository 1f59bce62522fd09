//! What one training step measures. [`StepMetrics`] packs it into a row of numbers on the device and unpacks that row on
//! the host; the layout of the row stands here only.

use super::HostCopy;
use crate::dist::World;
use crate::loss::{self, TERMS, TermValues};
use crate::model::{NetOutput, Params, Role};
use crate::sys::error::Result;
use crate::sys::norms;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// One training step, or the mean of some: means over all ranks' views.
///
/// As a row: `finite`, the scalars, `rates`, `hard_rates`.
#[derive(Clone, Debug)]
pub struct StepMetrics {
    /// The step, counted from 1.
    pub step: u64,
    /// Whether the averaged gradient was finite; otherwise the step changed nothing.
    pub finite: bool,
    /// By name: the L² norm of the averaged gradient (`grad_norm`) and those of its parts, the objective's terms ([`TERMS`]), their weighted sum
    /// (`loss`), the share of views whose most probable class was right (`top1`), the terms' diagnostics, and the share of
    /// decisions whose probability is below 1 % or above 99 % (`saturated`).
    pub scalars: Vec<(&'static str, f64)>,
    /// Mean decision of each gate, `[n]`.
    pub rates: Vec<f64>,
    /// Mean of each gate's decision in inference (Eq. 13), `[n]`.
    pub hard_rates: Vec<f64>,
    /// If a number was not finite: which term, on which ranks.
    pub nonfinite: Option<String>,
}

impl StepMetrics {
    /// The scalars' names, in the order of a row.
    fn scalar_names() -> impl Iterator<Item = &'static str> {
        let terms = TERMS.iter().map(|term| term.name);
        let diagnostics = TERMS.iter().flat_map(|term| term.diagnostics).copied();
        ["grad_norm"]
            .into_iter()
            .chain(NORMS_OF_PARTS)
            .chain(terms)
            .chain(["loss", "top1"])
            .chain(diagnostics)
            .chain(["saturated"])
    }

    /// A micro-batch's part of the row: all but `finite` and the gradient's norms. `labels` is `[L]`, `hard_path` `[L·M, n]`.
    pub fn pack_micro_batch(
        values: &TermValues,
        output: &NetOutput,
        labels: &Tensor,
        views: i64,
        hard_path: &Tensor,
    ) -> Tensor {
        let labels = loss::repeat_per_view(labels, views);
        let correct = output.logits.argmax(1, false).eq_tensor(&labels);
        let top1 = correct.to_kind(Kind::Float).mean(None);
        let terms = values.terms.iter();
        let saturated = saturated_share(&output.gate_logits.detach());
        let measured = values.diagnostics.iter().chain([&saturated]);
        let scalars: Vec<&Tensor> = terms.chain([&values.total, &top1]).chain(measured).collect();
        let rates = |path: &Tensor| path.mean_dim([0].as_slice(), false, None);
        Tensor::cat(&[Tensor::stack(&scalars, 0), rates(&output.path), rates(hard_path)], 0).detach()
    }

    /// A rank's row: the mean over its micro-batches, with `finite` and the norm of the averaged gradient, `[]` each. `gradient` is
    /// laid out as the flat buffer of `params`.
    pub fn pack(
        finite: &Tensor,
        grad_norm: &Tensor,
        gradient: &Tensor,
        params: &Params,
        micro_batches: &[Tensor],
    ) -> Tensor {
        let mean = Tensor::stack(micro_batches, 0).mean_dim([0].as_slice(), false, None);
        Tensor::cat(&[finite.view(1), grad_norm.view(1), norms_of_parts(gradient, params), mean], 0)
    }

    /// A step from all ranks' rows.
    fn unpack_ranks(step: u64, rows: &[&[f64]]) -> Self {
        let mean = |column: usize| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len() as f64;
        let mut metrics = Self::unpack(step, &(0..rows[0].len()).map(mean).collect::<Vec<f64>>());
        if !metrics.finite || !metrics.get("loss").is_finite() {
            metrics.nonfinite = Some(metrics.describe_nonfinite(rows));
        }
        metrics
    }

    fn unpack(step: u64, row: &[f64]) -> Self {
        let (finite, row) = row.split_first().expect("a row is not empty");
        let scalars: Vec<_> = Self::scalar_names().zip(row.iter().copied()).collect();
        let rates = &row[scalars.len()..];
        let (rates, hard_rates) = rates.split_at(rates.len() / 2);
        Self {
            step,
            finite: *finite == 1.0,
            scalars,
            rates: rates.to_vec(),
            hard_rates: hard_rates.to_vec(),
            nonfinite: None,
        }
    }

    /// The numbers of a row.
    fn to_row(&self) -> impl Iterator<Item = f64> {
        let scalars = self.scalars.iter().map(|(_, value)| *value);
        let rates = self.rates.iter().chain(&self.hard_rates).copied();
        std::iter::once(f64::from(u8::from(self.finite))).chain(scalars).chain(rates)
    }

    /// The first term that is not finite on each rank, and the values.
    fn describe_nonfinite(&self, rows: &[&[f64]]) -> String {
        let is_term = |name: &str| TERMS.iter().any(|term| term.name == name);
        let first_term = |(rank, row): (usize, &&[f64])| {
            let mut terms = Self::scalar_names().zip(&row[1..]).filter(|(name, _)| is_term(name));
            terms.find(|(_, value)| !value.is_finite()).map(|(name, _)| format!("{name} of rank {rank}"))
        };
        let terms: Vec<String> = rows.iter().enumerate().filter_map(first_term).collect();
        let what = if terms.is_empty() { "the gradient".into() } else { terms.join(", ") };
        let terms = self.scalars.iter().filter(|(name, _)| is_term(name));
        let values: String = terms.map(|(name, value)| format!("{name} {value}, ")).collect();
        format!("not finite: {what} ({values}gradient norm {})", self.get("grad_norm"))
    }

    /// The scalar `name`.
    ///
    /// # Panics
    /// If no scalar has this name.
    pub fn get(&self, name: &str) -> f64 {
        let scalar = self.scalars.iter().find(|(known, _)| *known == name);
        scalar.unwrap_or_else(|| panic!("no metric is named {name}")).1
    }
}

/// The L² norms of the gradient's parts, by name: of the routers, of the head, and of the rest.
const NORMS_OF_PARTS: [&str; 3] = ["grad_norm_routers", "grad_norm_head", "grad_norm_rest"];

/// The numbers of [`NORMS_OF_PARTS`], `[3]`.
fn norms_of_parts(gradient: &Tensor, params: &Params) -> Tensor {
    let groups = params.groups();
    let norm = |belongs: fn(&Role) -> bool| {
        let groups = groups.iter().filter(|group| belongs(&group.role));
        let parts: Vec<Tensor> = groups.map(|group| gradient.narrow(0, group.start, group.len)).collect();
        if parts.is_empty() {
            Tensor::zeros([], (Kind::Float, gradient.device()))
        } else {
            norms(&parts).norm()
        }
    };
    let parts: [fn(&Role) -> bool; 3] =
        [|role| role.router, |role| role.head, |role| !role.router && !role.head];
    Tensor::stack(&parts.map(norm), 0)
}

/// The share of `gate_logits`, `[N, n]`, whose block runs with a probability below 1 % or above 99 %, `[]`: their gradient is
/// almost 0.
fn saturated_share(gate_logits: &Tensor) -> Tensor {
    let count = gate_logits.numel().max(1) as f64;
    gate_logits.abs().gt(99f64.ln()).sum(Kind::Float) / count
}

/// Rows of steps that are still on the device. They are gathered when a log line or a checkpoint needs them: one
/// collective and one wait of the host for many steps.
#[derive(Debug, Default)]
pub struct MetricsBuffer {
    rows: Vec<(u64, Tensor)>,
}

impl MetricsBuffer {
    /// Adds a step's row, of [`StepMetrics::pack`].
    pub fn push(&mut self, step: u64, row: Tensor) {
        self.rows.push((step, row));
    }

    /// Any rank: starts to copy this rank's loss in the last step to the host; `None` if the steps have been gathered.
    pub fn copy_loss(&self) -> Option<HostCopy> {
        let column = 1 + StepMetrics::scalar_names().position(|name| name == "loss").expect("a scalar");
        self.rows.last().map(|(_, row)| HostCopy::start(&row.select(0, column as i64)))
    }

    /// All ranks: gathers the steps since the last call; bit-identical on all ranks.
    pub fn gather(&mut self, world: &World) -> Result<Vec<StepMetrics>> {
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
        let steps = rows.iter().enumerate().map(|(i, (step, _))| {
            let rows: Vec<&[f64]> = ranks.iter().map(|rank| &rank[i * width..(i + 1) * width]).collect();
            StepMetrics::unpack_ranks(*step, &rows)
        });
        Ok(steps.collect())
    }
}

/// The sum over the steps since the last log line. It is part of a checkpoint, so that the first line after a resume
/// covers the steps before the stop too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MetricsSum {
    steps: u64,
    sums: Vec<f64>,
}

impl MetricsSum {
    /// Adds a step, unless a number of it is not finite.
    pub fn add(&mut self, metrics: &StepMetrics) {
        if metrics.nonfinite.is_some() {
            return;
        }
        let row: Vec<f64> = metrics.to_row().collect();
        if self.sums.len() != row.len() {
            *self = Self { steps: 0, sums: vec![0.0; row.len()] }; // empty, or of a version with other terms
        }
        self.sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        self.steps += 1;
    }

    /// The mean over the steps up to `step`, and resets the sum; `None` if there were none.
    pub fn take_mean(&mut self, step: u64) -> Option<StepMetrics> {
        let Self { steps, sums } = std::mem::take(self);
        let mean: Vec<f64> = sums.iter().map(|sum| sum / steps as f64).collect();
        (steps > 0).then(|| StepMetrics::unpack(step, &mean))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist;

    #[test]
    fn gradient_norms_of_parts_are_theirs() {
        let mut params = Params::default();
        for (name, router, norm_or_bias, head) in [
            ("conv", false, false, false),
            ("bn", false, true, false),
            ("router", true, false, false),
            ("fc.weight", false, false, true),
            ("fc.bias", false, true, true),
        ] {
            let role = Role { router, norm_or_bias, head };
            let _ = params.register_parameter(name.into(), Tensor::from_slice(&[1.0f32]), role);
        }
        let norms = |params: &Params| {
            let gradient = params.flat().zeros_like();
            for (name, view) in params.named_views(&gradient) {
                let values =
                    [("conv", 3.0), ("bn", 4.0), ("router", 7.0), ("fc.weight", 5.0), ("fc.bias", 12.0)];
                let value = values.iter().find(|(known, _)| *known == name).unwrap().1;
                let _ = view.shallow_clone().fill_(value);
            }
            Vec::<f32>::try_from(norms_of_parts(&gradient, params)).unwrap()
        };
        params.flatten(Device::Cpu);
        assert_eq!(norms(&params), [7.0, 13.0, 5.0]);
        let mut without_routers = Params::default();
        let role = Role { router: false, norm_or_bias: false, head: false };
        let _ = without_routers.register_parameter("conv".into(), Tensor::from_slice(&[1.0f32]), role);
        without_routers.flatten(Device::Cpu);
        assert_eq!(norms(&without_routers), [0.0, 0.0, 3.0]);
    }

    #[test]
    fn rows_are_buffered_and_averaged_over_steps() {
        let world = dist::join().unwrap();
        let mut buffer = MetricsBuffer::default();
        let mut sum = MetricsSum::default();
        // Column i of a row is base + i; column 0 is `finite`.
        let names: Vec<&str> = StepMetrics::scalar_names().collect();
        let column = |name: &str| 1 + names.iter().position(|known| *known == name).unwrap();
        let rates = 1 + names.len();
        let row = |base: f32| {
            let mut values: Vec<f32> = (0..rates + 4).map(|i| base + i as f32).collect();
            values[0] = 1.0;
            values
        };
        let mut broken = row(3.0);
        broken[0] = 0.0;
        broken[column("div")] = f32::NAN;
        for (step, values) in [row(1.0), row(2.0), broken].iter().enumerate() {
            buffer.push(step as u64 + 1, Tensor::from_slice(values));
        }
        assert_eq!(buffer.copy_loss().unwrap().wait(), [3.0 + column("loss") as f64]);
        let steps = buffer.gather(&world).unwrap();
        assert!(buffer.copy_loss().is_none());
        assert!(buffer.gather(&world).unwrap().is_empty());
        let after_terms = 5 + TERMS.len();
        assert_eq!(["grad_norm", "ce", "con", "div", "cost"].map(column), [1, 5, 6, 7, 8]);
        assert_eq!(NORMS_OF_PARTS.map(column), [2, 3, 4]);
        assert_eq!([column("loss"), column("top1")], [after_terms, after_terms + 1]);
        let diagnostics = ["spread", "views_outside", "centre_distance", "pairs_inside", "saturated"];
        assert_eq!(diagnostics.map(column), [2, 3, 4, 5, 6].map(|place| after_terms + place));
        for name in &names {
            let value = column(name) as f64;
            assert_eq!((steps[0].get(name), steps[1].get(name)), (1.0 + value, 2.0 + value), "{name}");
        }
        let first = 1.0 + rates as f64;
        assert_eq!(steps[0].rates, [first, first + 1.0]);
        assert_eq!(steps[0].hard_rates, [first + 2.0, first + 3.0]);
        assert!(steps[1].nonfinite.is_none() && !steps[2].finite);
        assert!(steps[2].nonfinite.as_ref().unwrap().starts_with("not finite: div of rank 0 (ce 8"));
        steps.iter().for_each(|metrics| sum.add(metrics));
        let mean = sum.take_mean(3).unwrap();
        assert_eq!(
            (mean.step, mean.get("ce"), mean.get("grad_norm"), mean.hard_rates[1]),
            (3, 6.5, 2.5, first + 3.5)
        );
        assert!(sum.take_mean(4).is_none());
        // A checkpoint of a version with other terms.
        let mut sum = MetricsSum { steps: 7, sums: vec![9.0; names.len()] };
        sum.add(&steps[1]);
        assert_eq!(sum.take_mean(4).unwrap().get("ce"), steps[1].get("ce"));
    }
}
