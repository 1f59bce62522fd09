//! The run directory: what a run leaves behind, and the interface between the tools.
//!
//! `config.yaml` (resolved), `metrics.jsonl`, `tensorboard/`, `checkpoints/`, `summary.json`, `log.txt`,
//! `class_names.json` where classes have names, `bad_samples.jsonl`. Rank 0 alone writes, but for the shares of the optimiser's
//! state and lines on bad samples; what could not be written ends the run with one line.

pub mod checkpoint;
mod choose;
pub mod colour;
mod console;
mod copied;
mod events;
mod hparams;
mod log;
pub mod projector;
mod rates;
mod records;
mod saver;
mod tensorboard;
mod writer;

pub use choose::{Place, choose, choose_weights};
pub use console::{Console, say};
pub(crate) use events::{EmaSummary, EvaluationRecord, Event, Summary, TrainRecord};
pub(crate) use log::RunLog;
use records::Records;
use saver::Saver;
pub use tensorboard::EventFile;

use crate::run_dir::CLASS_NAMES;
use crate::sys::error::{Error, Result};
use codinet_dataloader::sync_folder;
use std::fs::{self, File};
use std::path::Path;

/// Notes in the run directory `run` what the classes are called, in the order of their numbers.
pub fn keep_class_names(run: &Path, names: &[String]) -> Result<()> {
    write_whole(&run.join(CLASS_NAMES), &serde_json::to_vec(names).expect("a list is JSON"))
}

/// What the run in the directory `run` calls its classes, where it knows.
pub fn class_names_of(run: &Path) -> Option<Vec<String>> {
    serde_json::from_slice(&fs::read(run.join(CLASS_NAMES)).ok()?).ok()
}

/// Writes `bytes` so that `path` holds either what it held or all of them, whenever the machine stops.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let temporary = path.with_extension("partial");
    let write = || {
        fs::write(&temporary, bytes)?;
        File::open(&temporary)?.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(path.parent().filter(|folder| *folder != "").unwrap_or(Path::new(".")))
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&temporary);
        Error::disk("write", path, &error)
    })
}
