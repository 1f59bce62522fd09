//! Training: the loop over stages, epochs and steps.

mod benchmark;
pub mod evaluate;
mod model;
mod progress;
mod report;
mod resume;
mod start;
pub mod step;
mod teacher;

pub use benchmark::BenchmarkRun;
pub(crate) use start::{Checked, Directory, Start, Started, describe_shares};

use crate::config::{Config, Stage};
use crate::data::{Datasets, Prefetcher, StepIndex, Uploads};
use crate::dist::{self, World, replicas};
use crate::metrics::MetricsBuffer;
use crate::model::Net;
use crate::optim::schedule::{budget_ramp, learning_rate, temperature};
use crate::run::RunLog;
use crate::run::checkpoint::TrainState;
use crate::sys::error::{Error, Exit, Result};
use crate::text::shell_quote;
use evaluate::Evaluation;
use model::Model;
use progress::Progress;
use report::Throughput;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use step::Gathered;
use tch::{Device, Tensor};
use teacher::load_teacher;

/// What the schedules set for a step.
#[derive(Clone, Copy)]
struct Scheduled {
    lr: f64,
    /// T of the gates, while routers train.
    temperature: f64,
    /// The share of the budget's ramp that has passed.
    budget_ramp: f64,
    gamma: f64,
}

/// A run in progress, on one rank.
pub struct Trainer<'a> {
    world: &'a World,
    config: &'a Config,
    device: Device,
    data: Datasets,
    model: Model,
    teacher: Option<Net>,
    state: TrainState,
    /// The steps since the last log line.
    metrics: MetricsBuffer,
    /// The gates' decisions in inference for the last step's views, `[A·L·M, n]`.
    hard_paths: Option<Tensor>,
    /// What the ranks gathered in the last step, until the next one, or the epoch's end, acts on it.
    gathered: Option<Gathered>,
    log: RunLog,
    progress: Progress,
    /// Lines to print once the run directory is open.
    notes: Vec<String>,
    /// The checkpoint that it resumed from.
    checkpoint: Option<PathBuf>,
    /// The command that started this run, for the advice on how to resume it.
    command: String,
    /// Set by a signal: save a checkpoint and leave.
    stop: Arc<AtomicBool>,
    /// The start of the run, or the last checkpoint.
    clock: Instant,
}

impl<'a> Trainer<'a> {
    /// All ranks: puts `net` in training and loads the checkpoint to resume from, if there is one; writes nothing yet.
    pub(crate) fn new(
        world: &'a World,
        config: &'a Config,
        net: Net,
        started: Started,
        device: Device,
        stop: Arc<AtomicBool>,
        command: String,
    ) -> Result<Self> {
        let Started { data, location, mut notes } = started;
        let mut model = Model::new(world, config, net, device);
        let (state, resume_notes) = resume::load_state(world, config, &location, &data, &mut model)?;
        notes.extend(resume_notes);
        replicas::refuse_differences(
            world,
            &[
                ("data.train", data.train.fingerprint()),
                ("data.val", data.val.set.fingerprint()),
                ("set of first weights", replicas::fingerprint(model.net.params.flat())),
            ],
        )?;
        let gathered = state.gathered_rates.as_deref().map(Gathered::of_rates);
        let log = RunLog::new(world, &location.dir, config, &model.net.params, model.optimizer.as_ref())?;
        Ok(Self {
            world,
            config,
            device,
            data,
            model,
            teacher: load_teacher(world, config, device)?,
            state,
            metrics: MetricsBuffer::default(),
            hard_paths: None,
            gathered,
            log,
            progress: Progress::default(),
            notes,
            checkpoint: location.checkpoint,
            command,
            stop,
            clock: Instant::now(),
        })
    }

    /// The command that resumes this run.
    pub fn resume_command(&self) -> String {
        format!("{} --resume {}", self.command, shell_quote(&self.log.dir().display().to_string()))
    }

