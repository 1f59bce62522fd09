//! `codinet-infer --checkpoint … IMAGES`: a line of JSON for each image.

use super::cli::{Images, Network, output, unwritable};
use super::{Engine, Passed, Paths};
use crate::budget;
use crate::config::{Config, Precision};
use crate::error::{Error, Exit, Result};
use crate::input::Normalise;
use crate::trained::Trained;
use codinet_dataloader::{Batch, BatchPlan, Dataset, Loader, LoaderSpec, OnBadSample};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tch::{Device, Kind, Tensor};

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

    /// Mean MACs an image, in billions: a bias on all gates is set that meets them on the first 1,024 images.
    #[arg(long, value_name = "GMACS")]
    budget_gmacs: Option<f64>,

    /// Where the lines go; standard output where it is left out.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Images in the order in which they were named, as evaluation sees them.
pub struct Source {
    datasets: Vec<(Arc<Dataset>, bool)>,
    spec: LoaderSpec,
    normalise: Normalise,
    batch: usize,
}

/// A batch of images.
pub struct Pictures {
    /// f32 `[N, C, H, W]`, normalised.
    pub x: Tensor,
    /// What each is: a file's path, or shard and key.
    pub names: Vec<String>,
    /// Its class, where it is known.
    pub labels: Vec<Option<i64>>,
}

impl Source {
    /// Opens what `paths` name; nothing named: the run's `data.val`.
    pub fn open(
        paths: &[PathBuf],
        config: &Config,
        batch: usize,
        threads: usize,
        device: Device,
    ) -> Result<Self> {
        let val = [PathBuf::from(&config.data.val)];
        let mut datasets = Vec::new();
        let mut loose: Vec<PathBuf> = Vec::new();
        let close = |loose: &mut Vec<PathBuf>, datasets: &mut Vec<_>| -> Result<()> {
            if !loose.is_empty() {
                datasets.push((Arc::new(Dataset::of_images(&std::mem::take(loose))?), false));
            }
            Ok(())
        };
        for path in if paths.is_empty() { &val[..] } else { paths } {
            if holds_shards(path)? {
                close(&mut loose, &mut datasets)?;
                datasets.push((Arc::new(Dataset::open(&path.to_string_lossy())?), true));
            } else {
                loose.push(path.clone());
            }
        }
        close(&mut loose, &mut datasets)?;
        let data = &config.data;
        let spec = LoaderSpec {
            transform: config.evaluation(),
            image_size: data.image_size,
            channels: data.channels as usize,
            views: 1,
            seed: 0,
            threads,
            prefetch: 2,
            on_bad: OnBadSample::Fail,
        };
        let normalise = Normalise::new(data, Precision::Fp32, device);
        Ok(Self { datasets, spec, normalise, batch })
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.datasets.iter().map(|(dataset, _)| dataset.len()).sum()
    }

    /// The first `most` images, batch by batch.
    pub fn batches(&self, most: usize) -> impl Iterator<Item = Result<Pictures>> {
        let mut left = most;
        self.datasets.iter().flat_map(move |(dataset, labelled)| {
            let taken = dataset.len().min(left);
            left -= taken;
            let samples: Vec<u32> = (0..taken as u32).collect();
            let plans: Vec<_> =
                samples.chunks(self.batch).map(|part| BatchPlan::new(0, part.to_vec())).collect();
            let (loader, error) = match Loader::new(dataset.clone(), self.spec.clone(), plans.into_iter()) {
                Ok(loader) => (Some(loader), None),
                Err(error) => (None, Some(Err(error.into()))),
            };
            let pictures = move |batch| Ok(self.pictures(&batch?, dataset, *labelled));
            error.into_iter().chain(loader.into_iter().flatten().map(pictures))
        })
    }

    fn pictures(&self, batch: &Batch, dataset: &Dataset, labelled: bool) -> Pictures {
        let (x, _) = self.normalise.tensors(batch);
        let named = |&sample: &u32| {
            let place = dataset.meta(sample as usize).expect("a sample that was read");
            if labelled { format!("{}:{}", place.shard.display(), place.key) } else { place.name.to_owned() }
        };
        let names = batch.samples.iter().map(named).collect();
        let labels = batch.labels.iter().map(|&label| labelled.then_some(label)).collect();
        Pictures { x, names, labels }
    }
}

/// Whether `path` is to be opened as shards: a tar, a pattern, a store's, or a folder with one of these in it.
fn holds_shards(path: &Path) -> Result<bool> {
    let text = path.to_string_lossy();
    if path.is_dir() {
        let entries = std::fs::read_dir(path)
            .map_err(|error| Error::new(Exit::Data, format!("cannot list {}: {error}", path.display())))?;
        let mut names = entries.flatten().map(|entry| entry.path());
        return Ok(names.any(|name| name.extension().is_some_and(|extension| extension == "tar")));
    }
    Ok(text.ends_with(".tar") || text.contains(['*', '{']) || text.contains("://") || text.ends_with(".json"))
}

