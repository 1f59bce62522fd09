//! The training loop.

mod report;
mod resume;
mod trial;

pub use trial::Trial;

use crate::budget::{self, Price};
use crate::collective::{self, Traffic, World};
use crate::config::{Config, OnNonfinite, Routers, Scope, Stage};
use crate::error::{Error, Exit, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::gradients::Gradients;
use crate::input::Input;
use crate::loss::Weights;
use crate::metrics::Meter;
use crate::model::{Decisions, Net, Statistics};
use crate::native::RankMean;
use crate::optim::{Ema, Sgd};
use crate::paths::Histogram;
use crate::ranges::{Phase, range};
use crate::replicas;
use crate::run::checkpoint::{self, Best, State};
use crate::run::{Console, Place, Records, Saver};
use crate::step::{MicroBatch, Step, Told};
use crate::upload::{Turn, Upload, Uploads};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// A run in progress, as one rank holds it.
pub struct Trainer<'a> {
    world: &'a World,
    config: &'a Config,
    place: Place,
    input: Input,
    net: Net,
    gradients: Gradients,
    /// How batch norm's statistics become those of all ranks, where they do.
    over_ranks: Option<RankMean>,
    sgd: Sgd,
    ema: Option<Ema>,
    /// c_k of Eq. 11, `[n]`.
    costs: Tensor,
    device: Device,
    state: State,
    /// What the steps measured that no log line has told yet.
    meter: Meter,
    /// What the gates would have decided in inference in the last step, `[A·L·M, n]`.
    paths: Option<Tensor>,
    /// Dropped, and so at its end, before the records let go of the directory's lock.
    saver: Saver,
    /// Open on rank 0 alone, and in a run alone.
    records: Option<Records>,
    console: Console,
    /// What is to be said once the run directory is open.
    notes: Vec<String>,
    /// What started this run, for telling how to go on with it.
    command: String,
    /// Set by a signal: checkpoint and leave.
    stop: Arc<AtomicBool>,
    started: Instant,
}

/// What speed is measured by: since the last log line.
struct Pace {
    since: Instant,
    steps: u64,
    loader: Duration,
    traffic: Traffic,
}

impl Pace {
    fn start(uploads: &Uploads, world: &World) -> Self {
        Self { since: Instant::now(), steps: 0, loader: uploads.wait(), traffic: world.traffic() }
    }

    fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }
}

impl<'a> Trainer<'a> {
    /// All ranks: builds the network, with the weights of the place's checkpoint where it has one; writes nothing yet.
    pub fn new(
        world: &'a World,
        config: &'a Config,
        place: Place,
        input: Input,
        device: Device,
        stop: Arc<AtomicBool>,
        command: String,
    ) -> Result<Self> {
        let net = Net::of(config, device);
        collective::agree(world, budget::check(config, &net.costs))?;
        let started_from = match (&config.model.init_from, &place.checkpoint) {
            (Some(path), None) => {
                Some(collective::agree(world, checkpoint::start_from(Path::new(path), &net.params))?)
            }
            _ => None,
        };
        let gradients = Gradients::new(&net.params, world, &config.collective);
        let over_ranks = config.model.sync_batch_norm.then(|| world.mean_operation());
        let sgd = Sgd::new(&net.params, &config.optim);
        let mut ema = config.optim.ema_decay.map(|decay| Ema::new(&net.params, decay));
        let costs = Tensor::from_slice(&net.costs.table(config.cost.unit)).to_device(device);
        let order = (config.run.seed, input.samples as u64, input.train.fingerprint());
        let price = Price::new(config.cost.gamma);
        let micro_batches = world.world() * config.optim.accumulate;
        let mut state = State { order: order.clone(), price, micro_batches, ..State::default() };
        let mut note = None;
        if let Some(folder) = &place.checkpoint {
            let resumed = checkpoint::read_state(folder).and_then(|state| {
                checkpoint::load(folder, &state, &net.params, &sgd.momentum, ema.as_mut())?;
                resume::check(&state, folder, &order, config)?;
                Ok(state)
            });
            state = collective::agree(world, resumed)?;
            state.forget_lost_best(&place.dir);
            note = resume::share_out(&mut state, world.world(), config);
            if config.budget().is_none() {
                state.price = price;
            }
        }
        let facts = [
            ("data.train", input.train.fingerprint()),
            ("data.val", input.val.fingerprint()),
            ("place to go on from", format!("{} {}", state.step, state.samples)),
            (
                "set of first weights",
                i64::try_from(replicas::checksum(net.params.flat())).expect("one").to_string(),
            ),
        ];
        replicas::refuse_differences(world, &facts)?;
        let saver = Saver::new(world, &place.dir, config, &net.params)?;
        let notes = [started_from, note].into_iter().flatten().collect();
        let started = Instant::now();
        Ok(Self {
            world,
            config,
            place,
            input,
            net,
            gradients,
            over_ranks,
            sgd,
            ema,
            costs,
            device,
            state,
            meter: Meter::default(),
            paths: None,
            saver,
            records: None,
            console: Console::new(world.rank()),
            notes,
            command,
            stop,
            started,
        })
    }

