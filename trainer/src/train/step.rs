//! One training step (Section 3.4), top to bottom: a batch, the forward pass, the objective, the backward pass during
//! which gradients are all-reduced, the update, and what the ranks learned of each other.

use super::model::Model;
use super::teacher::teacher_logits;
use super::{Scheduled, Trainer};
use crate::config::{Routers, Routing, Scope, Stage};
use crate::data::{DeviceBatch, Prefetcher};
use crate::dist::{Reducer, World, agree, replicas};
use crate::host;
use crate::loss::{self, Budget, Labels, LossInputs, Objective};
use crate::metrics::{HostCopy, StepMetrics};
use crate::model::{BnMode, Decisions, Net, PathVectors, hard_decisions};
use crate::optim::Gradient;
use crate::run::Event;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Phase, range};
use tch::{Kind, Tensor};

impl Trainer<'_> {
    /// All ranks: one step on the next batch. Returns whether a rank was asked to stop.
    pub(super) fn train_step(
        &mut self,
        batches: &mut Prefetcher,
        stage: &Stage,
        scheduled: Scheduled,
    ) -> Result<bool> {
        let _step = range(Phase::Step);
        let step = self.state.step + 1;
        let batch = batches.next().expect("a batch for every step")?;
        self.data.record_bad(&batch.bad)?;
        self.world.set_step(step);

        // Forward and backward: the gradient of the objective over the global batch.
        let buffers_before = self.model.net.params.flat_buffers().copy();
        let output = self.forward_backward(&batch, stage, scheduled, step)?;

        // The update; the host does not wait for the device to know whether the gradient is finite.
        if self.config.optim.norm_limit().is_some() {
            // Each rank sums its own norm, perhaps in another order; the clipped gradient must be bit-identical.
            self.world.broadcast(&output.grad_norm, 0)?;
        }
        self.update(&output, &buffers_before, scheduled.lr, stage.routers)?;
        self.metrics.push(step, output.metrics);
        self.hard_paths = Some(output.hard_paths);
        self.compare_replicas(step)?;

        // What all ranks act on alike: what they gathered in the step before, so that the host need not wait for this one.
        let stop = self.act_on_gathered(stage);
        self.gathered = Some(output.gathered);
        let samples = self.config.optim.batch_size as u64;
        self.state.step = step;
        self.state.epoch_samples += samples;
        self.state.samples += samples;
        Ok(stop)
    }

    /// All ranks: acts on what was gathered in the last step, unless that was done: adjusts γ, and returns whether a rank was asked to
    /// stop.
    pub(super) fn act_on_gathered(&mut self, stage: &Stage) -> bool {
        let Some(gathered) = self.gathered.take() else { return false };
        let (stop, hard_rates) = gathered.wait();
        let ramp = self.scheduled(stage).budget_ramp;
        self.adjust_gamma(stage, ramp, &hard_rates);
        stop
    }

    /// All ranks: the gradient on a batch, in one or more micro-batches.
    fn forward_backward(
        &self,
        batch: &DeviceBatch,
        stage: &Stage,
        scheduled: Scheduled,
        step_number: u64,
    ) -> Result<StepOutput> {
        let images = self.data.normalise(&batch.pixels); // [A·L·M, C, H, W]
        // Micro-batch a of rank r has the samples, views and noise of rank r·A + a in a world A times as large.
        let count = (self.state.micro_batches / self.world.ranks()) as i64;
        let noise = batch.noise.chunk(count, 0);
        let parts = images.chunk(count, 0).into_iter().zip(batch.labels.chunk(count)).zip(&noise);
        let micro_batches: Vec<MicroBatch> = parts
            .map(|((images, labels), noise)| MicroBatch {
                images,
                labels,
                decisions: self.decisions(stage, scheduled.temperature, noise),
            })
            .collect();
        let mut objective = Objective::new(self.config, stage, scheduled.gamma);
        if self.config.penalizes(stage) {
            objective.budget = self.budget(scheduled.budget_ramp);
        }
        let step = TrainStep {
            world: self.world,
            net: &self.model.net,
            teacher: self.teacher.as_ref(),
            reducer: &self.model.reducer,
            costs: &self.model.costs,
            objective,
            path_vectors: PathVectors::new(self.config),
            routers: stage.routers,
            views: batch.views as i64,
            // A run resumed on fewer ranks compares all samples at once, as the larger world did.
            scope: if self.config.optim.accumulate == 1 {
                Scope::GlobalBatch
            } else {
                self.config.diversity.scope
            },
            statistics: self.model.batch_statistics(),
        };
        let stop = self.stop_requested();
        let every = self.config.run.replay_every;
        if every > 0 && step_number.is_multiple_of(every) {
            let at_step = |error: Error| Error { message: format!("step {step_number}: {error}"), ..error };
            return step.forward_backward_replayed(&micro_batches, stop).map_err(at_step);
        }
        step.forward_backward(&micro_batches, stop)
    }

    /// The budget at a share `ramp` of its ramp, which begins at the cost of all blocks.
    fn budget(&self, ramp: f64) -> Option<Budget<'_>> {
        let static_gmacs = self.model.net.costs.static_macs() as f64 / 1e9;
        let least = self.config.budget()? / static_gmacs;
        let (none, all) = self.model.net.costs.gmacs_range();
        let all = all / static_gmacs;
        Some(Budget {
            gates: &self.model.cost_shares,
            fixed: none / static_gmacs,
            least,
            most: all + (least - all) * ramp,
        })
    }

    /// How gates decide in a step, for views with this noise ([`DeviceBatch::noise`]).
    fn decisions<'n>(&self, stage: &Stage, temperature: f64, noise: &'n Tensor) -> Decisions<'n> {
        if self.config.model.drop_path > 0.0 {
            return Decisions::DropPath(noise);
        }
        if let Routing::Random(_) = self.config.model.routing {
            return Decisions::hard(Some(noise), stage.skip);
        }
        let noise = stage.is_noisy().then_some(noise);
        match (stage.routers, noise) {
            (Routers::Train, noise) => {
                Decisions::Relaxed { noise, temperature, relaxation: self.config.model.router.relaxation }
            }
            (Routers::Freeze, noise) => Decisions::hard(noise, stage.skip),
        }
    }

    /// All ranks: updates the weights along the gradient of `output`. If it is not finite, everything stays as it was before the step,
    /// batch norm's running statistics (`buffers_before`) included.
    fn update(
        &mut self,
        output: &StepOutput,
        buffers_before: &Tensor,
        lr: f64,
        routers: Routers,
    ) -> Result<()> {
        let _update = range(Phase::Optimizer);
        let StepOutput { grad_norm, finite, .. } = output;
        let Model { net, reducer, optimizer, ema, .. } = &mut self.model;
        let gradient = Gradient { flat: reducer.flat(), norm: grad_norm, finite };
        optimizer.step(self.world, &net.params, gradient, lr, routers)?;
        let buffers = net.params.flat_buffers();
        let valid = buffers.where_self(&finite.to_kind(Kind::Bool), buffers_before);
        buffers.shallow_clone().copy_(&valid);
        if let Some(ema) = ema {
            ema.update(&net.params, finite);
        }
        Ok(())
    }

    /// All ranks, every `collective.compare_every` steps: compares checksums of what must be bit-identical on all ranks.
    fn compare_replicas(&mut self, step: u64) -> Result<()> {
        let options = &self.config.collective;
        if options.compare_every == 0 || !step.is_multiple_of(options.compare_every) {
            return Ok(());
        }
        let repaired =
            replicas::compare_tensors(self.world, &self.model.replicated(), step, options.on_divergence)?;
        if repaired.is_empty() {
            return Ok(());
        }
        self.log.say(&format!(
            "step {step}: ranks {repaired:?} had diverged; they received rank 0's weights, momenta and moving average"
        ));
        self.log.event(step, &Event::ReplicasRepaired { ranks: repaired })
    }

    /// With a budget and `control: price`: adjusts γ after a step in which gates would have decided with these rates in inference,
    /// unless a gate's logit was not finite.
    fn adjust_gamma(&mut self, stage: &Stage, ramp: f64, hard_rates: &[f64]) {
        let config = self.config;
        let Some(budget) = config.budget() else { return };
        if !config.adjusts_gamma(stage) || !hard_rates.iter().all(|rate| rate.is_finite()) {
            return;
        }
        let costs = &self.model.net.costs;
        let gap = self.state.gamma.gap(costs.mean_macs(hard_rates) / 1e9, budget, ramp);
        // γ is per block, whatever the unit of the cost.
        let table = costs.gate_costs(config.cost.unit);
        let mean_cost = f64::from(table.iter().sum::<f32>()) / table.len() as f64;
        self.state.gamma.update(gap, config.cost.gamma_step / mean_cost);
    }
}

