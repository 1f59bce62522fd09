//! `codinet-infer path`: the fixed path of the blocks that most images run, as a value of `model.routing`.

use super::source::{InputArgs, Source};
use super::{Engine, Paths};
use codinet_trainer::sys::error::{Error, Exit, Result};
use codinet_trainer::text::print_line;
use std::cmp::Reverse;

pub const EXAMPLES: &str = "\
Examples:
  codinet-infer path --checkpoint runs/a --gates 6 data/cifar10/train
  codinet-train my.yaml --set 'model.routing={fixed: [0, 1, 2, 4, 5, 8]}'      the network of these blocks";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,

    /// How many gates run their blocks.
    #[arg(long, value_name = "N")]
    gates: usize,

    /// Images in a batch.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,
}

pub fn run(args: &Args) -> Result<()> {
    let input = &args.input;
    let (threads, device) = input.hardware.prepare()?;
    let network = input.network.load(device)?;
    let engine = Engine::new(&network.net);
    engine.require_gates()?;
    let count = engine.gates();
    if args.gates > count {
        let what = format!("--gates is {}, but the network has {count} gates", args.gates);
        return Err(Error::new(Exit::Config, what));
    }
    let source = Source::open(&input.images, &network, args.batch as usize, threads, device)?;
    let mut runs = vec![0u64; count];
    for batch in source.batches(usize::MAX) {
        let output = engine.forward(&batch?.x, Paths::Routed);
        for path in output.path.chunks(count) {
            runs.iter_mut().zip(path).for_each(|(runs, &run)| *runs += u64::from(run));
        }
    }
    let fixed = most_frequent(&runs, args.gates);
    let path: Vec<bool> = (0..count).map(|gate| fixed.contains(&gate)).collect();
    let routers: i64 = engine.costs.gated().filter_map(|block| block.router).sum();
    let gmacs = (engine.macs(&path) - routers as f64) / 1e9;
    codinet_trainer::eprint_line!("the static network of this path takes {gmacs:.4} GMACs per image");
    print_line(&format!("{{fixed: {fixed:?}}}"));
    Ok(())
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
    use super::most_frequent;

    #[test]
    fn gates_with_the_highest_rates_are_chosen() {
        let runs = [3, 9, 0, 9, 3];
        assert_eq!(most_frequent(&runs, 3), [0, 1, 3], "of equal rates the first");
        assert_eq!(most_frequent(&runs, 0), [0usize; 0]);
        assert_eq!(most_frequent(&runs, 5), [0, 1, 2, 3, 4]);
    }
}
