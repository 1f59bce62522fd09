//! Evaluation, by hard decisions (Eq. 13) unless the gap to relaxed ones is measured. Every validation image counts once.

use super::Trainer;
use crate::config::{Config, Routers, Routing, Stage};
use crate::data::Validation;
use crate::dist::{self, World};
use crate::loss;
use crate::metrics::classes::Prediction;
use crate::metrics::routing::Histogram;
use crate::model::{BnMode, Decisions, Net, evaluation_noise, hard_decisions, relaxed_decisions};
use crate::optim::calibration;
use crate::optim::schedule::temperature;
use crate::run::checkpoint::Best;
use crate::sys::error::{Error, Exit, Result};
use std::time::Instant;
use tch::{Kind, Tensor, no_grad};

/// How gates decide in an evaluation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EvaluationMode {
    /// As in inference, Eq. 13.
    Hard,
    /// Hard, with Gumbel noise, as the authors' code evaluates.
    HardWithNoise,
    /// As in training at this T, without noise.
    Relaxed {
        /// T.
        temperature: f64,
    },
}

impl EvaluationMode {
    /// That of inference; a random path is drawn for each image.
    pub fn inference(config: &Config) -> Self {
        match config.model.routing {
            Routing::Random(_) => Self::HardWithNoise,
            Routing::Routers | Routing::Fixed(_) => Self::Hard,
        }
    }
}

/// The results of an evaluation, over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Images evaluated.
    pub images: u64,
    /// Images that could not be read or decoded; they do not count.
    pub bad_images: u64,
    /// Share of images whose most probable class was right.
    pub top1: f64,
    /// Share of images whose class was among the five most probable.
    pub top5: f64,
    /// Mean cross entropy.
    pub ce: f64,
    /// Mean multiply-accumulates per image, in billions, routers and skip branches included.
    pub gmacs: f64,
    /// Number of distinct routing paths.
    pub distinct_paths: usize,
    /// Entropy of the paths' frequencies, in bits.
    pub path_entropy: f64,
    /// Share of images that ran each gated block, `[n]`.
    pub rates: Vec<f64>,
    /// The prediction for each image, in the order of the set.
    pub predictions: Vec<Prediction>,
    /// The same for the moving average of weights, if there is one.
    pub ema: Option<Box<Evaluation>>,
    /// The same with Gumbel noise on the gates, if `run.evaluate_with_noise` is set.
    pub with_noise: Option<Box<Evaluation>>,
}

impl Evaluation {
    /// Of an evaluation with noise: its results in a line.
    pub fn describe_with_noise(&self) -> String {
        format!(
            "with Gumbel noise: top-1 {:.2} %  {:.4} GMACs per image · {} distinct paths",
            100.0 * self.top1,
            self.gmacs,
            self.distinct_paths
        )
    }
}

