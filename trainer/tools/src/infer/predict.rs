//! `codinet-infer --checkpoint … IMAGES`: one line of JSON for each image.

use super::output::{create_output, output_error};
use super::source::{ImageBatch, InputArgs, Source};
use super::{Engine, InferenceOutput, Paths};
use crate::trained::TrainedNet;
use codinet_trainer::metrics::classes::{Confusion, Prediction, confident_mistakes};
use codinet_trainer::optim::calibration::check_reachable;
use codinet_trainer::run::{ClassSummary, LISTED_MISTAKES, write_atomically, write_class_tables};
use codinet_trainer::run_dir;
use codinet_trainer::sys::error::{Error, Exit, Result};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tch::{Kind, Tensor};

/// The number of images that the bias for a budget is fitted on.
const FIT_IMAGES: usize = 1024;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,

    /// Images in a batch.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// The number of most probable classes in each line.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    topk: u32,

    /// Add every class's logit to each line.
    #[arg(long)]
    logits: bool,

    /// Mean GMACs per image: fits a bias on all gates that meets it on the first 1,024 images.
    #[arg(long, value_name = "GMACS")]
    budget_gmacs: Option<f64>,

    /// The file to write [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// A folder to write the labelled images' results into: summary.json, confusion.csv and mistakes.csv.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// `summary.json`.
#[derive(Serialize)]
struct Summary<'a> {
    /// The file of the weights.
    checkpoint: &'a Path,
    /// Images with a label.
    images: usize,
    bad_images: usize,
    top1: f64,
    gmacs: f64,
    gmacs_static: f64,
    #[serde(flatten)]
    classes: ClassSummary,
}

pub fn run(args: &Args) -> Result<()> {
    let input = &args.input;
    let (threads, device) = input.compute.prepare()?;
    let network = input.network.load(device)?;
    let mut engine = input.compute.engine(&network.net, device);
    if input.images.is_empty() {
        return Err(Error::new(Exit::Config, "no images given: add files, folders or shards"));
    }
    let source = Source::open(&input.images, &network, args.batch as usize, threads, device)?.skip_bad();
    if let Some(folder) = &args.report {
        source.check_labels(network.config.data.classes as usize)?;
        std::fs::create_dir_all(folder).map_err(|error| Error::disk("make", folder, &error))?;
    }
    if let Some(budget) = args.budget_gmacs {
        fit_budget(&mut engine, &source, budget)?;
    }
    let output = args.output.as_deref();
    let mut out = create_output(output)?;
    let start = Instant::now();
    let mut totals = Totals::default();
    for batch in source.batches(usize::MAX) {
        for line in predict(&engine, &network, args, batch?, &mut totals) {
            match writeln!(out, "{line}") {
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                result => result.map_err(|error| output_error(output, &error))?,
            }
        }
    }
    out.flush().map_err(|error| output_error(output, &error))?;
    let Totals { images, bad, .. } = totals;
    if images > 0 {
        codinet_trainer::eprint_line!("{}", totals.summary(&engine, start.elapsed().as_secs_f64()));
        if let Some(folder) = &args.report {
            totals.write_report(&engine, &network, folder)?;
        }
    }
    if bad > 0 {
        let what = format!("{bad} of {} images can't be used; their lines say why", images + bad);
        return Err(Error::new(Exit::Data, what));
    }
    Ok(())
}

/// Sets the bias that meets `budget` on the first images.
fn fit_budget(engine: &mut Engine, source: &Source, budget: f64) -> Result<()> {
    engine.require_gates()?;
    check_reachable(engine.costs, "--budget-gmacs", budget)?;
    let inputs = source.inputs(FIT_IMAGES)?;
    if inputs.is_empty() {
        let what = format!("cannot fit the bias: none of the first {FIT_IMAGES} images can be read");
        return Err(Error::new(Exit::Data, what));
    }
    let gmacs = engine.fit_bias_to_budget(budget, &inputs)?;
    codinet_trainer::eprint_line!("a bias of {:+.4} on all gates gives {gmacs:.4} GMACs", engine.bias);
    Ok(())
}