    /// All ranks: trains every stage to its end and returns the last evaluation.
    pub fn run(&mut self) -> Result<Evaluation> {
        let config = self.config;
        let blocks = self.model.net.costs.gated().map(|block| block.name.clone()).collect();
        let names = self.data.class_names();
        self.log.open(self.world, config, &self.state, names, blocks, &self.command)?;
        self.data.record_bad_in(self.log.dir());
        for note in std::mem::take(&mut self.notes) {
            self.log.say(&note);
        }
        self.report_start();
        self.start_progress();
        let mut evaluation = None;
        while self.state.stage < config.stages.len() {
            evaluation = Some(self.run_stage(&config.stages[self.state.stage])?);
        }
        let evaluation = match evaluation {
            Some(evaluation) => evaluation,
            None => self.evaluate_weights()?, // resumed after its end
        };
        self.log.wait_for_save()?;
        self.log.end_progress();
        self.report_end(&evaluation)?;
        self.log.finish_copy(self.world)?;
        Ok(evaluation)
    }

    /// All ranks: trains one stage, from where the state stands.
    fn run_stage(&mut self, stage: &Stage) -> Result<Evaluation> {
        let config = self.config;
        let steps = self.data.steps_per_epoch(config);
        let epoch_end = steps * config.optim.batch_size as u64;
        let mut batches = self.stage_batches(stage)?;
        let mut throughput = Throughput::start(&batches, self.world);
        loop {
            while self.state.epoch_samples < epoch_end {
                let scheduled = self.scheduled(stage);
                let stop = self.train_step(&mut batches, stage, scheduled)?;
                throughput.steps += 1;
                self.show_progress();

                // Every `log_every` steps, all ranks gather their metrics and rank 0 writes a log line.
                if self.state.step.is_multiple_of(config.run.log_every) {
                    self.collect_metrics()?;
                    self.report_steps(stage, scheduled, &throughput, &batches)?;
                    self.state.training_seconds += throughput.elapsed_since_last();
                    throughput = Throughput::start(&batches, self.world);
                }
                self.log.check_save()?;

                // Every `checkpoint_every` steps, before an evaluation, and when a rank was asked to stop: a checkpoint.
                let every = config.run.checkpoint_every;
                let due = every > 0 && self.state.step.is_multiple_of(every);
                if stop || due || self.state.epoch_samples == epoch_end {
                    self.state.training_seconds += throughput.elapsed_since_last();
                    self.save_checkpoint()?;
                }
                if stop {
                    return Err(self.interrupt());
                }
            }
            self.state.training_seconds += throughput.elapsed_since_last();
            if self.act_on_gathered(stage) {
                return Err(self.interrupt());
            }
            let evaluation = self.end_epoch(stage)?;
            let stage_ended = self.state.epoch == 0;
            if let Some(evaluation) = evaluation.filter(|_| stage_ended) {
                return Ok(evaluation);
            }
            throughput = Throughput::start(&batches, self.world);
        }
    }

    /// All ranks: the batches of the rest of `stage`.
    fn stage_batches(&self, stage: &Stage) -> Result<Prefetcher> {
        let earlier: u64 = self.config.stages[..self.state.stage].iter().map(|stage| stage.epochs).sum();
        let batch_size = self.config.optim.batch_size as u64;
        let first = StepIndex { in_epoch: self.state.epoch_samples / batch_size, global: self.state.step };
        self.batches(earlier + self.state.epoch, first, earlier + stage.epochs)
    }

    /// All ranks: batches from step `first` of epoch `from` up to epoch `to`; epochs are counted over all stages.
    fn batches(&self, from: u64, first: StepIndex, to: u64) -> Result<Prefetcher> {
        let loader = self.data.training_loader(self.config, self.world, from, first.in_epoch, to)?;
        let costs = &self.model.net.costs;
        let columns =
            if self.config.model.drop_path > 0.0 { costs.blocks.len() } else { costs.gated().count() };
        let steps = self.data.steps_per_epoch(self.config);
        let uploads = Uploads::of_training(loader, self.config, self.device, columns, first, steps);
        Ok(Prefetcher::new(uploads))
    }