/// A bias on all gates that meets `budget` in GMACs on `batches`, and what it gives.
pub fn meet(engine: &mut Engine, budget: f64, batches: &[Tensor]) -> Result<f64> {
    let (bias, found) = budget::nearest_bias(budget, |bias| {
        engine.bias = bias;
        let mut rates = (0.0, vec![0.0; engine.gates()]);
        for x in batches {
            let passed = engine.forward(x, Paths::Routed);
            rates.0 += x.size()[0] as f64;
            for path in passed.path.chunks(engine.gates().max(1)) {
                rates.1.iter_mut().zip(path).for_each(|(rate, &run)| *rate += f64::from(u8::from(run)));
            }
        }
        let rates: Vec<f64> = rates.1.iter().map(|sum| sum / rates.0).collect();
        Ok(engine.costs.mean_macs(&rates) / 1e9)
    })?;
    engine.bias = bias;
    Ok(found)
}

/// Refuses a budget that no path meets.
pub fn check_budget(engine: &Engine, budget: f64) -> Result<()> {
    let at = |run: bool| engine.macs(&vec![run; engine.gates()]) / 1e9;
    if engine.gates() > 0 && (at(false)..=at(true)).contains(&budget) {
        return Ok(());
    }
    let what = format!(
        "a budget of {budget} GMACs: this network takes {:.4} (no block run) to {:.4} (all)",
        at(false),
        at(true)
    );
    Err(Error::new(Exit::Config, what))
}

pub fn run(args: &Args) -> Result<()> {
    let (threads, device) = args.network.place.prepare()?;
    let trained = args.network.open(device)?;
    let mut engine = Engine::new(&trained.net);
    if args.images.images.is_empty() {
        return Err(Error::new(Exit::Config, "no images were named: add files, folders or shards"));
    }
    let source = Source::open(&args.images.images, &trained.config, args.batch as usize, threads, device)?;
    if let Some(budget) = args.budget_gmacs {
        check_budget(&engine, budget)?;
        let first: Vec<Tensor> =
            source.batches(BIASED_ON).map(|batch| Ok(batch?.x)).collect::<Result<_>>()?;
        let found = meet(&mut engine, budget, &first)?;
        eprintln!("a bias of {:+.4} on all gates gives {found:.4} GMACs", engine.bias);
    }
    let mut out = output(args.output.as_deref())?;
    let place = args.output.clone().unwrap_or_else(|| "standard output".into());
    let begun = Instant::now();
    let (mut images, mut macs, mut labelled, mut right) = (0usize, 0.0, 0usize, 0usize);
    for batch in source.batches(usize::MAX) {
        let Pictures { x, names, labels } = batch?;
        let Passed { logits, path } = engine.forward(&x, Paths::Routed);
        let found = Found::of(&logits, args.topk.into());
        for (n, name) in names.iter().enumerate() {
            let path = &path[n * engine.gates()..(n + 1) * engine.gates()];
            let mut line = found.line(n, &trained);
            line["image"] = name.as_str().into();
            line["path"] = path.iter().map(|&run| if run { '1' } else { '0' }).collect::<String>().into();
            line["macs"] = (engine.macs(path) as i64).into();
            if args.logits {
                line["logits"] = json!(Vec::<f32>::try_from(&logits.get(n as i64)).expect("f32"));
            }
            if let Some(label) = labels[n] {
                line["label"] = label.into();
                labelled += 1;
                right += usize::from(label == found.classes[n][0]);
            }
            macs += engine.macs(path);
            images += 1;
            match writeln!(out, "{line}") {
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written.map_err(|error| unwritable(&place, &error))?,
            }
        }
    }
    out.flush().map_err(|error| unwritable(&place, &error))?;
    let (gmacs, whole) = (macs / images as f64 / 1e9, engine.costs.static_macs() as f64 / 1e9);
    let mut said = format!(
        "{images} images · {gmacs:.4} GMACs an image, {:.0} % of the static {whole:.4} · {:.0} images/s, reading included",
        100.0 * gmacs / whole,
        images as f64 / begun.elapsed().as_secs_f64()
    );
    if labelled > 0 {
        said +=
            &format!(" · top-1 {:.2} % of {labelled} with a label", 100.0 * right as f64 / labelled as f64);
    }
    eprintln!("{said}");
    Ok(())
}

/// The likeliest classes of a batch, the first first.
struct Found {
    classes: Vec<Vec<i64>>,
    probabilities: Vec<Vec<f32>>,
}

impl Found {
    fn of(logits: &Tensor, most: i64) -> Self {
        let (probabilities, classes) =
            logits.softmax(1, Kind::Float).topk(most.min(logits.size()[1]), 1, true, true);
        let classes = Vec::try_from(&classes).expect("rows of numbers");
        Self { classes, probabilities: Vec::try_from(&probabilities).expect("rows of f32") }
    }

    fn line(&self, n: usize, trained: &Trained) -> serde_json::Value {
        let one = |class: i64, probability: f32| match &trained.class_names {
            Some(names) => json!({"class": class, "name": names[class as usize], "probability": probability}),
            None => json!({"class": class, "probability": probability}),
        };
        let all: Vec<_> =
            self.classes[n].iter().zip(&self.probabilities[n]).map(|(&class, &p)| one(class, p)).collect();
        let mut line = all[0].clone();
        line["top"] = all.into();
        line
    }
}
