//! What a run is made of. Every key is documented where it is defined, every default is written once, in
//! the `Default` of its section; [`load`] reads and checks a file.

mod check;
mod collective;
mod load;
mod stage;

pub use collective::{Backend, Collective, OnDivergence, Wire};
pub use load::{BUILT_IN, load};
pub use stage::{Routers, Schedule, Stage};

use codinet_dataloader::transform::{Crop, Transform};
use codinet_dataloader::{Augment, Lanes, Mix, OnBadSample, Options};
use serde::{Deserialize, Serialize};

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Another config, beside this file or a shipped one, whose values hold where this one has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extends: Option<String>,
    /// Where and how the run goes on.
    pub run: Run,
    /// What it sees.
    pub data: Data,
    /// What it trains.
    pub model: Model,
    /// L_con: views of one sample shall take like paths.
    pub consistency: Consistency,
    /// L_div: different samples shall take different paths.
    pub diversity: Diversity,
    /// L_cost: paths shall be short.
    pub cost: Cost,
    /// Conv-AIG's way to a shorter path, for comparison.
    pub target_rate: TargetRate,
    /// SkipNet's way to a shorter path, for comparison.
    pub run_rate: RunRate,
    /// How it steps.
    pub optim: Optim,
    /// How ranks meet, and how they are watched.
    pub collective: Collective,
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
    /// What convolutions and activations are computed in; norms, gates, losses and weights are fp32 always.
    pub precision: Precision,
    /// Whether a GPU computes batch norm with what follows it, and images from pixels, by kernels of our own, which NVRTC
    /// compiles at the start and which are used where they then agree with libtorch on every rank. Off until a GPU has run
    /// them: none has. On a CPU there is nothing to choose.
    pub cuda_kernels: bool,
    /// Compute threads a rank; null: the cores that the launcher left this rank.
    pub threads: Option<usize>,
    /// Steps between two lines of `metrics.jsonl`, TensorBoard and the terminal.
    pub log_every: u64,
    /// Steps between two checkpoints; 0: at the ends of epochs only.
    pub checkpoint_every: u64,
    /// Whether every rank writes a share of a checkpoint's optimiser state, rather than rank 0 all of it; the run directory
    /// must then be on a disk that all hosts see.
    pub shard_optimizer: bool,
    /// How many of the newest checkpoints are kept; at least 2, so that a damaged one can be passed over.
    pub keep_last: usize,
    /// Checkpoints of steps that are a multiple of this are kept for good; 0: none.
    pub keep_every: u64,
    /// Whether the checkpoint of the best top-1 so far (on a budget: at no more than 102 % of it) is kept too;
    /// `checkpoints/best` names it.
    pub keep_best: bool,
    /// Epochs between two evaluations; the last epoch of a stage is always evaluated.
    pub evaluate_every: u64,
    /// Epochs of a stage between two evaluations at which 1,000 validation images' relaxed paths are written for
    /// TensorBoard's embedding projector; the run's end is always one; 0: never.
    pub projector_every: u64,
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

/// What convolutions and activations are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    Fp32,
    /// bfloat16: faster where the hardware has it (GPUs from A100 on, CPUs with AMX), slower where not.
    Bf16,
}

/// Where shards from stores are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// The folder, best on a local disk; all ranks of a machine share it.
    pub folder: String,
    /// What it may take, in 10⁹ bytes.
    pub limit_gb: f64,
}

/// What the run sees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Training shards: a folder, a glob, or `x-{000000..000012}.tar`.
    pub train: String,
    /// Validation shards, likewise.
    pub val: String,
    /// Where shards from stores are kept on this machine, `{folder: PATH, limit_gb: G}`; the one that was read longest ago makes
    /// room. Null: each sample is read from its store. Shards on disks need none.
    pub cache: Option<Cache>,
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
    /// Further augmentation, as torchvision has it: `vertical_flip`, `color_jitter: {brightness, contrast, saturation, hue}`,
    /// `policy: {rand_augment: {num_ops, magnitude}}` or `{trivial_augment_wide: {}}`, `erase: {probability, value}`.
    pub augment: Augment,
    /// Batches of mixtures of two samples: `mixup_alpha`, `cutmix_alpha`, α of Beta(α, α), from which a sample's share in
    /// its mixture is drawn; 0: not that one. With both, a coin decides for each batch.
    pub mix: Mix,
    /// Use only the first so many samples of the training shards; null: all.
    pub train_samples: Option<usize>,
    /// Decode threads a rank; null: as many as `run.threads`.
    pub decode_threads: Option<usize>,
    /// Order of the training samples; null: a shuffle of all of them. `{count: C, window: N}`, for network file systems and
    /// object stores: C lanes, each of which reads whole shards one after another and shuffles N samples at a time.
    pub lanes: Option<Lanes>,
    /// Batches being decoded ahead of the step.
    pub prefetch: usize,
    /// What becomes of an image that can't be read or decoded: `fail` ends the run; `replace` serves the next good one in its
    /// place and, in evaluation, leaves it out of the count.
    pub on_bad_sample: OnBadSample,
    /// Share of a data set that may be bad under `replace`; more than that ends the run.
    pub max_bad_fraction: f64,
}