    /// All ranks, after an epoch's last step: the evaluation, when one is due, and a checkpoint at the start of what comes
    /// next.
    fn end_epoch(&mut self, stage: &Stage) -> Result<Option<Evaluation>> {
        let run = &self.config.run;
        self.state.train_loss = std::mem::take(&mut self.state.epoch_loss).get();
        self.state.epoch += 1;
        self.state.epoch_samples = 0;
        let stage_ends = self.state.epoch == stage.epochs;
        let run_ends = stage_ends && self.state.stage + 1 == self.config.stages.len();
        if run_ends {
            self.calibrate(stage)?;
        }
        let mut evaluation = None;
        if stage_ends || self.state.epoch.is_multiple_of(run.evaluate_every) {
            evaluation = Some(self.evaluate_epoch(stage)?);
            let every = run.projector_every;
            if every > 0 && self.config.gated() && (run_ends || self.state.epoch.is_multiple_of(every)) {
                self.write_projector()?;
            }
        }
        if let Some(evaluation) = evaluation.as_ref().filter(|_| stage_ends) {
            let relaxed_top1 = self.relaxed_top1(stage)?;
            self.report_stage(stage, evaluation, relaxed_top1);
            if !run_ends {
                self.calibrate(stage)?; // the next stage trains at the budget
            }
            self.state.stage += 1;
            self.state.epoch = 0;
        }
        self.save_checkpoint()?;
        Ok(evaluation)
    }

    /// Whether this rank was asked to stop: by a signal or, rank 0, by a file named `stop` in the run directory.
    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.log.stop_file_exists()
    }

    /// Completed steps of the current stage.
    fn step_in_stage(&self) -> u64 {
        self.state.epoch * self.data.steps_per_epoch(self.config)
            + self.state.epoch_samples / self.config.optim.batch_size as u64
    }

    /// What the schedules set for the next step.
    fn scheduled(&self, stage: &Stage) -> Scheduled {
        let epoch = self.step_in_stage() as f64 / self.data.steps_per_epoch(self.config) as f64;
        Scheduled {
            lr: learning_rate(self.config, stage, epoch),
            temperature: temperature(self.config, self.state.stage, epoch),
            budget_ramp: budget_ramp(self.config, self.state.stage, epoch),
            gamma: self.state.gamma.gamma,
        }
    }

    /// All ranks: copies the model and starts to write it as a checkpoint; training continues meanwhile.
    ///
    /// # Errors
    /// A weight that is not finite.
    fn save_checkpoint(&mut self) -> Result<()> {
        self.collect_metrics()?;
        let largest = f64::try_from(self.model.net.params.flat().abs().max()).expect("one number");
        let finite = if largest.is_finite() {
            Ok(())
        } else {
            Err(Error::diverged(self.state.step, "a weight is not finite"))
        };
        dist::agree(self.world, finite)?; // one rank's weights may differ
        self.state.seconds += self.clock.elapsed().as_secs_f64();
        self.clock = Instant::now();
        let rates = self.gathered.as_ref().map(|gathered| gathered.wait().1);
        self.state.gathered_rates = rates.filter(|rates| rates.iter().all(|rate| rate.is_finite()));
        let Model { net, optimizer, ema, .. } = &self.model;
        self.log.save(&net.params, optimizer.state(), ema.as_ref(), self.state.clone())
    }

    /// All ranks, after a checkpoint: waits until it is on disk; returns the message that tells how to resume.
    fn interrupt(&mut self) -> Error {
        if let Err(error) = self.log.wait_for_save() {
            return error;
        }
        // srun sends SIGTERM to the other ranks once one has left: they must not take it for a second request.
        self.stop.store(false, Ordering::Relaxed);
        self.log.end_progress();
        self.log.remove_stop_file();
        // The checkpoint in the run directory is complete: a run that was stopped can be resumed from there.
        if let Err(error) = self.log.finish_copy(self.world)
            && self.world.rank() == 0
        {
            crate::eprint_line!("warning: {error}");
        }
        let message = format!(
            "stopped on request after step {}; to resume: {}",
            self.state.step,
            self.resume_command()
        );
        self.log.note(&message);
        Error::on_all_ranks(Exit::Interrupted, message)
    }
}
