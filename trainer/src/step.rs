//! One training step up to the update: forward, objective, backward, and the mean over micro-batches and ranks.

use crate::collective::{self, Collective};
use crate::config::{Routers, Scope};
use crate::error::Result;
use crate::loss::{self, Parts, Weights};
use crate::model::{Decisions, Net, Output, Statistics, hard, in_order};
use tch::{Kind, Tensor};

/// What a step needs beside its batch.
pub struct Step<'a> {
    /// The ranks that share the global batch.
    pub world: &'a dyn Collective,
    /// The network.
    pub net: &'a Net,
    /// c_k of Eq. 11, `[n]`.
    pub costs: &'a Tensor,
    /// The objective.
    pub weights: Weights,
    /// Whether routers train; the gradient of frozen ones is zero.
    pub routers: Routers,
    /// M.
    pub views: i64,
    /// Which samples the diversity loss tells apart, of a micro-batch or of the global batch.
    pub scope: Scope,
    /// What batch norm normalises with: the batch's statistics, as training does; a test that compares world sizes
    /// fixes them instead, for each rank has its own.
    pub statistics: Statistics,
}

/// One pass's share of a rank's batch.
pub struct MicroBatch<'a> {
    /// `[L·M, C, H, W]`.
    pub images: Tensor,
    /// `[L]`.
    pub labels: Tensor,
    /// How gates decide for these images.
    pub decisions: Decisions<'a>,
}

/// What a step measured: means over all ranks.
#[derive(Debug)]
pub struct Measured {
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
    /// Share of views whose class came first.
    pub top1: f64,
    /// L² norm of the averaged gradient.
    pub grad_norm: f64,
    /// Whether any rank was asked to stop.
    pub stop: bool,
    /// Mean decision of each gate in this step, `[n]`.
    pub rates: Vec<f64>,
    /// Mean of what each gate would have decided in inference (Eq. 13), `[n]`.
    pub hard_rates: Vec<f64>,
    /// This rank's own parts of the loss and the sum of its own gradient: what [`PARTS`] names.
    pub own: Tensor,
}

/// What may be not finite.
const PARTS: [&str; 7] =
    ["cross entropy", "consistency", "diversity", "cost", "target rate", "run rate", "gradient"];

impl Step<'_> {
    /// All ranks: the gradient of the objective over the global batch, laid out as the flat parameters, and what was
    /// measured on the way; the same to the bit on every rank.
    ///
    /// `batch` is this rank's share, all micro-batches of one size; `stop` is this rank's wish to stop.
    pub fn gradient(&self, batch: &[MicroBatch], stop: bool) -> Result<(Tensor, Measured)> {
        let mut sums: Option<(Tensor, Tensor)> = None;
        let global_keys = match self.scope {
            Scope::GlobalBatch if batch.len() > 1 => Some(self.keys_of_all(batch)?),
            _ => None,
        };
        for (a, micro) in batch.iter().enumerate() {
            // Forward: logits, and relaxed paths (Eqs. 6 and 7) or hard ones.
            let out = self.net.forward(&micro.images, micro.decisions, self.statistics(a));

            // The objective (Eqs. 8 to 12): this rank's centres meet those of all ranks.
            let centres = loss::centres(&out.path, self.views); // [L, n]
            let (own, rank) = (centres.size()[0], self.world.rank() as i64);
            let (keys, first, share) = match &global_keys {
                Some(keys) => {
                    let micros = batch.len() as i64;
                    (keys.shallow_clone(), (rank * micros + a as i64) * own, micros as f64)
                }
                None => (self.world.all_gather(&centres)?.flatten(0, 1), rank * own, 1.0),
            };
            let parts = self.parts(micro, &out, &centres, &keys, first, share);

            // Backward.
            let gradient = self.backward(&parts.total(&self.weights, self.world.world()));
            let measured = self.measure(&parts, &out, &micro.labels, stop);
            sums = Some(match sums {
                None => (gradient, measured),
                Some((gradients, measurements)) => (gradients + gradient, measurements + measured),
            });
        }

        // The mean over micro-batches and ranks of gradient and measurements, in one go.
        let (gradient, measured) = sums.expect("a micro-batch at least");
        let own = Tensor::cat(&[measured.narrow(0, 0, 6), gradient.sum(Kind::Float).view(1)], 0);
        let flat = Tensor::cat(&[&gradient, &measured], 0) / batch.len() as f64;
        collective::all_reduce_mean(self.world, &flat)?;
        let (gradient, measured) =
            (flat.narrow(0, 0, gradient.size()[0]), flat.slice(0, gradient.size()[0], None, 1));
        let measured = Measured::read(&measured, &gradient, own);
        Ok((gradient, measured))
    }

    /// What batch norm does in micro-batch `a`. The running statistics follow the first alone: the model's are rank 0's,
    /// and with A times as many ranks rank 0 would have had just that one.
    fn statistics(&self, a: usize) -> Statistics {
        match self.statistics {
            Statistics::Batch if a > 0 => Statistics::BatchUnseen,
            other => other,
        }
    }

    /// All ranks: the centres of the global batch's samples, `[G, n]`, by a pass that leaves no trace.
    fn keys_of_all(&self, batch: &[MicroBatch]) -> Result<Tensor> {
        let centres = |micro: &MicroBatch| {
            let unseen = self.statistics(1);
            let out = tch::no_grad(|| self.net.forward(&micro.images, micro.decisions, unseen));
            loss::centres(&out.path, self.views)
        };
        let own: Vec<Tensor> = batch.iter().map(centres).collect();
        Ok(self.world.all_gather(&Tensor::cat(&own, 0))?.flatten(0, 1))
    }

    /// The parts of the objective, each a mean over this micro-batch's views or samples. `keys` are the centres of
    /// all samples that are told apart, of which this micro-batch has those from `first` on; `share` is how many
    /// micro-batches of a rank share them, for what they add up to is divided by that many in the end.
    fn parts(
        &self,
        micro: &MicroBatch,
        out: &Output,
        centres: &Tensor,
        keys: &Tensor,
        first: i64,
        share: f64,
    ) -> Parts {
        let weights = &self.weights;
        Parts {
            ce: loss::classification(&out.logits, &micro.labels, self.views, weights.label_smoothing),
            con: loss::consistency(&out.path, centres, self.views, weights.consistency_margin),
            div: loss::diversity(centres, keys, first, weights.diversity_margin) * share,
            cost: loss::cost(&out.path, self.costs),
            target: loss::target_rate(&out.path, keys, weights.target_rate),
            run_rate: loss::run_rate(&out.path),
        }
    }

    /// The gradient of `loss`, laid out as the flat parameters; zero for what does not train.
    fn backward(&self, loss: &Tensor) -> Tensor {
        let trains = |router: bool| !(router && self.routers == Routers::Freeze);
        let trained = &self.net.params.trained;
        let inputs: Vec<&Tensor> =
            trained.iter().filter(|p| trains(p.role.router)).map(|p| &p.tensor).collect();
        let mut gradients = Tensor::run_backward(&[loss], &inputs, false, false).into_iter();
        let flat: Vec<Tensor> = trained
            .iter()
            .map(|parameter| match trains(parameter.role.router).then(|| gradients.next()).flatten() {
                Some(gradient) if gradient.defined() => in_order(&gradient),
                _ => in_order(&parameter.tensor.detach().zeros_like()),
            })
            .collect();
        Tensor::cat(&flat, 0)
    }

    /// What this rank measured, in a form whose mean over ranks is the global batch's: see [`Measured::read`].
    fn measure(&self, parts: &Parts, out: &Output, labels: &Tensor, stop: bool) -> Tensor {
        let labels = loss::by_view(labels, self.views);
        let top1 = out.logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Float).mean(None);
        let stop = Tensor::from(f32::from(u8::from(stop))).to_device(out.logits.device());
        let div = &parts.div * self.world.world() as f64; // L_div is a sum over ranks
        let Parts { ce, con, cost, target, run_rate, .. } = parts;
        let scalars = Tensor::stack(&[ce, con, &div, cost, target, run_rate, &top1, &stop], 0);
        let mean = |path: &Tensor| path.mean_dim([0].as_slice(), false, None);
        Tensor::cat(&[scalars, mean(&out.path), mean(&hard(&out.gates))], 0).detach()
    }
}

