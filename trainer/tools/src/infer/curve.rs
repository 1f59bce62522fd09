//! `codinet-infer curve`: one checkpoint's accuracy and cost at several biases on its gates.

use super::output::{create_output, output_error};
use super::source::{InputArgs, Source};
use super::{Engine, Paths};
use crate::plot::{self, Chart, Point};
use crate::progress;
use codinet_trainer::optim::calibration::check_reachable;
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tch::Tensor;

pub const EXAMPLES: &str = "\
Examples:
  codinet-infer curve --checkpoint runs/a --output curve.csv --plot curve.png
  codinet-infer curve --checkpoint runs/a --budget-gmacs 0.02,0.03";

const COLUMNS: &str = "budget_gmacs,bias,gmacs,share_of_static,top1,distinct_paths,images";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,

    /// Mean GMACs per image, one row of the table each [default: eleven from the least to the most].
    #[arg(long, value_name = "GMACS", value_delimiter = ',')]
    budget_gmacs: Vec<f64>,

    /// Fit the biases on the first N images, and measure accuracy on the others; 0: both on all images.
    #[arg(long = "found-on", value_name = "N", default_value_t = 1000)]
    fit_images: usize,

    /// Images in a batch.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// The CSV file to write [default: standard output].
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// A chart to write: .svg or .png.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// The bytes of a chart's file.
type Encoding = fn(Chart) -> Vec<u8>;

impl Args {
    /// The file of the chart, if there is one.
    fn plot_file(&self) -> Result<Option<(&Path, Encoding)>> {
        let Some(path) = self.plot.as_deref() else { return Ok(None) };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("svg") => Ok(Some((path, |chart| chart.svg.into_bytes()))),
            Some("png") => Ok(Some((path, |chart| chart.png))),
            _ => {
                let what = format!("--plot {}: name a file that ends in .svg or .png", path.display());
                Err(Error::new(Exit::Config, what))
            }
        }
    }
}

pub fn run(args: &Args) -> Result<()> {
    let plot_file = args.plot_file()?;
    let input = &args.input;
    let (threads, device) = input.compute.prepare()?;
    let network = input.network.load(device)?;
    let mut engine = input.compute.engine(&network.net, device);
    engine.require_gates()?;
    let source = Source::open(&input.images, &network, args.batch as usize, threads, device)?;
    let fit_inputs = fit_inputs(&source, args.fit_images)?;
    let budgets = budgets(args, &engine)?;
    let output = args.output.as_deref();
    let mut out = create_output(output)?;
    // The first row is the network as it was trained.
    let mut rows = vec![Row::default()];
    let progress = progress::bar(true, "fitting budgets", budgets.len());
    for budget in budgets {
        engine.fit_bias_to_budget(budget, &fit_inputs)?;
        rows.push(Row { budget: Some(budget), bias: engine.bias, ..Row::default() });
        progress.inc(1);
    }
    progress.finish_and_clear();
    drop(fit_inputs);
    measure(&mut rows, &mut engine, &source, args.fit_images)?;
    let static_gmacs = engine.costs.static_macs() as f64 / 1e9;
    writeln!(out, "{COLUMNS}")
        .and_then(|()| rows.iter().try_for_each(|row| writeln!(out, "{}", row.line(static_gmacs))))
        .and_then(|()| out.flush())
        .map_err(|error| output_error(output, &error))?;
    let Some((path, encoding)) = plot_file else { return Ok(()) };
    let (gmacs, top1) = rows[0].place();
    let trained = Point { name: "as trained".into(), gmacs: (gmacs, 0.0), top1: (top1, 0.0) };
    let mut curve: Vec<(f64, f64)> = rows[1..].iter().map(Row::place).collect();
    curve.sort_by(|a, b| a.0.total_cmp(&b.0));
    std::fs::write(path, encoding(plot::accuracy(&[trained], &curve)?))
        .map_err(|error| Error::disk("write", path, &error))
}

/// The batches that the biases are fitted on: the first `images`; all if 0. Each image must have a label.
fn fit_inputs(source: &Source, images: usize) -> Result<Vec<Tensor>> {
    let mut inputs = Vec::new();
    for batch in source.batches(if images == 0 { source.len() } else { images }) {
        let batch = batch?;
        batch.all_labels()?;
        inputs.push(batch.x);
    }
    if source.len() <= images {
        let what = format!("--found-on {images} leaves none of {} images to measure", source.len());
        return Err(Error::new(Exit::Config, what));
    }
    Ok(inputs)
}

fn budgets(args: &Args, engine: &Engine) -> Result<Vec<f64>> {
    let (least, most) = engine.costs.gmacs_range();
    let mut budgets = args.budget_gmacs.clone();
    if budgets.is_empty() {
        budgets = (0..=10).map(|i| least + (most - least) * f64::from(i) / 10.0).collect();
    }
    budgets.iter().try_for_each(|&budget| check_reachable(engine.costs, "--budget-gmacs", budget))?;
    Ok(budgets)
}

/// Passes each batch once at every row's bias, so that one batch is in memory at a time; the first `skip` images are left
/// out.
fn measure(rows: &mut [Row], engine: &mut Engine, source: &Source, skip: usize) -> Result<()> {
    let mut skip = skip;
    let progress = progress::bar(true, "measuring images", source.len());
    for batch in source.batches(usize::MAX) {
        let batch = batch?;
        let labels = batch.all_labels()?;
        let first = skip.min(labels.len());
        skip -= first;
        if first < labels.len() {
            let x = batch.x.narrow(0, first as i64, (labels.len() - first) as i64);
            rows.iter_mut().for_each(|row| row.add(engine, &x, &labels[first..]));
        }
        progress.inc(labels.len() as u64);
    }
    progress.finish_and_clear();
    Ok(())
}

/// A row of the table, over the images so far.
#[derive(Default)]
struct Row {
    /// None: as it was trained.
    budget: Option<f64>,
    bias: f64,
    images: usize,
    correct: usize,
    macs: f64,
    paths: HashSet<Vec<bool>>,
}

impl Row {
    fn add(&mut self, engine: &mut Engine, x: &Tensor, labels: &[i64]) {
        engine.bias = self.bias;
        let output = engine.forward(x, Paths::Routed);
        let predictions = Vec::<i64>::try_from(&output.logits.argmax(1, false)).expect("numbers");
        self.images += labels.len();
        self.correct +=
            predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label).count();
        for path in output.path.chunks(engine.gates()) {
            self.macs += engine.macs(path);
            self.paths.insert(path.to_vec());
        }
    }

    /// Mean GMACs per image, and top-1 in per cent.
    fn place(&self) -> (f64, f64) {
        let images = self.images as f64;
        (self.macs / images / 1e9, 100.0 * self.correct as f64 / images)
    }

    fn line(&self, static_gmacs: f64) -> String {
        let (gmacs, _) = self.place();
        let budget = self.budget.map_or_else(|| "as trained".to_owned(), |budget| format!("{budget:.6}"));
        format!(
            "{budget},{:.4},{gmacs:.6},{:.4},{:.4},{},{}",
            self.bias,
            gmacs / static_gmacs,
            self.correct as f64 / self.images as f64,
            self.paths.len(),
            self.images
        )
    }
}
