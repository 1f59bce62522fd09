//! The images that a command is given: files, folders of them, shards.

use crate::config::{Config, Precision};
use crate::error::{Error, Exit, Result};
use crate::input::{self, Normalise};
use codinet_dataloader::{Batch, BatchPlan, Dataset, Loader, LoaderSpec, OnBadSample};
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
        let shards = |pattern: &str| Dataset::open_with(pattern, &config.dataset_options());
        let mut datasets = Vec::new();
        if paths.is_empty() {
            datasets.push((Arc::new(shards(&config.data.val)?), true));
        }
        let mut loose: Vec<PathBuf> = Vec::new();
        let close = |loose: &mut Vec<PathBuf>, datasets: &mut Vec<_>| -> Result<()> {
            if !loose.is_empty() {
                datasets.push((Arc::new(Dataset::of_images(&std::mem::take(loose))?), false));
            }
            Ok(())
        };
        for path in paths {
            if holds_shards(path)? {
                close(&mut loose, &mut datasets)?;
                datasets.push((Arc::new(shards(&path.to_string_lossy())?), true));
            } else {
                loose.push(path.clone());
            }
        }
        close(&mut loose, &mut datasets)?;
        let spec = input::spec(config, config.evaluation(), 1);
        let spec = LoaderSpec { threads, on_bad: OnBadSample::Fail, ..spec };
        let normalise = Normalise::new(&config.data, Precision::Fp32, device);
        Ok(Self { datasets, spec, normalise, batch })
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

    fn image_batch(&self, batch: &Batch, dataset: &Dataset, labelled: bool) -> ImageBatch {
        let (x, _) = self.normalise.tensors(batch);
        let named = |&sample: &u32| {
            let place = dataset.meta(sample as usize).expect("a sample that was read");
            if labelled { format!("{}:{}", place.shard.display(), place.key) } else { place.name.to_owned() }
        };
        let names = batch.samples.iter().map(named).collect();
        let labels = batch.labels.iter().map(|&label| labelled.then_some(label)).collect();
        ImageBatch { x, names, labels }
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
