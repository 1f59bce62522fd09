//! How ranks meet: what travels between them and by what, and what becomes of one that is late or goes astray.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How ranks meet, and how they are watched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Collective {
    /// Steps between two comparisons of all ranks' weights and momenta; 0: never.
    pub compare_every: u64,
    /// What becomes of a rank that has left the others.
    pub on_divergence: OnDivergence,
    /// Seconds that a rank may wait in a collective for the others before the job ends; what rank 0 does alone, such as
    /// waiting for the checkpoint before to be on disk, has to fit.
    #[schemars(range(min = 1))]
    pub timeout_s: u64,
    /// The same until the first step is taken, for data are opened and kernels chosen meanwhile.
    #[schemars(range(min = 1))]
    pub first_timeout_s: u64,
    /// What GPUs' tensors travel by.
    pub backend: Backend,
    /// What gradients travel as: bf16 halves the bytes; sums are fp32 over MPI, NCCL's own over NCCL.
    pub wire: Wire,
    /// Whether gradients leave while backward still runs, or all of them after it.
    pub overlap: bool,
    /// Megabytes of gradients that travel together.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub bucket_mb: f64,
    /// The same for the first to leave, which should not wait for long.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub first_bucket_mb: f64,
}

/// What GPUs' tensors travel by; those on the host go by MPI.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// NCCL where every rank has a GPU of its own and finds libnccl, MPI otherwise.
    Auto,
    /// MPI, by way of pinned host memory.
    Mpi,
    /// NCCL, or an error that says what it lacks.
    Nccl,
}

/// What gradients travel as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// As they are.
    Fp32,
    /// Rounded to 16 bits.
    Bf16,
}

/// What becomes of a rank whose weights or momenta are no longer rank 0's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// The run ends, and names it.
    Stop,
    /// It takes rank 0's.
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
