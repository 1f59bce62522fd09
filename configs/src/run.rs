//! Where and how a run goes on.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where and how the run goes on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Run {
    /// The run directory; null: `runs/<config name>-<time>`.
    #[schemars(length(min = 1), extend("x-takes" = "a folder"))]
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
    /// Compute threads per rank; null: the cores that the launcher left this rank.
    #[schemars(range(min = 1, max = 1024))]
    pub threads: Option<usize>,
    /// Steps between two lines of `metrics.jsonl`, TensorBoard and the terminal.
    #[schemars(range(min = 1))]
    pub log_every: u64,
    /// Steps between two checkpoints; 0: at the ends of epochs only.
    pub checkpoint_every: u64,
    /// Whether every rank writes a share of a checkpoint's optimiser state, rather than rank 0 all of it; the run directory
    /// must then be on a disk that all hosts see.
    pub shard_optimizer: bool,
    /// How many of the newest checkpoints are kept; at least 2, so that a damaged one can be passed over.
    #[schemars(range(min = 2))]
    pub keep_last: usize,
    /// Checkpoints of steps that are a multiple of this are kept for good; 0: none.
    pub keep_every: u64,
    /// Whether the checkpoint of the best top-1 so far (on a budget: at no more than 102 % of it) is kept too;
    /// `checkpoints/best` names it.
    pub keep_best: bool,
    /// Epochs between two evaluations; the last epoch of a stage is always evaluated.
    #[schemars(range(min = 1))]
    pub evaluate_every: u64,
    /// Epochs of a stage between two writes of 1,000 validation images' relaxed paths for TensorBoard's embedding
    /// projector: only epochs that are evaluated count, and the run's end is always one; 0: never.
    pub projector_every: u64,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// 32 bits.
    Fp32,
    /// bfloat16: faster where the hardware has it (GPUs from A100 on, CPUs with AMX), slower where not.
    Bf16,
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
