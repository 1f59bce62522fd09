//! The images on a command line: files, folders of them, data sets.

use super::compute::ComputeArgs;
use crate::trained::{NetworkArgs, TrainedNet};
use codinet_dataloader::{BadSample, Batch, BatchPlan, Dataset, Loader, LoaderSpec, OnBadSample};
use codinet_trainer::config::Precision;
use codinet_trainer::data::{self, Normalise};
use codinet_trainer::sys::error::{Error, Exit, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Tensor};

/// A network, and the images that it classifies.
#[derive(Debug, clap::Args)]
pub struct InputArgs {
    #[command(flatten)]
    pub network: NetworkArgs,

    #[command(flatten)]
    pub compute: ComputeArgs,

    /// JPEG and PNG files, folders of them, shards as in `data.val`, or a folder with a subfolder for each of the run's classes.
    #[arg(value_name = "IMAGES")]
    pub images: Vec<PathBuf>,
}

/// Images in the order of the command line, transformed as in evaluation.
pub struct Source {
    datasets: Vec<Labelled>,
    spec: LoaderSpec,
    normalise: Normalise,
    batch: usize,
}

/// A data set, and whether its images have labels.
struct Labelled {
    dataset: Arc<Dataset>,
    labelled: bool,
}

/// A batch of images.
pub struct ImageBatch {
    /// f32 `[N, C, H, W]`, normalised.
    pub x: Tensor,
    /// The file's path, or the shard and key, of each.
    pub names: Vec<String>,
    /// The class of each, if known.
    pub labels: Vec<Option<i64>>,
    /// Images of the batch that cannot be used.
    pub bad: Vec<BadImage>,
}

impl ImageBatch {
    /// The label of every image; an error if one has none.
    pub fn all_labels(&self) -> Result<Vec<i64>> {
        self.labels.iter().copied().collect::<Option<Vec<i64>>>().ok_or_else(|| {
            let what = "files have no labels, which accuracy needs; name a data set, or leave IMAGES out for the run's data.val";
            Error::new(Exit::Config, what)
        })
    }
}

/// An image that could not be read or decoded.
pub struct BadImage {
    /// How many good images of its batch come before it.
    pub after: usize,
    /// As in [`ImageBatch::names`].
    pub name: String,
    pub reason: String,
}

impl Source {
    /// Opens `paths`; the run's `data.val` if there are none. A folder is a data set if its subfolders have the names of the
    /// network's classes; other folders have images without labels. An image that cannot be read or decoded is an error.
    pub fn open(
        paths: &[PathBuf],
        network: &TrainedNet,
        batch: usize,
        threads: usize,
        device: Device,
    ) -> Result<Self> {
        let config = &network.config;
        let open = |pattern: &str| -> Result<Labelled> {
            let dataset = Dataset::open_with(pattern, &config.dataset_options())?;
            Ok(Labelled { dataset: Arc::new(dataset), labelled: true })
        };
        let mut datasets = Vec::new();
        if paths.is_empty() {
            datasets.push(open(&config.data.val)?);
        }
        let mut kinds = Vec::new();
        for path in paths {
            let is_dataset =
                Dataset::names_shards(&path.to_string_lossy())? || has_class_folders(path, network)?;
            kinds.push((is_dataset, path.clone()));
        }
        for group in kinds.chunk_by(|a, b| !a.0 && !b.0) {
            datasets.push(match group {
                [(true, path)] => open(&path.to_string_lossy())?,
                _ => {
                    let images: Vec<PathBuf> = group.iter().map(|(_, path)| path.clone()).collect();
                    Labelled { dataset: Arc::new(Dataset::from_images(&images)?), labelled: false }
                }
            });
        }
        for Labelled { dataset, .. } in &datasets {
            data::print_data_notes("the images", dataset, &config.evaluation(), config.data.eval_size())?;
        }
        let spec = data::loader_spec(config, config.evaluation(), config.data.eval_size(), 1);
        let spec = LoaderSpec { threads, on_bad: OnBadSample::Fail, ..spec };
        let normalise = Normalise::new(&config.data, Precision::Fp32, device);
        Ok(Self { datasets, spec, normalise, batch })
    }

    /// The same, but images that cannot be read or decoded are listed in [`ImageBatch::bad`].
    pub fn skip_bad(mut self) -> Self {
        self.spec.on_bad = OnBadSample::Replace;
        self
    }

    /// The number of images.
    pub fn len(&self) -> usize {
        self.datasets.iter().map(|part| part.dataset.len()).sum()
    }

    /// Checks that some images have labels, and that each label is one of the `classes`.
    pub fn check_labels(&self, classes: usize) -> Result<()> {
        let mut labelled = self.datasets.iter().filter(|part| part.labelled).peekable();
        if labelled.peek().is_none() {
            let what = "no image has a label, which a report needs; name a data set, or leave IMAGES out for the run's data.val";
            return Err(Error::new(Exit::Config, what));
        }
        Ok(labelled.try_for_each(|part| part.dataset.check_labels(classes))?)
    }

    /// The first `limit` images in batches.
    pub fn batches(&self, limit: usize) -> impl Iterator<Item = Result<ImageBatch>> {
        let mut left = limit;
        self.datasets.iter().flat_map(move |part| {
            let count = part.dataset.len().min(left);
            left -= count;
            let samples: Vec<u32> = (0..count as u32).collect();
            let plans: Vec<_> =
                samples.chunks(self.batch).map(|chunk| BatchPlan::new(0, chunk.to_vec())).collect();
            let (loader, error) =
                match Loader::new(part.dataset.clone(), self.spec.clone(), plans.into_iter()) {
                    Ok(loader) => (Some(loader), None),
                    Err(error) => (None, Some(Err(error.into()))),
                };
            let image_batch = move |batch| Ok(self.image_batch(&batch?, part));
            error.into_iter().chain(loader.into_iter().flatten().map(image_batch))
        })
    }

    /// The network's inputs for the first `limit` images, bad ones left out.
    pub fn inputs(&self, limit: usize) -> Result<Vec<Tensor>> {
        let inputs = self.batches(limit).map(|batch| Ok(batch?.x));
        inputs.filter(|x: &Result<Tensor>| x.as_ref().map_or(true, |x| x.size()[0] > 0)).collect()
    }

    fn image_batch(&self, batch: &Batch, part: &Labelled) -> ImageBatch {
        let (x, _) = self.normalise.tensors(batch);
        let name = |sample: u32| part.dataset.sample_name(sample as usize);
        let names = batch.samples.iter().map(|&sample| name(sample)).collect();
        let labels = batch.labels.iter().map(|&label| part.labelled.then_some(label)).collect();
        let bad_image = |bad: &BadSample| BadImage {
            after: batch.samples.partition_point(|&good| good < bad.sample),
            name: name(bad.sample),
            reason: bad.reason.clone(),
        };
        let mut bad: Vec<&BadSample> = batch.bad.iter().collect();
        bad.sort_by_key(|bad| bad.sample);
        ImageBatch { x, names, labels, bad: bad.into_iter().map(bad_image).collect() }
    }
}

/// Whether the class folders in `path` are the classes of `network`.
fn has_class_folders(path: &Path, network: &TrainedNet) -> Result<bool> {
    Ok(path.is_dir() && network.class_names.as_ref() == Some(&Dataset::class_folders(path)?))
}