/// What the run trains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    /// The backbone.
    pub arch: Arch,
    /// Which blocks have a router.
    pub gates: Gates,
    /// What stands in for a skipped block that changes the shape.
    pub skip: SkipBranch,
    /// Where a bottleneck block has its stride: conv1 is ResNet v1 (the paper's 3.86 G), conv2 v1.5
    /// (torchvision's).
    pub stride_in: StrideIn,
    /// Whether the last norm of each block starts at 0, so that blocks start as identities (arXiv 1706.02677).
    pub zero_init_last_norm: bool,
    /// Whether batch norm takes its statistics over all ranks' batches (SyncBatchNorm), not over each rank's own.
    pub sync_batch_norm: bool,
    /// The routers.
    pub router: Router,
    /// Weights to start from: a .safetensors file with torchvision's names; null: drawn anew.
    pub init_from: Option<String>,
}

/// Which blocks have a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gates {
    /// All of them.
    All,
    /// Those that give the shape that they take, as in SkipNet and BlockDrop.
    SameShape,
    /// None: the static backbone.
    None,
}

/// What stands in for a skipped block that changes the shape; elsewhere that is the block's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipBranch {
    /// A 1×1 convolution, batch norm and ReLU of its own.
    Project,
    /// The block's own shortcut, and ReLU.
    Shortcut,
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
    /// What a router is made of: the paper's Appendix A.2.
    pub kind: RouterKind,
    /// d, the hidden layer's width in `fc` and `cnn` routers: `ratio: r` of the block's input channels, or
    /// `units: d`.
    pub hidden: Hidden,
    /// First value of the bias of "run" over that of "skip": above 0, blocks start mostly on.
    pub open_bias: f64,
    /// How decisions are made differentiable: the paper's Appendix A.1.
    pub relaxation: Relaxation,
    /// T of the Gumbel-Softmax (Eq. 6).
    pub temperature: f64,
}

/// What a router is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RouterKind {
    /// Global average pooling and two linear layers (Eqs. 3 and 4).
    Fc,
    /// A 3×3 convolution, global average pooling and a linear layer.
    Cnn,
    /// Global average pooling, a linear layer that blocks of like width share, and an LSTM of hidden size 10 over
    /// the blocks.
    Rnn,
}

/// How decisions are made differentiable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relaxation {
    /// The re-parameterised Gumbel-Softmax: forward and backward by v of Eq. 6.
    Gumbel,
    /// The straight-through one: forward by v ≥ 0.5, backward as if by v.
    StraightThrough,
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

/// The consistency loss, Eq. 8.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Consistency {
    /// Whether it is minimised; it is reported always.
    pub enabled: bool,
    /// α of Eq. 12.
    pub weight: f64,
    /// m_c: how far a view's path may lie from its sample's centre at no loss.
    pub margin: f64,
}

/// The diversity loss, Eq. 9.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Diversity {
    /// Whether it is minimised; it is reported always.
    pub enabled: bool,
    /// β of Eq. 12.
    pub weight: f64,
    /// m_d: how far apart two samples' centres have to lie.
    pub margin: f64,
    /// Which samples are told apart where gradients are accumulated.
    pub scope: Scope,
}

/// Which samples the diversity loss tells apart, and Conv-AIG's takes its rates over, where `optim.accumulate` is
/// above 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Those of a micro-batch, over all ranks.
    MicroBatch,
    /// Those of the whole global batch; costs a second forward pass.
    GlobalBatch,
}

/// The cost loss, Eq. 11, and the budget that may steer it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cost {
    /// γ of Eq. 12; where there is a budget, its first value.
    pub gamma: f64,
    /// What c_k is measured in, and so what γ is the price of.
    pub unit: CostUnit,
    /// Mean MACs an image, in billions, that γ is moved to meet; null: γ stays as it is.
    pub budget_gmacs: Option<f64>,
    /// How far a step moves γ, as the price of the mean block, for each 100 % of the budget that the network's MACs are
    /// off it.
    pub gamma_step: f64,
    /// Whether, at each stage's end, one bias on all gates is set so that the budget is met on training images
    /// that were held out: the next stage trains at the budget, and the last leaves the network there.
    pub calibrate: bool,
    /// How many training images are held out for that.
    pub calibration_samples: usize,
}

/// What the cost of a block is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CostUnit {
    /// The mean gated block: Σ c_k = n.
    Blocks,
    /// The static network.
    Fraction,
    /// 10⁹ multiply-accumulates.
    Gmacs,
}

/// Conv-AIG's loss (Veit & Belongie, ECCV 2018): Σ_k (mean v_k − rate)², each block's rate over the batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TargetRate {
    /// Its weight; 0: not minimised.
    pub weight: f64,
    /// The share of inputs that each block should run for.
    pub rate: f64,
}