/// All ranks: evaluates the network with rank 0's running statistics.
pub fn evaluate(
    world: &World,
    config: &Config,
    net: &Net,
    val: &Validation,
    mode: EvaluationMode,
) -> Result<Evaluation> {
    world.broadcast(net.params.flat_buffers(), 0)?;
    let gates = net.costs.gated().count();
    let seed = config.run.seed;
    let with_noise = mode == EvaluationMode::HardWithNoise;
    let batches = val.batches(config, world, move |samples| {
        evaluation_noise(seed, samples, if with_noise { gates } else { 0 })
    })?;
    // On the device until the end, so that the host need not wait for a batch: the number of images, of those with the right
    // class first, and among the first five, the sum of cross entropies, and how many images ran each block.
    let mut sums = Tensor::zeros([4 + gates as i64], (Kind::Double, net.params.flat().device()));
    // Of each image the class, its probability, and the path.
    let mut rows = Vec::new();
    let mut images = Vec::new();
    let mut failed = Ok(());
    for batch in batches {
        let batch = batch.and_then(|batch| val.record_bad(&batch.bad).map(|()| batch));
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                failed = Err(error);
                break;
            }
        };
        if batch.samples.is_empty() {
            continue;
        }
        let labels = &batch.labels.own;
        let relaxation = config.model.router.relaxation;
        let decisions = match mode {
            EvaluationMode::Hard => Decisions::Hard,
            EvaluationMode::HardWithNoise => Decisions::Sampled(&batch.noise),
            EvaluationMode::Relaxed { temperature } => {
                Decisions::Relaxed { noise: None, temperature, relaxation }
            }
        };
        let out = no_grad(|| net.forward(&val.normalise(&batch.pixels), decisions, BnMode::Running));
        let path = match mode {
            EvaluationMode::HardWithNoise => out.path,
            EvaluationMode::Hard | EvaluationMode::Relaxed { .. } => hard_decisions(&out.gate_logits),
        };
        let (highest, best) = out.logits.topk(config.data.classes.min(5), 1, true, true); // [N, 5]
        let hits = best.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
        let ce =
            loss::classification(&out.logits, &batch.labels, 1, 0.0).to_kind(Kind::Double) * labels.size()[0];
        let count = Tensor::full([0; 0], labels.size()[0] as f64, (Kind::Double, hits.device()));
        let scalars = Tensor::stack(&[count, hits.select(1, 0).sum(None), hits.sum(None), ce], 0);
        let rates = path.sum_dim_intlist([0].as_slice(), false, Kind::Double);
        sums += Tensor::cat(&[scalars, rates], 0);
        let first = highest.narrow(1, 0, 1).to_kind(Kind::Float);
        let probability = (first - out.logits.to_kind(Kind::Float).logsumexp([1].as_slice(), true)).exp();
        let predicted = best.narrow(1, 0, 1).to_kind(Kind::Float);
        rows.push(Tensor::cat(&[predicted, probability, path.to_kind(Kind::Float)], 1));
        images.extend(batch.samples.into_iter().zip(batch.classes));
    }
    dist::agree(world, failed)?;
    let mut paths = Histogram::default();
    let mut predictions = Vec::new();
    if !rows.is_empty() {
        let rows = Vec::<f32>::try_from(Tensor::cat(&rows, 0).view(-1)).expect("numbers");
        for (&(sample, label), row) in images.iter().zip(rows.chunks_exact(2 + gates)) {
            let path: Vec<u8> = row[2..].iter().map(|&ran| ran as u8).collect();
            let blocks_run = path.iter().filter(|&&ran| ran == 1).count();
            predictions.push(Prediction {
                sample,
                label: label as usize,
                predicted: row[0] as usize,
                probability: row[1],
                blocks_run,
            });
            paths.add(&path, 1);
        }
    }
    let sums = sums.to_device(tch::Device::Cpu);
    world.all_reduce_sum(&sums)?;
    let paths = paths.over_ranks(world, gates)?;
    let predictions = Prediction::all_gather(world, &predictions)?;
    let sums = Vec::<f64>::try_from(&sums).expect("a vector of numbers");
    let bad_images = val.set.len() as u64 - sums[0] as u64;
    let limit = config.data.max_bad_fraction;
    if bad_images as f64 > limit * val.set.len() as f64 {
        let what = format!(
            "{bad_images} of {} samples of data.val can't be used, and data.max_bad_fraction is {limit}; codinet-data verify \
             says why",
            val.set.len()
        );
        return Err(Error::on_all_ranks(Exit::Data, what));
    }
    if sums[0] == 0.0 {
        let what = "no validation image can be used; codinet-data verify says why";
        return Err(Error::on_all_ranks(Exit::Data, what));
    }
    let means: Vec<f64> = sums.iter().map(|sum| sum / sums[0]).collect();
    let rates = means[4..].to_vec();
    Ok(Evaluation {
        images: sums[0] as u64,
        bad_images,
        top1: means[1],
        top5: means[2],
        ce: means[3],
        gmacs: net.costs.mean_macs(&rates) / 1e9,
        distinct_paths: paths.distinct(),
        path_entropy: paths.entropy(),
        rates,
        predictions,
        ema: None,
        with_noise: None,
    })
}

/// The paths of a sample of the validation images, in the order of the set.
#[derive(Clone, Debug, PartialEq)]
pub struct PathSample {
    /// n.
    pub gates: usize,
    /// `[N]`.
    pub labels: Vec<i64>,
    /// u: whether each block runs, `[N, n]`.
    pub paths: Vec<u8>,
    /// v without noise, `[N, n]`.
    pub relaxed: Vec<f32>,
}

