//! What a run is made of. Every key is documented where it is defined, every default is written once, in
//! the `Default` of its section; [`load`] reads and checks a file.

mod load;

pub use load::{BUILT_IN, load};

use codinet_dataloader::transform::{Crop, Transform};
use serde::{Deserialize, Serialize};

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where and how the run goes on.
    pub run: Run,
    /// What it sees.
    pub data: Data,
    /// What it trains.
    pub model: Model,
    /// What it minimises.
    pub loss: Loss,
    /// How it steps.
    pub optim: Optim,
    /// The stages, in order: the paper's Section 3.4 has two.
    pub stages: Vec<Stage>,
}

/// Where and how the run goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The run directory; null: `runs/<config name>-<time>`.
    pub dir: Option<String>,
    /// Everything random follows from this number.
    pub seed: u64,
    /// Where tensors live: `auto` takes the GPU of the rank's place on its host, where there is one.
    pub device: DeviceChoice,
    /// Compute threads a rank; null: the cores that the launcher left this rank.
    pub threads: Option<usize>,
    /// Steps between two lines of `metrics.jsonl`, TensorBoard and the terminal.
    pub log_every: u64,
    /// Steps between two checkpoints; 0: at the ends of epochs only.
    pub checkpoint_every: u64,
    /// How many of the newest checkpoints are kept; at least 2, so that a damaged one can be passed over.
    pub keep_last: usize,
    /// Epochs between two evaluations; the last epoch of a stage is always evaluated.
    pub evaluate_every: u64,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// A GPU where there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, and nothing else.
    Cuda,
}

/// What the run sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Training shards: a folder, a glob, or `x-{000000..000012}.tar`.
    pub train: String,
    /// Validation shards, likewise.
    pub val: String,
    /// How many classes the labels tell apart.
    pub classes: i64,
    /// Colour channels: 3, or 1 for grey.
    pub channels: u32,
    /// Height and width of a view, in pixels.
    pub image_size: u32,
    /// Mean of each channel, of pixels in 0 to 1; one number stands for all channels.
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, likewise.
    pub std: Vec<f64>,
    /// M: augmented views of each sample in a batch.
    pub views: usize,
    /// How a view is cut from its image in training.
    pub crop: Crop,
    /// Probability of a horizontal flip in training.
    pub flip: f64,
    /// Evaluation resizes the shorter side to this many pixels before the centre crop; null: no resize.
    pub eval_resize: Option<u32>,
    /// Use only the first so many samples of the training shards; null: all.
    pub train_samples: Option<usize>,
    /// Decode threads a rank; null: as many as `run.threads`.
    pub decode_threads: Option<usize>,
    /// Batches being decoded ahead of the step.
    pub prefetch: usize,
}

/// What the run trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The backbone.
    pub arch: Arch,
    /// Whether blocks have routers; false: the static backbone.
    pub gated: bool,
    /// Where a bottleneck block has its stride: conv1 is ResNet v1 (the paper's 3.86 G), conv2 v1.5
    /// (torchvision's).
    pub stride_in: StrideIn,
    /// The routers.
    pub router: Router,
}

/// A backbone: He et al., arXiv 1512.03385.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it: ResNet of that many layers")]
pub enum Arch {
    // For 32×32 images.
    ResNet20,
    ResNet32,
    ResNet44,
    ResNet56,
    ResNet74,
    ResNet110,
    // For 224×224 images.
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
}

/// Where a bottleneck block has its stride.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StrideIn {
    /// In the first 1×1 convolution.
    Conv1,
    /// In the 3×3 convolution.
    Conv2,
}

/// The routers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Router {
    /// d, the hidden layer's width: `ratio: r` of the block's input channels, or `units: d`.
    pub hidden: Hidden,
    /// First value of the bias of "run" over that of "skip": above 0, blocks start mostly on.
    pub open_bias: f64,
    /// T of the Gumbel-Softmax (Eq. 6).
    pub temperature: f64,
}

/// Width of a router's hidden layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hidden {
    /// This share of the block's input channels.
    Ratio(f64),
    /// This many units.
    Units(i64),
}

/// What the run minimises: Eq. 12.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Loss {
    /// α: weight of the consistency loss.
    pub alpha: f64,
    /// β: weight of the diversity loss.
    pub beta: f64,
    /// γ: weight of the cost loss, whose unit is the mean gated block.
    pub gamma: f64,
    /// m_c of Eq. 8.
    pub consistency_margin: f64,
    /// m_d of Eq. 9.
    pub diversity_margin: f64,
}

/// How the run steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// Samples a step over all ranks together; each brings `data.views` views.
    pub batch_size: usize,
    /// Samples a step over all ranks in evaluation.
    pub eval_batch_size: usize,
    /// SGD's momentum.
    pub momentum: f64,
    /// SGD's weight decay.
    pub weight_decay: f64,
    /// Whether weight decay takes in norms' scales and biases, as the paper's does.
    pub decay_norm_and_bias: bool,
}

