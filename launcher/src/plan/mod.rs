//! `codinet-launch plan`: predicts throughput, hours and cost on many GPUs from a step measured on few. docs/scaling.md
//! has the model, the sources of its numbers, and a comparison with published measurements.

mod facts;
mod links;
#[cfg(test)]
mod published;
mod report;
mod step;

use codinet_config::text::print;
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

    /// Numbers of GPUs to predict for; more than one node means whole nodes.
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64,512,4096")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    gpus: Vec<u64>,

    /// A finished run of this config, for its speed, world size and batch size.
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,

    /// Images per second of a single GPU; every view counts.
    #[arg(long, value_name = "X", conflicts_with = "run", value_parser = positive)]
    images_per_second: Option<f64>,

    /// Samples per GPU and step [default: those of --run, else optim.batch_size].
    #[arg(long, value_name = "L", conflicts_with = "strong")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    batch_per_gpu: Option<u64>,

    /// Strong scaling: all GPUs share optim.batch_size; otherwise it grows with their number.
    #[arg(long)]
    strong: bool,

    /// The links between GPUs.
    #[arg(long, value_enum, default_value = "nvlink+ib")]
    links: Links,

    /// GPUs per node, in place of the preset's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    gpus_per_node: Option<u64>,

    /// Gbit/s between neighbouring GPUs of a node, in each direction.
    #[arg(long, value_name = "X", value_parser = positive)]
    intra_gbps: Option<f64>,

    /// Latency of a message between them, in microseconds.
    #[arg(long, value_name = "X", value_parser = not_negative)]
    intra_us: Option<f64>,

    /// Gbit/s between nodes, over all network cards of a node, in each direction.
    #[arg(long, value_name = "X", value_parser = positive)]
    inter_gbps: Option<f64>,

    /// Latency of a message between nodes, in microseconds.
    #[arg(long, value_name = "X", value_parser = not_negative)]
    inter_us: Option<f64>,

    /// Standard deviation of a GPU's step time, in per cent of its mean.
    #[arg(long, value_name = "PERCENT", default_value = "2", value_parser = not_negative)]
    jitter: f64,

    /// Samples per epoch, if the shards are not on this machine.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    samples: Option<u64>,

    /// Price per GPU and hour, in any currency.
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
        _ => Err("not a number of at least 0".into()),
    }
}

/// The prediction for a number of GPUs.
#[derive(Debug, Serialize)]
struct Row {
    gpus: u64,
    /// `optim.batch_size` for this number.
    batch_size: u64,
    /// Duration of a step, and its parts.
    step_seconds: f64,
    parts: Step,
    /// Of all GPUs together; every view counts.
    images_per_second: f64,
    /// Images per second and GPU, relative to a single GPU.
    efficiency: f64,
    /// All epochs without evaluations; `None` if the samples per epoch are unknown or fewer than a batch.
    hours: Option<f64>,
    cost: Option<f64>,
}

/// A config with a measured step, and the cluster to predict for.
struct Plan {
    config: Config,
    network: Network,
    measured: Measured,
    cluster: Cluster,
    /// Standard deviation of a GPU's step time, relative to its mean.
    jitter: f64,
    /// A GPU's step with the measured number of samples.
    work: Work,
}

impl Plan {
    fn new(args: &Args) -> Result<Self, String> {
        let config = load_config(&args.config, &args.set)?;
        let network = Network::query(&args.config, &args.set)?;
        let measured = match (&args.run, args.images_per_second) {
            (Some(dir), _) => Measured::read_run(dir, &config)?,
            (None, Some(images_per_second)) => {
                let samples = args.batch_per_gpu.unwrap_or(config.optim.batch_size as u64);
                Measured { images_per_second, gpus: 1, samples }
            }
            (None, None) => {
                return Err("plan needs a measured speed: give --run DIR, a finished run of this config, \
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
        check_whole_nodes(measured.gpus, &cluster)?;
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
        work.compute = step::single_gpu_compute(&work, &cluster, measured.gpus, jitter, seconds);
        Ok(Self { config, network, measured, cluster, jitter, work })
    }

    fn row(&self, args: &Args, gpus: u64) -> Result<Row, String> {
        check_whole_nodes(gpus, &self.cluster)?;
        let samples = if args.strong {
            self.samples_per_gpu(gpus)?
        } else {
            args.batch_per_gpu.unwrap_or(self.measured.samples)
        };
        // Compute time is proportional to the samples.
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

    /// Samples per GPU and step if `gpus` GPUs share `optim.batch_size`.
    fn samples_per_gpu(&self, gpus: u64) -> Result<u64, String> {
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

/// Checks that more than one node means whole nodes.
fn check_whole_nodes(gpus: u64, cluster: &Cluster) -> Result<(), String> {
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
        print(&report::format_table(&plan, &rows, args));
    }
    Ok(())
}