/// SkipNet's penalty (Wang et al., ECCV 2018): the mean of v over inputs and blocks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunRate {
    /// Its weight; 0: not minimised.
    pub weight: f64,
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
    /// Nesterov's momentum.
    pub nesterov: bool,
    /// Micro-batches a rank and step: gradients of so many passes are averaged before the update. A run that is resumed
    /// by fewer ranks takes as many more of them, so that its steps stay what they were.
    pub accumulate: usize,
    /// ε of label smoothing in the cross entropy (arXiv 1512.00567).
    pub label_smoothing: f64,
    /// Largest L² norm of the gradient; a longer one is scaled down to it; null: any.
    pub clip_norm: Option<f64>,
    /// What becomes of a step whose loss or gradient is not finite.
    pub on_nonfinite: OnNonfinite,
    /// Share of the running mean of weights that is kept each step, such as 0.999; it is evaluated too; null: none.
    pub ema_decay: Option<f64>,
    /// The `batch_size` that the stages' learning rates are meant for: at another they are scaled in proportion
    /// (arXiv 1706.02677); null: not scaled.
    pub lr_batch_size: Option<usize>,
}

/// What becomes of a step whose loss or gradient is not finite, on whichever rank. Where the gradient is not, nothing has
/// moved by the time that it is noticed: at the next log line or checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonfinite {
    /// The run ends.
    Stop,
    /// The step is told and counted, and the run goes on.
    Skip,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            dir: None,
            seed: 1,
            device: DeviceChoice::Auto,
            precision: Precision::Fp32,
            cuda_kernels: false,
            threads: None,
            log_every: 50,
            checkpoint_every: 0,
            shard_optimizer: false,
            keep_last: 3,
            keep_every: 0,
            keep_best: true,
            evaluate_every: 1,
            projector_every: 10,
        }
    }
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train: String::new(),
            val: String::new(),
            cache: None,
            classes: 10,
            channels: 3,
            image_size: 32,
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
            on_bad_sample: OnBadSample::Fail,
            max_bad_fraction: 0.001,
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            arch: Arch::ResNet20,
            gates: Gates::All,
            skip: SkipBranch::Project,
            stride_in: StrideIn::Conv2,
            zero_init_last_norm: false,
            sync_batch_norm: false,
            router: Router::default(),
            init_from: None,
        }
    }
}

impl Default for Router {
    fn default() -> Self {
        Self {
            kind: RouterKind::Fc,
            hidden: Hidden::Ratio(1.0),
            open_bias: 2.0,
            relaxation: Relaxation::Gumbel,
            temperature: 1.0,
        }
    }
}

impl Default for Consistency {
    fn default() -> Self {
        Self { enabled: true, weight: 0.2, margin: 0.2 }
    }
}

impl Default for Diversity {
    fn default() -> Self {
        Self { enabled: true, weight: 0.2, margin: 0.5, scope: Scope::MicroBatch }
    }
}

impl Default for Cost {
    fn default() -> Self {
        Self {
            gamma: 0.01,
            unit: CostUnit::Blocks,
            budget_gmacs: None,
            gamma_step: 2e-4,
            calibrate: false,
            calibration_samples: 2000,
        }
    }
}

impl Default for TargetRate {
    fn default() -> Self {
        Self { weight: 0.0, rate: 0.7 }
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
            nesterov: false,
            accumulate: 1,
            label_smoothing: 0.0,
            clip_norm: None,
            on_nonfinite: OnNonfinite::Stop,
            ema_decay: None,
            lr_batch_size: None,
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

impl Config {
    /// How datasets are opened.
    pub fn dataset_options(&self) -> Options {
        let cache = self.data.cache.as_ref().map(|cache| codinet_dataloader::Cache {
            folder: cache.folder.clone().into(),
            limit_bytes: (cache.limit_gb * 1e9) as u64,
        });
        Options { cache, ..Options::default() }
    }

    /// What becomes of an image in training.
    pub fn augmentation(&self) -> Transform {
        let data = &self.data;
        Transform::Train { crop: data.crop.clone(), flip: data.flip, augment: data.augment.clone() }
    }

    /// What becomes of an image in evaluation.
    pub fn evaluation(&self) -> Transform {
        Transform::Eval { resize: self.data.eval_resize }
    }

    /// Whether there are routers to train.
    pub fn gated(&self) -> bool {
        self.model.gates != Gates::None
    }

    /// The budget in GMACs, where there are gates to meet it.
    pub fn budget(&self) -> Option<f64> {
        self.cost.budget_gmacs.filter(|_| self.gated())
    }

    /// Whether a bias on all gates is set at each stage's end.
    pub fn calibrates(&self) -> bool {
        self.budget().is_some() && self.cost.calibrate
    }

    /// Whether γ follows a budget in `stage`.
    pub fn steers(&self, stage: &Stage) -> bool {
        self.budget().is_some() && stage.routers == Routers::Train && stage.gamma.is_none()
    }

    /// The learning rate at `epoch` (with its fraction) of `stage`.
    pub fn lr_at(&self, stage: &Stage, epoch: f64) -> f64 {
        let warmth = if epoch < stage.warmup_epochs { epoch / stage.warmup_epochs } else { 1.0 };
        let scale = self.optim.lr_batch_size.map_or(1.0, |meant| self.optim.batch_size as f64 / meant as f64);
        stage.lr * scale * warmth * stage.schedule.factor(epoch, stage.epochs)
    }
}
