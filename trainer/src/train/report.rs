//! What a run logs and records about itself.

use super::evaluate::{Evaluation, sample_paths};
use super::start::describe_shares;
use super::teacher::teacher_share;
use super::{Scheduled, Trainer};
use crate::config::{Gates, OnNonfinite, Routers, Routing, Stage, Temperature};
use crate::data::{Prefetcher, loader_spec};
use crate::dist::{Traffic, World};
use crate::env;
use crate::loss;
use crate::metrics::classes::{Confusion, confident_mistakes};
use crate::metrics::routing::{self, Histogram};
use crate::optim::schedule::describe_lr_scale;
use crate::run::checkpoint::{StageResult, TrainState};
use crate::run::{
    ClassSummary, EvaluationRecord, EvaluationSummary, Event, LISTED_MISTAKES, Summary, TrainRecord,
    draw_mistakes, name_classes, projector, write_class_tables,
};
use crate::run_dir;
use crate::sys::error::{Error, Result};
use crate::sys::held_memory;
use crate::text::{counted, shell_quote};
use std::time::{Duration, Instant};
use tch::{Device, Kind};

/// The most classes whose accuracy is in `metrics.jsonl` and a curve of its own.
const CLASS_CURVES: usize = 100;

/// Validation images in the embedding projector.
const PROJECTOR_IMAGES: usize = 1000;

/// Speed since the last log line.
pub(super) struct Throughput {
    start: Instant,
    /// Steps taken since then.
    pub steps: u64,
    /// Seconds that [`Throughput::elapsed_since_last`] has returned.
    counted: f64,
    loader_stall: Duration,
    traffic: Traffic,
}

impl Throughput {
    pub fn start(batches: &Prefetcher, world: &World) -> Self {
        Self {
            start: Instant::now(),
            steps: 0,
            counted: 0.0,
            loader_stall: batches.stall_time(),
            traffic: world.traffic(),
        }
    }

    fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Seconds since the last call, or since the start.
    pub fn elapsed_since_last(&mut self) -> f64 {
        let now = self.seconds();
        now - std::mem::replace(&mut self.counted, now)
    }
}

