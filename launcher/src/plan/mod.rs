//! `codinet-launch plan`: what a config would take on many GPUs, from what its step takes on few. docs/scaling.md
//! states the model, where its numbers are from, and how it compares with published measurements.

mod facts;
mod links;
#[cfg(test)]
mod published;
mod report;
mod step;

use crate::print;
use codinet_config::{Config, Wire};
use facts::{Measured, Network, load_config};
use links::{Cluster, Link, Links};
use serde::Serialize;
use serde_json::json;
use std::path::PathBuf;
use step::{Step, Work};

const EXAMPLES: &str = "\
Examples:
  codinet-launch plan imagenet_r50.yaml --run runs/a --gpus 8,64,512
  codinet-launch plan imagenet_r50.yaml --images-per-second 1200 --batch-per-gpu 128 --price 2.5
  codinet-launch plan imagenet_r50.yaml --run runs/a --links 25gbe --inter-gbps 96 --strong";

/// Predict throughput, hours and cost on many GPUs, from a measured step and the links between them.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The config, as for codinet-train.
    config: String,

    /// Overrides one key of the config; may be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// GPUs to predict for, whole nodes where there is more than one.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64,512,4096")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    gpus: Vec<u64>,

    /// A run of this config that has ended: its speed, its world size and its batch are what was measured.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,

    /// Images a second of one GPU that was measured alone; every view counts.
    #[arg(long, value_name = "X", conflicts_with = "run", value_parser = positive)]
    images_per_second: Option<f64>,

    /// Samples a GPU and step [default: as measured by --run, else optim.batch_size].
    #[arg(long, value_name = "L", conflicts_with = "strong")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    batch_per_gpu: Option<u64>,

    /// Keeps optim.batch_size as it is and shares it among all GPUs; otherwise it grows with them.
    #[arg(long)]
    strong: bool,

    /// How GPUs are joined.
    #[arg(long, value_enum, default_value = "nvlink+ib")]
    links: Links,

    /// GPUs of a node, in place of the preset's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    gpus_per_node: Option<u64>,

    /// Gbit/s that a GPU reaches to the next of its node, in each direction.
    #[arg(long, value_name = "X", value_parser = positive)]
    intra_gbps: Option<f64>,

    /// Latency of a message between them, in microseconds.
    #[arg(long, value_name = "X", value_parser = not_negative)]
    intra_us: Option<f64>,

    /// Gbit/s that a node reaches to another, in each direction, by all its network cards.
    #[arg(long, value_name = "X", value_parser = positive)]
    inter_gbps: Option<f64>,

    /// Latency of a message between nodes, in microseconds.
    #[arg(long, value_name = "X", value_parser = not_negative)]
    inter_us: Option<f64>,

    /// Standard deviation of a GPU's time for a step, in per cent of its mean.
    #[arg(long, value_name = "PERCENT", default_value = "2", value_parser = not_negative)]
    jitter: f64,

    /// Samples an epoch, where the shards are not on this machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,

    /// Price of a GPU for an hour, in whatever currency.
    #[arg(long, value_name = "X", value_parser = not_negative)]
    price: Option<f64>,

    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err("not a number above 0".into()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err("not a number from 0 on".into()),
    }
}

/// What is predicted for a number of GPUs.
#[derive(Debug, Serialize)]
struct Row {
    gpus: u64,
    /// What `optim.batch_size` is to be.
    batch_size: u64,
    /// Seconds of a step, and what they go to.
    step_seconds: f64,
    parts: Step,
    /// Of all GPUs together; every view counts.
    images_per_second: f64,
    /// Images a second of a GPU, over those of one that is alone.
    efficiency: f64,
    /// All epochs, without evaluations; none where the samples of an epoch are not known, or fewer than a batch.
    hours: Option<f64>,
    cost: Option<f64>,
}

/// A config, measured on some GPUs, on its way to others.
struct Plan {
    config: Config,
    network: Network,
    measured: Measured,
    cluster: Cluster,
    /// Standard deviation of a GPU's time for a step, over its mean.
    jitter: f64,
    /// The step of a GPU with the measured number of samples.
    work: Work,
}

