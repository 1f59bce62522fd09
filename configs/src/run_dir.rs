//! A run directory: the names in it, and which one a run uses.

use crate::exit::{Error, Exit, Result};
use crate::table;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The folder of run directories, unless `run.dir` names one.
pub const RUNS: &str = "runs";
/// The resolved config.
pub const CONFIG: &str = "config.yaml";
/// One JSON object a line: training steps, evaluations, events.
pub const METRICS: &str = "metrics.jsonl";
/// The results of a run that has ended.
pub const SUMMARY: &str = "summary.json";
/// The confusion matrix of the last evaluation: a line for each pair of classes.
pub const CONFUSION: &str = "confusion.csv";
/// The images of that evaluation that are most confidently wrong.
pub const MISTAKES: &str = "mistakes.csv";
/// What rank 0 printed, with the time.
pub const LOG: &str = "log.txt";
/// Images that could not be read or decoded, one JSON object a line.
pub const BAD_SAMPLES: &str = "bad_samples.jsonl";
/// The names of the classes, in the order of their numbers.
pub const CLASS_NAMES: &str = "class_names.json";
/// The folder of TensorBoard's event files.
pub const TENSORBOARD: &str = "tensorboard";
/// The folder of the checkpoints, each in a `step-…` folder.
pub const CHECKPOINTS: &str = "checkpoints";
/// In `checkpoints`: a file that names the newest checkpoint.
pub const LATEST: &str = "latest";
/// In `checkpoints`: a file that names the best checkpoint.
pub const BEST: &str = "best";
/// A file that a user creates to stop the run with a checkpoint.
pub const STOP: &str = "stop";

/// The name of a step's checkpoint folder.
pub fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a checkpoint folder with this name.
pub fn step_of(name: &str) -> Option<u64> {
    name.strip_prefix("step-")?.parse().ok()
}

/// The step of a copied checkpoint with this name (`run.copy_to`): that of its folder, and 8 digits of a checksum.
pub fn copied_step_of(name: &str) -> Option<u64> {
    step_of(name.rsplit_once('-')?.0)
}

/// Whether a path leads to a copied run (`run.copy_to`), not to a run directory. A URL always does.
pub fn is_copy(path: &Path) -> bool {
    let latest = || fs::read_to_string(path.join(CHECKPOINTS).join(LATEST)).ok();
    path.to_string_lossy().contains("://") || latest().is_some_and(|name| copied_step_of(&name).is_some())
}

/// The run directory of a checkpoint folder, `RUN/checkpoints/step-…`; none if the folder is elsewhere.
pub fn run_of(step_folder: &Path) -> Option<PathBuf> {
    let run = |folder: &Path| {
        let checkpoints = folder.parent().filter(|parent| parent.ends_with(CHECKPOINTS))?;
        checkpoints.parent().filter(|run| *run != "").map(Path::to_path_buf)
    };
    run(step_folder).or_else(|| run(&step_folder.canonicalize().ok()?))
}

/// The start of a run directory's name: the config's file, and its row if it is one of a table.
pub fn stem(config: &str) -> String {
    let (file, row) = table::split(config);
    let file = Path::new(file).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    row.map_or(file.clone(), |row| format!("{file}-{row}"))
}

/// Creates `runs/<stem>-<time>`, or the first such name with a number that is free. Two runs that start together get one each.
pub fn create_unique(stem: &str) -> Result<PathBuf> {
    let runs = Path::new(RUNS);
    let first = format!("{stem}-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
    fs::create_dir_all(runs).map_err(|error| cannot_make(runs, &error))?;
    let numbered = (2..).map(|number| format!("{first}-{number}"));
    for name in std::iter::once(first.clone()).chain(numbered) {
        let dir = runs.join(name);
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(cannot_make(&dir, &error)),
        }
    }
    unreachable!("the numbers do not end")
}

fn cannot_make(dir: &Path, error: &std::io::Error) -> Error {
    let dir = dir.display();
    Error::new(
        Exit::Disk,
        format!("cannot make {dir}: {error}; check its space and permissions, or set run.dir"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_folder_belongs_to_the_run_above_checkpoints() {
        assert_eq!(run_of(Path::new("runs/a/checkpoints/step-00000001")), Some("runs/a".into()));
        assert_eq!(run_of(Path::new("runs/a")), None);
        assert_eq!(run_of(Path::new("checkpoints/step-00000001")), None, "nothing is there to resolve");
        let folder = tempfile::tempdir().unwrap();
        let step = folder.path().join("checkpoints").join(step_name(7));
        fs::create_dir_all(&step).unwrap();
        assert_eq!(run_of(&step), Some(folder.path().into()));
        assert_eq!(step_of(step.file_name().unwrap().to_str().unwrap()), Some(7));
        assert_eq!(copied_step_of("step-00000007-0a1b2c3d"), Some(7));
        assert_eq!(copied_step_of("step-00000007"), None);
        assert_eq!(step_of("step-00000007-0a1b2c3d"), None);
        assert!(is_copy(Path::new("s3://bucket/run")) && !is_copy(folder.path()));
        fs::write(folder.path().join("checkpoints/latest"), "step-00000007-0a1b2c3d").unwrap();
        assert!(is_copy(folder.path()));
    }
}
