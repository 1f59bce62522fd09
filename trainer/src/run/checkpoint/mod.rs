//! Checkpoints: folders `checkpoints/step-00001234` with `model.safetensors`, `optimizer.safetensors` (one per rank with
//! `run.shard_optimizer`: `optimizer-0000.safetensors` …), `ema.safetensors` if the run has a moving average, `state.json` and
//! an empty `COMPLETE`, which is written last. `checkpoints/latest` and `checkpoints/best` name one of them.

mod host_snapshot;
mod newest;
mod read;
mod save;
mod state;
mod write;

pub(crate) use newest::{NewestCheckpoint, OpenCheckpoint, copy_name};
pub(crate) use read::{find_newest, initialise_from, load, read_state};
pub use read::{find_weights, is_complete, load_model};
pub(super) use save::Saver;
pub(crate) use state::{Best, Order, StageResult, TrainState};

use crate::run_dir::{CHECKPOINTS, step_of};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const MODEL: &str = "model.safetensors";
const EMA: &str = "ema.safetensors";
const STATE: &str = "state.json";
pub(super) const COMPLETE: &str = "COMPLETE";
/// How the name of an unfinished checkpoint's folder starts.
const PARTIAL: &str = ".partial-";

/// The file of rank `rank`'s shard of the optimiser's state, which has `shards` of them.
fn optimizer_file(rank: usize, shards: usize) -> String {
    if shards == 1 { "optimizer.safetensors".into() } else { format!("optimizer-{rank:04}.safetensors") }
}

/// The complete checkpoints in a run's `checkpoints` folder, by their steps.
pub(super) fn complete_steps(checkpoints: &Path) -> BTreeMap<u64, PathBuf> {
    let entries = fs::read_dir(checkpoints).into_iter().flatten().flatten();
    let steps = entries.filter_map(|entry| Some((step_of(entry.file_name().to_str()?)?, entry.path())));
    steps.filter(|(_, path)| is_complete(path)).collect()
}

/// Rank 0: removes the unfinished checkpoints of a run that was killed.
pub(super) fn remove_unfinished(run: &Path) {
    for entry in fs::read_dir(run.join(CHECKPOINTS)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let _ = fs::remove_dir_all(entry.path()); // what remains costs space only
        }
    }
}

/// SHA-256 as `sha256sum` prints it.
fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