impl Measured {
    /// Reads what [`Step::measure`] wrote, after the mean over ranks.
    fn read(values: &Tensor, gradient: &Tensor, own: Tensor) -> Self {
        let values = Vec::<f64>::try_from(values.to_kind(Kind::Double)).expect("a vector of numbers");
        let grad_norm = f64::try_from(gradient.norm()).expect("one number");
        let [ce, con, div, cost, target, run_rate, top1, stop, ref rates @ ..] = values[..] else {
            unreachable!("measure writes eight numbers and the rates")
        };
        let (rates, hard_rates) = rates.split_at(rates.len() / 2);
        let (rates, hard_rates) = (rates.to_vec(), hard_rates.to_vec());
        Self {
            ce,
            con,
            div,
            cost,
            target,
            run_rate,
            top1,
            grad_norm,
            stop: stop > 0.0,
            rates,
            hard_rates,
            own,
        }
    }

    /// The objective: Eq. 12, and what the baselines add.
    pub fn loss(&self, weights: &Weights) -> f64 {
        self.ce
            + weights.alpha * self.con
            + weights.beta * self.div
            + weights.gamma * self.cost
            + weights.target * self.target
            + weights.run_rate * self.run_rate
    }

    /// Whether the loss and the gradient are finite. What is not finite on one rank is not finite in the mean over
    /// all, so that every rank comes to the same answer.
    pub fn is_finite(&self) -> bool {
        let Self { ce, con, div, cost, target, run_rate, grad_norm, .. } = self;
        [ce, con, div, cost, target, run_rate, grad_norm].into_iter().all(|value| value.is_finite())
    }

    /// All ranks, where something is not finite: which part of the loss, on which rank.
    pub fn blame(&self, world: &dyn Collective) -> Result<String> {
        let all = world.all_gather(&self.own)?.to_kind(Kind::Double);
        let all = Vec::<Vec<f64>>::try_from(&all).expect("rows of numbers");
        let first = |own: &Vec<f64>| own.iter().position(|value| !value.is_finite()).map(|part| PARTS[part]);
        let said =
            all.iter().enumerate().filter_map(|(rank, own)| Some(format!("{} of rank {rank}", first(own)?)));
        let said: Vec<String> = said.collect();
        let Self { ce, con, div, cost, grad_norm, .. } = self;
        Ok(format!(
            "not finite: {} (ce {ce}, con {con}, div {div}, cost {cost}, gradient norm {grad_norm})",
            if said.is_empty() { "the gradient's norm".into() } else { said.join(", ") }
        ))
    }
}
