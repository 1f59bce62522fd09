//! A step of the loop: from the loader's next batch to the update, and what it measured.

use super::Trainer;
use crate::config::{self, OnNonfinite, Routers, Scope, Stage};
use crate::data::prefetch::{Turn, Upload, Uploads};
use crate::dist::replicas;
use crate::loss::{Labels, Objective};
use crate::metrics::routing::Histogram;
use crate::model::{Decisions, Statistics};
use crate::run::events::Event;
use crate::sys::error::{Error, Result};
use crate::sys::span::{Phase, range};
use crate::train::gradient::{MicroBatch, Step, Told};
use tch::{Device, Kind, Tensor};

impl<'a> Trainer<'a> {
    /// All ranks: the batches from `first` on of the epochs from `from` up to `to`.
    pub(super) fn uploads(&self, from: u64, first: Turn, to: u64) -> Result<Uploads<'a>> {
        let loader = self.input.training(self.config, self.world, from, first.of_epoch, to)?;
        let (gates, steps) = (self.costs.size()[0] as usize, self.input.steps(self.config));
        Ok(Uploads::new(loader, self.config, self.device, gates, first, steps))
    }

    /// All ranks: takes the next batch and a step with it; whether any rank was asked to stop.
    pub(super) fn next_step(&mut self, uploads: &mut Uploads, stage: &Stage, lr: f64) -> Result<bool> {
        let _range = range(Phase::Step);
        let upload = uploads.next().expect("as many batches as steps")?;
        self.input.note_bad(&upload.bad)?;
        let told = self.step(&upload, stage, lr)?;
        uploads.send_ahead();
        let (stop, hard_rates) = told.read();
        self.steer(stage, &hard_rates);
        let batch_size = self.config.optim.batch_size as u64;
        self.state.step += 1;
        self.state.epoch_samples += batch_size;
        self.state.samples += batch_size;
        Ok(stop)
    }

    /// All ranks: one step, the paper's Section 3.4. The host runs ahead of the device.
    fn step(&mut self, upload: &Upload, stage: &Stage, lr: f64) -> Result<Told> {
        let config = self.config;
        self.world.at_step(self.state.step + 1);
        let images = self.input.pixels(&upload.pixels); // [A·L·M, C, H, W]
        // Micro-batch a of rank r is what rank r·A + a would have of A times as many ranks.
        let micros = (self.state.micro_batches / self.world.ranks()) as i64;
        let noises = upload.noise.chunk(micros, 0);
        let batch = self.micro_batches(&images, &upload.labels, &noises, stage.routers);
        let step = Step {
            world: self.world,
            net: &self.net,
            gradients: &self.gradients,
            costs: &self.costs,
            objective: Objective::new(config, stage, self.state.price.gamma),
            routers: stage.routers,
            views: upload.views as i64,
            // Where ranks have become fewer: all samples were told apart in one go before.
            scope: if config.optim.accumulate == 1 { Scope::GlobalBatch } else { config.diversity.scope },
            statistics: Statistics::Batch { seen: true, over: self.over_ranks.as_ref() },
        };
        let statistics = self.net.params.flat_buffers().copy();
        let taken = step.gradient(&batch, self.asked_to_stop())?;
        if config.optim.clip_norm.is_some() {
            // Each rank adds up its own norm, perhaps in another order; clipping must be alike to the bit.
            self.world.broadcast(&taken.norm, 0)?;
        }
        let updating = range(Phase::Optimizer);
        // Where the gradient is not finite, the device leaves everything as it was.
        self.sgd.step(&self.net.params, self.gradients.flat(), &taken.norm, &taken.finite, lr, stage.routers);
        let now = self.net.params.flat_buffers();
        let kept = now.where_self(&taken.finite.to_kind(Kind::Bool), &statistics);
        now.shallow_clone().copy_(&kept);
        if let Some(ema) = &mut self.ema {
            ema.update(&self.net.params, &taken.finite);
        }
        drop(updating);
        self.meter.push(self.state.step + 1, taken.row);
        self.paths = Some(taken.paths);
        self.compare_replicas()?;
        Ok(taken.told)
    }

    /// This rank's share of the batch, as many equal parts as `noises`.
    fn micro_batches<'n>(
        &self,
        images: &Tensor,
        labels: &Labels,
        noises: &'n [Tensor],
        routers: Routers,
    ) -> Vec<MicroBatch<'n>> {
        let config::Router { temperature, relaxation, .. } = self.config.model.router;
        let micros = noises.len() as i64;
        let parts = images.chunk(micros, 0).into_iter().zip(labels.chunk(micros)).zip(noises);
        let batch_of = |((images, labels), noise)| MicroBatch {
            images,
            labels,
            decisions: match routers {
                Routers::Train => Decisions::Relaxed { noise: Some(noise), temperature, relaxation },
                Routers::Freeze => Decisions::Hard,
            },
        };
        parts.map(batch_of).collect()
    }

    /// Where there is a budget: moves γ after a step in which gates would have decided like this; not where a gate's logit
    /// was not finite.
    fn steer(&mut self, stage: &Stage, hard_rates: &[f64]) {
        let config = self.config;
        let finite = hard_rates.iter().all(|rate| rate.is_finite());
        if let Some(budget) = config.budget().filter(|_| config.steers(stage) && finite) {
            let gmacs = self.net.costs.mean_macs(hard_rates) / 1e9;
            // γ is the price of a block, in whatever unit the cost is.
            let table = self.net.costs.table(config.cost.unit);
            let mean_cost = f64::from(table.iter().sum::<f32>()) / table.len() as f64;
            self.state.price.follow(gmacs, budget, config.cost.gamma_step / mean_cost);
        }
    }

    /// All ranks, at a log line: the paths that the last step's views would take in inference.
    pub(super) fn last_paths(&mut self) -> Result<Histogram> {
        let own = self.paths.take().expect("a log line follows a step").to_kind(Kind::Uint8);
        let (views, gates) = (own.size()[0] as usize * self.world.ranks(), own.size()[1] as usize);
        let all = self.world.all_gather(&own)?.to_device(Device::Cpu);
        Ok(Histogram::new(&Vec::<u8>::try_from(all.view(-1)).expect("bits"), gates, views))
    }

    /// All ranks: takes in what the last steps measured. A step that was not finite ends the run, or is told and counted.
    pub(super) fn read_meter(&mut self) -> Result<()> {
        for measured in self.meter.read(self.world)? {
            let (step, blame) = (measured.step, measured.blame.as_ref());
            self.state.tally.add(&measured);
            let loss = measured.get("loss");
            if loss.is_finite() {
                self.state.epoch_loss.add(loss);
            }
            let Some(what) = blame else { continue };
            if self.config.optim.on_nonfinite == OnNonfinite::Stop {
                return Err(Error::diverged(step, what));
            }
            self.state.skipped += u64::from(!measured.finite);
            let skipped = self.state.skipped;
            self.log.say(&match measured.finite {
                true => format!("step {step}: {what}; taken, for its gradient is finite"),
                false => format!("step {step}: {what}; left out, {skipped} so far"),
            });
            self.log.event(step, &Event::StepNotFinite { why: what.clone(), skipped })?;
        }
        Ok(())
    }

    /// All ranks, once in a while: whether they still hold the same.
    fn compare_replicas(&mut self) -> Result<()> {
        let (step, options) = (self.state.step + 1, &self.config.collective);
        if options.compare_every == 0 || !step.is_multiple_of(options.compare_every) {
            return Ok(());
        }
        let mut held = vec![self.net.params.flat(), &self.sgd.momentum];
        held.extend(self.ema.as_ref().map(|ema| &ema.flat));
        let mended = replicas::compare(self.world, &held, step, options.on_divergence)?;
        if !mended.is_empty() {
            let what = format!(
                "step {step}: ranks {mended:?} had left the others, and took rank 0's weights, momenta and running mean"
            );
            self.log.say(&what);
            self.log.event(step, &Event::ReplicasRepaired { ranks: mended })?;
        }
        Ok(())
    }
}
