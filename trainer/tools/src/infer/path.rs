//! `codinet-infer path`: a fixed path, as a value of `model.routing`: the blocks that most images run, or those that a search finds.

use super::source::{InputArgs, Source};
use super::{Engine, Paths};
use crate::progress;
use codinet_trainer::sys::error::{Error, Exit, Result};
use codinet_trainer::text::print_line;
use std::cmp::Reverse;
use tch::{Kind, Reduction, Tensor};

pub const EXAMPLES: &str = "\
Examples:
  codinet-infer path --checkpoint runs/a --gates 6 data/cifar10/train
  codinet-infer path --checkpoint runs/a --gates 6 --search data/cifar10/train
  codinet-train my.yaml --set 'model.routing={fixed: [0, 1, 2, 4, 5, 8]}'      the network of these blocks";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,

    /// How many gates run their blocks.
    #[arg(long, value_name = "N")]
    gates: usize,

    /// Search for the path: from all blocks, drop the one without which the images' cross-entropy is lowest, until N are left.
    #[arg(long)]
    search: bool,

    /// Images in a batch.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Use the first N images only; 0: all.
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: usize,
}

pub fn run(args: &Args) -> Result<()> {
    let input = &args.input;
    let (threads, device) = input.compute.prepare()?;
    let network = input.network.load(device)?;
    let engine = input.compute.engine(&network.net, device);
    engine.require_gates()?;
    let count = engine.gates();
    if args.gates > count {
        let what = format!("--gates is {}, but the network has {count} gates", args.gates);
        return Err(Error::new(Exit::Config, what));
    }
    let source = Source::open(&input.images, &network, args.batch as usize, threads, device)?;
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let fixed = if args.search {
        drop_blocks(count, args.gates, |paths| cross_entropies(&engine, &source, limit, paths))?
    } else {
        most_frequent(&run_counts(&engine, &source, limit)?, args.gates)
    };
    let path: Vec<bool> = (0..count).map(|gate| fixed.contains(&gate)).collect();
    let routers: i64 = engine.costs.gated().filter_map(|block| block.router).sum();
    let gmacs = (engine.macs(&path) - routers as f64) / 1e9;
    codinet_trainer::eprint_line!("the static network of this path takes {gmacs:.4} GMACs per image");
    print_line(&format!("{{fixed: {fixed:?}}}"));
    Ok(())
}

/// For how many images each gate's block runs.
fn run_counts(engine: &Engine, source: &Source, limit: usize) -> Result<Vec<u64>> {
    let mut runs = vec![0u64; engine.gates()];
    for batch in source.batches(limit) {
        let output = engine.forward(&batch?.x, Paths::Routed);
        for path in output.path.chunks(engine.gates()) {
            runs.iter_mut().zip(path).for_each(|(runs, &run)| *runs += u64::from(run));
        }
    }
    Ok(runs)
}

/// The sum of the images' cross-entropies when all of them take a path, for each of `paths`.
fn cross_entropies(engine: &Engine, source: &Source, limit: usize, paths: &[Vec<bool>]) -> Result<Vec<f64>> {
    let mut sums = vec![0.0; paths.len()];
    let progress = progress::bar(true, "measuring images", source.len().min(limit));
    for batch in source.batches(limit) {
        let batch = batch?;
        let labels = batch.all_labels()?;
        let target = Tensor::from_slice(&labels).to_device(batch.x.device());
        for (sum, path) in sums.iter_mut().zip(paths) {
            let logits = engine.forward(&batch.x, Paths::Forced(&path.repeat(labels.len()))).logits;
            let loss = logits.to_kind(Kind::Double).cross_entropy_loss::<Tensor>(
                &target,
                None,
                Reduction::Sum,
                -100,
                0.0,
            );
            *sum += f64::try_from(&loss).expect("one number");
        }
        progress.inc(labels.len() as u64);
    }
    progress.finish_and_clear();
    Ok(sums)
}

/// From the path of all `gates` blocks, drops one block at a time until `count` are left: the one without which `losses_of`
/// is lowest; of equal ones the first. The gates that are left, in rising order.
fn drop_blocks(
    gates: usize,
    count: usize,
    mut losses_of: impl FnMut(&[Vec<bool>]) -> Result<Vec<f64>>,
) -> Result<Vec<usize>> {
    let mut kept: Vec<usize> = (0..gates).collect();
    while kept.len() > count {
        let without = |dropped: &usize| {
            (0..gates).map(|gate| gate != *dropped && kept.contains(&gate)).collect::<Vec<bool>>()
        };
        let paths: Vec<Vec<bool>> = kept.iter().map(without).collect();
        let losses = losses_of(&paths)?;
        let lowest = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).expect("a block");
        kept.remove(lowest);
    }
    Ok(kept)
}

/// The `count` gates whose blocks ran most often, in rising order; of equal ones the first.
fn most_frequent(runs: &[u64], count: usize) -> Vec<usize> {
    let mut gates: Vec<usize> = (0..runs.len()).collect();
    gates.sort_by_key(|&gate| Reverse(runs[gate])); // stable: ties keep the order of the gates
    gates.truncate(count);
    gates.sort_unstable();
    gates
}

#[cfg(test)]
mod tests {
    use super::{drop_blocks, most_frequent};

    #[test]
    fn gates_with_the_highest_rates_are_chosen() {
        let runs = [3, 9, 0, 9, 3];
        assert_eq!(most_frequent(&runs, 3), [0, 1, 3], "of equal rates the first");
        assert_eq!(most_frequent(&runs, 0), [0usize; 0]);
        assert_eq!(most_frequent(&runs, 5), [0, 1, 2, 3, 4]);
    }

    /// The loss of a path is the worth of the blocks that it leaves out.
    #[test]
    fn blocks_with_the_least_loss_are_dropped_one_by_one() {
        let mut rounds = Vec::new();
        let worth = [1.0, 3.0, 0.5, 2.0];
        let kept = drop_blocks(4, 2, |paths| {
            rounds.push(paths.len());
            let loss = |path: &Vec<bool>| -> f64 {
                path.iter().zip(worth).filter(|(run, _)| !**run).map(|(_, worth)| worth).sum()
            };
            Ok(paths.iter().map(loss).collect())
        });
        assert_eq!(kept.unwrap(), [1, 3]);
        assert_eq!(rounds, [4, 3]);
    }
}
