//! `codinet-infer bench`: the time that skipping saves, next to the MACs that it saves.

use super::compute::ComputeArgs;
use super::source::Source;
use super::{Engine, Paths};
use crate::trained::TrainedNet;
use codinet_dataloader::random::{self, Domain};
use codinet_trainer::config::{self, Config};
use codinet_trainer::model::Net;
use codinet_trainer::sys::error::{Error, Exit, Result};
use codinet_trainer::text::print_line;
use rand::seq::SliceRandom;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

/// Batches of one image are timed on this many images or forced paths.
const SINGLE_IMAGES: usize = 16;

const HEADER: &str = "\
network      batch    blocks   static ms        ms    p50 ms    p99 ms   images/s   by MACs  by time  time/MACs";

pub const EXAMPLES: &str = "\
Examples:
  codinet-infer bench                           shipped networks, untrained
  codinet-infer bench --config my.yaml --share 50 --batch 1,32
  codinet-infer bench --checkpoint runs/a       on its own paths";

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A trained network; timed on the paths that it chooses for the images of `data.val`.
    #[arg(long, value_name = "RUN|FILE")]
    checkpoint: Option<PathBuf>,

    /// With --checkpoint, the config of weights outside a run directory; otherwise networks to time untrained, on forced paths
    /// [default: cifar10_r110.yaml,imagenet_r50.yaml].
    #[arg(long, value_name = "CONFIG", value_delimiter = ',')]
    config: Vec<String>,

    /// Batch sizes.
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,8,64")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: Vec<u32>,

    /// Shares of the blocks, in per cent, that forced paths run; each image has its own random blocks.
    #[arg(long, value_name = "%", value_delimiter = ',', default_value = "40,60,80")]
    #[arg(value_parser = clap::value_parser!(u32).range(..=100))]
    share: Vec<u32>,

    /// Rounds of each measurement, interleaved; the median is reported.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    rounds: u32,

    #[command(flatten)]
    compute: ComputeArgs,
}

/// One row of the table.
struct Case {
    label: String,
    /// For each input `[N·n]`; `None`: the routers decide.
    forced: Option<Vec<Vec<bool>>>,
    /// Mean of one image.
    macs: f64,
    /// Of each round.
    seconds: Vec<f64>,
    /// Of each batch.
    latencies: Vec<f64>,
}