/// All ranks: the paths of at most `limit` validation images, evenly spaced in the set; the same on each rank.
pub fn sample_paths(
    world: &World,
    config: &Config,
    net: &Net,
    val: &Validation,
    limit: usize,
) -> Result<PathSample> {
    let gates = net.costs.gated().count();
    let mut labels = Vec::new();
    let mut logits = Vec::new();
    let mut read = || -> Result<()> {
        for batch in val.sample_loader(config, world, limit)? {
            let batch = batch?;
            val.record_bad(&batch.bad)?;
            if !batch.samples.is_empty() {
                let (images, _) = val.tensors(&batch);
                let out = no_grad(|| net.forward(&images, Decisions::Hard, BnMode::Running));
                labels.extend(&batch.labels);
                logits.extend(Vec::<f32>::try_from(out.gate_logits.view(-1)).expect("numbers"));
            }
        }
        Ok(())
    };
    let read = read();
    dist::agree(world, read)?;
    let labels = dist::all_gather_lists(world, &labels)?.concat();
    let logits = dist::all_gather_lists(world, &logits)?.concat();
    let logits = Tensor::from_slice(&logits);
    let relaxed = Vec::try_from(relaxed_decisions(&logits, config.final_temperature())).expect("numbers");
    let paths = Vec::try_from(hard_decisions(&logits).to_kind(Kind::Uint8)).expect("bits");
    Ok(PathSample { gates, labels, paths, relaxed })
}

impl Trainer<'_> {
    /// All ranks: the evaluation at an epoch's end; rank 0 records it.
    pub(super) fn evaluate_epoch(&mut self, stage: &Stage) -> Result<Evaluation> {
        let evaluation = self.evaluate_weights()?;
        let step = self.state.step;
        if !evaluation.ce.is_finite() {
            return Err(Error::diverged(step, "the validation images' cross entropy is not finite"));
        }
        let top1 = evaluation.top1;
        let on_budget = self.config.budget().is_none_or(|budget| evaluation.gmacs <= 1.02 * budget);
        if on_budget && self.state.best.is_none_or(|best| top1 > best.top1) {
            self.state.best = Some(Best { top1, step });
        }
        self.report_evaluation(stage, &evaluation)?;
        Ok(evaluation)
    }

    /// All ranks: evaluates the weights by hard decisions, and again with noise and with their moving average where the config
    /// asks for it.
    pub(super) fn evaluate_weights(&mut self) -> Result<Evaluation> {
        self.show_evaluation();
        let start = Instant::now();
        let inference = EvaluationMode::inference(self.config);
        let mut evaluation = self.evaluate(inference)?;
        let mut passes = 1;
        if self.config.run.evaluate_with_noise {
            evaluation.with_noise = Some(Box::new(self.evaluate(EvaluationMode::HardWithNoise)?));
            passes += 1;
        }
        if self.model.ema.is_some() {
            let ema = self.with_ema(|trainer| trainer.evaluate(inference))?;
            evaluation.ema = Some(Box::new(ema));
            passes += 1;
        }
        let images = self.data.val.set.len() as u64 * passes;
        self.progress.end_evaluation(images, start.elapsed().as_secs_f64());
        Ok(evaluation)
    }

    /// All ranks: top-1 by the stage's relaxed decisions without noise; `None` if the stage decided hard.
    pub(super) fn relaxed_top1(&self, stage: &Stage) -> Result<Option<f64>> {
        if stage.routers == Routers::Freeze || !self.config.gated() {
            return Ok(None);
        }
        let temperature = temperature(self.config, self.state.stage, stage.epochs as f64);
        Ok(Some(self.evaluate(EvaluationMode::Relaxed { temperature })?.top1))
    }

    /// All ranks: fits the bias on all gates, of the weights and of their moving average, if the config asks for it.
    pub(super) fn calibrate(&mut self, stage: &Stage) -> Result<()> {
        let Some(budget) = self.config.budget().filter(|_| self.config.calibrates()) else { return Ok(()) };
        let result = self.fit_gate_bias(budget)?;
        self.log.say(&format!("{}: {result}", stage.name));
        if self.model.ema.is_some() {
            let result = self.with_ema(|trainer| trainer.fit_gate_bias(budget))?;
            self.log.say(&format!("{}, moving average: {result}", stage.name));
        }
        Ok(())
    }

    fn evaluate(&self, mode: EvaluationMode) -> Result<Evaluation> {
        evaluate(self.world, self.config, &self.model.net, &self.data.val, mode)
    }

    fn fit_gate_bias(&self, budget: f64) -> Result<String> {
        calibration::calibrate(self.world, self.config, &self.model.net, &self.data, budget)
    }

    /// Runs `work` with the moving average in place of the weights.
    fn with_ema<T>(&mut self, work: impl FnOnce(&Self) -> Result<T>) -> Result<T> {
        self.model.exchange_ema();
        let result = work(self);
        self.model.exchange_ema();
        result
    }
}