/// One stage of training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stage {
    /// Its name in logs and in `summary.json`.
    pub name: String,
    /// How many epochs it takes.
    pub epochs: u64,
    /// Highest learning rate.
    pub lr: f64,
    /// How the rate falls.
    pub schedule: Schedule,
    /// Epochs of linear warm-up from 0, at the start.
    pub warmup_epochs: f64,
    /// What trains and how gates decide.
    pub routers: Routers,
}

/// What a stage does with the routers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Routers {
    /// They train, by relaxed decisions: the paper's first stage.
    Train,
    /// They are frozen and decide hard, and only cross entropy is minimised: its second.
    Freeze,
}

/// How the learning rate falls over a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Not at all.
    Constant,
    /// Times `factor` at each milestone.
    MultiStep {
        /// Epochs of the stage after which the rate falls.
        milestones: Vec<u64>,
        /// What it is multiplied by.
        factor: f64,
    },
    /// Along half a cosine, to 0.
    Cosine,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            dir: None,
            seed: 1,
            device: DeviceChoice::Auto,
            threads: None,
            log_every: 50,
            checkpoint_every: 0,
            keep_last: 3,
            evaluate_every: 1,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: String::new(),
            val: String::new(),
            classes: 10,
            channels: 3,
            image_size: 32,
            mean: vec![0.5],
            std: vec![0.25],
            views: 2,
            crop: Crop::Pad { pixels: 4 },
            flip: 0.5,
            eval_resize: None,
            train_samples: None,
            decode_threads: None,
            prefetch: 3,
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self { arch: Arch::ResNet20, gated: true, stride_in: StrideIn::Conv2, router: Router::default() }
    }
}

impl Default for Router {
    fn default() -> Self {
        Self { hidden: Hidden::Ratio(1.0), open_bias: 2.0, temperature: 1.0 }
    }
}

impl Default for Loss {
    fn default() -> Self {
        Self { alpha: 0.2, beta: 0.2, gamma: 0.01, consistency_margin: 0.2, diversity_margin: 0.5 }
    }
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            batch_size: 128,
            eval_batch_size: 256,
            momentum: 0.9,
            weight_decay: 1e-4,
            decay_norm_and_bias: true,
        }
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self {
            name: "train".into(),
            epochs: 1,
            lr: 0.1,
            schedule: Schedule::Constant,
            warmup_epochs: 0.0,
            routers: Routers::Train,
        }
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!("{self:?}"))
    }
}

impl Hidden {
    /// Units for a block of `channels` input channels.
    pub fn of(self, channels: i64) -> i64 {
        match self {
            Self::Ratio(ratio) => ((channels as f64 * ratio).round() as i64).max(1),
            Self::Units(units) => units,
        }
    }
}

impl Schedule {
    /// The rate's factor at `epoch` (with its fraction) of `epochs`.
    pub fn factor(&self, epoch: f64, epochs: u64) -> f64 {
        match self {
            Self::Constant => 1.0,
            Self::MultiStep { milestones, factor } => {
                factor.powi(milestones.iter().filter(|&&milestone| epoch >= milestone as f64).count() as i32)
            }
            Self::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * epoch / epochs as f64).cos()),
        }
    }
}

impl Stage {
    /// The learning rate at `epoch` (with its fraction) of this stage.
    pub fn lr_at(&self, epoch: f64) -> f64 {
        let warmth = if epoch < self.warmup_epochs { epoch / self.warmup_epochs } else { 1.0 };
        self.lr * warmth * self.schedule.factor(epoch, self.epochs)
    }
}

impl Config {
    /// What becomes of an image in training.
    pub fn augmentation(&self) -> Transform {
        Transform::Train { crop: self.data.crop.clone(), flip: self.data.flip }
    }

    /// What becomes of an image in evaluation.
    pub fn evaluation(&self) -> Transform {
        Transform::Eval { resize: self.data.eval_resize }
    }

