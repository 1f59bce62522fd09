//! The training loop.

use crate::collective::{self, Collective};
use crate::config::{Config, Routers, Stage};
use crate::error::{Error, Exit, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::input::Input;
use crate::loss::Weights;
use crate::model::{Decisions, Net, gumbel_noise};
use crate::optim::Sgd;
use crate::run::checkpoint::{self, State};
use crate::run::{Console, Place, Records, write_whole};
use crate::step::{Measured, Step};
use codinet_dataloader::{Batch, Loader};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// A run in progress, as one rank holds it.
pub struct Trainer<'a> {
    world: &'a dyn Collective,
    config: &'a Config,
    place: Place,
    input: Input,
    net: Net,
    sgd: Sgd,
    /// c_k of Eq. 11, `[n]`.
    costs: Tensor,
    device: Device,
    state: State,
    /// Open on rank 0 alone.
    records: Option<Records>,
    console: Console,
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
    waited: Duration,
}

impl Pace {
    fn start(loader: &Loader) -> Self {
        Self { since: Instant::now(), steps: 0, waited: loader.wait() }
    }

    fn seconds(&self) -> f64 {
        self.since.elapsed().as_secs_f64()
    }
}

impl<'a> Trainer<'a> {
    /// All ranks: builds the network, opens the run directory, and goes on from the place's checkpoint.
    pub fn new(
        world: &'a dyn Collective,
        config: &'a Config,
        place: Place,
        input: Input,
        device: Device,
        stop: Arc<AtomicBool>,
        command: String,
    ) -> Result<Self> {
        let data = &config.data;
        let (channels, size) = (data.channels.into(), data.image_size.into());
        let net = Net::new(&config.model, channels, size, data.classes, config.run.seed, device);
        let sgd = Sgd::new(&net.params, &config.optim);
        let costs = Tensor::from_slice(&net.costs.relative()).to_device(device);
        let order = (config.run.seed, input.samples as u64, input.train.fingerprint());
        let mut state = State { order: order.clone(), ..State::default() };
        if let Some(folder) = &place.checkpoint {
            let resumed = checkpoint::read_state(folder).and_then(|state| {
                checkpoint::load(folder, &net.params, &sgd.momentum)?;
                check_place(&state, folder, &order, config)?;
                Ok(state)
            });
            state = collective::agree(world, resumed)?;
        }
        // Equal on all ranks by construction; this makes it certain.
        world.broadcast(net.params.flat(), 0)?;
        let opened = if world.rank() == 0 { open(&place, config, &state).map(Some) } else { Ok(None) };
        let records = collective::agree(world, opened)?;
        let mut console = Console::new(world.rank());
        console.keep_log(&place.dir);
        let started = Instant::now();
        Ok(Self {
            world,
            config,
            place,
            input,
            net,
            sgd,
            costs,
            device,
            state,
            records,
            console,
            command,
            stop,
            started,
        })
    }

