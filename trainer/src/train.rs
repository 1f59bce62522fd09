//! The training loop.

use crate::collective::{self, Collective};
use crate::config::{Config, Routers, Stage};
use crate::error::{Error, Exit, Result};
use crate::evaluate::{Evaluation, evaluate};
use crate::input::Input;
use crate::loss::{self, Parts, Weights};
use crate::model::{Decisions, Net, gumbel_noise};
use crate::optim::Sgd;
use crate::run::checkpoint::{self, State};
use crate::run::{Console, Place, Records, write_whole};
use codinet_dataloader::Batch;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
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
    /// Set by a signal: checkpoint and leave.
    stop: Arc<AtomicBool>,
    started: Instant,
}

/// What a step measured: means over all ranks.
#[derive(Clone, Debug)]
struct Measured {
    ce: f64,
    con: f64,
    div: f64,
    cost: f64,
    top1: f64,
    grad_norm: f64,
    /// Whether any rank was asked to stop.
    stop: bool,
    /// Mean decision of each gate, `[n]`.
    rates: Vec<f64>,
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
        mut console: Console,
    ) -> Result<Self> {
        let data = &config.data;
        let (channels, size) = (data.channels.into(), data.image_size.into());
        let net = Net::new(&config.model, channels, size, data.classes, config.run.seed, device);
        let sgd = Sgd::new(&net.params, &config.optim);
        let costs = Tensor::from_slice(&net.costs.relative()).to_device(device);
        let fingerprint = input.train.fingerprint();
        let mut state = State { data: fingerprint.clone(), gamma: config.loss.gamma, ..State::default() };
        if let Some(folder) = &place.checkpoint {
            let resumed = checkpoint::read_state(folder).and_then(|state| {
                checkpoint::load(folder, &net.params, &sgd.momentum)?;
                check_place(&state, folder, &fingerprint, config)?;
                Ok(state)
            });
            state = collective::agree(world, resumed)?;
        }
        // Equal on all ranks by construction; this makes it certain.
        world.broadcast(net.params.flat(), 0)?;
        let opened = if world.rank() == 0 { open(&place, config, &state).map(Some) } else { Ok(None) };
        let records = collective::agree(world, opened)?;
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
            None => evaluate(self.world, self.config, &self.net, &self.input)?, // resumed after its end
        };
        self.finish(&evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: one stage, from where the state stands.
    fn run_stage(&mut self, stage: &Stage) -> Result<Evaluation> {
        let (config, steps) = (self.config, self.input.steps(self.config));
        let batch_size = config.optim.batch_size as u64;
        let before: u64 = config.stages[..self.state.stage].iter().map(|stage| stage.epochs).sum();
        let first = self.state.sample / batch_size;
        let (from, to) = (before + self.state.epoch, before + stage.epochs);
        let mut loader = self.input.training(config, self.world, from, first, to)?;
        self.console.start_bar(stage.epochs * steps, self.state.epoch * steps + first);
        let mut evaluation = None;
        let mut clock = Instant::now();
        let (mut since, mut waited) = (0, loader.wait());
        while self.state.epoch < stage.epochs {
            while self.state.sample < steps * batch_size {
                let batch = loader.next().expect("as many batches as steps")?;
                let progress =
                    (self.state.epoch * steps + self.state.sample / batch_size) as f64 / steps as f64;
                let lr = stage.lr_at(progress);
                let measured = self.step(&batch, stage, lr)?;
                loader.recycle(batch);
                self.state.step += 1;
                self.state.sample += batch_size;
                self.state.samples += batch_size;
                self.add_to_epoch(stage, &measured);
                since += 1;

                let stop = measured.stop;
                let logs = stop || self.state.step.is_multiple_of(config.run.log_every);
                // Once in a while, rank 0 writes: the log.
                if logs {
                    let seconds = clock.elapsed().as_secs_f64();
                    self.state.training_seconds += seconds;
                    let wait = (loader.wait() - waited).as_secs_f64() / seconds;
                    let images = (since * batch_size * config.data.views as u64) as f64 / seconds;
                    self.log_step(stage, &measured, lr, images, wait)?;
                    (clock, since, waited) = (Instant::now(), 0, loader.wait());
                } else {
                    self.console.step(self.step_of_stage(steps), None);
                }
                // Once in a while, or when any rank was asked to stop: a checkpoint.
                let every = config.run.checkpoint_every;
                if stop || (every > 0 && self.state.step.is_multiple_of(every)) {
                    self.checkpoint()?;
                    if stop {
                        return Err(self.interrupted());
                    }
                }
            }
            self.state.training_seconds += clock.elapsed().as_secs_f64();
            self.state.epoch += 1;
            self.state.sample = 0;
            // Once in a while, all ranks: evaluation. Then a checkpoint, so that an epoch ends but once.
            let last = self.state.epoch == stage.epochs;
            if last || self.state.epoch.is_multiple_of(config.run.evaluate_every) {
                evaluation = Some(self.evaluate_epoch(stage)?);
            }
            self.state.epoch_sums.clear();
            if last {
                let evaluation = evaluation.as_ref().expect("the last epoch is evaluated");
                self.state.stages.push(stage_summary(stage, evaluation));
                (self.state.stage, self.state.epoch) = (self.state.stage + 1, 0);
            }
            self.checkpoint()?;
            (clock, since, waited) = (Instant::now(), 0, loader.wait());
            if last {
                break;
            }
        }
        self.console.end_bar();
        Ok(evaluation.expect("a stage ends with an evaluation"))
    }

    /// All ranks: one step, the paper's Section 3 from top to bottom.
    fn step(&mut self, batch: &Batch, stage: &Stage, lr: f64) -> Result<Measured> {
        let (config, world) = (self.config, self.world);
        let (views, samples) = (batch.views as i64, batch.samples.len() as i64);
        let weights = self.weights(stage);
        let (images, labels) = self.input.tensors(batch, &config.data); // [L·M, C, H, W], [L]

        // Forward: logits and relaxed paths (Eqs. 6 and 7), or hard ones where routers are frozen.
        let gates = self.costs.size()[0];
        let noise =
            gumbel_noise(config.run.seed, self.state.step, &batch.samples, batch.views, gates as usize);
        let noise = noise.to_device(self.device);
        let decisions = match stage.routers {
            Routers::Train => {
                Decisions::Relaxed { noise: &noise, temperature: config.model.router.temperature }
            }
            Routers::Freeze => Decisions::Hard,
        };
        let out = self.net.forward(&images, decisions, true);

        // The objective (Eqs. 8 to 12): centres meet those of all ranks.
        let centres = loss::centres(&out.path, views); // [L, n]
        let keys = world.all_gather(&centres)?.flatten(0, 1); // [G, n]
        let first = world.rank() as i64 * samples;
        let parts = Parts {
            ce: loss::classification(&out.logits, &labels, views),
            con: loss::consistency(&out.path, &centres, views, weights.consistency_margin),
            div: loss::diversity(&centres, &keys, first, weights.diversity_margin),
            cost: loss::cost(&out.path, &self.costs),
        };

        // Backward, and the mean over ranks of gradients and measurements in one go.
        let gradient = self.backward(&parts.total(&weights, world.world()), stage);
        let measured = self.measure(&parts, &out.logits, &labels, &out.path, views);
        let flat = Tensor::cat(&[&gradient, &measured], 0);
        collective::all_reduce_mean(world, &flat)?;
        let gradient = flat.narrow(0, 0, gradient.size()[0]);
        let measured = Measured::read(&flat.narrow(0, gradient.size()[0], measured.size()[0]), &gradient);

        // Update, unless something is not finite: then it is so on every rank.
        measured.check(self.state.step, &weights)?;
        self.sgd.step(&self.net.params, &gradient, lr, stage.routers);
        Ok(measured)
    }

    /// The gradient of `loss`, laid out as the flat parameters; zero for what does not train.
    fn backward(&self, loss: &Tensor, stage: &Stage) -> Tensor {
        let trains = |router: bool| !(router && stage.routers == Routers::Freeze);
        let trained = &self.net.params.trained;
        let inputs: Vec<&Tensor> =
            trained.iter().filter(|p| trains(p.role.router)).map(|p| &p.tensor).collect();
        let mut gradients = Tensor::run_backward(&[loss], &inputs, false, false).into_iter();
        let flat: Vec<Tensor> = trained
            .iter()
            .map(|parameter| match trains(parameter.role.router).then(|| gradients.next()).flatten() {
                Some(gradient) if gradient.defined() => gradient.reshape([-1]),
                _ => parameter.tensor.detach().zeros_like().view([-1]),
            })
            .collect();
        Tensor::cat(&flat, 0)
    }

    /// What this rank measured, in a form whose mean over ranks is the whole batch's: see [`Measured::read`].
    fn measure(&self, parts: &Parts, logits: &Tensor, labels: &Tensor, paths: &Tensor, views: i64) -> Tensor {
        let labels = loss::by_view(labels, views);
        let top1 = logits.argmax(1, false).eq_tensor(&labels).to_kind(tch::Kind::Float).mean(None);
        let stop = Tensor::from(f32::from(u8::from(self.asked_to_stop()))).to_device(self.device);
        let div = &parts.div * self.world.world() as f64; // L_div is a sum over ranks
        let scalars = Tensor::stack(&[&parts.ce, &parts.con, &div, &parts.cost, &top1, &stop], 0);
        Tensor::cat(&[scalars, paths.mean_dim([0].as_slice(), false, None)], 0).detach()
    }

    /// α, β and γ as they hold in a stage: with frozen routers there is nothing for them to move.
    fn weights(&self, stage: &Stage) -> Weights {
        let on = if stage.routers == Routers::Train { 1.0 } else { 0.0 };
        let loss = &self.config.loss;
        Weights {
            alpha: on * loss.alpha,
            beta: on * loss.beta,
            gamma: on * self.state.gamma,
            consistency_margin: loss.consistency_margin,
            diversity_margin: loss.diversity_margin,
        }
    }

    /// Whether a signal or, on rank 0, a file named `stop` in the run directory asks for an end.
    fn asked_to_stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || (self.records.is_some() && self.place.dir.join("stop").exists())
    }

    /// All ranks: evaluation at an epoch's end; rank 0 records it.
    fn evaluate_epoch(&mut self, stage: &Stage) -> Result<Evaluation> {
        let mut evaluation = evaluate(self.world, self.config, &self.net, &self.input)?;
        evaluation.train_loss = self.epoch_mean();
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
        images: f64,
        wait: f64,
    ) -> Result<()> {
        let loss = measured.loss(&self.weights(stage));
        let Measured { ce, con, div, cost, top1, grad_norm, ref rates, .. } = *measured;
        let State { step, samples, epoch, gamma, .. } = self.state;
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
        self.console.step(self.step_of_stage(self.input.steps(self.config)), Some(&status));
        Ok(())
    }

    fn step_of_stage(&self, steps: u64) -> u64 {
        self.state.epoch * steps + self.state.sample / self.config.optim.batch_size as u64
    }

    fn add_to_epoch(&mut self, stage: &Stage, measured: &Measured) {
        let loss = measured.loss(&self.weights(stage));
        self.state.epoch_sums.resize(2, 0.0);
        self.state.epoch_sums[0] += 1.0;
        self.state.epoch_sums[1] += loss;
    }

    fn epoch_mean(&self) -> f64 {
        match self.state.epoch_sums[..] {
            [steps, loss] => loss / steps,
            _ => f64::NAN,
        }
    }

    /// Rank 0 writes: a checkpoint of this moment.
    fn checkpoint(&mut self) -> Result<()> {
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
            "stopped on request after step {}; go on with the same command and --resume {}",
            self.state.step,
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
        let images = samples * self.config.data.views as u64;
        let speed = images as f64 / training_seconds;
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
            ("training speed", format!("{speed:.0} images/s on {} ranks", self.world.world())),
            ("time", format!("{seconds:.0} s")),
            ("run directory", dir.to_string()),
        ];
        let table: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:<16}{value}")).collect();
        self.console.say(&format!("\n{}\n\nlook at it: tensorboard --logdir {dir}", table.join("\n")));
        Ok(())
    }
}