/// The fixed inputs of a step's forward and backward pass.
pub struct TrainStep<'a> {
    /// The ranks that share the global batch.
    pub world: &'a World,
    /// The network.
    pub net: &'a Net,
    /// The teacher of distillation, for images normalised as the network's.
    pub teacher: Option<&'a Net>,
    /// Receives the gradient.
    pub reducer: &'a Reducer,
    /// c_k of Eq. 11, `[n]`.
    pub costs: &'a Tensor,
    /// The objective.
    pub objective: Objective<'a>,
    /// What L_con and L_div compare.
    pub path_vectors: PathVectors,
    /// Whether routers train; the gradient of frozen ones is zero.
    pub routers: Routers,
    /// M.
    pub views: i64,
    /// The samples that L_div compares: a micro-batch's, or the global batch's.
    pub scope: Scope,
    /// Batch norm's statistics. Training uses the batch's. Tests that compare world sizes use the running ones, because
    /// each rank has batch statistics of its own.
    pub statistics: BnMode<'a>,
}

/// One of the parts in which a rank's batch is processed.
pub struct MicroBatch<'a> {
    /// `[L·M, C, H, W]`.
    pub images: Tensor,
    /// Of L samples.
    pub labels: Labels,
    /// How gates decide for these images.
    pub decisions: Decisions<'a>,
}

