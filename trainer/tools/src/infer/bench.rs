//! `codinet-infer bench`: time saved by skipping blocks, compared with the MACs saved.

use super::source::Source;
use super::{Engine, Paths};
use crate::hardware::Hardware;
use crate::trained::Trained;
use codinet_dataloader::random::{self, Domain};
use codinet_trainer::config::{self, Config};
use codinet_trainer::model::Net;
use codinet_trainer::run::print_line;
use codinet_trainer::sys::error::{Error, Exit, Result};
use rand::seq::SliceRandom;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Different paths, or images, that a batch of one is timed on in turn.
const ONES: usize = 16;

pub const EXAMPLES: &str = "\
Examples:
  codinet-infer bench                           shipped networks, untrained
  codinet-infer bench --config my.yaml --share 50 --batch 1,32
  codinet-infer bench --checkpoint runs/a       on the paths that it chooses";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A trained network, timed on the paths that it chooses for the images of `data.val`.
    #[arg(long, value_name = "RUN|FILE")]
    checkpoint: Option<PathBuf>,

    /// With --checkpoint, what its weights are of; without, networks that are timed untrained, on forced paths [default:
    /// cifar10_r110.yaml,imagenet_r50.yaml].
    #[arg(long, value_name = "CONFIG", value_delimiter = ',')]
    config: Vec<String>,

    /// Batch sizes.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,64")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,

    /// Shares of the blocks, in per cent, that a forced path runs; each image has blocks of its own, drawn at random.
    #[arg(long, value_name = "%", value_delimiter = ',', default_value = "40,60,80")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=100))]
    share: Vec<u32>,

    /// Rounds of each measurement; they take turns, and the median counts.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,

    #[command(flatten)]
    hardware: Hardware,
}

/// What takes turns: inputs, and the paths through them.
struct Case {
    label: String,
    inputs: Vec<Tensor>,
    /// `[N·n]` for each input; none: as routed.
    paths: Option<Vec<Vec<bool>>>,
    /// Of one image, in the mean.
    macs: f64,
    seconds: Vec<f64>,
}

pub fn run(args: &Args) -> Result<()> {
    let (threads, device) = args.hardware.prepare()?;
    print_line(&format!(
        "{threads} threads, {device:?}, fp32, median of {} rounds that take turns",
        args.rounds
    ));
    print_line(&format!(
        "{:<12} {:>5} {:>9}  {:>10} {:>9} {:>10}  {:>8} {:>8} {:>10}",
        "network", "batch", "blocks", "static ms", "ms", "images/s", "by MACs", "by time", "time/MACs"
    ));
    if let Some(checkpoint) = &args.checkpoint {
        if args.config.len() > 1 {
            return Err(Error::new(Exit::Config, "--checkpoint takes one --config at most"));
        }
        let trained = Trained::open(checkpoint, args.config.first().map(String::as_str), device)?;
        let engine = Engine::new(&trained.net);
        engine.need_gates()?;
        for batch in args.batch.iter().map(|&batch| batch as usize) {
            let inputs = shown(&trained, batch, threads, device)?;
            table(&trained.config, &engine, batch, vec![("routed".to_owned(), None)], inputs, args.rounds);
        }
        return Ok(());
    }
    let shipped = ["cifar10_r110.yaml".to_owned(), "imagenet_r50.yaml".to_owned()];
    for name in if args.config.is_empty() { &shipped[..] } else { &args.config } {
        let config = config::load(name, &[])?;
        let net = Net::from_config(&config, device);
        let engine = Engine::new(&net);
        engine.need_gates()?;
        for batch in args.batch.iter().map(|&batch| batch as usize) {
            let turns = if batch == 1 { ONES } else { 1 };
            let channels = i64::from(config.data.channels);
            let size = i64::from(config.data.image_size);
            let input = || Tensor::randn([batch as i64, channels, size, size], (Kind::Float, device));
            let inputs: Vec<Tensor> = (0..turns).map(|_| input()).collect();
            let forced = |&share: &u32| {
                let paths = (0..turns).map(|turn| paths(engine.gates(), share, batch, turn)).collect();
                (format!("{share} %"), Some(paths))
            };
            table(&config, &engine, batch, args.share.iter().map(forced).collect(), inputs, args.rounds);
        }
    }
    Ok(())
}