impl Case {
    fn new(label: String, forced: Option<Vec<Vec<bool>>>) -> Self {
        Self { label, forced, macs: 0.0, seconds: Vec::new(), latencies: Vec::new() }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let (threads, device) = args.compute.prepare()?;
    let precision = format!("{:?}", args.compute.precision).to_lowercase();
    print_line(&format!(
        "{threads} threads, {device:?}, {precision}, median of {} rounds that take turns",
        args.rounds
    ));
    print_line(HEADER);
    let batches = || args.batch.iter().map(|&batch| batch as usize);
    if let Some(checkpoint) = &args.checkpoint {
        if args.config.len() > 1 {
            return Err(Error::new(Exit::Config, "--checkpoint takes one --config at most"));
        }
        let network = TrainedNet::load(checkpoint, args.config.first().map(String::as_str), device)?;
        let engine = args.compute.engine(&network.net, device);
        engine.require_gates()?;
        for batch in batches() {
            let images = if batch == 1 { SINGLE_IMAGES } else { batch };
            let inputs = Source::open(&[], &network, batch, threads, device)?.inputs(images)?;
            let case = Case::new("routed".to_owned(), None);
            measure(&network.config, &engine, batch, &inputs, vec![case], args.rounds);
        }
        return Ok(());
    }
    let shipped = ["cifar10_r110.yaml".to_owned(), "imagenet_r50.yaml".to_owned()];
    for name in if args.config.is_empty() { &shipped[..] } else { &args.config } {
        let config = config::load(name, &[])?;
        let net = Net::from_config(&config, device);
        let engine = args.compute.engine(&net, device);
        for batch in batches() {
            let inputs = random_inputs(&config, batch, device);
            let case = |&share: &u32| {
                let paths = |input| random_paths(engine.gates(), share, batch, input);
                Case::new(format!("{share} %"), Some((0..inputs.len()).map(paths).collect()))
            };
            let cases = match engine.gates() {
                0 => vec![case(&100)],
                _ => args.share.iter().map(case).collect(),
            };
            measure(&config, &engine, batch, &inputs, cases, args.rounds);
        }
    }
    Ok(())
}

fn random_inputs(config: &Config, batch: usize, device: Device) -> Vec<Tensor> {
    let size = i64::from(config.data.eval_size());
    let shape = [batch as i64, config.data.channels.into(), size, size];
    let inputs = if batch == 1 { SINGLE_IMAGES } else { 1 };
    (0..inputs).map(|_| Tensor::randn(shape, (Kind::Float, device))).collect()
}

/// For each of `batch` images, a random path that runs `share` % of the gated blocks; the same in each run of the program.
fn random_paths(gates: usize, share: u32, batch: usize, input: usize) -> Vec<bool> {
    let runs = (gates * share as usize + 50) / 100;
    let path = |image: usize| {
        let mut path: Vec<bool> = (0..gates).map(|block| block < runs).collect();
        path.shuffle(&mut random::stream(Domain::Gumbel, 0, share.into(), image as u64, input as u64));
        path
    };
    (0..batch).flat_map(path).collect()
}

/// Times the static backbone and each case, and prints a row for each case.
fn measure(
    config: &Config,
    engine: &Engine,
    batch: usize,
    inputs: &[Tensor],
    mut cases: Vec<Case>,
    rounds: u32,
) {
    let images: f64 = inputs.iter().map(|x| x.size()[0] as f64).sum();
    let mut static_seconds = Vec::new();
    // The first round allocates memory and packs weights; it does not count.
    for round in 0..=rounds {
        let start = Instant::now();
        inputs.iter().for_each(|x| drop(forward(engine, x, Paths::All)));
        static_seconds.push(start.elapsed().as_secs_f64());
        for case in &mut cases {
            let mut path = Vec::new();
            let mut latencies = Vec::new();
            for (i, x) in inputs.iter().enumerate() {
                let paths = case.forced.as_ref().map_or(Paths::Routed, |forced| Paths::Forced(&forced[i]));
                let start = Instant::now();
                path.extend(forward(engine, x, paths));
                latencies.push(start.elapsed().as_secs_f64());
            }
            if round > 0 {
                case.seconds.push(latencies.iter().sum());
                case.latencies.extend(latencies);
            } else {
                let gates = engine.gates();
                let macs = (0..images as usize).map(|n| engine.macs(&path[n * gates..][..gates]));
                case.macs = macs.sum::<f64>() / images;
                if case.forced.is_none() {
                    let runs = path.iter().filter(|&&run| run).count() as f64;
                    case.label = format!("{:.0} %", 100.0 * runs / path.len() as f64);
                }
            }
        }
    }
    let calls = inputs.len() as f64;
    let static_time = quantile(&static_seconds[1..], 0.5);
    for case in &cases {
        let time = quantile(&case.seconds, 0.5);
        let by_macs = engine.costs.static_macs() as f64 / case.macs;
        let by_time = static_time / time;
        print_line(&format!(
            "{:<12} {batch:>5} {:>9}  {:>10.3} {:>9.3} {:>9.3} {:>9.3} {:>10.1}  {by_macs:>8.3} {by_time:>8.3} {:>8.1} %",
            config.model.arch.to_string(),
            case.label,
            1e3 * static_time / calls,
            1e3 * time / calls,
            1e3 * quantile(&case.latencies, 0.5),
            1e3 * quantile(&case.latencies, 0.99),
            images / time,
            100.0 * by_time / by_macs,
        ));
    }
}

/// A whole forward pass, also on a GPU; which blocks ran.
fn forward(engine: &Engine, x: &Tensor, paths: Paths) -> Vec<bool> {
    let output = engine.forward(x, paths);
    output.logits.sum(Kind::Float).double_value(&[]); // waits for the GPU
    output.path
}

/// The smallest of `seconds` that is not less than this share of them.
fn quantile(seconds: &[f64], share: f64) -> f64 {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1)]
}