    /// All ranks: trains every stage to its end, and returns the last evaluation.
    pub fn run(&mut self) -> Result<Evaluation> {
        let config = self.config;
        self.greet();
        let mut last = None;
        while self.state.stage < config.stages.len() {
            last = Some(self.run_stage(&config.stages[self.state.stage])?);
        }
        let evaluation = match last {
            Some(evaluation) => evaluation,
            None => self.evaluate_again()?, // resumed after its end
        };
        self.finish(&evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: evaluates a run that has no step left to take.
    fn evaluate_again(&mut self) -> Result<Evaluation> {
        let mut evaluation = evaluate(self.world, self.config, &self.net, &self.input)?;
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
        let mut loader = self.input.training(config, self.world, from, self.state.sample / batch_size, to)?;
        let mut pace = Pace::start(&loader);
        self.console.start_bar(stage.epochs * steps, self.step_of_stage());
        loop {
            while self.state.sample < steps * batch_size {
                let batch = loader.next().expect("as many batches as steps")?;
                let lr = stage.lr_at(self.step_of_stage() as f64 / steps as f64);
                let measured = self.step(&batch, stage, lr)?;
                loader.recycle(batch);
                self.state.step += 1;
                self.state.sample += batch_size;
                self.state.samples += batch_size;
                self.state.epoch_loss += measured.loss(&self.weights(stage));
                pace.steps += 1;
                // Once in a while, rank 0 writes: the log.
                if measured.stop || self.state.step.is_multiple_of(config.run.log_every) {
                    self.log_step(stage, &measured, lr, &pace, &loader)?;
                    self.state.training_seconds += pace.seconds();
                    pace = Pace::start(&loader);
                } else {
                    self.console.step(self.step_of_stage(), None);
                }
                // Once in a while, before an evaluation, and when any rank was asked to stop: a checkpoint.
                let every = config.run.checkpoint_every;
                let due = every > 0 && self.state.step.is_multiple_of(every);
                if measured.stop || due || self.state.sample == steps * batch_size {
                    self.checkpoint()?;
                }
                if measured.stop {
                    return Err(self.interrupted());
                }
            }
            self.state.training_seconds += pace.seconds();
            let evaluation = self.end_epoch(stage, steps)?;
            if let Some(evaluation) = evaluation.filter(|_| self.state.epoch == 0) {
                self.console.end_bar();
                return Ok(evaluation);
            }
            pace = Pace::start(&loader);
        }
    }

    /// All ranks: what follows an epoch's last step: evaluation, once in a while, and then a checkpoint, which
    /// stands at the start of what comes next.
    fn end_epoch(&mut self, stage: &Stage, steps: u64) -> Result<Option<Evaluation>> {
        let train_loss = self.state.epoch_loss / steps as f64;
        self.state.epoch += 1;
        (self.state.sample, self.state.epoch_loss) = (0, 0.0);
        let last = self.state.epoch == stage.epochs;
        let mut evaluation = None;
        if last || self.state.epoch.is_multiple_of(self.config.run.evaluate_every) {
            evaluation = Some(self.evaluate_epoch(stage, train_loss)?);
        }
        if let Some(evaluation) = evaluation.as_ref().filter(|_| last) {
            self.state.stages.push(stage_summary(stage, evaluation));
            (self.state.stage, self.state.epoch) = (self.state.stage + 1, 0);
        }
        self.checkpoint()?;
        Ok(evaluation)
    }

    /// All ranks: one step, the paper's Section 3.4.
    fn step(&mut self, batch: &Batch, stage: &Stage, lr: f64) -> Result<Measured> {
        let (config, seed) = (self.config, self.config.run.seed);
        let (images, labels) = self.input.tensors(batch, &config.data); // [L·M, C, H, W], [L]
        let gates = self.costs.size()[0] as usize;
        let noise =
            gumbel_noise(seed, self.state.step, &batch.samples, batch.views, gates).to_device(self.device);
        let decisions = match stage.routers {
            Routers::Train => {
                Decisions::Relaxed { noise: &noise, temperature: config.model.router.temperature }
            }
            Routers::Freeze => Decisions::Hard,
        };
        let step = Step {
            world: self.world,
            net: &self.net,
            costs: &self.costs,
            weights: self.weights(stage),
            routers: stage.routers,
            views: batch.views as i64,
            batch_statistics: true,
        };
        let (gradient, measured) = step.gradient(&images, &labels, decisions, self.asked_to_stop())?;
        measured.check(self.state.step + 1)?;
        self.sgd.step(&self.net.params, &gradient, lr, stage.routers);
        Ok(measured)
    }

    /// α, β and γ as they hold in a stage: with frozen routers there is nothing for them to move.
    fn weights(&self, stage: &Stage) -> Weights {
        let on = if stage.routers == Routers::Train { 1.0 } else { 0.0 };
        let loss = &self.config.loss;
        Weights {
            alpha: on * loss.alpha,
            beta: on * loss.beta,
            gamma: on * loss.gamma,
            consistency_margin: loss.consistency_margin,
            diversity_margin: loss.diversity_margin,
        }
    }

    /// Whether a signal or, on rank 0, a file named `stop` in the run directory asks for an end.
    fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || (self.records.is_some() && self.place.dir.join("stop").exists())
    }

    /// All ranks: evaluation at an epoch's end; rank 0 records it.
    fn evaluate_epoch(&mut self, stage: &Stage, train_loss: f64) -> Result<Evaluation> {
        let mut evaluation = evaluate(self.world, self.config, &self.net, &self.input)?;
        evaluation.train_loss = train_loss;
        if !evaluation.ce.is_finite() {
            return Err(Error::diverged(
                self.state.step,
                "the validation images' cross entropy is not finite",
            ));
        }
        let State { step, samples, epoch, .. } = self.state;
        if let Some(records) = &mut self.records {
            let fields = json!({
                "epoch": epoch, "stage": stage.name, "samples": samples, "images": evaluation.images,
                "top1": evaluation.top1, "top5": evaluation.top5, "ce": evaluation.ce, "gmacs": evaluation.gmacs,
                "distinct_paths": evaluation.distinct_paths, "train_loss": evaluation.train_loss,
                "rates": evaluation.rates,
            });
            records.record("eval", step, fields)?;
        }
        self.console.say(&format!(
            "{} epoch {epoch}/{}  train loss {:.4}  top-1 {:.2} %  top-5 {:.2} %  {:.4} GMACs  {} paths",
            stage.name,
            stage.epochs,
            evaluation.train_loss,
            100.0 * evaluation.top1,
            100.0 * evaluation.top5,
            evaluation.gmacs,
            evaluation.distinct_paths
        ));
        Ok(evaluation)
    }

    /// Rank 0 writes: one line of numbers.
    fn log_step(
        &mut self,
        stage: &Stage,
        measured: &Measured,
        lr: f64,
        pace: &Pace,
        loader: &Loader,
    ) -> Result<()> {
        let images = (pace.steps * self.images_a_step()) as f64 / pace.seconds();
        let wait = (loader.wait() - pace.waited).as_secs_f64() / pace.seconds();
        let loss = measured.loss(&self.weights(stage));
        let Measured { ce, con, div, cost, top1, grad_norm, ref rates, .. } = *measured;
        let State { step, samples, epoch, .. } = self.state;
        let gamma = self.weights(stage).gamma;
        if let Some(records) = &mut self.records {
            let fields = json!({
                "epoch": epoch, "stage": stage.name, "samples": samples, "loss": loss, "ce": ce, "con": con,
                "div": div, "cost": cost, "gamma": gamma, "lr": lr, "top1": top1, "grad_norm": grad_norm,
                "images_per_second": images, "loader_wait": wait, "rates": rates,
            });
            records.record("train", step, fields)?;
        }
        let status = format!(
            "loss {loss:.4} (ce {ce:.4}  con {con:.4}  div {div:.4}  cost {cost:.3})  lr {lr:.4}  {images:.0} images/s"
        );
        self.console.step(self.step_of_stage(), Some(&status));
        Ok(())
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

    /// All ranks: a checkpoint of this moment, which rank 0 writes; weights that are not finite are refused.
    fn checkpoint(&mut self) -> Result<()> {
        let largest = f64::try_from(self.net.params.flat().abs().max()).expect("one number");
        if !largest.is_finite() {
            return Err(Error::diverged(self.state.step, "a weight is not finite"));
        }
        self.state.seconds += self.started.elapsed().as_secs_f64();
        self.started = Instant::now();
        if self.records.is_some() {
            let keep = self.config.run.keep_last;
            checkpoint::save(
                &self.place.dir,
                &self.net.params,
                &self.sgd.momentum,
                self.state.clone(),
                keep,
            )?;
        }
        Ok(())
    }

    /// All ranks, after the checkpoint: leave together, and say how to go on.
    fn interrupted(&mut self) -> Error {
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

    fn greet(&mut self) {
        let (model, data, world) = (&self.config.model, &self.config.data, self.world.world());
        let kind = if model.gated { "gated" } else { "static" };
        let from = match &self.place.checkpoint {
            Some(folder) => format!("\ngoing on from {} (step {})", folder.display(), self.state.step),
            None => String::new(),
        };
        let text = format!(
            "{} {kind}, {} parameters · {} of {} training samples × {} views, {} validation images · \
             {world} rank{} × {} threads, {:?}\nrun directory {}{from}",
            model.arch,
            self.net.params.count(),
            self.input.samples,
            self.input.train.len(),
            data.views,
            self.input.val.len(),
            if world == 1 { "" } else { "s" },
            tch::get_num_threads(),
            self.device,
            self.place.dir.display(),
        );
        self.console.say(&text);
    }

    /// Rank 0 writes: `summary.json`, and the table that ends a run.
    fn finish(&mut self, evaluation: &Evaluation) -> Result<()> {
        let Some(_) = &self.records else { return Ok(()) };
        let State { samples, training_seconds, seconds, .. } = self.state;
        let speed = (samples * self.config.data.views as u64) as f64 / training_seconds;
        let gmacs_static = self.net.costs.static_macs() as f64 / 1e9;
        let summary = json!({
            "top1": evaluation.top1, "top5": evaluation.top5, "ce": evaluation.ce, "gmacs": evaluation.gmacs,
            "gmacs_static": gmacs_static, "distinct_paths": evaluation.distinct_paths,
            "rates": evaluation.rates, "validation_images": evaluation.images, "images_per_second": speed,
            "world_size": self.world.world(), "seconds": seconds, "train_loss": evaluation.train_loss,
            "parameters": self.net.params.count(), "stages": self.state.stages,
        });
        let text = serde_json::to_vec_pretty(&summary).expect("a summary is JSON");
        write_whole(&self.place.dir.join("summary.json"), &text)?;
        let dir = self.place.dir.display();
        let rows = [
            ("top-1", format!("{:.2} % of {} images", 100.0 * evaluation.top1, evaluation.images)),
            ("top-5", format!("{:.2} %", 100.0 * evaluation.top5)),
            (
                "MACs an image",
                format!(
                    "{:.4} G, {:.0} % of the static network's {gmacs_static:.4} G",
                    evaluation.gmacs,
                    100.0 * evaluation.gmacs / gmacs_static
                ),
            ),
            ("routing paths", format!("{} distinct", evaluation.distinct_paths)),
            ("training speed", format!("{speed:.0} images/s on {} rank(s)", self.world.world())),
            ("time", format!("{seconds:.0} s")),
            ("run directory", dir.to_string()),
        ];
        let table: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:<16}{value}")).collect();
        self.console.say(&format!(
            "\n{}\n\n  look at it      tensorboard --logdir {dir}\n  go on, if it was stopped\n                  {} --resume {dir}",
            table.join("\n"),
            self.command
        ));
        Ok(())
    }
}

/// Rank 0: makes the run directory what it must be before the first step.
fn open(place: &Place, config: &Config, state: &State) -> Result<Records> {
    let dir = &place.dir;
    std::fs::create_dir_all(dir).map_err(|error| Error::disk("make", dir, &error))?;
    let records = Records::open(dir, state.step, state.sample == 0)?;
    let resolved = serde_saphyr::to_string(config).expect("a config is YAML");
    write_whole(&dir.join("config.yaml"), resolved.as_bytes())?;
    checkpoint::remove_partial(dir);
    Ok(records)
}

/// Refuses to go on from a checkpoint that this config cannot continue.
fn check_place(state: &State, folder: &Path, order: &(u64, u64, String), config: &Config) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", folder.display())));
    let (seed, samples, data) = &state.order;
    if *data != order.2 {
        return refuse("was trained on other samples than data.train holds now".into());
    }
    if (*seed, *samples) != (order.0, order.1) {
        return refuse(format!(
            "belongs to a run of run.seed {seed} on {samples} samples; here they are {} and {}",
            order.0, order.1
        ));
    }
    let batch = config.optim.batch_size as u64;
    if !state.sample.is_multiple_of(batch) {
        let sample = state.sample;
        return refuse(format!(
            "stands at sample {sample} of its epoch, no multiple of optim.batch_size {batch}"
        ));
    }
    let in_plan = match config.stages.get(state.stage) {
        Some(stage) => state.epoch < stage.epochs,
        None => state.stage == config.stages.len(),
    };
    if !in_plan {
        let State { stage, epoch, .. } = state;
        return refuse(format!("stands after {epoch} epochs of stages.{stage}, where this config is over"));
    }
    Ok(())
}

fn stage_summary(stage: &Stage, evaluation: &Evaluation) -> serde_json::Value {
    json!({
        "name": stage.name, "epochs": stage.epochs, "top1": evaluation.top1, "top5": evaluation.top5,
        "gmacs": evaluation.gmacs, "distinct_paths": evaluation.distinct_paths, "train_loss": evaluation.train_loss,
    })
}
