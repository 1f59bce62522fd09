//! `codinet-infer --checkpoint … IMAGES`: a line of JSON for each image.

use super::cli::{Images, Network, output};
use super::source::{ImageBatch, Source, Unread};
use super::{Engine, InferenceOutput, Paths};
use crate::trained::Trained;
use codinet_trainer::optim::calibration::check_reachable;
use codinet_trainer::sys::error::{Error, Exit, Result};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Images on which the bias for a budget is found.
const BIASED_ON: usize = 1024;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    network: Network,

    #[command(flatten)]
    images: Images,

    /// Images at a time.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65536))]
    batch: u32,

    /// How many of the likeliest classes each line has.
    #[arg(long, value_name = "K", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    topk: u32,

    /// Adds every class's logit to each line.
    #[arg(long)]
    logits: bool,

    /// Mean MACs per image, in billions: a bias on all gates is set that meets them on the first 1,024 images.
    #[arg(long, value_name = "GMACS")]
    budget_gmacs: Option<f64>,

    /// Where the lines go; standard output where nothing is named.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let (threads, device) = args.network.hardware.prepare()?;
    let trained = args.network.open(device)?;
    let mut engine = Engine::new(&trained.net);
    if args.images.images.is_empty() {
        return Err(Error::new(Exit::Config, "no images were named: add files, folders or shards"));
    }
    let source = Source::open(&args.images.images, &trained, args.batch as usize, threads, device)?;
    let source = source.passing_over_bad(); // they get a line each
    if let Some(budget) = args.budget_gmacs {
        engine.need_gates()?;
        check_reachable(engine.costs, "--budget-gmacs", budget)?;
        let first = source.inputs(BIASED_ON)?;
        if first.is_empty() {
            let what =
                format!("none of the first {BIASED_ON} images can be read, on which the bias would be found");
            return Err(Error::new(Exit::Data, what));
        }
        let found = engine.fit_bias_to_budget(budget, &first)?;
        eprintln!("a bias of {:+.4} on all gates gives {found:.4} GMACs", engine.bias);
    }
    let mut out = output(args.output.as_deref())?;
    let place = args.output.clone().unwrap_or_else(|| "standard output".into());
    let start = Instant::now();
    let mut all = Sums::default();
    for batch in source.batches(usize::MAX) {
        let ImageBatch { x, names, labels, bad } = batch?;
        let mut lines = Vec::new();
        if !names.is_empty() {
            let InferenceOutput { logits, path } = engine.forward(&x, Paths::Routed);
            let top = TopClasses::new(&logits, args.topk.into());
            for (n, name) in names.iter().enumerate() {
                let path = &path[n * engine.gates()..(n + 1) * engine.gates()];
                let mut line = top.to_json(n, &trained);
                line["image"] = name.as_str().into();
                line["path"] = path.iter().map(|&run| if run { '1' } else { '0' }).collect::<String>().into();
                line["macs"] = (engine.macs(path) as i64).into();
                if args.logits {
                    line["logits"] = json!(Vec::<f32>::try_from(&logits.get(n as i64)).expect("f32"));
                }
                if let Some(label) = labels[n] {
                    line["label"] = label.into();
                    all.labelled += 1;
                    all.right += usize::from(label == top.classes[n][0]);
                }
                all.macs += engine.macs(path);
                all.images += 1;
                lines.push(line);
            }
        }
        all.bad += bad.len();
        bad.iter().for_each(|bad| eprintln!("note: passed over: {}: {}", bad.name, bad.reason));
        for Unread { after, name, reason } in bad.into_iter().rev() {
            lines.insert(after, json!({"image": name, "error": reason}));
        }
        for line in &lines {
            match writeln!(out, "{line}") {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|error| Error::disk("write", &place, &error))?,
            }
        }
    }
    out.flush().map_err(|error| Error::disk("write", &place, &error))?;
    let Sums { images, bad, .. } = all;
    if images > 0 {
        eprintln!("{}", all.said(&engine, start.elapsed().as_secs_f64()));
    }
    if bad > 0 {
        let what = format!("{bad} of {} images can't be used; their lines say why", images + bad);
        return Err(Error::new(Exit::Data, what));
    }
    Ok(())
}

/// Over all images.
#[derive(Default)]
struct Sums {
    images: usize,
    bad: usize,
    macs: f64,
    labelled: usize,
    right: usize,
}

impl Sums {
    fn said(&self, engine: &Engine, seconds: f64) -> String {
        let &Self { images, labelled, .. } = self;
        let gmacs = self.macs / images as f64 / 1e9;
        let whole = engine.costs.static_macs() as f64 / 1e9;
        let mut said = format!(
            "{images} images · {gmacs:.4} GMACs per image, {:.0} % of the static {whole:.4} · {:.0} images/s, reading \
             included",
            100.0 * gmacs / whole,
            images as f64 / seconds
        );
        if labelled > 0 {
            let top1 = 100.0 * self.right as f64 / labelled as f64;
            said += &format!(" · top-1 {top1:.2} % of {labelled} with a label");
        }
        said
    }
}

/// The likeliest classes of a batch, the first first.
struct TopClasses {
    classes: Vec<Vec<i64>>,
    probabilities: Vec<Vec<f32>>,
}

impl TopClasses {
    fn new(logits: &Tensor, count: i64) -> Self {
        let (probabilities, classes) =
            logits.softmax(1, Kind::Float).topk(count.min(logits.size()[1]), 1, true, true);
        let classes = Vec::try_from(&classes).expect("rows of numbers");
        Self { classes, probabilities: Vec::try_from(&probabilities).expect("rows of f32") }
    }

    fn to_json(&self, n: usize, trained: &Trained) -> Value {
        let name = |class: i64| trained.class_names.as_ref()?.get(class as usize);
        let one = |class: i64, probability: f32| match name(class) {
            Some(name) => json!({"class": class, "name": name, "probability": probability}),
            None => json!({"class": class, "probability": probability}),
        };
        let all: Vec<_> =
            self.classes[n].iter().zip(&self.probabilities[n]).map(|(&class, &p)| one(class, p)).collect();
        let mut line = all[0].clone();
        line["top"] = all.into();
        line
    }
}
