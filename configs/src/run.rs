//! The section `run`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The run directory, device, logging and checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The run directory; null: `runs/<config name>-<time>`.
    #[schemars(length(min = 1), extend("x-takes" = "a folder"))]
    pub dir: Option<String>,
    /// A folder in a store (`s3://` or `gs://`, with the cargo feature `remote`) or on another disk, to which each checkpoint is
    /// copied in the background, with the records of the run. `--resume auto` fetches the newest one where the run directory lacks
    /// it, so a run can go on on another machine; null: no copies.
    #[schemars(length(min = 1), extend("x-takes" = "a folder, or the URL of one in a store"))]
    pub copy_to: Option<String>,
    /// The seed of everything random.
    pub seed: u64,
    /// The device: `auto` is the GPU of the rank's number on its host, or else the CPU.
    pub device: DeviceChoice,
    /// The type of convolutions and activations; norms, gates, losses and weights are always fp32.
    pub precision: Precision,
    /// Whether a GPU computes batch norm with the operations after it, and images from pixels, by this project's kernels. NVRTC
    /// compiles them at the start; they are used if they agree with libtorch on every rank. Off by default: no GPU has run them
    /// yet. On a CPU the key has no effect.
    pub cuda_kernels: bool,
    /// Compute threads per rank; null: the cores that this rank may use.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<usize>,
    /// Steps between two lines of `metrics.jsonl`, TensorBoard and the terminal.
    #[schemars(range(min = 1))]
    pub log_every: u64,
    /// A command for the shell that gets each record of `metrics.jsonl` on its standard input, for another tracker. It is started
    /// again if it ends, and never stops training; null: none.
    pub on_record: Option<String>,
    /// Steps between two checkpoints; 0: only at the ends of epochs.
    pub checkpoint_every: u64,
    /// Steps between two that are computed twice, to find a processor or memory that computes wrongly: a rank whose losses or
    /// gradient differ in any bit ends the run. 0: never. At 1000 it costs about 0.1 % of the time. Only on a CPU: on a GPU,
    /// libtorch's algorithms are not deterministic.
    pub replay_every: u64,
    /// Whether every rank writes a share of a checkpoint's optimiser state, instead of rank 0 all of it. The run directory must
    /// then be on a disk that all hosts see.
    pub shard_optimizer: bool,
    /// How many of the newest checkpoints are kept; at least 2, so that a damaged one can be skipped.
    #[schemars(range(min = 2))]
    pub keep_last: usize,
    /// Checkpoints of steps that are a multiple of this are never deleted; 0: none.
    pub keep_every: u64,
    /// Whether the checkpoint of the best top-1 so far is kept too; `checkpoints/best` names it. With a budget, only checkpoints
    /// at no more than 102 % of it count.
    pub keep_best: bool,
    /// Epochs between two evaluations; the last epoch of a stage is always evaluated.
    #[schemars(range(min = 1))]
    pub evaluate_every: u64,
    /// Whether each evaluation is repeated with Gumbel noise on the gates, as the authors' code evaluates: `summary.json` then counts
    /// paths both ways. An image's noise depends only on the seed and the image.
    pub evaluate_with_noise: bool,
    /// Epochs of a stage between two writes of 1,000 validation images' relaxed paths for TensorBoard's embedding projector. Only
    /// evaluated epochs count, and the run's end always does; 0: never.
    pub projector_every: u64,
}

/// The device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceChoice {
    /// A GPU if there is one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or an error.
    Cuda,
}

/// The type of convolutions and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    Fp32,
    /// bfloat16: faster on hardware that has it (GPUs from A100 on, CPUs with AMX), slower on other hardware.
    Bf16,
}

impl Default for Run {
    fn default() -> Self {
        Self {
            dir: None,
            copy_to: None,
            seed: 1,
            device: DeviceChoice::Auto,
            precision: Precision::Fp32,
            cuda_kernels: false,
            threads: None,
            log_every: 50,
            on_record: None,
            checkpoint_every: 0,
            replay_every: 0,
            shard_optimizer: false,
            keep_last: 3,
            keep_every: 0,
            keep_best: true,
            evaluate_every: 1,
            evaluate_with_noise: false,
            projector_every: 10,
        }
    }
}
