//! The training loop.

pub mod evaluate;
mod evaluation;
pub mod gradient;
mod report;
mod resume;
mod step;
mod trial;

pub use trial::Trial;

use crate::config::{Config, Stage};
use crate::data::Input;
use crate::data::prefetch::{Turn, Uploads};
use crate::dist::Gradients;
use crate::dist::replicas;
use crate::dist::{self, Traffic, World};
use crate::metrics::Meter;
use crate::model::Net;
use crate::optim::budget::{self, Price};
use crate::optim::{Ema, Sgd};
use crate::run::checkpoint::{self, Order, State};
use crate::run::quoted;
use crate::run::{Place, RunLog};
use crate::sys::error::{Error, Exit, Result};
use crate::sys::native::RankMean;
use crate::train::evaluate::Evaluation;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

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
    log: RunLog,
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
    /// Seconds that are counted as training already.
    counted: f64,
    steps: u64,
    loader: Duration,
    traffic: Traffic,
}

impl Pace {
    fn start(uploads: &Uploads, world: &World) -> Self {
        Self {
            since: Instant::now(),
            counted: 0.0,
            steps: 0,
            loader: uploads.wait(),
            traffic: world.traffic(),
        }
    }

    fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }

    /// Seconds since this was last asked.
    fn lap(&mut self) -> f64 {
        let now = self.seconds();
        now - std::mem::replace(&mut self.counted, now)
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
        dist::agree(world, budget::check(config, &net.costs))?;
        let started_from = match (&config.model.init_from, &place.checkpoint) {
            (Some(path), None) => {
                let said = dist::rank_zeros(world, || checkpoint::start_from(Path::new(path), &net.params))?;
                replicas::take_rank_zeros(world, &[net.params.flat(), net.params.flat_buffers()])?;
                Some(said)
            }
            _ => None,
        };
        let gradients = Gradients::new(&net.params, world, &config.collective);
        let over_ranks = config.model.sync_batch_norm.then(|| world.mean_operation());
        let sgd = Sgd::new(&net.params, &config.optim);
        let mut ema = config.optim.ema_decay.map(|decay| Ema::new(&net.params, decay));
        let costs = Tensor::from_slice(&net.costs.table(config.cost.unit)).to_device(device);
        let data = input.train.fingerprint();
        let order = Order { seed: config.run.seed, samples: input.samples as u64, data: data.clone() };
        let price = Price::new(config.cost.gamma);
        let micro_batches = world.ranks() * config.optim.accumulate;
        let mut state = State { order: order.clone(), price, micro_batches, ..State::default() };
        let mut note = None;
        let before = resume::load(world, &place, &order, config, &net.params, &sgd.momentum, ema.as_mut())?;
        if let Some(before) = before {
            state = before;
            note = resume::share_out(&mut state, world.ranks(), config);
            if config.budget().is_none() {
                state.price = price;
            }
        }
        let facts = [
            ("data.train", data),
            ("data.val", input.val.set.fingerprint()),
            (
                "set of first weights",
                i64::try_from(replicas::checksum(net.params.flat())).expect("one").to_string(),
            ),
        ];
        replicas::refuse_differences(world, &facts)?;
        let log = RunLog::new(world, &place.dir, config, &net.params)?;
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
            log,
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
            None => self.evaluate_both()?, // resumed after its end
        };
        self.log.wait_for_save()?;
        self.finish(&evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: opens the run directory.
    fn open(&mut self) -> Result<()> {
        self.log.open(self.world, self.config, &self.state, self.input.class_names())?;
        self.input.record_in(&self.place.dir);
        std::mem::take(&mut self.notes).iter().for_each(|note| self.log.say(note));
        Ok(())
    }

    /// All ranks: one stage, from where the state stands.
    fn run_stage(&mut self, stage: &Stage) -> Result<Evaluation> {
        let (config, steps) = (self.config, self.input.steps(self.config));
        let batch_size = config.optim.batch_size as u64;
        let before: u64 = config.stages[..self.state.stage].iter().map(|stage| stage.epochs).sum();
        let (from, to) = (before + self.state.epoch, before + stage.epochs);
        let first = Turn { of_epoch: self.state.epoch_samples / batch_size, of_run: self.state.step };
        let mut uploads = self.uploads(from, first, to)?;
        let mut pace = Pace::start(&uploads, self.world);
        self.log.start_progress(stage.epochs * steps, self.step_of_stage());
        loop {
            while self.state.epoch_samples < steps * batch_size {
                let lr = config.lr_at(stage, self.step_of_stage() as f64 / steps as f64);
                let gamma = self.state.price.gamma;
                let stop = self.next_step(&mut uploads, stage, lr)?;
                pace.steps += 1;
                // Once in a while, rank 0 writes: the log.
                if self.state.step.is_multiple_of(config.run.log_every) {
                    self.read_meter()?;
                    let paths = self.last_paths()?;
                    self.log_step(stage, gamma, lr, &pace, &uploads, &paths)?;
                    self.state.training_seconds += pace.lap();
                    pace = Pace::start(&uploads, self.world);
                } else {
                    self.log.progress(self.step_of_stage(), None);
                }
                self.log.check_save()?;
                // Once in a while, before an evaluation, and when any rank was asked to stop: a checkpoint.
                let every = config.run.checkpoint_every;
                let due = every > 0 && self.state.step.is_multiple_of(every);
                if stop || due || self.state.epoch_samples == steps * batch_size {
                    self.state.training_seconds += pace.lap();
                    self.checkpoint()?;
                }
                if stop {
                    return Err(self.interrupted());
                }
            }
            self.state.training_seconds += pace.lap();
            let evaluation = self.end_epoch(stage)?;
            if let Some(evaluation) = evaluation.filter(|_| self.state.epoch == 0) {
                self.log.end_progress();
                return Ok(evaluation);
            }
            pace = Pace::start(&uploads, self.world);
        }
    }

    /// All ranks: what follows an epoch's last step: evaluation, once in a while, and then a checkpoint, which
    /// stands at the start of what comes next.
    fn end_epoch(&mut self, stage: &Stage) -> Result<Option<Evaluation>> {
        self.state.train_loss = std::mem::take(&mut self.state.epoch_loss).get();
        self.state.epoch += 1;
        self.state.epoch_samples = 0;
        let stage_ends = self.state.epoch == stage.epochs;
        let run_ends = stage_ends && self.state.stage + 1 == self.config.stages.len();
        if run_ends {
            self.calibrate(stage)?;
        }
        let mut evaluation = None;
        if stage_ends || self.state.epoch.is_multiple_of(self.config.run.evaluate_every) {
            evaluation = Some(self.evaluate_epoch(stage)?);
            let every = self.config.run.projector_every;
            if every > 0 && self.config.gated() && (run_ends || self.state.epoch.is_multiple_of(every)) {
                self.write_projector()?;
            }
        }
        if let Some(evaluation) = evaluation.as_ref().filter(|_| stage_ends) {
            let relaxed = self.evaluate_relaxed(stage)?;
            self.report_budget(stage, evaluation);
            let train_loss = self.state.train_loss;
            let result = report::stage_result(stage, evaluation, relaxed, train_loss, self.config);
            self.state.stages.push(result);
            if !run_ends {
                self.calibrate(stage)?; // the next stage trains at the budget
            }
            (self.state.stage, self.state.epoch) = (self.state.stage + 1, 0);
        }
        self.checkpoint()?;
        Ok(evaluation)
    }

    /// Whether a signal or, on rank 0, a file named `stop` in the run directory asks for an end.
    fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.log.stop_file_exists()
    }

    /// Steps of the current stage that are done.
    fn step_of_stage(&self) -> u64 {
        self.state.epoch * self.input.steps(self.config)
            + self.state.epoch_samples / self.config.optim.batch_size as u64
    }

    /// Images a step, over all ranks: every view counts.
    fn images_a_step(&self) -> u64 {
        (self.config.optim.batch_size * self.config.data.views) as u64
    }

    /// All ranks: a checkpoint of this moment, which is written while training goes on; weights that are not finite are
    /// refused.
    fn checkpoint(&mut self) -> Result<()> {
        self.read_meter()?;
        let largest = f64::try_from(self.net.params.flat().abs().max()).expect("one number");
        let finite = match largest.is_finite() {
            true => Ok(()),
            false => Err(Error::diverged(self.state.step, "a weight is not finite")),
        };
        dist::agree(self.world, finite)?; // it may be one rank's alone
        self.state.seconds += self.started.elapsed().as_secs_f64();
        self.started = Instant::now();
        self.log.save(&self.net.params, &self.sgd.momentum, self.ema.as_ref(), self.state.clone())
    }

    /// All ranks, after the checkpoint: leave together once it is on disk, and say how to go on.
    fn interrupted(&mut self) -> Error {
        if let Err(error) = self.log.wait_for_save() {
            return error;
        }
        // srun ends the other ranks by SIGTERM once one has left; the second signal would be their end, with another code.
        self.stop.store(false, Ordering::Relaxed);
        self.log.end_progress();
        self.log.remove_stop_file();
        let message = format!(
            "stopped on request after step {}; to go on: {} --resume {}",
            self.state.step,
            self.command,
            quoted(&self.place.dir.display().to_string())
        );
        self.log.note(&message);
        Error::on_all_ranks(Exit::Interrupted, message)
    }
}