/// The lines of a batch, in the order of its images.
fn predict(
    engine: &Engine,
    network: &TrainedNet,
    args: &Args,
    batch: ImageBatch,
    totals: &mut Totals,
) -> Vec<Value> {
    let ImageBatch { x, names, labels, bad } = batch;
    let mut lines = Vec::new();
    if !names.is_empty() {
        let InferenceOutput { logits, path } = engine.forward(&x, Paths::Routed);
        let top = TopK::new(&logits, args.topk.into());
        for (n, name) in names.iter().enumerate() {
            let path = &path[n * engine.gates()..(n + 1) * engine.gates()];
            let macs = engine.macs(path);
            let mut line = top.line(n, network);
            line["image"] = name.as_str().into();
            line["path"] = path.iter().map(|&run| if run { '1' } else { '0' }).collect::<String>().into();
            line["macs"] = (macs as i64).into();
            if args.logits {
                line["logits"] = json!(Vec::<f32>::try_from(&logits.get(n as i64)).expect("f32"));
            }
            if let Some(label) = labels[n] {
                line["label"] = label.into();
                totals.add_prediction(
                    name,
                    Prediction {
                        sample: totals.predictions.len() as u32,
                        label: label as usize,
                        predicted: top.classes[n][0] as usize,
                        probability: top.probabilities[n][0],
                        blocks_run: path.iter().filter(|&&run| run).count(),
                    },
                );
            }
            totals.macs += macs;
            totals.images += 1;
            lines.push(line);
        }
    }
    totals.bad += bad.len();
    bad.iter()
        .for_each(|image| codinet_trainer::eprint_line!("note: skipped {}: {}", image.name, image.reason));
    for image in bad.into_iter().rev() {
        lines.insert(image.after, json!({"image": image.name, "error": image.reason}));
    }
    lines
}

/// Sums over all images.
#[derive(Default)]
struct Totals {
    images: usize,
    bad: usize,
    macs: f64,
    /// Of the images with a label, numbered in their order.
    predictions: Vec<Prediction>,
    /// The names of those that are wrong, by their numbers.
    mistakes: HashMap<u32, String>,
}

impl Totals {
    fn add_prediction(&mut self, name: &str, prediction: Prediction) {
        if prediction.predicted != prediction.label {
            self.mistakes.insert(prediction.sample, name.to_owned());
        }
        self.predictions.push(prediction);
    }

    fn top1(&self) -> f64 {
        1.0 - self.mistakes.len() as f64 / self.predictions.len() as f64
    }

    fn gmacs(&self) -> f64 {
        self.macs / self.images as f64 / 1e9
    }

    /// Writes the files of `--report`.
    fn write_report(&self, engine: &Engine, network: &TrainedNet, folder: &Path) -> Result<()> {
        let names = network.names();
        let confusion = Confusion::new(&self.predictions, names.len());
        let mistakes = confident_mistakes(&self.predictions, LISTED_MISTAKES);
        write_class_tables(folder, &confusion, &mistakes, &names, |sample| self.mistakes[&sample].clone())?;
        let summary = Summary {
            checkpoint: &network.file,
            images: self.predictions.len(),
            bad_images: self.bad,
            top1: self.top1(),
            gmacs: self.gmacs(),
            gmacs_static: engine.costs.static_macs() as f64 / 1e9,
            classes: ClassSummary::new(&confusion, &names),
        };
        let text = serde_json::to_vec_pretty(&summary).expect("a summary is JSON");
        write_atomically(&folder.join(run_dir::SUMMARY), &text)
    }

    fn summary(&self, engine: &Engine, seconds: f64) -> String {
        let images = self.images as f64;
        let gmacs = self.gmacs();
        let static_gmacs = engine.costs.static_macs() as f64 / 1e9;
        let mut text = format!(
            "{images} images · {gmacs:.4} GMACs per image, {:.0} % of the static {static_gmacs:.4} · {:.0} images/s, reading \
             included",
            100.0 * gmacs / static_gmacs,
            images / seconds
        );
        let labelled = self.predictions.len();
        if labelled > 0 {
            text += &format!(" · top-1 {:.2} % of {labelled} with a label", 100.0 * self.top1());
        }
        text
    }
}

/// The most probable classes of a batch's images, in descending order.
struct TopK {
    classes: Vec<Vec<i64>>,
    probabilities: Vec<Vec<f32>>,
}

impl TopK {
    fn new(logits: &Tensor, k: i64) -> Self {
        let k = k.min(logits.size()[1]);
        let (probabilities, classes) = logits.softmax(1, Kind::Float).topk(k, 1, true, true);
        let classes = Vec::try_from(&classes).expect("rows of numbers");
        Self { classes, probabilities: Vec::try_from(&probabilities).expect("rows of f32") }
    }

    fn line(&self, n: usize, network: &TrainedNet) -> Value {
        let entry = |(&class, probability): (&i64, &f32)| {
            let name = network.class_names.as_ref().and_then(|names| names.get(class as usize));
            match name {
                Some(name) => json!({"class": class, "name": name, "probability": probability}),
                None => json!({"class": class, "probability": probability}),
            }
        };
        let top: Vec<Value> = self.classes[n].iter().zip(&self.probabilities[n]).map(entry).collect();
        let mut line = top[0].clone();
        line["top"] = top.into();
        line
    }
}
