//! One training step up to the update: forward, objective, and backward, from which gradients leave for the other ranks.

use crate::config::{Routers, Scope};
use crate::dist::Gradients;
use crate::dist::World;
use crate::loss::{self, Labels, Objective, Outcome, Parts};
use crate::metrics::Later;
use crate::model::{Decisions, Net, Output, Statistics, hard};
use crate::sys::error::Result;
use crate::sys::span::{Phase, range};
use tch::{Kind, Tensor};

/// What a step needs beside its batch.
pub struct Step<'a> {
    /// The ranks that share the global batch.
    pub world: &'a World,
    /// The network.
    pub net: &'a Net,
    /// Where its gradient goes.
    pub gradients: &'a Gradients,
    /// c_k of Eq. 11, `[n]`.
    pub costs: &'a Tensor,
    /// The objective.
    pub objective: Objective<'a>,
    /// Whether routers train; the gradient of frozen ones is zero.
    pub routers: Routers,
    /// M.
    pub views: i64,
    /// Which samples the diversity loss tells apart, of a micro-batch or of the global batch.
    pub scope: Scope,
    /// What batch norm normalises with: the batch's statistics, as training does; a test that compares world sizes
    /// fixes them instead, where each rank has its own.
    pub statistics: Statistics<'a>,
}

/// One pass's share of a rank's batch.
pub struct MicroBatch<'a> {
    /// `[L·M, C, H, W]`.
    pub images: Tensor,
    /// Of L samples.
    pub labels: Labels,
    /// How gates decide for these images.
    pub decisions: Decisions<'a>,
}

/// What a step leaves behind beside its gradient; nothing here has made the host wait for the device.
pub struct Taken {
    /// L² norm of the averaged gradient, `[]`.
    pub norm: Tensor,
    /// 1 where the averaged gradient is finite, 0 where it is not, f32 `[]`; the same on every rank, for what is not
    /// finite on one rank is not finite in the mean.
    pub finite: Tensor,
    /// What this rank measured, for [`crate::metrics::Meter`].
    pub row: Tensor,
    /// What each gate would have decided in inference (Eq. 13) for this rank's views, `[A·L·M, n]`.
    pub paths: Tensor,
    /// What all ranks told each other before backward.
    pub told: Told,
}

/// What ranks tell each other beside their paths' centres; on its way to the host.
pub struct Told(Vec<Later>);

impl Told {
    /// Whether any rank was asked to stop, and the mean of what each gate would have decided in inference (Eq. 13), `[n]`:
    /// of all ranks' views, to the bit the same on all; NaN where a gate's logit was not finite.
    pub fn read(self) -> (bool, Vec<f64>) {
        let told: Vec<Vec<f64>> = self.0.into_iter().map(Later::read).collect();
        let mean = |column: usize| told.iter().map(|values| values[column]).sum::<f64>() / told.len() as f64;
        (mean(0) > 0.0, (1..told[0].len()).map(mean).collect())
    }
}

