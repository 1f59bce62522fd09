//! The section `data`: shards, views, and how they are read.

use codinet_dataloader::transform::Crop;
use codinet_dataloader::{Augment, DEFAULT_MAX_PIXELS, Lanes, Mix, OnBadSample};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where copies of shards are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// The folder, best on a local disk; all ranks of a machine share it.
    pub folder: String,
    /// Its largest size, in 10⁹ bytes.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub limit_gb: f64,
}

/// The training images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, deny_unknown_fields)]
pub enum TrainData {
    /// One set; an epoch has each of its samples once.
    Path(
        #[schemars(length(min = 1), extend("x-takes" = "a folder, glob or brace pattern of .tar shards"))]
        String,
    ),
    /// Several sets with the same classes, drawn together.
    Sets {
        /// The sets. In an epoch a set's samples are drawn equally often, to within one.
        #[schemars(length(min = 1), extend("x-takes" = "a list of at least one set"))]
        sets: Vec<TrainSet>,
        /// Whether the classes of each set are drawn equally often, to within one sample.
        #[serde(default)]
        balance_classes: bool,
        /// Samples in an epoch; null: as many as the sets have together.
        #[serde(default)]
        #[schemars(range(min = 1))]
        epoch_samples: Option<usize>,
    },
}

/// A set among several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSet {
    /// As `data.train`, if that is a path.
    #[schemars(length(min = 1), extend("x-takes" = "a folder, glob or brace pattern of .tar shards"))]
    pub path: String,
    /// The share of an epoch's samples that are drawn from this set, relative to the other weights. Null, for all sets: their
    /// numbers of samples, so that all samples are drawn equally often.
    #[serde(default)]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub weight: Option<f64>,
}

impl TrainData {
    /// The path of each set.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Self::Path(path) => vec![path],
            Self::Sets { sets, .. } => sets.iter().map(|set| set.path.as_str()).collect(),
        }
    }

    /// The path of each set with its key, such as `data.train.sets.0.path`.
    pub(crate) fn paths_mut(&mut self) -> Vec<(String, &mut String)> {
        match self {
            Self::Path(path) => vec![("data.train".into(), path)],
            Self::Sets { sets, .. } => sets
                .iter_mut()
                .enumerate()
                .map(|(index, set)| (format!("data.train.sets.{index}.path"), &mut set.path))
                .collect(),
        }
    }

    /// The weight of each set; `None`: by their sizes.
    pub fn weights(&self) -> Option<Vec<f64>> {
        match self {
            Self::Path(_) => None,
            Self::Sets { sets, .. } => sets.iter().map(|set| set.weight).collect(),
        }
    }

    /// Whether each class of a set is drawn equally often.
    pub fn balances_classes(&self) -> bool {
        matches!(self, Self::Sets { balance_classes: true, .. })
    }

    /// Samples in an epoch, if set.
    pub fn epoch_samples(&self) -> Option<usize> {
        match self {
            Self::Path(_) => None,
            Self::Sets { epoch_samples, .. } => *epoch_samples,
        }
    }

    /// Whether either all sets have weights, or none has.
    pub(crate) fn weights_agree(&self) -> bool {
        match self {
            Self::Path(_) => true,
            Self::Sets { sets, .. } => {
                sets.iter().all(|set| set.weight.is_some() == sets[0].weight.is_some())
            }
        }
    }
}

impl std::fmt::Display for TrainData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.paths().join(", "))
    }
}

impl From<&str> for TrainData {
    fn from(path: &str) -> Self {
        Self::Path(path.into())
    }
}

