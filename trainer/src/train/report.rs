//! What a run says and records of itself.

use super::{Pace, Trainer};
use crate::config::{Config, Gates, Stage};
use crate::data::prefetch::Uploads;
use crate::env;
use crate::loss;
use crate::metrics::routing::{self, Histogram};
use crate::optim;
use crate::run::checkpoint::{StageResult, State};
use crate::run::events::{EmaSummary, EvaluationRecord, Summary, TrainRecord};
use crate::run::quoted;
use crate::run::{counted, projector};
use crate::sys::error::Result;
use crate::train::evaluate::{Evaluation, sample_paths};
use std::time::Duration;

/// Validation images in the embedding projector.
const PROJECTED: usize = 1000;

impl Trainer<'_> {
    /// Rank 0 writes: what an evaluation found.
    pub(super) fn report_evaluation(&mut self, stage: &Stage, evaluation: &Evaluation) -> Result<()> {
        let State { step, samples, epoch, train_loss, .. } = self.state;
        let ema = evaluation.ema.as_ref();
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
            ema_top1: ema.map(|ema| ema.top1),
            ema_ce: ema.map(|ema| ema.ce),
            ema_gmacs: ema.map(|ema| ema.gmacs),
        };
        self.log.evaluation(step, &record)?;
        let mean = match &evaluation.ema {
            Some(ema) => format!("  (mean of weights {:.2} %)", 100.0 * ema.top1),
            None => String::new(),
        };
        if evaluation.bad_images > 0 {
            let (bad, all) = (evaluation.bad_images, evaluation.bad_images + evaluation.images);
            self.log.say(&format!("{bad} of {all} validation images can't be used, and don't count"));
        }
        self.log.say(&format!(
            "{} epoch {epoch}/{}  train loss {:.4}  top-1 {:.2} %{mean}  top-5 {:.2} %  {:.4} GMACs  {} paths",
            stage.name,
            stage.epochs,
            train_loss.unwrap_or(f64::NAN),
            100.0 * evaluation.top1,
            100.0 * evaluation.top5,
            evaluation.gmacs,
            evaluation.distinct_paths
        ));
        Ok(())
    }

    /// All ranks: rank 0 writes the relaxed paths of some validation images for TensorBoard's embedding projector.
    pub(super) fn write_projector(&mut self) -> Result<()> {
        let some = sample_paths(self.world, self.config, &self.net, &self.input.val, PROJECTED)?;
        if self.log.writes() {
            let row = |(label, path): (&i64, &[u8])| {
                let blocks: u8 = path.iter().sum();
                vec![label.to_string(), routing::text(path), blocks.to_string()]
            };
            let labels: Vec<Vec<String>> =
                some.labels.iter().zip(some.paths.chunks(some.gates)).map(row).collect();
            let (logs, name) =
                (self.log.dir().join("tensorboard"), format!("paths-step-{:08}", self.state.step));
            let columns = ["class", "path", "blocks run"];
            projector::write(&logs, &name, &some.relaxed, some.gates, &columns, &labels)?;
        }
        Ok(())
    }

    /// Rank 0 says, at a stage's end: cost against budget.
    pub(super) fn report_budget(&mut self, stage: &Stage, evaluation: &Evaluation) {
        if let Some(budget) = self.config.budget() {
            let off = 100.0 * (evaluation.gmacs - budget) / budget;
            let gamma = loss::gamma(stage, self.state.price.gamma);
            self.log.say(&format!(
                "{}: {:.4} GMACs per image, {off:+.2} % off the budget of {budget:.4}; γ {gamma:.4}",
                stage.name, evaluation.gmacs
            ));
        }
    }

    /// Rank 0 writes: one line of numbers, means over the steps since the last.
    pub(super) fn log_step(
        &mut self,
        stage: &Stage,
        gamma: f64,
        lr: f64,
        pace: &Pace,
        uploads: &Uploads,
        paths: &Histogram,
    ) -> Result<()> {
        let images = (pace.steps * self.images_a_step()) as f64 / pace.seconds();
        let share = |time: Duration| time.as_secs_f64() / pace.seconds();
        let loader_wait = share(uploads.wait() - pace.loader);
        let (traffic, before) = (self.world.traffic(), pace.traffic);
        let collective_bytes = (traffic.bytes - before.bytes) / pace.steps;
        let State { step, samples, epoch, .. } = self.state;
        let Some(mean) = self.state.tally.mean(step) else { return Ok(()) };
        let gmacs = self.net.costs.mean_macs(&mean.hard_rates) / 1e9;
        let record = TrainRecord {
            epoch,
            stage: &stage.name,
            samples,
            gamma: loss::gamma(stage, gamma),
            budget_gmacs: self.config.budget(),
            gmacs,
            lr,
            images_per_second: images,
            loader_wait,
            collective_wait: share(traffic.waited - before.waited),
            collective_busy: share(traffic.busy - before.busy),
            collective_bytes,
            rates: &mean.hard_rates,
            rates_as_trained: &mean.rates,
            distinct_paths: paths.distinct(),
            path_entropy: paths.entropy(),
            spread_margin: self.config.consistency.margin,
            centre_distance_margin: self.config.diversity.margin,
            scalars: mean.scalars.iter().copied().collect(),
        };
        self.log.train_step(step, &record)?;
        let status = format!(
            "loss {:.4} (ce {:.4}  con {:.4}  div {:.4}  cost {:.3})  lr {}  {images:.0} images/s",
            mean.get("loss"),
            mean.get("ce"),
            mean.get("con"),
            mean.get("div"),
            mean.get("cost"),
            optim::shown(lr),
        );
        self.log.progress(self.step_of_stage(), Some((step, &status)));
        Ok(())
    }

    /// Rank 0 says: what runs where.
    pub(super) fn greet(&mut self) {
        let (model, data, world) = (&self.config.model, &self.config.data, self.world.ranks());
        let kind = match model.gates {
            Gates::All => "gated",
            Gates::SameShape => "gated where blocks keep their shape",
            Gates::None => "static",
        };
        let from = match &self.place.checkpoint {
            Some(folder) => format!("\ngoing on from {} (step {})", folder.display(), self.state.step),
            None => String::new(),
        };
        let text = format!(
            "{} {kind}, {} parameters · {} of {} training samples × {} views, {} validation images · \
             {world} rank{} × {} threads, {:?}{}\nrun directory {}{from}",
            model.arch,
            self.net.params.count(),
            self.input.samples,
            self.input.train.len(),
            data.views,
            self.input.val.set.len(),
            if world == 1 { "" } else { "s" },
            tch::get_num_threads(),
            self.device,
            if world == 1 { String::new() } else { format!(", over {}", self.world.backend()) },
            self.place.dir.display(),
        );
        self.log.say(&text);
        if let Some(job) = env::get(env::SLURM_JOB_ID) {
            let requeued = env::get(env::SLURM_RESTART_COUNT).unwrap_or_else(|| "0".into());
            self.log.say(&format!("SLURM job {job}, requeued {requeued} times"));
        }
    }

    /// Rank 0 writes: `summary.json`, and the table that ends a run.
    pub(super) fn finish(&mut self, evaluation: &Evaluation) -> Result<()> {
        if !self.log.writes() {
            return Ok(());
        }
        let State { samples, training_seconds, seconds, train_loss, .. } = self.state;
        let speed = (samples * self.config.data.views as u64) as f64 / training_seconds;
        let gmacs_static = self.net.costs.static_macs() as f64 / 1e9;
        let of_ema = |ema: &Evaluation| EmaSummary {
            top1: ema.top1,
            top5: ema.top5,
            ce: ema.ce,
            gmacs: ema.gmacs,
            distinct_paths: ema.distinct_paths,
        };
        let summary = Summary {
            top1: evaluation.top1,
            top5: evaluation.top5,
            ce: evaluation.ce,
            gmacs: evaluation.gmacs,
            gmacs_static,
            budget_gmacs: self.config.budget(),
            distinct_paths: evaluation.distinct_paths,
            path_entropy: evaluation.path_entropy,
            rates: &evaluation.rates,
            validation_images: evaluation.images,
            images_per_second: speed,
            world_size: self.world.ranks(),
            seconds,
            train_loss,
            parameters: self.net.params.count(),
            stages: &self.state.stages,
            ema: evaluation.ema.as_deref().map(of_ema),
        };
        self.log.finish(&summary)?;
        let dir = self.place.dir.display();
        let mut rows = vec![
            ("top-1", format!("{:.2} % of {} images", 100.0 * evaluation.top1, evaluation.images)),
            ("top-5", format!("{:.2} %", 100.0 * evaluation.top5)),
            (
                "MACs per image",
                format!(
                    "{:.4} G, {:.0} % of the static network's {gmacs_static:.4} G",
                    evaluation.gmacs,
                    100.0 * evaluation.gmacs / gmacs_static
                ),
            ),
            ("routing paths", format!("{} distinct", evaluation.distinct_paths)),
            ("training speed", format!("{speed:.0} images/s on {}", counted(self.world.ranks(), "rank"))),
            ("time", format!("{seconds:.0} s")),
            ("run directory", dir.to_string()),
        ];
        if let Some(budget) = self.config.budget() {
            let off = 100.0 * (evaluation.gmacs - budget) / budget;
            rows.insert(3, ("budget", format!("{budget:.4} G, off by {off:+.2} %")));
        }
        if let Some(ema) = &evaluation.ema {
            rows.insert(
                1,
                ("mean of weights", format!("{:.2} % at {:.4} GMACs", 100.0 * ema.top1, ema.gmacs)),
            );
        }
        let table: Vec<String> = rows.iter().map(|(name, value)| format!("  {name:<16}{value}")).collect();
        self.log.say(&format!(
            "\n{}\n\n  look at it      tensorboard --logdir {dir}\n  go on, if it was stopped\n                  {} --resume {dir}",
            table.join("\n"),
            self.command,
            dir = quoted(&dir.to_string())
        ));
        Ok(())
    }
}

/// What a stage came to. `relaxed` is top-1 by the decisions that it trained with; what hard decisions lack to it is the gap
/// between training and inference (Section 3.4).
pub(super) fn stage_result(
    stage: &Stage,
    evaluation: &Evaluation,
    relaxed: Option<f64>,
    train_loss: Option<f64>,
    config: &Config,
) -> StageResult {
    let &Evaluation { top1, top5, gmacs, distinct_paths, .. } = evaluation;
    let top1_as_trained = relaxed.unwrap_or(top1);
    StageResult {
        name: stage.name.clone(),
        epochs: stage.epochs,
        top1,
        top5,
        top1_as_trained,
        training_inference_gap: top1_as_trained - top1,
        gmacs,
        budget_gmacs: config.budget(),
        distinct_paths,
        train_loss,
    }
}