impl Plan {
    fn new(args: &Args) -> Result<Self, String> {
        let config = load_config(&args.config, &args.set)?;
        let network = Network::query(&args.config, &args.set)?;
        let measured = match (&args.run, args.images_per_second) {
            (Some(dir), _) => Measured::of_run(dir, &config)?,
            (None, Some(images_per_second)) => {
                let samples = args.batch_per_gpu.unwrap_or(config.optim.batch_size as u64);
                Measured { images_per_second, gpus: 1, samples }
            }
            (None, None) => {
                return Err("plan starts from a measured speed: give --run DIR, a run of this config that has ended, \
                            or --images-per-second X, of one GPU"
                    .into());
            }
        };
        let Cluster { gpus_per_node, intra, inter } = args.links.cluster();
        let link = |preset: Link, us: Option<f64>, gbps: Option<f64>| {
            Link::new(us.unwrap_or(preset.us()), gbps.unwrap_or(preset.gbps()))
        };
        let cluster = Cluster {
            gpus_per_node: args.gpus_per_node.unwrap_or(gpus_per_node),
            intra: link(intra, args.intra_us, args.intra_gbps),
            inter: link(inter, args.inter_us, args.inter_gbps),
        };
        whole_nodes(measured.gpus, &cluster)?;
        let jitter = args.jitter / 100.0;
        let mut work = Work {
            parameters: network.parameters as f64,
            first_bucket: config.collective.first_bucket_mb * 1e6 / 4.0,
            bucket: config.collective.bucket_mb * 1e6 / 4.0,
            overlap: config.collective.overlap,
            wire: match config.collective.wire {
                Wire::Fp32 => 4.0,
                Wire::Bf16 => 2.0,
            },
            gates: network.gates as f64,
            samples: measured.samples as f64,
            micro_batches: config.optim.accumulate as f64,
            compute: 0.0,
        };
        let images = measured.samples * measured.gpus * config.data.views as u64;
        let seconds = images as f64 / measured.images_per_second;
        work.compute = step::compute_alone(&work, &cluster, measured.gpus, jitter, seconds);
        Ok(Self { config, network, measured, cluster, jitter, work })
    }

    fn row(&self, args: &Args, gpus: u64) -> Result<Row, String> {
        whole_nodes(gpus, &self.cluster)?;
        let samples =
            if args.strong { self.share(gpus)? } else { args.batch_per_gpu.unwrap_or(self.measured.samples) };
        // Computing takes a time in proportion to the samples.
        let compute = self.work.compute * samples as f64 / self.work.samples;
        let work = Work { samples: samples as f64, compute, ..self.work };
        let parts = Step::predict(&work, &self.cluster, gpus, self.jitter);
        let step_seconds = parts.seconds();
        let batch_size = samples * gpus;
        let steps = args.samples.or(self.network.samples).map(|samples| samples / batch_size * self.epochs());
        let hours = steps.filter(|&steps| steps > 0).map(|steps| steps as f64 * step_seconds / 3600.0);
        Ok(Row {
            gpus,
            batch_size,
            step_seconds,
            parts,
            images_per_second: (batch_size * self.config.data.views as u64) as f64 / step_seconds,
            efficiency: compute / step_seconds,
            hours,
            cost: args.price.zip(hours).map(|(price, hours)| price * hours * gpus as f64),
        })
    }
}

impl Plan {
    /// Epochs of all stages.
    fn epochs(&self) -> u64 {
        self.config.stages.iter().map(|stage| stage.epochs).sum()
    }

    /// Samples a GPU and step where `gpus` of them share `optim.batch_size`.
    fn share(&self, gpus: u64) -> Result<u64, String> {
        let batch_size = self.config.optim.batch_size as u64;
        let micro_batches = self.config.optim.accumulate as u64;
        let unit = gpus * micro_batches;
        if batch_size.is_multiple_of(unit) {
            return Ok(batch_size / gpus);
        }
        Err(format!(
            "--strong: {gpus} GPUs cannot share optim.batch_size {batch_size} evenly in {micro_batches} micro-batches \
             each; set a multiple of {unit}"
        ))
    }
}

/// Refuses GPUs that are more than a node and not whole nodes.
fn whole_nodes(gpus: u64, cluster: &Cluster) -> Result<(), String> {
    let node = cluster.gpus_per_node;
    if gpus > node && !gpus.is_multiple_of(node) {
        return Err(format!("{gpus} GPUs are not whole nodes of {node}; set a multiple, or --gpus-per-node"));
    }
    Ok(())
}

/// Predicts and prints.
pub fn run(args: &Args) -> Result<(), String> {
    let plan = Plan::new(args)?;
    let rows: Vec<Row> = args.gpus.iter().map(|&gpus| plan.row(args, gpus)).collect::<Result<_, _>>()?;
    if args.json {
        let plan = json!({ "config": args.config, "compute_seconds": plan.work.compute, "plan": rows });
        print(&format!("{plan}\n"));
    } else {
        print(&report::text(&plan, &rows, args));
    }
    Ok(())
}