    /// All ranks: trains every stage to its end, and returns the last evaluation.
    pub fn run(&mut self) -> Result<Evaluation> {
        let config = self.config;
        self.open()?;
        self.greet();
        let mut last = None;
        while self.state.stage < config.stages.len() {
            last = Some(self.run_stage(&config.stages[self.state.stage])?);
        }
        let evaluation = match last {
            Some(evaluation) => evaluation,
            None => self.evaluate_again()?, // resumed after its end
        };
        self.saver.wait()?;
        self.finish(&evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: opens the run directory.
    fn open(&mut self) -> Result<()> {
        let opened = match self.world.rank() {
            0 => resume::open(&self.place, self.config, &self.state).map(Some),
            _ => Ok(None),
        };
        self.records = collective::agree(self.world, opened)?;
        self.input.record_in(&self.place.dir);
        self.console.keep_log(&self.place.dir);
        std::mem::take(&mut self.notes).iter().for_each(|said| self.console.say(said));
        Ok(())
    }

    /// All ranks: evaluates a run that has no step left to take.
    fn evaluate_again(&mut self) -> Result<Evaluation> {
        let mut evaluation = self.evaluate_both()?;
        let last = self.state.stages.last();
        evaluation.train_loss = last.and_then(|stage| stage["train_loss"].as_f64()).unwrap_or(f64::NAN);
        Ok(evaluation)
    }

    /// All ranks: one stage, from where the state stands.
    fn run_stage(&mut self, stage: &Stage) -> Result<Evaluation> {
        let (config, steps) = (self.config, self.input.steps(self.config));
        let batch_size = config.optim.batch_size as u64;
        let before: u64 = config.stages[..self.state.stage].iter().map(|stage| stage.epochs).sum();
        let (from, to) = (before + self.state.epoch, before + stage.epochs);
        let first = Turn { of_epoch: self.state.sample / batch_size, of_run: self.state.step };
        let mut uploads = self.uploads(from, first, to)?;
        let mut pace = Pace::start(&uploads, self.world);
        self.console.start_bar(stage.epochs * steps, self.step_of_stage());
        loop {
            while self.state.sample < steps * batch_size {
                let lr = config.lr_at(stage, self.step_of_stage() as f64 / steps as f64);
                let weights = Weights::new(config, stage, self.state.price.gamma);
                let stop = self.next_step(&mut uploads, stage, weights, lr)?;
                pace.steps += 1;
                // Once in a while, rank 0 writes: the log.
                if self.state.step.is_multiple_of(config.run.log_every) {
                    self.read_meter()?;
                    let paths = self.last_paths()?;
                    self.log_step(stage, &weights, lr, &pace, &uploads, &paths)?;
                    self.state.training_seconds += pace.seconds();
                    pace = Pace::start(&uploads, self.world);
                } else {
                    self.console.step(self.step_of_stage(), None);
                }
                self.saver.check()?;
                // Once in a while, before an evaluation, and when any rank was asked to stop: a checkpoint.
                let every = config.run.checkpoint_every;
                let due = every > 0 && self.state.step.is_multiple_of(every);
                if stop || due || self.state.sample == steps * batch_size {
                    self.checkpoint()?;
                }
                if stop {
                    return Err(self.interrupted());
                }
            }
            self.state.training_seconds += pace.seconds();
            let evaluation = self.end_epoch(stage)?;
            if let Some(evaluation) = evaluation.filter(|_| self.state.epoch == 0) {
                self.console.end_bar();
                return Ok(evaluation);
            }
            pace = Pace::start(&uploads, self.world);
        }
    }

    /// All ranks: the batches from `first` on of the epochs from `from` up to `to`.
    fn uploads(&self, from: u64, first: Turn, to: u64) -> Result<Uploads<'a>> {
        let loader = self.input.training(self.config, self.world, from, first.of_epoch, to)?;
        let (gates, steps) = (self.costs.size()[0] as usize, self.input.steps(self.config));
        Ok(Uploads::new(loader, self.config, self.device, gates, first, steps))
    }

    /// All ranks: what follows an epoch's last step: evaluation, once in a while, and then a checkpoint, which
    /// stands at the start of what comes next.
    fn end_epoch(&mut self, stage: &Stage) -> Result<Option<Evaluation>> {
        let (sum, count) = self.state.epoch_loss;
        let train_loss = sum / count as f64;
        self.state.epoch += 1;
        (self.state.sample, self.state.epoch_loss) = (0, (0.0, 0));
        let stage_ends = self.state.epoch == stage.epochs;
        let run_ends = stage_ends && self.state.stage + 1 == self.config.stages.len();
        if run_ends {
            self.calibrate(stage)?;
        }
        let mut evaluation = None;
        if stage_ends || self.state.epoch.is_multiple_of(self.config.run.evaluate_every) {
            evaluation = Some(self.evaluate_epoch(stage, train_loss)?);
            let every = self.config.run.projector_every;
            if every > 0 && self.config.gated() && (run_ends || self.state.epoch.is_multiple_of(every)) {
                self.write_projector()?;
            }
        }
        if let Some(evaluation) = evaluation.as_ref().filter(|_| stage_ends) {
            let relaxed = self.evaluate_relaxed(stage)?;
            self.report_budget(stage, evaluation);
            self.state.stages.push(report::stage_summary(stage, evaluation, relaxed, self.config));
            if !run_ends {
                self.calibrate(stage)?; // the next stage trains at the budget
            }
            (self.state.stage, self.state.epoch) = (self.state.stage + 1, 0);
        }
        self.checkpoint()?;
        Ok(evaluation)
    }

    /// All ranks: sets the bias on all gates, of the weights and of their running mean, where the config asks for it.
    fn calibrate(&mut self, stage: &Stage) -> Result<()> {
        let (world, config) = (self.world, self.config);
        let Some(budget) = config.budget().filter(|_| config.calibrates()) else { return Ok(()) };
        let said = budget::calibrate(world, config, &self.net, &self.input, budget)?;
        self.console.say(&format!("{}: {said}", stage.name));
        if let Some(ema) = &mut self.ema {
            ema.exchange(&self.net.params);
            let said = budget::calibrate(world, config, &self.net, &self.input, budget);
            ema.exchange(&self.net.params);
            self.console.say(&format!("{}, mean of weights: {}", stage.name, said?));
        }
        Ok(())
    }

    /// All ranks: takes the next batch and a step with it; whether any rank was asked to stop.
    fn next_step(&mut self, uploads: &mut Uploads, stage: &Stage, weights: Weights, lr: f64) -> Result<bool> {
        let _range = range(Phase::Step);
        let waiting = range(Phase::Loader);
        let upload = uploads.next().expect("as many batches as steps")?;
        drop(waiting);
        self.input.note_bad_training(&upload.bad)?;
        let told = self.step(&upload, stage, weights, lr)?;
        let waiting = range(Phase::Loader);
        uploads.send_ahead();
        drop(waiting);
        let (stop, hard_rates) = told.read();
        self.steer(stage, &hard_rates);
        let batch_size = self.config.optim.batch_size as u64;
        self.state.step += 1;
        self.state.sample += batch_size;
        self.state.samples += batch_size;
        Ok(stop)
    }

    /// All ranks: one step, the paper's Section 3.4. The host runs ahead of the device.
    fn step(&mut self, upload: &Upload, stage: &Stage, weights: Weights, lr: f64) -> Result<Told> {
        let config = self.config;
        self.world.at_step(self.state.step + 1);
        let images = self.input.pixels(&upload.pixels); // [A·L·M, C, H, W]
        // Micro-batch a of rank r is what rank r·A + a would have of A times as many ranks.
        let micros = (self.state.micro_batches / self.world.world()) as i64;
        let noises = upload.noise.chunk(micros, 0);
        let router = &config.model.router;
        let batch_of = |((images, labels), noise)| MicroBatch {
            images,
            labels,
            decisions: match stage.routers {
                Routers::Train => Decisions::Relaxed {
                    noise: Some(noise),
                    temperature: router.temperature,
                    relaxation: router.relaxation,
                },
                Routers::Freeze => Decisions::Hard,
            },
        };
        let parts = images.chunk(micros, 0).into_iter().zip(upload.labels.chunk(micros)).zip(&noises);
        let micro_batches: Vec<MicroBatch> = parts.map(batch_of).collect();
        let step = Step {
            world: self.world,
            net: &self.net,
            gradients: &self.gradients,
            costs: &self.costs,
            weights,
            routers: stage.routers,
            views: upload.views as i64,
            // Where ranks have become fewer: all samples were told apart in one go before.
            scope: if config.optim.accumulate == 1 { Scope::GlobalBatch } else { config.diversity.scope },
            statistics: Statistics::Batch { seen: true, over: self.over_ranks.as_ref() },
        };
        let statistics = self.net.params.flat_buffers().copy();
        let taken = step.gradient(&micro_batches, self.asked_to_stop())?;
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
    fn last_paths(&mut self) -> Result<Histogram> {
        let own = self.paths.take().expect("a log line follows a step").to_kind(Kind::Uint8);
        let (views, gates) = (own.size()[0] as usize * self.world.world(), own.size()[1] as usize);
        let all = self.world.all_gather(&own)?.to_device(Device::Cpu);
        Ok(Histogram::new(&Vec::<u8>::try_from(all.view(-1)).expect("bits"), gates, views))
    }

    /// All ranks: takes in what the last steps measured. A step that was not finite ends the run, or is told and counted.
    fn read_meter(&mut self) -> Result<()> {
        for measured in self.meter.read(self.world)? {
            let (step, blame) = (measured.step, measured.blame.as_ref());
            self.state.tally.add(&measured);
            if measured.loss.is_finite() {
                self.state.epoch_loss.0 += measured.loss;
                self.state.epoch_loss.1 += 1;
            }
            let Some(what) = blame else { continue };
            if self.config.optim.on_nonfinite == OnNonfinite::Stop {
                return Err(Error::diverged(step, what));
            }
            self.state.skipped += u64::from(!measured.finite);
            let skipped = self.state.skipped;
            self.console.say(&match measured.finite {
                true => format!("step {step}: {what}; taken, for its gradient is finite"),
                false => format!("step {step}: {what}; left out, {skipped} so far"),
            });
            if let Some(records) = &mut self.records {
                let event = json!({"event": "step not finite", "why": what, "skipped": skipped});
                records.record("event", step, event)?;
            }
        }
        Ok(())
    }

    /// All ranks, once in a while: whether they still hold the same.
    fn compare_replicas(&mut self) -> Result<()> {
        let (step, options) = (self.state.step + 1, &self.config.collective);
        if options.compare_every == 0 || !step.is_multiple_of(options.compare_every) {
            return Ok(());
        }
        let params = &self.net.params;
        let mended = replicas::compare(self.world, params, &self.sgd, step, options.on_divergence)?;
        if !mended.is_empty() {
            let what = format!(
                "step {step}: ranks {mended:?} had left the others, and took rank 0's weights and momenta"
            );
            self.console.say(&what);
            if let Some(records) = &mut self.records {
                records.record("event", step, json!({"event": "replicas repaired", "ranks": mended}))?;
            }
        }
        Ok(())
    }

    /// Whether a signal or, on rank 0, a file named `stop` in the run directory asks for an end.
    fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || (self.records.is_some() && self.place.dir.join("stop").exists())
    }

    /// All ranks: evaluation of the network as it stands.
    fn evaluate(&self, decisions: Decisions) -> Result<Evaluation> {
        evaluate(self.world, self.config, &self.net, &self.input, decisions)
    }

    /// All ranks: evaluation with hard decisions, of the weights and of their running mean.
    fn evaluate_both(&mut self) -> Result<Evaluation> {
        let mut evaluation = self.evaluate(Decisions::Hard)?;
        if let Some(ema) = &mut self.ema {
            ema.exchange(&self.net.params);
            let of_mean = evaluate(self.world, self.config, &self.net, &self.input, Decisions::Hard);
            ema.exchange(&self.net.params);
            evaluation.ema = Some(Box::new(of_mean?));
        }
        Ok(evaluation)
    }

    /// All ranks: evaluation at an epoch's end; rank 0 records it.
    fn evaluate_epoch(&mut self, stage: &Stage, train_loss: f64) -> Result<Evaluation> {
        let mut evaluation = self.evaluate_both()?;
        evaluation.train_loss = train_loss;
        if !evaluation.ce.is_finite() {
            return Err(Error::diverged(
                self.state.step,
                "the validation images' cross entropy is not finite",
            ));
        }
        let (top1, step) = (evaluation.top1, self.state.step);
        let on_budget = self.config.budget().is_none_or(|budget| evaluation.gmacs <= 1.02 * budget);
        if on_budget && self.state.best.is_none_or(|best| top1 > best.top1) {
            self.state.best = Some(Best { top1, step });
        }
        self.report_evaluation(stage, &evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: top-1 by the decisions that the stage trained with, but without noise; `None` where those are the
    /// hard ones.
    fn evaluate_relaxed(&self, stage: &Stage) -> Result<Option<f64>> {
        let router = &self.config.model.router;
        if stage.routers == Routers::Freeze || !self.config.gated() {
            return Ok(None);
        }
        let (temperature, relaxation) = (router.temperature, router.relaxation);
        Ok(Some(self.evaluate(Decisions::Relaxed { noise: None, temperature, relaxation })?.top1))
    }

    /// Steps of the current stage that are done.
    fn step_of_stage(&self) -> u64 {
        self.state.epoch * self.input.steps(self.config)
            + self.state.sample / self.config.optim.batch_size as u64
    }

    /// Images a step, over all ranks: every view counts.
    fn images_a_step(&self) -> u64 {
        (self.config.optim.batch_size * self.config.data.views) as u64
    }

    /// All ranks: a checkpoint of this moment, which is written while training goes on; weights that are not finite are
    /// refused. Rank 0 records how long training stood still for it.
    fn checkpoint(&mut self) -> Result<()> {
        self.read_meter()?;
        let largest = f64::try_from(self.net.params.flat().abs().max()).expect("one number");
        if !largest.is_finite() {
            return Err(Error::diverged(self.state.step, "a weight is not finite"));
        }
        self.state.seconds += self.started.elapsed().as_secs_f64();
        self.started = Instant::now();
        self.saver.save(&self.net.params, &self.sgd.momentum, self.ema.as_ref(), self.state.clone())?;
        if let Some(records) = &mut self.records {
            let blocked = self.started.elapsed().as_secs_f64();
            let event = json!({"event": "checkpoint", "blocked_s": blocked});
            records.record("event", self.state.step, event)?;
        }
        Ok(())
    }

    /// All ranks, after the checkpoint: leave together once it is on disk, and say how to go on.
    fn interrupted(&mut self) -> Error {
        if let Err(error) = self.saver.wait() {
            return error;
        }
        // srun ends the other ranks by SIGTERM once one has left; the second signal would be their end, with another code.
        self.stop.store(false, Ordering::Relaxed);
        self.console.end_bar();
        if self.records.is_some() {
            let _ = std::fs::remove_file(self.place.dir.join("stop"));
        }
        let message = format!(
            "stopped on request after step {}; to go on: {} --resume {}",
            self.state.step,
            self.command,
            self.place.dir.display()
        );
        self.console.note(&message);
        Error { exit: Exit::Interrupted, message, agreed: true }
    }
}