/// The results of a forward and backward pass, besides the gradient. The host has not waited for any of them.
pub struct StepOutput {
    /// L² norm of the averaged gradient, `[]`.
    pub grad_norm: Tensor,
    /// 1 if the averaged gradient is finite, else 0, f32 `[]`. The same on all ranks: what is not finite on one rank is
    /// not finite in the mean.
    pub finite: Tensor,
    /// This rank's row of [`StepMetrics`].
    pub metrics: Tensor,
    /// Each gate's decision in inference (Eq. 13) for this rank's views, `[A·L·M, n]`.
    pub hard_paths: Tensor,
    /// What the ranks gathered along with the path centres.
    pub gathered: Gathered,
}

/// What the ranks gather along with the path centres, on its way to the host.
pub struct Gathered(Vec<HostCopy>);

impl Gathered {
    /// Nobody was asked to stop, and these are the mean decisions.
    pub fn of_rates(hard_rates: &[f64]) -> Self {
        Self(vec![HostCopy::start(&Tensor::from_slice(&[&[0.0], hard_rates].concat()))])
    }

    /// Waits for it: whether a rank was asked to stop, and the mean of each gate's decisions in inference (Eq. 13) over all
    /// ranks' views, `[n]`. Bit-identical on all ranks; NaN for a gate with a logit that is not finite.
    pub fn wait(&self) -> (bool, Vec<f64>) {
        let gathered: Vec<Vec<f64>> = self.0.iter().map(HostCopy::wait).collect();
        let mean =
            |column: usize| gathered.iter().map(|values| values[column]).sum::<f64>() / gathered.len() as f64;
        (mean(0) > 0.0, (1..gathered[0].len()).map(mean).collect())
    }
}

/// Which computation of a rank's part of a step.
enum Pass<'a> {
    /// The step's own; with `overlap`, gradients are summed over ranks during the backward pass.
    First { stop: bool, overlap: bool },
    /// A repetition, compared with the first.
    Replay(&'a LocalPass),
}