impl Trainer<'_> {
    /// All ranks: gathers the metrics of the last steps. One that is not finite ends the run or, with
    /// `optim.on_nonfinite: skip`, is logged and counted.
    pub(super) fn collect_metrics(&mut self) -> Result<()> {
        for metrics in self.metrics.gather(self.world)? {
            self.state.metrics_sum.add(&metrics);
            let loss = metrics.get("loss");
            if loss.is_finite() {
                self.state.epoch_loss.add(loss);
            }
            let Some(what) = metrics.nonfinite else { continue };
            let step = metrics.step;
            if self.config.optim.on_nonfinite == OnNonfinite::Stop {
                return Err(Error::diverged(step, &what));
            }
            let outcome = if metrics.finite {
                "updated, because its gradient is finite".to_owned()
            } else {
                self.state.skipped += 1;
                format!("skipped the update, {} so far", self.state.skipped)
            };
            self.log.say(&format!("step {step}: {what}; {outcome}"));
            self.log.event(step, &Event::StepNotFinite { why: what, skipped: self.state.skipped })?;
        }
        Ok(())
    }

    /// All ranks: a log line; rank 0 writes it. Numbers are means over the steps since the last line.
    pub(super) fn report_steps(
        &mut self,
        stage: &Stage,
        scheduled: Scheduled,
        throughput: &Throughput,
        batches: &Prefetcher,
    ) -> Result<()> {
        let paths = self.gather_hard_paths()?;
        let TrainState { step, samples, epoch, .. } = self.state;
        let Some(mean) = self.state.metrics_sum.take_mean(step) else { return Ok(()) };
        let seconds = throughput.seconds();
        let share = |time: Duration| time.as_secs_f64() / seconds;
        let images = throughput.steps * (self.config.optim.batch_size * self.config.data.views) as u64;
        let images_per_second = images as f64 / seconds;
        let traffic = self.world.traffic();
        let before = throughput.traffic;
        let is_constant = matches!(self.config.model.router.temperature, Temperature::Constant(_));
        let temperature = (stage.routers == Routers::Train && !is_constant).then_some(scheduled.temperature);
        let record = TrainRecord {
            epoch,
            stage: &stage.name,
            samples,
            gamma: loss::gamma(stage, scheduled.gamma),
            budget_gmacs: self.config.budget(),
            gmacs: self.model.net.costs.mean_macs(&mean.hard_rates) / 1e9,
            lr: scheduled.lr,
            temperature,
            images_per_second,
            loader_wait: share(batches.stall_time() - throughput.loader_stall),
            collective_wait: share(traffic.waited - before.waited),
            collective_busy: share(traffic.busy - before.busy),
            memory_bytes: held_memory(self.device),
            collective_bytes: (traffic.bytes - before.bytes) / throughput.steps,
            rates: &mean.hard_rates,
            rates_as_trained: &mean.rates,
            distinct_paths: paths.distinct(),
            path_entropy: paths.entropy(),
            spread_margin: self.config.consistency.margin,
            centre_distance_margin: self.config.diversity.margin,
            scalars: mean.scalars.iter().copied().collect(),
        };
        self.log.train_step(step, &record)?;
        let status = self.status(Some(mean.get("loss")), Some(images_per_second));
        self.log.show_status(step, &status, true);
        Ok(())
    }

    /// All ranks: the paths in inference of the last step's views.
    fn gather_hard_paths(&mut self) -> Result<Histogram> {
        let own = self.hard_paths.take().expect("a log line follows a step").to_kind(Kind::Uint8);
        let (views, gates) = own.size2().expect("[A·L·M, n]");
        let all = self.world.all_gather(&own)?.to_device(Device::Cpu);
        let rows = Vec::<u8>::try_from(all.view(-1)).expect("a vector of bytes");
        Ok(Histogram::new(&rows, gates as usize, views as usize * self.world.ranks()))
    }

    /// Rank 0 writes: the results of an evaluation.
    pub(super) fn report_evaluation(&mut self, stage: &Stage, evaluation: &Evaluation) -> Result<()> {
        let TrainState { step, samples, epoch, train_loss, .. } = self.state;
        let ema = evaluation.ema.as_deref();
        let with_noise = evaluation.with_noise.as_deref();
        let confusion = self.confusion(evaluation);
        let class_accuracy =
            if confusion.images().len() <= CLASS_CURVES { confusion.accuracies() } else { Vec::new() };
        let record = EvaluationRecord {
            epoch,
            stage: &stage.name,
            samples,
            images: evaluation.images,
            bad_images: evaluation.bad_images,
            top1: evaluation.top1,
            top5: evaluation.top5,
            ce: evaluation.ce,
            gmacs: evaluation.gmacs,
            rates: &evaluation.rates,
            distinct_paths: evaluation.distinct_paths,
            path_entropy: evaluation.path_entropy,
            train_loss,
            worst_class_accuracy: confusion.worst_classes(1).first().map(|(_, accuracy)| *accuracy),
            class_accuracy,
            ema_top1: ema.map(|ema| ema.top1),
            ema_ce: ema.map(|ema| ema.ce),
            ema_gmacs: ema.map(|ema| ema.gmacs),
            noise_top1: with_noise.map(|noisy| noisy.top1),
            noise_gmacs: with_noise.map(|noisy| noisy.gmacs),
            noise_distinct_paths: with_noise.map(|noisy| noisy.distinct_paths),
        };
        self.log.evaluation(step, &record, &confusion)?;
        if evaluation.bad_images > 0 {
            let bad = evaluation.bad_images;
            let all = bad + evaluation.images;
            self.log.say(&format!("{bad} of {all} validation images cannot be used and do not count"));
        }
        let ema = ema.map(|ema| format!("  (moving average {:.2} %)", 100.0 * ema.top1)).unwrap_or_default();
        self.log.say(&format!(
            "{} epoch {epoch}/{}  train loss {:.4}  top-1 {:.2} %{ema}  top-5 {:.2} %  {:.4} GMACs  {} paths",
            stage.name,
            stage.epochs,
            train_loss.unwrap_or(f64::NAN),
            100.0 * evaluation.top1,
            100.0 * evaluation.top5,
            evaluation.gmacs,
            evaluation.distinct_paths
        ));
        if let Some(noisy) = with_noise {
            self.log.say(&noisy.describe_with_noise());
        }
        Ok(())
    }

    fn confusion(&self, evaluation: &Evaluation) -> Confusion {
        Confusion::new(&evaluation.predictions, self.config.data.classes as usize)
    }

    /// All ranks: rank 0 writes the relaxed paths of some validation images for TensorBoard's embedding projector.
    pub(super) fn write_projector(&mut self) -> Result<()> {
        let net = &self.model.net;
        let sample = sample_paths(self.world, self.config, net, &self.data.val, PROJECTOR_IMAGES)?;
        if !self.log.writes() {
            return Ok(());
        }
        let row = |(label, path): (&i64, &[u8])| {
            let blocks: u8 = path.iter().sum();
            vec![label.to_string(), routing::text(path), blocks.to_string()]
        };
        let rows: Vec<Vec<String>> =
            sample.labels.iter().zip(sample.paths.chunks(sample.gates)).map(row).collect();
        let name = format!("paths-step-{:08}", self.state.step);
        let columns = ["class", "path", "blocks run"];
        projector::write(
            self.log.dir(),
            run_dir::TENSORBOARD,
            &name,
            &sample.relaxed,
            sample.gates,
            &columns,
            &rows,
        )
    }

    /// Rank 0, at a stage's end: adds its results to the state and compares the cost with the budget. `relaxed_top1` is
    /// top-1 by the relaxed decisions of training; what hard decisions lack to it is the gap between training and
    /// inference (Section 3.4).
    pub(super) fn report_stage(&mut self, stage: &Stage, evaluation: &Evaluation, relaxed_top1: Option<f64>) {
        let &Evaluation { top1, top5, gmacs, distinct_paths, .. } = evaluation;
        let top1_as_trained = relaxed_top1.unwrap_or(top1);
        let budget_gmacs = self.config.budget();
        if let Some(budget) = budget_gmacs {
            let deviation = 100.0 * (gmacs - budget) / budget;
            let gamma = loss::gamma(stage, self.state.gamma.gamma);
            self.log.say(&format!(
                "{}: {gmacs:.4} GMACs per image, {deviation:+.2} % off the budget of {budget:.4}; γ {gamma:.4}",
                stage.name
            ));
        }
        self.state.stages.push(StageResult {
            name: stage.name.clone(),
            epochs: stage.epochs,
            top1,
            top5,
            top1_as_trained,
            training_inference_gap: top1_as_trained - top1,
            gmacs,
            budget_gmacs,
            distinct_paths,
            train_loss: self.state.train_loss,
        });
    }

    /// Rank 0 logs: the network, the data, the ranks and the run directory.
    pub(super) fn report_start(&mut self) {
        let model = &self.config.model;
        let world = self.world.ranks();
        let kind = match (&model.routing, model.gates) {
            (Routing::Fixed(_), _) => "static with a fixed path",
            (Routing::Random(_), _) => "with random paths",
            (Routing::Routers, Gates::All) => "gated",
            (Routing::Routers, Gates::SameShape) => "gated where blocks keep their shape",
            (Routing::Routers, Gates::None) => "static",
        };
        let backend = if world == 1 { String::new() } else { format!(", over {}", self.world.backend()) };
        let resumed = self
            .checkpoint
            .as_ref()
            .map(|folder| format!("\nresuming from {} (step {})", folder.display(), self.state.step))
            .unwrap_or_default();
        self.log.say(&format!(
            "{} {kind}, {} parameters · {} of {} training samples × {} views, {} validation images · \
             {} × {} threads, {:?}{backend}\nrun directory {}{resumed}",
            model.arch,
            self.model.net.params.count(),
            self.data.samples,
            self.data.train.len(),
            self.config.data.views,
            self.data.val.set.len(),
            counted(world, "rank"),
            tch::get_num_threads(),
            self.device,
            self.log.dir().display(),
        ));
        if let (Some(teacher), Some(from)) = (&self.teacher, &self.config.distill.from) {
            self.log.say(&format!(
                "teacher {from}: {:.4} GMACs per view, {:.0} % of a training step's MACs",
                teacher.costs.training_macs() as f64 / 1e9,
                100.0 * teacher_share(&teacher.costs, &self.model.net.costs)
            ));
        }
        for line in describe_lr_scale(self.config).into_iter().chain(describe_shares(self.config, world)) {
            self.log.say(&line);
        }
        if let Some(job) = env::get(env::SLURM_JOB_ID) {
            let requeued = env::get(env::SLURM_RESTART_COUNT).unwrap_or_else(|| "0".into());
            self.log.say(&format!("SLURM job {job}, requeued {requeued} times"));
        }
    }

    /// Rank 0 writes: `summary.json`, the tables of classes and mistakes, and the table at the end of a run.
    pub(super) fn report_end(&mut self, evaluation: &Evaluation) -> Result<()> {
        let TrainState { step, samples, training_seconds, seconds, train_loss, .. } = self.state;
        let confusion = self.confusion(evaluation);
        let names = name_classes(self.data.class_names(), self.config.data.classes as usize);
        let mut picture = None;
        if self.log.writes() {
            let set = &self.data.val.set;
            let mistakes = confident_mistakes(&evaluation.predictions, LISTED_MISTAKES);
            let image_name = |sample: u32| set.sample_name(sample as usize);
            write_class_tables(self.log.dir(), &confusion, &mistakes, &names, image_name)?;
            if !mistakes.is_empty() {
                let spec =
                    loader_spec(self.config, self.config.evaluation(), self.config.data.eval_size(), 1);
                picture = draw_mistakes(set, &spec, &mistakes, &names).ok(); // a run does not fail for it
            }
        }
        let images_per_second = (samples * self.config.data.views as u64) as f64 / training_seconds;
        let gmacs_static = self.model.net.costs.static_macs() as f64 / 1e9;
        let world_size = self.world.ranks();
        let budget_gmacs = self.config.budget();
        let part = |evaluation: &Evaluation| EvaluationSummary {
            top1: evaluation.top1,
            top5: evaluation.top5,
            ce: evaluation.ce,
            gmacs: evaluation.gmacs,
            distinct_paths: evaluation.distinct_paths,
        };
        let summary = Summary {
            top1: evaluation.top1,
            top5: evaluation.top5,
            ce: evaluation.ce,
            gmacs: evaluation.gmacs,
            gmacs_static,
            budget_gmacs,
            distinct_paths: evaluation.distinct_paths,
            path_entropy: evaluation.path_entropy,
            rates: &evaluation.rates,
            validation_images: evaluation.images,
            images_per_second,
            world_size,
            seconds,
            train_loss,
            parameters: self.model.net.params.count(),
            teacher_share: self
                .teacher
                .as_ref()
                .map(|teacher| teacher_share(&teacher.costs, &self.model.net.costs)),
            stages: &self.state.stages,
            classes: ClassSummary::new(&confusion, &names),
            ema: evaluation.ema.as_deref().map(part),
            with_noise: evaluation.with_noise.as_deref().map(part),
        };
        self.log.finish(step, &summary, picture)?;
        let percent = |share: f64| format!("{:.2} %", 100.0 * share);
        let mut rows =
            vec![("top-1", format!("{} of {} images", percent(evaluation.top1), evaluation.images))];
        if let Some(ema) = &evaluation.ema {
            rows.push(("moving average", format!("{} at {:.4} GMACs", percent(ema.top1), ema.gmacs)));
        }
        rows.push(("top-5", percent(evaluation.top5)));
        let relative = 100.0 * evaluation.gmacs / gmacs_static;
        rows.push((
            "MACs per image",
            format!("{:.4} G, {relative:.0} % of the static network's {gmacs_static:.4} G", evaluation.gmacs),
        ));
        if let Some(budget) = budget_gmacs {
            let deviation = 100.0 * (evaluation.gmacs - budget) / budget;
            rows.push(("budget", format!("{budget:.4} G, off by {deviation:+.2} %")));
        }
        let dir = self.log.dir().display().to_string();
        rows.push(("routing paths", format!("{} distinct", evaluation.distinct_paths)));
        if let Some(noisy) = &evaluation.with_noise {
            let paths = noisy.distinct_paths;
            rows.push(("with noise", format!("{}, {paths} distinct paths", percent(noisy.top1))));
        }
        let ranks = counted(world_size, "rank");
        rows.push(("training speed", format!("{images_per_second:.0} images/s on {ranks}")));
        rows.push(("time", format!("{seconds:.0} s")));
        rows.push(("run directory", dir.clone()));
        let table: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:<16}{value}")).collect();
        self.log.say(&format!(
            "\n{}\n\n  view it         tensorboard --logdir {dir}\n  resume, if it was stopped\n                  {} --resume {dir}",
            table.join("\n"),
            self.command,
            dir = shell_quote(&dir)
        ));
        Ok(())
    }
}
