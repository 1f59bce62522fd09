//! What `codinet-train --probe` measures and `codinet-launch doctor` judges: lines of JSON on standard output.

use crate::DeviceChoice;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeLine {
    /// The first line: all measurements except the signal.
    Probe(Box<Probe>),
    /// The second line: for every rank, whether it received SIGUSR2.
    Signalled(Vec<bool>),
}

/// The measurements of a job.
#[derive(Debug, Serialize, Deserialize)]
pub struct Probe {
    /// The backend of the collectives.
    pub backend: String,
    /// Its library, version, and thread level.
    pub library: String,
    /// PMIx's version, if there is PMIx.
    pub pmix: Option<String>,
    /// Number of ranks.
    pub world: usize,
    /// What the config needs, if one was given.
    pub config: Option<ConfigNeeds>,
    /// Speed of an all-reduce.
    pub all_reduce: AllReduceSpeed,
    /// Speed of one between the GPUs over NCCL, if every rank has one; or why there was none.
    pub gpu_all_reduce: Option<Result<AllReduceSpeed, String>>,
    /// Every rank.
    pub ranks: Vec<RankProbe>,
}

/// What a config needs.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConfigNeeds {
    /// `run.device`.
    pub device: DeviceChoice,
    /// The space that its checkpoints take.
    pub space: CheckpointSpace,
}

/// The space that a run's checkpoints take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CheckpointSpace {
    /// Bytes of a checkpoint.
    pub bytes: u64,
    /// Checkpoints that are on the disk at once.
    pub checkpoints: u64,
}

/// Whether a disk has space for a run's checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// For all that are kept.
    Enough,
    /// For two, but not for all that are kept.
    Tight,
    /// Not for two: the last one, and the next while it is written.
    TooLittle,
}

impl CheckpointSpace {
    /// Whether `free` bytes are enough.
    pub fn judge(&self, free: u64) -> Space {
        match free {
            _ if free < 2 * self.bytes => Space::TooLittle,
            _ if free < self.bytes * self.checkpoints => Space::Tight,
            _ => Space::Enough,
        }
    }
}

/// Speed of an all-reduce of fp32 numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct AllReduceSpeed {
    /// Duration for one number.
    pub microseconds: f64,
    /// Size of a large one.
    pub bytes: u64,
    /// Speed of the large one.
    pub bytes_per_second: f64,
}

/// One rank.
#[derive(Debug, Serialize, Deserialize)]
pub struct RankProbe {
    /// Its number.
    pub rank: usize,
    /// Number of ranks on its host.
    pub local_ranks: usize,
    /// The host's name.
    pub host: String,
    /// Hardware threads that it may run on.
    pub cpus: usize,
    /// The same as a list, such as `0-3,8`.
    pub cpu_list: String,
    /// Hardware threads of the host.
    pub host_cpus: usize,
    /// Compute threads.
    pub threads: usize,
    /// Decode threads.
    pub decode_threads: usize,
    /// GPUs that libtorch sees.
    pub gpus: usize,
    /// GPUs that the driver lists.
    pub gpus_installed: usize,
    /// If libtorch sees none: why, and the fix.
    pub without_gpu: String,
    /// The driver's version.
    pub driver: Option<String>,
    /// The name of this rank's GPU, on which a convolution has the CPU's result; or why it has not. `None` without a GPU.
    pub gpu: Option<Result<String, String>>,
    /// NCCL's version, or why it cannot be used.
    pub nccl: Result<String, String>,
    /// Samples of the data sets, by their keys in the config; of those that can be read.
    pub samples: BTreeMap<String, u64>,
    /// What keeps a run of the config from starting, as far as this rank sees.
    pub problems: Vec<StartProblem>,
    /// The run directory's disk, on ranks that write to it.
    pub disk: Option<DiskProbe>,
}

/// A reason why a run cannot start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartProblem {
    /// The key of the config that causes it.
    pub key: String,
    /// What is wrong, where, and how to fix it.
    pub message: String,
}

/// A disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct DiskProbe {
    /// The folder that was written to.
    pub dir: String,
    /// Free bytes.
    pub free: Option<u64>,
    /// Speed of writing a file.
    pub bytes_per_second: Option<f64>,
    /// Why no file can be written.
    pub error: Option<String>,
}