impl Measured {
    /// Reads what [`Trainer::measure`] wrote, after the mean over ranks.
    fn read(values: &Tensor, gradient: &Tensor) -> Self {
        let values = Vec::<f64>::try_from(values.to_kind(tch::Kind::Double)).expect("a vector of numbers");
        let grad_norm = f64::try_from(gradient.norm()).expect("one number");
        Self {
            ce: values[0],
            con: values[1],
            div: values[2],
            cost: values[3],
            top1: values[4],
            grad_norm,
            stop: values[5] > 0.0,
            rates: values[6..].to_vec(),
        }
    }

    /// Eq. 12.
    fn loss(&self, weights: &Weights) -> f64 {
        self.ce + weights.alpha * self.con + weights.beta * self.div + weights.gamma * self.cost
    }

    /// An error on every rank alike where the loss or the gradient is not finite.
    fn check(&self, step: u64, weights: &Weights) -> Result<()> {
        if self.loss(weights).is_finite() && self.grad_norm.is_finite() {
            return Ok(());
        }
        let Self { ce, con, div, cost, grad_norm, .. } = self;
        let message = format!(
            "step {}: not finite: ce {ce}, con {con}, div {div}, cost {cost}, gradient norm {grad_norm}; \
             lower stages.*.lr or raise warmup_epochs, and go on from the last checkpoint with --resume auto",
            step + 1
        );
        Err(Error { exit: Exit::Diverged, message, agreed: true })
    }
}