/// The images and how they are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Training images: a folder of shards or of class folders, a glob, or a range such as `x-{000000..000012}.tar`. With the
    /// cargo feature `remote`, also in a store (`s3://`, `gs://`, `https://`). Several sets, or classes drawn equally often,
    /// are a section: `{sets: [{path: a, weight: 2}, {path: b, weight: 1}], balance_classes: true}`.
    pub train: TrainData,
    /// Validation images, likewise.
    #[schemars(length(min = 1), extend("x-takes" = "a folder, glob or brace pattern of .tar shards"))]
    pub val: String,
    /// Where copies of shards are kept on this machine, `{folder: PATH, limit_gb: G}`: of shards from stores, and from other
    /// file systems than the folder's. The least recently used copy is removed to make space. Null: no copies.
    pub cache: Option<Cache>,
    /// How many classes there are.
    #[schemars(range(min = 2, max = 1000000))]
    pub classes: i64,
    /// Colour channels: 3, or 1 for grey.
    #[schemars(extend("enum" = [1, 3]))]
    pub channels: u32,
    /// Height and width of a view, in pixels; a stage may train with others (`stages.N.image_size`).
    #[schemars(range(min = 8, max = 2048), extend("x-takes" = "8 to 2048 pixels"))]
    pub image_size: u32,
    /// Height and width of an evaluated image, which are those of the compute budget and of all GMACs; null: `image_size`.
    #[schemars(range(min = 8, max = 2048), extend("x-takes" = "8 to 2048 pixels"))]
    pub eval_size: Option<u32>,
    /// Mean of each channel, for pixels from 0 to 1; one number is for all channels.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, likewise.
    pub std: Vec<f64>,
    /// M: augmented views of each sample in a batch.
    #[schemars(range(min = 1, max = 64))]
    pub views: usize,
    /// How a view is cut from its image in training.
    pub crop: Crop,
    /// Probability that a training view is mirrored left to right.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub flip: f64,
    /// Evaluation resizes the shorter side to this many pixels before the centre crop; null: no resize.
    pub eval_resize: Option<u32>,
    /// Further changes to training views, as torchvision has them.
    #[serde(deserialize_with = "crate::or_default")]
    pub augment: Augment,
    /// Batches of mixtures of two samples. α is that of Beta(α, α), from which a sample's share in its mixture is drawn; with
    /// both kinds, a coin decides for each batch.
    #[serde(deserialize_with = "crate::or_default")]
    pub mix: Mix,
    /// Use only this many samples, the first ones of the training set; null: all. In a folder of class folders these are the
    /// first classes.
    #[schemars(range(min = 1))]
    pub train_samples: Option<usize>,
    /// Decode threads per rank; null: as many as `run.threads`.
    #[schemars(range(min = 1, max = 1024))]
    pub decode_threads: Option<usize>,
    /// Order of the training samples; null: a shuffle of all of them. `{count: C, window: N}` is for network file systems and
    /// object stores: each of C lanes reads whole shards one after another, and shuffles N samples at a time.
    pub lanes: Option<Lanes>,
    /// How many batches are decoded ahead of the step.
    #[schemars(range(min = 1, max = 64))]
    pub prefetch: usize,
    /// Limit of an image's pixels; a larger image is bad. Decoding takes 3 to 9 bytes of memory a pixel in each decode thread,
    /// so a single image at the default limit takes up to 1.6 GB.
    #[schemars(range(min = 1))]
    pub max_pixels: u64,
    /// What becomes of an image that can't be read or decoded; each is noted in `bad_samples.jsonl`.
    pub on_bad_sample: OnBadSample,
    /// Share of a data set that may be bad under `replace`, of training samples as far as ranks share the run directory; more
    /// than that ends the run.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub max_bad_fraction: f64,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: "".into(),
            val: String::new(),
            cache: None,
            classes: 10,
            channels: 3,
            image_size: 32,
            eval_size: None,
            mean: vec![0.5],
            std: vec![0.25],
            views: 2,
            crop: Crop::Pad { pixels: 4 },
            flip: 0.5,
            eval_resize: None,
            augment: Augment::NONE,
            mix: Mix::default(),
            train_samples: None,
            decode_threads: None,
            lanes: None,
            prefetch: 3,
            max_pixels: DEFAULT_MAX_PIXELS,
            on_bad_sample: OnBadSample::Fail,
            max_bad_fraction: 0.001,
        }
    }
}

impl Data {
    /// Height and width of an evaluated image, in pixels.
    pub fn eval_size(&self) -> u32 {
        self.eval_size.unwrap_or(self.image_size)
    }
}