impl Step<'_> {
    /// All ranks: the gradient of the objective over the global batch, in [`Step::gradients`], and what was measured.
    ///
    /// `batch` is this rank's share, all micro-batches of one size; `stop` is this rank's wish to stop.
    pub fn gradient(&self, batch: &[MicroBatch], stop: bool) -> Result<Taken> {
        self.gradients.zero();
        let micros = batch.len() as f64;
        let (mut told, mut rows, mut paths) = (Vec::new(), Vec::new(), Vec::new());
        let global_keys = match self.scope {
            Scope::GlobalBatch if batch.len() > 1 => {
                let (keys, all) = self.keys_of_all(batch, stop)?;
                told.push(all);
                Some(keys)
            }
            _ => None,
        };
        for (a, micro) in batch.iter().enumerate() {
            let forward = range(Phase::Forward);
            // Forward: logits, and relaxed paths (Eqs. 6 and 7) or hard ones.
            let out = self.net.forward(&micro.images, micro.decisions, self.statistics(a));

            // The objective (Eqs. 8 to 12): this rank's centres meet those of all ranks.
            let centres = loss::centres(&out.path, self.views); // [L, n]
            let (own, rank) = (centres.size()[0], self.world.rank() as i64);
            let (keys, first, sharers) = match &global_keys {
                Some(keys) => (keys.shallow_clone(), (rank * batch.len() as i64 + a as i64) * own, micros),
                None => {
                    let (keys, all) = self.tell(&centres, &out.gate_logits, stop)?;
                    told.push(all);
                    (keys, rank * own, 1.0)
                }
            };
            let outcome = Outcome {
                logits: &out.logits,
                labels: &micro.labels,
                views: self.views,
                paths: &out.path,
                centres: &centres,
                keys: &keys,
                first,
                sharers,
                costs: self.costs,
            };
            let parts = self.objective.parts(&outcome, self.world.ranks());
            drop(forward);

            // Backward: gradients add up over micro-batches, and leave for the other ranks during the last.
            if a + 1 == batch.len() {
                self.gradients.arm(self.routers);
            }
            let total = self.objective.total(&parts, self.world.ranks());
            let backward = range(Phase::Backward);
            (total / (micros * self.world.ranks() as f64)).backward();
            drop(backward);
            let path = hard(&out.gate_logits).detach();
            rows.push(self.measure(&parts, &out, &micro.labels.own, &path));
            paths.push(path);
        }
        self.gradients.settle()?;
        let norm = self.gradients.flat().norm();
        let finite = norm.isfinite().to_kind(Kind::Float);
        let row = Tensor::stack(&rows, 0).mean_dim([0].as_slice(), false, None);
        let row = Tensor::cat(&[finite.view(1), norm.view(1), row], 0);
        Ok(Taken { norm, finite, row, paths: Tensor::cat(&paths, 0), told: Told(told) })
    }

    /// What batch norm does in micro-batch `a`. The running statistics follow the first alone: the model's are rank 0's,
    /// and with A times as many ranks rank 0 would have had just that one.
    fn statistics(&self, a: usize) -> Statistics<'_> {
        match self.statistics {
            Statistics::Batch { over, .. } if a > 0 => Statistics::Batch { seen: false, over },
            other => other,
        }
    }

    /// All ranks: all ranks' centres, `[G, n]`, and the mean over ranks of the wish to stop and of the hard decisions,
    /// which leaves for the host at once; in one all-gather. `centres` is `[L, n]`, `gates` `[L·M, n]`.
    fn tell(&self, centres: &Tensor, gates: &Tensor, stop: bool) -> Result<(Tensor, Later)> {
        let (own, n) = (centres.size()[0], centres.size()[1]);
        let stop = Tensor::full([1], f64::from(u8::from(stop)), (Kind::Float, centres.device()));
        let broken = gates.detach() * 0.0; // NaN where a logit is not finite
        let rates = (hard(gates) + broken).mean_dim([0].as_slice(), false, None);
        let mine = Tensor::cat(&[centres.detach().view(-1), stop, rates], 0);
        let all = self.world.all_gather(&mine)?; // [W, L·n + 1 + n]
        let keys = all.narrow(1, 0, own * n).reshape([self.world.ranks() as i64 * own, n]);
        let told = all.narrow(1, own * n, 1 + n).mean_dim([0].as_slice(), false, None);
        Ok((keys, Later::new(&told)))
    }

    /// All ranks: the same for all micro-batches in one go, by a pass that leaves no trace.
    fn keys_of_all(&self, batch: &[MicroBatch], stop: bool) -> Result<(Tensor, Later)> {
        let _range = range(Phase::Forward);
        let (mut centres, mut gates) = (Vec::new(), Vec::new());
        for micro in batch {
            let out = tch::no_grad(|| self.net.forward(&micro.images, micro.decisions, self.statistics(1)));
            centres.push(loss::centres(&out.path, self.views));
            gates.push(out.gate_logits);
        }
        self.tell(&Tensor::cat(&centres, 0), &Tensor::cat(&gates, 0), stop)
    }

    /// What this rank measured, in a form whose mean over ranks is the global batch's; [`crate::metrics`] names its columns.
    /// `labels` is `[L]`, `path` `[L·M, n]`.
    fn measure(&self, parts: &Parts, out: &Output, labels: &Tensor, path: &Tensor) -> Tensor {
        let (labels, world) = (loss::by_view(labels, self.views), self.world.ranks());
        let top1 = out.logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Float).mean(None);
        let mut scalars: Vec<Tensor> = parts.reported(world).collect();
        scalars.extend([self.objective.value(parts, world), top1]);
        scalars.extend(parts.beside.iter().map(Tensor::shallow_clone));
        let mean = |path: &Tensor| path.mean_dim([0].as_slice(), false, None);
        Tensor::cat(&[Tensor::stack(&scalars, 0), mean(&out.path), mean(path)], 0).detach()
    }
}
