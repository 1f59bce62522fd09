//! The images that a command is given: files, folders of them, data sets.

use crate::trained::Trained;
use codinet_dataloader::{BadSample, Batch, BatchPlan, Dataset, Loader, LoaderSpec, OnBadSample};
use codinet_trainer::config::Precision;
use codinet_trainer::data::{self, Normalise};
use codinet_trainer::sys::error::Result;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tch::{Device, Tensor};

/// Images in the order in which they were named, as evaluation sees them.
pub struct Source {
    datasets: Vec<(Arc<Dataset>, bool)>,
    spec: LoaderSpec,
    normalise: Normalise,
    batch: usize,
}

/// A batch of images.
pub struct ImageBatch {
    /// f32 `[N, C, H, W]`, normalised.
    pub x: Tensor,
    /// What each is: a file's path, or shard and key.
    pub names: Vec<String>,
    /// Its class, where it is known.
    pub labels: Vec<Option<i64>>,
    /// Those that could not be read or decoded.
    pub bad: Vec<Unread>,
}

/// An image that could not be read or decoded.
pub struct Unread {
    /// How many images of its batch come before it that could.
    pub after: usize,
    /// What it is, as [`ImageBatch::names`] has it.
    pub name: String,
    /// Why.
    pub reason: String,
}

impl Source {
    /// Opens what `paths` name; nothing named: the run's `data.val`. A folder whose subfolders, in the order of their names,
    /// are the classes of `trained` is a data set; other folders are of images without labels. An image that can't be read
    /// or decoded is an error.
    pub fn open(
        paths: &[PathBuf],
        trained: &Trained,
        batch: usize,
        threads: usize,
        device: Device,
    ) -> Result<Self> {
        let config = &trained.config;
        let open = |pattern: &str| Dataset::open_with(pattern, &config.dataset_options());
        let mut datasets = Vec::new();
        if paths.is_empty() {
            datasets.push((Arc::new(open(&config.data.val)?), true));
        }
        let mut loose: Vec<PathBuf> = Vec::new();
        let close = |loose: &mut Vec<PathBuf>, datasets: &mut Vec<_>| -> Result<()> {
            if !loose.is_empty() {
                datasets.push((Arc::new(Dataset::from_images(&std::mem::take(loose))?), false));
            }
            Ok(())
        };
        for path in paths {
            let name = path.to_string_lossy();
            if Dataset::names_shards(&name)? || is_by_class(path, trained) {
                close(&mut loose, &mut datasets)?;
                datasets.push((Arc::new(open(&name)?), true));
            } else {
                loose.push(path.clone());
            }
        }
        close(&mut loose, &mut datasets)?;
        let spec = data::loader_spec(config, config.evaluation(), 1);
        let spec = LoaderSpec { threads, on_bad: OnBadSample::Fail, ..spec };
        let normalise = Normalise::new(&config.data, Precision::Fp32, device);
        Ok(Self { datasets, spec, normalise, batch })
    }

    /// The same, where images that can't be read or decoded are passed over.
    pub fn passing_over_bad(mut self) -> Self {
        self.spec.on_bad = OnBadSample::Replace;
        self
    }

    /// How many images there are.
    pub fn len(&self) -> usize {
        self.datasets.iter().map(|(dataset, _)| dataset.len()).sum()
    }

    /// The first `most` images, batch by batch.
    pub fn batches(&self, most: usize) -> impl Iterator<Item = Result<ImageBatch>> {
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
            let image_batch = move |batch| Ok(self.image_batch(&batch?, dataset, *labelled));
            error.into_iter().chain(loader.into_iter().flatten().map(image_batch))
        })
    }

    /// As the network takes them, the first `most`, but for those that are passed over.
    pub fn inputs(&self, most: usize) -> Result<Vec<Tensor>> {
        let inputs = self.batches(most).map(|batch| Ok(batch?.x));
        inputs.filter(|x: &Result<Tensor>| x.as_ref().map_or(true, |x| x.size()[0] > 0)).collect()
    }

    fn image_batch(&self, batch: &Batch, dataset: &Dataset, labelled: bool) -> ImageBatch {
        let (x, _) = self.normalise.tensors(batch);
        let named = |sample: u32| {
            let place = dataset.sample_info(sample as usize).expect("a sample that was read");
            match place.length {
                0 => place.shard.join(place.name).display().to_string(), // a file
                _ => format!("{}:{}", place.shard.display(), place.key),
            }
        };
        let names = batch.samples.iter().map(|&sample| named(sample)).collect();
        let labels = batch.labels.iter().map(|&label| labelled.then_some(label)).collect();
        let unread = |bad: &BadSample| Unread {
            after: batch.samples.partition_point(|&good| good < bad.sample),
            name: named(bad.sample),
            reason: bad.reason.clone(),
        };
        let mut bad: Vec<&BadSample> = batch.bad.iter().collect();
        bad.sort_by_key(|bad| bad.sample);
        ImageBatch { x, names, labels, bad: bad.into_iter().map(unread).collect() }
    }
}

/// Whether the folders in `path`, in the order of their names, are the classes that `trained` tells apart.
fn is_by_class(path: &Path, trained: &Trained) -> bool {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = entries.filter(|path| path.is_dir());
    let mut found: Vec<String> =
        folders.filter_map(|folder| Some(folder.file_name()?.to_str()?.to_owned())).collect();
    found.sort();
    trained.class_names.as_ref().is_some_and(|names| *names == found)
}