/// Rank 0: makes the run directory what it must be before the first step.
fn open(place: &Place, config: &Config, state: &State) -> Result<Records> {
    let dir = &place.dir;
    std::fs::create_dir_all(dir).map_err(|error| Error::disk("make", dir, &error))?;
    let resolved = serde_saphyr::to_string(config).expect("a config is YAML");
    write_whole(&dir.join("config.yaml"), resolved.as_bytes())?;
    Records::open(dir, state.step)
}

/// Refuses to go on from a checkpoint that this config cannot continue.
fn check_place(state: &State, folder: &std::path::Path, data: &str, config: &Config) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", folder.display())));
    let batch = config.optim.batch_size as u64;
    if state.data != data {
        return refuse("was trained on other samples than data.train holds now".into());
    }
    if !state.sample.is_multiple_of(batch) {
        let sample = state.sample;
        return refuse(format!(
            "stands at sample {sample} of its epoch, which optim.batch_size {batch} does not divide"
        ));
    }
    Ok(())
}

fn stage_summary(stage: &Stage, evaluation: &Evaluation) -> serde_json::Value {
    json!({
        "name": stage.name, "epochs": stage.epochs, "top1": evaluation.top1, "top5": evaluation.top5,
        "gmacs": evaluation.gmacs, "distinct_paths": evaluation.distinct_paths, "train_loss": evaluation.train_loss,
    })
}
