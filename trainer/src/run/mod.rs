//! The run directory: everything that a run writes. docs/first_run.md lists its files, whose names are in
//! [`crate::run_dir`].
//!
//! Rank 0 writes; other ranks write only shards of the optimiser's state and lines about bad samples. A file that cannot be
//! written ends the run with an error, except TensorBoard's and the log.

pub mod checkpoint;
mod cividis;
mod class_report;
mod console;
mod copy;
mod disk;
mod git;
mod heatmap;
mod hook;
mod hparams;
mod log;
pub mod projector;
mod recorder;
mod records;
mod resolve;
mod scalars;
mod tensorboard;

pub use cividis::cividis;
pub(crate) use class_report::draw_mistakes;
pub use class_report::{ClassSummary, LISTED_MISTAKES, write_class_tables};
pub use console::Console;
pub(crate) use copy::{check_copy_is_own, check_copy_is_writable};
pub(crate) use disk::{check_run_dir, checkpoint_space, existing_folder, free_bytes};
pub(crate) use log::RunLog;
pub(crate) use records::{EvaluationRecord, EvaluationSummary, Event, Summary, TrainRecord};
pub use resolve::RunLocation;
pub(crate) use resolve::{resolve_run_dir, resolve_weights};
pub use tensorboard::EventFile;

use crate::run_dir::CLASS_NAMES;
use crate::sys::error::{Error, Result};
use codinet_dataloader::sync_folder;
use std::fs::{self, File};
use std::path::Path;

/// Writes the names of the classes, in the order of their numbers, into the run directory `run`.
fn write_class_names(run: &Path, names: &[String]) -> Result<()> {
    write_atomically(&run.join(CLASS_NAMES), &serde_json::to_vec(names).expect("a list is JSON"))
}

/// The names of the classes in the run directory `run`, if it has them.
pub fn read_class_names(run: &Path) -> Option<Vec<String>> {
    serde_json::from_slice(&fs::read(run.join(CLASS_NAMES)).ok()?).ok()
}

/// The classes' names; the number of a class without one.
pub fn name_classes(names: Option<&[String]>, classes: usize) -> Vec<String> {
    let name = |class: usize| names.and_then(|names| names.get(class)).cloned();
    (0..classes).map(|class| name(class).unwrap_or_else(|| class.to_string())).collect()
}

/// Writes a table as CSV (RFC 4180, except the lines' ends).
pub fn write_table(
    path: &Path,
    columns: &[impl AsRef<str>],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> Result<()> {
    let mut text = csv_line(columns);
    rows.into_iter().for_each(|row| text += &csv_line(&row));
    write_atomically(path, text.as_bytes())
}

fn csv_line(fields: &[impl AsRef<str>]) -> String {
    let quoted = |field: &str| {
        if field.contains([',', '"', '\n']) {
            format!("\"{}\"", field.replace('"', "\"\""))
        } else {
            field.to_owned()
        }
    };
    fields.iter().map(|field| quoted(field.as_ref())).collect::<Vec<_>>().join(",") + "\n"
}

/// Replaces the file at `path` in one step: even after a power cut it holds the old bytes or the new ones.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
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

#[cfg(test)]
mod tests {
    #[test]
    fn fields_with_commas_and_quotes_are_quoted() {
        let fields = ["a", "T-shirt, top", "say \"no\""];
        assert_eq!(super::csv_line(&fields), "a,\"T-shirt, top\",\"say \"\"no\"\"\"\n");
    }
}
