//! `codinet-infer curve`: what one checkpoint's accuracy becomes as a bias on its gates moves its cost.

use super::cli::{Images, Network, output};
use super::source::{ImageBatch, Source};
use super::{Engine, Paths};
use crate::plot::{self, Chart, Point};
use codinet_trainer::optim::calibration::check_reachable;
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tch::Tensor;

pub const EXAMPLES: &str = "\
Examples:
  codinet-infer curve --checkpoint runs/a --output curve.csv --plot curve.png
  codinet-infer curve --checkpoint runs/a --budget-gmacs 0.02,0.03";

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    images: Images,

    /// Mean GMACs per image, each a line of the table [default: eleven from the least to the most].
    #[arg(long, value_name = "GMACS", value_delimiter = ',')]
    budget_gmacs: Vec<f64>,

    /// Images that the bias is found on, the first ones; accuracy is of the others. The same ones where 0.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    found_on: usize,

    /// Images at a time.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// Where the table goes, as CSV; standard output where nothing is named.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Where a picture of it goes: .svg or .png.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// What of a chart a file holds.
type Format = fn(Chart) -> Vec<u8>;

impl Args {
    /// Where the picture goes, and as what.
    fn drawing(&self) -> Result<Option<(&Path, Format)>> {
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
    let drawing = args.drawing()?;
    let (threads, device) = args.network.hardware.prepare()?;
    let trained = args.network.open(device)?;
    let mut engine = Engine::new(&trained.net);
    engine.need_gates()?;
    let source = Source::open(&args.images.images, &trained, args.batch as usize, threads, device)?;
    let most = match args.found_on {
        0 => source.len(),
        some => some,
    };
    let mut held = Vec::new();
    for batch in source.batches(most) {
        let batch = batch?;
        labels(&batch)?;
        held.push(batch.x);
    }
    if source.len() <= args.found_on {
        let what = format!("--found-on {} leaves none of {} images to try", args.found_on, source.len());
        return Err(Error::new(Exit::Config, what));
    }
    let (least, most) = engine.costs.gmacs_range();
    let mut budgets = args.budget_gmacs.clone();
    if budgets.is_empty() {
        budgets = (0..=10).map(|i| least + (most - least) * f64::from(i) / 10.0).collect();
    }
    budgets.iter().try_for_each(|&budget| check_reachable(engine.costs, "--budget-gmacs", budget))?;
    let mut out = output(args.output.as_deref())?;
    let place = args.output.clone().unwrap_or_else(|| "standard output".into());
    let mut lines = vec!["budget_gmacs,bias,gmacs,share_of_static,top1,distinct_paths,images".to_owned()];
    let mut drawn = Vec::new();
    // First as it was trained.
    let mut rows = vec![Row::default()];
    for budget in budgets {
        engine.fit_bias_to_budget(budget, &held)?;
        rows.push(Row { budget: Some(budget), bias: engine.bias, ..Row::default() });
    }
    drop(held);
    // One pass over the others, each batch at every bias: so many images need not be in memory at once.
    let mut seen = 0;
    for batch in source.batches(usize::MAX) {
        let batch = batch?;
        let labels = labels(&batch)?;
        seen += labels.len();
        let from = labels.len() - (seen.saturating_sub(args.found_on)).min(labels.len());
        if from == labels.len() {
            continue;
        }
        let x = batch.x.narrow(0, from as i64, (labels.len() - from) as i64);
        rows.iter_mut().for_each(|row| row.add(&mut engine, &x, &labels[from..]));
    }
    for row in &rows {
        let gmacs = row.macs / row.images as f64 / 1e9;
        let top1 = row.right as f64 / row.images as f64;
        let share = gmacs * 1e9 / engine.costs.static_macs() as f64;
        drawn.push((gmacs, 100.0 * top1));
        let budget = row.budget.map_or_else(|| "as trained".to_owned(), |budget| format!("{budget:.6}"));
        let bias = row.bias;
        let paths = row.paths.len();
        let images = row.images;
        lines.push(format!("{budget},{bias:.4},{gmacs:.6},{share:.4},{top1:.4},{paths},{images}"));
    }
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "{line}"))
        .and_then(|()| out.flush())
        .map_err(|error| Error::disk("write", &place, &error))?;
    let Some((path, bytes)) = drawing else { return Ok(()) };
    let (gmacs, top1) = drawn.remove(0);
    let trained = Point { name: "as trained".into(), gmacs: (gmacs, 0.0), top1: (top1, 0.0) };
    drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
    std::fs::write(path, bytes(plot::accuracy(&[trained], &drawn)?))
        .map_err(|error| Error::disk("write", path, &error))
}

/// A line of the table, as far as images have been seen.
#[derive(Default)]
struct Row {
    /// None: as it was trained.
    budget: Option<f64>,
    bias: f64,
    images: usize,
    right: usize,
    macs: f64,
    paths: HashSet<Vec<bool>>,
}

impl Row {
    fn add(&mut self, engine: &mut Engine, x: &Tensor, labels: &[i64]) {
        engine.bias = self.bias;
        let passed = engine.forward(x, Paths::Routed);
        let best = Vec::<i64>::try_from(&passed.logits.argmax(1, false)).expect("numbers");
        self.images += labels.len();
        self.right += best.iter().zip(labels).filter(|(best, label)| best == label).count();
        for path in passed.path.chunks(engine.gates().max(1)) {
            self.macs += engine.macs(path);
            self.paths.insert(path.to_vec());
        }
    }
}

/// Every image's class.
fn labels(batch: &ImageBatch) -> Result<Vec<i64>> {
    batch.labels.iter().copied().collect::<Option<Vec<i64>>>().ok_or_else(|| {
        let what = "the accuracy is asked for, but files have no labels; name a data set, or leave IMAGES out for the run's data.val";
        Error::new(Exit::Config, what)
    })
}
