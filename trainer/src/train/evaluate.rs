//! Evaluation, with hard decisions (Eq. 13) except when the gap to relaxed ones is measured; every validation sample counts
//! exactly once.

use crate::config::Config;
use crate::data::Validation;
use crate::dist::{self, World};
use crate::loss;
use crate::metrics::routing::Histogram;
use crate::model::{Decisions, Net, Statistics, hard, relaxed};
use crate::sys::error::{Error, Exit, Result};
use tch::{Kind, Tensor, no_grad};

/// What an evaluation found, over all ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Images seen.
    pub images: u64,
    /// Images that could not be read or decoded, and do not count.
    pub bad_images: u64,
    /// Share of images whose class came first.
    pub top1: f64,
    /// Share of images whose class came among the first five.
    pub top5: f64,
    /// Mean cross entropy.
    pub ce: f64,
    /// Mean multiply-accumulates an image, in billions: routers and skip branches included.
    pub gmacs: f64,
    /// How many different routing paths the images took.
    pub distinct_paths: usize,
    /// Entropy of the paths' frequencies, in bits.
    pub path_entropy: f64,
    /// Share of images that ran each gated block, `[n]`.
    pub rates: Vec<f64>,
    /// The same for the running mean of weights, where there is one.
    pub ema: Option<Box<Evaluation>>,
}

/// All ranks: evaluates the network with rank 0's running statistics.
pub fn evaluate(
    world: &World,
    config: &Config,
    net: &Net,
    val: &Validation,
    decisions: Decisions,
) -> Result<Evaluation> {
    world.broadcast(net.params.flat_buffers(), 0)?;
    let gates = net.costs.gated().count();
    let mut loader = val.all(config, world)?;
    // Images, first-place hits, first-five hits, cross entropy, and how often each block ran.
    let mut sums = Tensor::zeros([4 + gates as i64], (Kind::Double, tch::Device::Cpu));
    let mut paths = Histogram::default();
    let mut failed = Ok(());
    while let Some(batch) = loader.next() {
        let batch = match batch {
            Ok(batch) => batch,
            Err(error) => {
                failed = Err(error.into());
                break;
            }
        };
        if let Err(error) = val.note_bad(&batch) {
            failed = Err(error);
            break;
        }
        if batch.samples.is_empty() {
            continue;
        }
        let (images, labels) = val.tensors(&batch);
        let out = no_grad(|| net.forward(&images, decisions, Statistics::Running));
        let path = hard(&out.gate_logits);
        let best = out.logits.topk(config.data.classes.min(5), 1, true, true).1; // [N, 5]
        let hits = best.eq_tensor(&labels.unsqueeze(1)).to_kind(Kind::Double);
        let own = labels.shallow_clone().into();
        let ce = loss::classification(&out.logits, &own, 1, 0.0).to_kind(Kind::Double) * labels.size()[0];
        let count = Tensor::full([0; 0], labels.size()[0] as f64, (Kind::Double, hits.device()));
        let scalars = Tensor::stack(&[count, hits.select(1, 0).sum(None), hits.sum(None), ce], 0);
        let rates = path.sum_dim_intlist([0].as_slice(), false, Kind::Double);
        sums += Tensor::cat(&[scalars, rates], 0).to_device(tch::Device::Cpu);
        let rows = Vec::<u8>::try_from(path.to_kind(Kind::Uint8).view(-1)).expect("bits");
        paths.merge(&Histogram::new(&rows, gates, batch.samples.len()));
        loader.recycle(batch);
    }
    dist::agree(world, failed)?;
    world.all_reduce_sum(&sums)?;
    let paths = paths.over_ranks(world, gates)?;
    let sums = Vec::<f64>::try_from(&sums).expect("a vector of numbers");
    let bad_images = val.set.len() as u64 - sums[0] as u64; // each of the others counts once
    let most = config.data.max_bad_fraction;
    if bad_images as f64 > most * val.set.len() as f64 {
        let what = format!(
            "{bad_images} of {} samples of data.val can't be used, and data.max_bad_fraction is {most}; codinet-data verify \
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
        ema: None,
    })
}

/// The paths of some validation images, in the order of the set.
#[derive(Clone, Debug, PartialEq)]
pub struct SomePaths {
    /// n.
    pub gates: usize,
    /// `[N]`.
    pub labels: Vec<i64>,
    /// u: whether each block runs, `[N, n]`.
    pub paths: Vec<u8>,
    /// v without noise, `[N, n]`.
    pub relaxed: Vec<f32>,
}

/// All ranks: the paths of at most `most` validation images, evenly spaced in the set, on each rank.
pub fn sample_paths(
    world: &World,
    config: &Config,
    net: &Net,
    val: &Validation,
    most: usize,
) -> Result<SomePaths> {
    let gates = net.costs.gated().count();
    let (mut labels, mut logits) = (Vec::new(), Vec::new());
    let mut read = || -> Result<()> {
        for batch in val.some(config, world, most)? {
            let batch = batch?;
            val.note_bad(&batch)?;
            if !batch.samples.is_empty() {
                let (images, _) = val.tensors(&batch);
                let out = no_grad(|| net.forward(&images, Decisions::Hard, Statistics::Running));
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
    let relaxed = Vec::try_from(relaxed(&logits, config.model.router.temperature)).expect("numbers");
    let paths = Vec::try_from(hard(&logits).to_kind(Kind::Uint8)).expect("bits");
    Ok(SomePaths { gates, labels, paths, relaxed })
}