    /// The first value that is out of its range: its key and what it should be.
    fn out_of_range(&self) -> Option<(String, String)> {
        let (data, optim, loss) = (&self.data, &self.optim, &self.loss);
        let channels = |n: usize| n == 1 || n == data.channels as usize;
        let count = |n: Option<usize>| n.is_none_or(|n| (1..=1024).contains(&n));
        let batch = |n: usize| (1..=1 << 20).contains(&n);
        let finite = |x: f64| x.is_finite() && x >= 0.0;
        let hidden = match self.model.router.hidden {
            Hidden::Ratio(ratio) => ratio > 0.0 && ratio <= 16.0,
            Hidden::Units(units) => (1..=65_536).contains(&units),
        };
        let (train, eval) = (self.augmentation(), self.evaluation());
        let refused =
            |transform: &Transform| transform.check(data.image_size).err().map(|error| error.to_string());
        let (crop, resize) = (refused(&train), refused(&eval));
        let mut checks = vec![
            (self.run.log_every > 0, "run.log_every", "at least 1".to_owned()),
            (self.run.evaluate_every > 0, "run.evaluate_every", "at least 1".into()),
            (self.run.keep_last >= 2, "run.keep_last", "at least 2".into()),
            (count(self.run.threads), "run.threads", "1 to 1024, or null".into()),
            (self.run.dir.as_deref() != Some(""), "run.dir", "a folder, or null".into()),
            (!data.train.is_empty(), "data.train", "a folder, glob or brace pattern of .tar shards".into()),
            (!data.val.is_empty(), "data.val", "a folder, glob or brace pattern of .tar shards".into()),
            ((2..=1_000_000).contains(&data.classes), "data.classes", "2 to 1000000".into()),
            (matches!(data.channels, 1 | 3), "data.channels", "1 or 3".into()),
            ((8..=2048).contains(&data.image_size), "data.image_size", "8 to 2048 pixels".into()),
            (channels(data.mean.len()), "data.mean", "a list of one number, or one a channel".into()),
            (channels(data.std.len()), "data.std", "a list of one number, or one a channel".into()),
            (data.std.iter().all(|&std| std > 0.0 && std.is_finite()), "data.std", "above 0".into()),
            (data.mean.iter().all(|mean| mean.is_finite()), "data.mean", "finite".into()),
            ((1..=64).contains(&data.views), "data.views", "1 to 64".into()),
            ((0.0..=1.0).contains(&data.flip), "data.flip", "0 to 1".into()),
            (crop.is_none(), "data.crop", crop.unwrap_or_default()),
            (resize.is_none(), "data.eval_resize", resize.unwrap_or_default()),
            (data.train_samples != Some(0), "data.train_samples", "at least 1, or null".into()),
            (count(data.decode_threads), "data.decode_threads", "1 to 1024, or null".into()),
            ((1..=64).contains(&data.prefetch), "data.prefetch", "1 to 64".into()),
            (hidden, "model.router.hidden", "a ratio above 0 and up to 16, or 1 to 65536 units".into()),
            (self.model.router.open_bias.is_finite(), "model.router.open_bias", "finite".into()),
            (
                self.model.router.temperature > 0.0 && self.model.router.temperature.is_finite(),
                "model.router.temperature",
                "above 0".into(),
            ),
            (finite(loss.alpha), "loss.alpha", "finite, at least 0".into()),
            (finite(loss.beta), "loss.beta", "finite, at least 0".into()),
            (finite(loss.gamma), "loss.gamma", "finite, at least 0".into()),
            (finite(loss.consistency_margin), "loss.consistency_margin", "finite, at least 0".into()),
            (finite(loss.diversity_margin), "loss.diversity_margin", "finite, at least 0".into()),
            (batch(optim.batch_size), "optim.batch_size", "1 to 1048576".into()),
            (batch(optim.eval_batch_size), "optim.eval_batch_size", "1 to 1048576".into()),
            ((0.0..1.0).contains(&optim.momentum), "optim.momentum", "0 to 1, 1 excluded".into()),
            (finite(optim.weight_decay), "optim.weight_decay", "finite, at least 0".into()),
            (!self.stages.is_empty(), "stages", "a list of at least one stage".into()),
        ]
        .into_iter()
        .map(|(fine, key, wanted)| (fine, key.to_owned(), wanted))
        .collect::<Vec<_>>();
        for (i, stage) in self.stages.iter().enumerate() {
            let milestones = match &stage.schedule {
                Schedule::MultiStep { milestones, factor } => {
                    milestones.is_sorted() && *factor > 0.0 && factor.is_finite()
                }
                _ => true,
            };
            let epochs = stage.epochs as f64;
            let key = |name: &str| format!("stages.{i}.{name}");
            checks.extend([
                ((1..=1_000_000).contains(&stage.epochs), key("epochs"), "1 to 1000000".to_owned()),
                (stage.lr > 0.0 && stage.lr.is_finite(), key("lr"), "above 0".into()),
                ((0.0..=epochs).contains(&stage.warmup_epochs), key("warmup_epochs"), "0 to epochs".into()),
                (milestones, key("schedule"), "milestones in rising order and a factor above 0".into()),
                (
                    self.model.gated || stage.routers == Routers::Train,
                    key("routers"),
                    "train, where model.gated is false".into(),
                ),
            ]);
        }
        checks.into_iter().find(|(fine, ..)| !fine).map(|(_, key, wanted)| (key, wanted))
    }
}
