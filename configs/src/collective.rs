//! The section `collective`: backend, gradient compression, timeouts, and checks that ranks agree.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Communication between ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Collective {
    /// Steps between two comparisons of all ranks' weights and momenta; 0: never.
    pub compare_every: u64,
    /// What to do if a rank's weights or momenta differ from rank 0's.
    pub on_divergence: OnDivergence,
    /// Seconds that a rank may wait in a collective for the others, or for the next sample of its loader, before the job ends. The
    /// work that only rank 0 does, such as waiting for the previous checkpoint to reach the disk, has to fit; so does the copy
    /// of a shard to `data.cache`.
    #[schemars(range(min = 1))]
    pub timeout_s: u64,
    /// The same until the first step: data are opened and kernels chosen in this time.
    #[schemars(range(min = 1))]
    pub first_timeout_s: u64,
    /// The backend for GPU tensors.
    pub backend: Backend,
    /// The type of gradients in transit: bf16 halves the bytes. Over MPI sums are fp32, over NCCL they are NCCL's.
    pub wire: Wire,
    /// Whether gradients are reduced while backward runs, or after it.
    pub overlap: bool,
    /// Megabytes of gradients in a bucket.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub bucket_mb: f64,
    /// The same for the first bucket, which should start early.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub first_bucket_mb: f64,
}

/// The backend for GPU tensors; host tensors use MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// NCCL if every rank has its own GPU and finds libnccl, else MPI.
    Auto,
    /// MPI, through pinned host memory.
    Mpi,
    /// NCCL, or an error that says what is missing.
    Nccl,
}

/// The type of gradients in transit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// 32 bits.
    Fp32,
    /// Rounded to bfloat16.
    Bf16,
}

/// What to do if a rank's weights or momenta differ from rank 0's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// End the run with an error that names the rank.
    Stop,
    /// Copy rank 0's.
    Repair,
}

impl Default for Collective {
    fn default() -> Self {
        Self {
            compare_every: 1000,
            on_divergence: OnDivergence::Stop,
            timeout_s: 600,
            first_timeout_s: 1800,
            backend: Backend::Auto,
            wire: Wire::Fp32,
            overlap: true,
            bucket_mb: 25.0,
            first_bucket_mb: 1.0,
        }
    }
}