/// A rank's part of a step, apart from the gradient.
#[derive(Default)]
struct LocalPass {
    /// For each micro-batch: the path centres that L_div compares, after the means of decisions, `[G, n + d]` or `[G, d]`
    /// (see [`PathVectors::with_decisions`]), and the row of the first of its own.
    peers: Vec<(Tensor, i64)>,
    gathered: Vec<HostCopy>,
    metrics: Vec<Tensor>,
    hard_paths: Vec<Tensor>,
}

/// Whether two tensors of one shape and kind are bit-identical. The host waits for the device.
fn bits_equal(a: &Tensor, b: &Tensor) -> bool {
    a.view_dtype(Kind::Uint8).equal(&b.view_dtype(Kind::Uint8))
}

impl TrainStep<'_> {
    /// All ranks: leaves the mean gradient of the objective over the global batch in [`TrainStep::reducer`].
    ///
    /// `micro_batches` are this rank's share of the batch, all of one size; `stop` tells that this rank was asked to stop.
    pub fn forward_backward(&self, micro_batches: &[MicroBatch], stop: bool) -> Result<StepOutput> {
        let pass = self.local_pass(micro_batches, Pass::First { stop, overlap: true })?;
        self.reduce(pass)
    }

    /// All ranks: the same, computed twice. The second time batch norm's running statistics stay as they are, and peers'
    /// path centres are those of the first time, so that only this rank's own computation is repeated.
    ///
    /// # Errors
    /// A rank whose losses or gradient differ in any bit. On a CPU all algorithms are deterministic.
    pub fn forward_backward_replayed(&self, micro_batches: &[MicroBatch], stop: bool) -> Result<StepOutput> {
        let pass = self.local_pass(micro_batches, Pass::First { stop, overlap: false })?;
        let gradient = self.reducer.flat().copy();
        let replay = self.local_pass(micro_batches, Pass::Replay(&pass))?;
        let equal = bits_equal(&gradient, self.reducer.flat())
            && bits_equal(&Tensor::cat(&pass.metrics, 0), &Tensor::cat(&replay.metrics, 0));
        let compared = if equal {
            Ok(())
        } else {
            let what = format!(
                "rank {} of {} computed another loss or gradient when it repeated the step; suspect its memory, processor or GPU",
                self.world.rank(),
                host::name()
            );
            Err(Error::new(Exit::Communication, what))
        };
        agree(self.world, compared)?;
        self.reduce(pass)
    }

    /// All ranks: this rank's gradient, accumulated over its micro-batches. With overlap, buckets that are complete are
    /// already being summed over ranks.
    fn local_pass(&self, micro_batches: &[MicroBatch], pass: Pass) -> Result<LocalPass> {
        self.reducer.zero();
        let count = micro_batches.len();
        let last = count - 1;
        let rank = self.world.rank();
        let samples = micro_batches[0].images.size()[0] / self.views; // L
        let mut local = LocalPass::default();
        if let (Pass::First { stop, .. }, Scope::GlobalBatch, true) = (&pass, self.scope, count > 1) {
            let (centres, copy) = self.gather_all_centres(micro_batches, *stop)?;
            local.gathered.push(copy);
            let first = (rank * count) as i64 * samples;
            local.peers.extend((0..count as i64).map(|a| (centres.shallow_clone(), first + a * samples)));
        }
        for (a, micro_batch) in micro_batches.iter().enumerate() {
            // Forward: logits and paths, relaxed (Eqs. 6 and 7) or hard.
            let forward = range(Phase::Forward);
            let output =
                self.net.forward(&micro_batch.images, micro_batch.decisions, self.statistics(a, &pass));

            let teacher = self.teacher.map(|teacher| teacher_logits(teacher, &micro_batch.images));

            // The objective (Eqs. 8 to 12), whose L_div compares this rank's path centres with those of all ranks.
            let paths = self.path_vectors.with_decisions(&output);
            let centres = loss::path_centres(&paths, self.views);
            let hard_path = hard_decisions(&output.gate_logits.detach());
            if let (Pass::First { stop, .. }, true) = (&pass, local.peers.len() == a) {
                let (peers, copy) = self.gather_centres(&centres, &output.gate_logits, &hard_path, *stop)?;
                local.gathered.push(copy);
                local.peers.push((peers, rank as i64 * samples));
            }
            let (peers, offset) = match &pass {
                Pass::First { .. } => &local.peers[a],
                Pass::Replay(first) => &first.peers[a],
            };
            let gates = output.path.size()[1];
            let select = |rows: &Tensor| self.path_vectors.select(rows, gates);
            let values = self.objective.evaluate(&LossInputs {
                logits: &output.logits,
                labels: &micro_batch.labels,
                views: self.views,
                teacher: teacher.as_ref(),
                decisions: &output.path,
                rates: &peers.narrow(1, 0, gates).mean_dim([0].as_slice(), false, None),
                paths: &select(&paths),
                centres: &select(&centres),
                peers: &select(peers),
                offset: *offset,
                costs: self.costs,
                budget: self.objective.budget.as_ref(),
            });
            drop(forward);

            // Backward: gradients accumulate over micro-batches; during the last one buckets are all-reduced.
            let overlap = a == last && matches!(pass, Pass::First { overlap: true, .. });
            self.reducer.prepare_backward(self.routers, overlap);
            let backward = range(Phase::Backward);
            (&values.total / (count * self.world.ranks()) as f64).backward();
            drop(backward);
            let labels = &micro_batch.labels.own;
            local
                .metrics
                .push(StepMetrics::pack_micro_batch(&values, &output, labels, self.views, &hard_path));
            local.hard_paths.push(hard_path);
        }
        Ok(local)
    }

    /// All ranks: sums the gradient over ranks.
    fn reduce(&self, pass: LocalPass) -> Result<StepOutput> {
        self.reducer.finish()?;
        let grad_norm = self.reducer.flat().norm();
        let finite = grad_norm.isfinite().to_kind(Kind::Float);
        let metrics =
            StepMetrics::pack(&finite, &grad_norm, self.reducer.flat(), &self.net.params, &pass.metrics);
        Ok(StepOutput {
            grad_norm,
            finite,
            metrics,
            hard_paths: Tensor::cat(&pass.hard_paths, 0),
            gathered: Gathered(pass.gathered),
        })
    }

    /// Batch norm's statistics in micro-batch `a`. Only the first updates the running ones: the model's are rank 0's, which
    /// has just that micro-batch in a world A times as large. A repetition updates none.
    fn statistics(&self, a: usize, pass: &Pass) -> BnMode<'_> {
        match self.statistics {
            BnMode::Batch { sync, .. } if a > 0 || matches!(pass, Pass::Replay(_)) => {
                BnMode::Batch { update_running: false, sync }
            }
            statistics => statistics,
        }
    }

    /// All ranks, in one all-gather: all ranks' path centres, `[G, w]`, and on its way to the host the mean over ranks of
    /// `stop` and of the hard decisions. `centres` is `[L, w]`, w as in [`LocalPass::peers`], `gate_logits` and `hard_path`
    /// `[L·M, n]`.
    fn gather_centres(
        &self,
        centres: &Tensor,
        gate_logits: &Tensor,
        hard_path: &Tensor,
        stop: bool,
    ) -> Result<(Tensor, HostCopy)> {
        let (samples, width) = centres.size2().expect("[L, w]");
        let stop = Tensor::full([1], f64::from(u8::from(stop)), (Kind::Float, centres.device()));
        let nan_if_not_finite = gate_logits.detach() * 0.0;
        let rates = (hard_path + nan_if_not_finite).mean_dim([0].as_slice(), false, None);
        let own = Tensor::cat(&[centres.detach().view(-1), stop, rates], 0);
        let all = self.world.all_gather(&own)?; // [W, L·w + 1 + n]
        let rows = self.world.ranks() as i64 * samples;
        let peers = all.narrow(1, 0, samples * width).reshape([rows, width]);
        let rest = all.slice(1, samples * width, None, 1).mean_dim([0].as_slice(), false, None);
        Ok((peers, HostCopy::start(&rest)))
    }

    /// All ranks: the same for all micro-batches at once, by a forward pass without gradient or update of statistics.
    fn gather_all_centres(&self, micro_batches: &[MicroBatch], stop: bool) -> Result<(Tensor, HostCopy)> {
        let _forward = range(Phase::Forward);
        let mut centres = Vec::new();
        let mut gate_logits = Vec::new();
        for micro_batch in micro_batches {
            let output = tch::no_grad(|| {
                let statistics = self.statistics(1, &Pass::First { stop, overlap: false });
                self.net.forward(&micro_batch.images, micro_batch.decisions, statistics)
            });
            centres.push(loss::path_centres(&self.path_vectors.with_decisions(&output), self.views));
            gate_logits.push(output.gate_logits);
        }
        let gate_logits = Tensor::cat(&gate_logits, 0);
        self.gather_centres(&Tensor::cat(&centres, 0), &gate_logits, &hard_decisions(&gate_logits), stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Model, Relaxation};
    use crate::dist;
    use crate::sys::hook_gradient;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tch::Device;

    #[test]
    fn replay_finds_a_flipped_bit() {
        let world = dist::join().unwrap();
        let config = Config::default();
        let net = Net::new(&Model::default(), 1, 16, 4, 5, Device::Cpu);
        let reducer = Reducer::new(&net.params, &world, &config.collective);
        let costs = Tensor::from_slice(&net.costs.gate_costs(config.cost.unit));
        let noise = Tensor::randn([4, costs.size()[0]], (Kind::Float, Device::Cpu));
        let relaxed =
            Decisions::Relaxed { noise: Some(&noise), temperature: 1.0, relaxation: Relaxation::Gumbel };
        let batch = || MicroBatch {
            images: Tensor::arange(4 * 256, (Kind::Float, Device::Cpu)).view([4, 1, 16, 16]).sin(),
            labels: Tensor::from_slice(&[0i64, 1]).into(),
            decisions: relaxed,
        };
        let step = TrainStep {
            world: &world,
            net: &net,
            teacher: None,
            reducer: &reducer,
            costs: &costs,
            objective: Objective::new(&config, &Stage::default(), 0.1),
            path_vectors: PathVectors::new(&config),
            routers: Routers::Train,
            views: 2,
            scope: Scope::GlobalBatch,
            statistics: BnMode::BATCH,
        };
        step.forward_backward(&[batch()], false).unwrap();
        let gradient = reducer.flat().copy();
        let statistics = net.params.flat_buffers().copy();
        step.forward_backward(&[batch()], false).unwrap();
        let updated_once = net.params.flat_buffers() - &statistics;
        step.forward_backward_replayed(&[batch()], false).unwrap();
        assert!(bits_equal(reducer.flat(), &gradient), "the gradient is that of a step without replay");
        let updated_twice = net.params.flat_buffers() - &statistics;
        // Momentum 0.1: the second update towards the same statistics is 0.9 of the first.
        assert!(updated_twice.allclose(&(updated_once * 1.9), 1e-3, 1e-5, false), "one update a step");

        // The last bit of one number, the second time that this gradient is computed.
        let receive = reducer.receiver(0);
        let calls = AtomicUsize::new(0);
        hook_gradient(&net.params.parameters[0].tensor, move |gradient| {
            if calls.fetch_add(1, Ordering::Relaxed) == 1 {
                let bits = gradient.permute([0, 2, 3, 1]).view(-1).view_dtype(Kind::Int);
                let _ = bits.narrow(0, 0, 1).bitwise_xor_(1);
            }
            receive(gradient);
        });
        let error = step.forward_backward_replayed(&[batch()], false).err().unwrap();
        assert_eq!(error.exit, Exit::Communication);
        assert!(error.message.starts_with("rank 0 of "), "{}", error.message);
    }
}
