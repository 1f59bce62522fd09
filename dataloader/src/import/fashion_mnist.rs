//! Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28×28, 10 classes, in four IDX files.

use std::path::{Path, PathBuf};

use super::{Outcome, check_label, clear, idx, is_complete};
use crate::dataset::DatasetInfo;
use crate::decode::Channels;
use crate::encode::{Encoder, Encoding};
use crate::error::{Error, Result};
use crate::shard::ShardWriter;

const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

const SIZE: usize = 28;

/// The split's name here, and its files' prefix.
const SPLITS: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];

/// What to import, and how.
#[derive(Debug, Clone)]
pub struct Import {
    /// Folder of the four IDX files, `train-images-idx3-ubyte` and so on, each plain or with `.gz`.
    pub source: PathBuf,
    /// Where `train/` and `test/` are written.
    pub out: PathBuf,
    /// How the images are stored.
    pub encoding: Encoding,
    /// Samples in a shard.
    pub samples_per_shard: u32,
}

/// One split as it was imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Its folder.
    pub folder: PathBuf,
    /// What its `dataset.json` says.
    pub info: DatasetInfo,
    /// Whether it had to be written.
    pub outcome: Outcome,
}

impl Import {
    /// Imports both splits. `progress` is called with the samples done and in all, after each sample.
    ///
    /// # Errors
    /// A source file that is missing or broken, labels that don't match the images, a disk that can't be written.
    pub fn run(&self, mut progress: impl FnMut(u64, u64)) -> Result<Vec<Split>> {
        if self.samples_per_shard == 0 {
            return Err(Error::InvalidArgument("samples per shard must be at least 1, not 0".into()));
        }
        // Both splits are read and checked before anything is written.
        let sources: Vec<Source> = SPLITS.iter().map(|split| self.read(split.1)).collect::<Result<_>>()?;
        let total = sources.iter().map(|source| source.labels.bytes.len() as u64).sum();
        let mut done = 0;
        let mut splits = Vec::new();
        for ((name, _), source) in SPLITS.iter().zip(&sources) {
            let folder = self.out.join(name);
            let info = self.info(name, source.labels.bytes.len() as u64);
            let outcome = if is_complete(&folder, &info, self.encoding) {
                done += info.samples;
                Outcome::AlreadyComplete
            } else {
                self.write(name, &folder, source, &info, || {
                    done += 1;
                    progress(done, total);
                })?;
                Outcome::Written
            };
            progress(done, total);
            splits.push(Split { folder, info, outcome });
        }
        Ok(splits)
    }

    fn info(&self, split: &str, samples: u64) -> DatasetInfo {
        DatasetInfo {
            version: 1,
            name: format!("fashion-mnist {split}"),
            classes: CLASSES.len(),
            channels: 1,
            image_size: Some(SIZE as u32),
            samples,
            shards: samples.div_ceil(self.samples_per_shard.into()),
            class_names: Some(CLASSES.map(String::from).to_vec()),
        }
    }

    fn read(&self, prefix: &str) -> Result<Source> {
        let images = idx::read(&self.source, &format!("{prefix}-images-idx3-ubyte"), 3)?;
        let labels = idx::read(&self.source, &format!("{prefix}-labels-idx1-ubyte"), 1)?;
        let count = labels.bytes.len();
        if count == 0 || images.dimensions != [count, SIZE, SIZE] {
            let what = format!(
                "holds {:?} images by rows and columns, for {count} labels; expected {count} of 28x28, at least 1",
                images.dimensions
            );
            return Err(Error::malformed(&images.path, what));
        }
        for (position, &label) in labels.bytes.iter().enumerate() {
            check_label(&labels.path, position, label, CLASSES.len())?;
        }
        Ok(Source { images, labels })
    }

    fn write(
        &self,
        name: &str,
        folder: &Path,
        source: &Source,
        info: &DatasetInfo,
        mut progress: impl FnMut(),
    ) -> Result<()> {
        clear(folder, name)?;
        let mut writer = ShardWriter::new(folder, name, self.samples_per_shard)?;
        let mut encoder = Encoder::new(self.encoding)?;
        let images = source.images.bytes.chunks_exact(SIZE * SIZE);
        for (position, (image, &label)) in images.zip(&source.labels.bytes).enumerate() {
            let encoded = encoder.encode(image, SIZE as u32, SIZE as u32, Channels::Grey)?;
            writer.write(&format!("{position:08}"), self.encoding.extension(), &encoded, label.into())?;
            progress();
        }
        writer.finish()?;
        info.save(folder)
    }
}

struct Source {
    images: idx::Idx,
    labels: idx::Idx,
}