/// Inputs of `batch` images each, of the validation data; at least [`ONES`] images.
fn shown(trained: &Trained, batch: usize, threads: usize, device: Device) -> Result<Vec<Tensor>> {
    let images = if batch == 1 { ONES } else { batch };
    Source::open(&[], trained, batch, threads, device)?.inputs(images)
}

/// For each of `batch` images, a path that runs `share` % of `gates` blocks, drawn at random, always the same.
fn paths(gates: usize, share: u32, batch: usize, turn: usize) -> Vec<bool> {
    let taken = (gates * share as usize + 50) / 100;
    let one = |image: usize| {
        let mut path: Vec<bool> = (0..gates).map(|block| block < taken).collect();
        path.shuffle(&mut random::stream(Domain::Gumbel, 0, share.into(), image as u64, turn as u64));
        path
    };
    (0..batch).flat_map(one).collect()
}

/// Times the static backbone and each of `paths`, and prints a line for each of these.
fn table(
    config: &Config,
    engine: &Engine,
    batch: usize,
    paths: Vec<(String, Option<Vec<Vec<bool>>>)>,
    inputs: Vec<Tensor>,
    rounds: u32,
) {
    let mut cases: Vec<Case> = paths
        .into_iter()
        .map(|(label, paths)| {
            let inputs: Vec<Tensor> = inputs.iter().map(Tensor::shallow_clone).collect();
            Case { label, inputs, paths, macs: 0.0, seconds: Vec::new() }
        })
        .collect();
    let images: f64 = inputs.iter().map(|x| x.size()[0] as f64).sum();
    let mut fixed = Vec::new();
    // The first round finds memory and lays out weights; it is not counted.
    for round in 0..=rounds {
        let begun = Instant::now();
        for x in &inputs {
            engine.forward(x, Paths::All).logits.sum(Kind::Float).double_value(&[]); // a GPU is waited for
        }
        fixed.push(begun.elapsed().as_secs_f64());
        for case in &mut cases {
            let begun = Instant::now();
            let mut taken = Vec::new();
            for (i, x) in case.inputs.iter().enumerate() {
                let paths = case.paths.as_ref().map_or(Paths::Routed, |paths| Paths::Forced(&paths[i]));
                let passed = engine.forward(x, paths);
                passed.logits.sum(Kind::Float).double_value(&[]);
                taken.extend(passed.path);
            }
            case.seconds.push(begun.elapsed().as_secs_f64());
            if round == 0 {
                let each = taken.chunks(engine.gates().max(1)).map(|path| engine.macs(path));
                case.macs = each.sum::<f64>() / images;
                let ran = taken.iter().filter(|&&run| run).count() as f64 / taken.len().max(1) as f64;
                if case.paths.is_none() {
                    case.label = format!("{:.0} %", 100.0 * ran);
                }
            }
        }
    }
    let calls = inputs.len() as f64;
    let fixed = median(&fixed[1..]);
    for case in &cases {
        let dynamic = median(&case.seconds[1..]);
        let by_macs = engine.costs.static_macs() as f64 / case.macs;
        let by_time = fixed / dynamic;
        print_line(&format!(
            "{:<12} {batch:>5} {:>9}  {:>10.3} {:>9.3} {:>10.1}  {by_macs:>8.3} {by_time:>8.3} {:>8.1} %",
            config.model.arch.to_string(),
            case.label,
            1e3 * fixed / calls,
            1e3 * dynamic / calls,
            images / dynamic,
            100.0 * by_time / by_macs,
        ));
    }
}

fn median(seconds: &[f64]) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
