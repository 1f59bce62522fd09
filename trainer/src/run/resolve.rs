//! Which directory a run writes to, and which checkpoint it resumes from.

use super::checkpoint;
use crate::config::{Config, Resume, Run};
use crate::run_dir::{self, CHECKPOINTS, CONFIG, RUNS};
use crate::sys::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// A run's directory and starting point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLocation {
    /// The run directory.
    pub dir: PathBuf,
    /// The `step-…` folder to resume from.
    pub checkpoint: Option<PathBuf>,
}

/// Rank 0: the location of a run of `config`, as `resume` asks for; none if a new directory is to be made under [`RUNS`],
/// whose name starts with `stem`.
pub(crate) fn resolve_run_dir(stem: &str, config: &Config, resume: &Resume) -> Result<Option<RunLocation>> {
    let configured = config.run.dir.as_ref().map(PathBuf::from);
    let dir = match resume {
        Resume::From(path) => return resolve_resumed(path, configured).map(Some),
        Resume::Auto => configured.or_else(|| newest_run(stem, config)),
        Resume::Never => configured,
    };
    match dir {
        None => Ok(None),
        Some(dir) if *resume == Resume::Auto => {
            Ok(Some(RunLocation { checkpoint: newest_checkpoint(&dir)?, dir }))
        }
        Some(dir) => new_run(dir, None).map(Some),
    }
}

/// Rank 0: the `.safetensors` file that `--eval-only` evaluates.
pub(crate) fn resolve_weights(stem: &str, config: &Config, resume: &Resume) -> Result<PathBuf> {
    let run = match resume {
        Resume::Never => None,
        Resume::Auto => config.run.dir.as_ref().map(PathBuf::from).or_else(|| newest_run(stem, config)),
        Resume::From(path) => Some(path.clone()),
    };
    let run = run.ok_or_else(|| {
        let what = "--eval-only needs weights: add --resume RUN, where RUN is a run directory, a step folder or a \
                    .safetensors file";
        Error::new(Exit::Config, what)
    })?;
    checkpoint::find_weights(&run)
}

/// `--resume PATH`: resumes the run that PATH belongs to, or branches off into the directory `configured`.
fn resolve_resumed(path: &Path, configured: Option<PathBuf>) -> Result<RunLocation> {
    let refuse = |what: &str| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", path.display())));
    if !path.is_dir() {
        return refuse("no such run directory or checkpoint; --resume takes auto, never, or such a path");
    }
    let (run, checkpoint) = match checkpoint::find_newest(path) {
        Some(newest) => (Some(path.to_path_buf()), newest),
        None if checkpoint::is_complete(path) => (run_dir::run_of(path), path.to_path_buf()),
        None => return refuse("holds no complete checkpoint"),
    };
    let is_run = |dir: &Path| run.as_ref().is_some_and(|run| is_same_folder(dir, run));
    if let Some(dir) = configured.filter(|dir| !is_run(dir)) {
        return new_run(dir, Some(checkpoint));
    }
    let Some(run) = run else {
        return refuse("is in no run directory; set run.dir to a new folder to branch off from it");
    };
    let newest = checkpoint::find_newest(&run);
    if newest.is_some_and(|newest| newest.file_name() > checkpoint.file_name()) {
        return refuse(
            "its run has later checkpoints; set run.dir to a new folder to branch off from this one",
        );
    }
    Ok(RunLocation { dir: run, checkpoint: Some(checkpoint) })
}

fn is_same_folder(a: &Path, b: &Path) -> bool {
    a == b || a.canonicalize().ok().is_some_and(|a| b.canonicalize().ok() == Some(a))
}

/// A run in the directory `dir`, which must not hold one yet.
fn new_run(dir: PathBuf, checkpoint: Option<PathBuf>) -> Result<RunLocation> {
    if dir.join(CONFIG).exists() || dir.join(CHECKPOINTS).exists() {
        let dir = dir.display();
        let what = format!("{dir} holds a run; --resume auto resumes it, another run.dir starts a new one");
        return Err(Error::new(Exit::Config, what));
    }
    Ok(RunLocation { dir, checkpoint })
}

/// The newest undamaged checkpoint of a run, if it has any checkpoint.
///
/// # Errors
/// All of them are damaged: a new run in this directory would leave them next to its own.
fn newest_checkpoint(run: &Path) -> Result<Option<PathBuf>> {
    let newest = checkpoint::find_newest(run);
    if newest.is_none() && !checkpoint::complete_steps(&run.join(CHECKPOINTS)).is_empty() {
        let what = "none of its checkpoints can be read, see the warnings above; set run.dir to a new folder to start \
                    a new run";
        return Err(Error::new(Exit::Checkpoint, format!("{}: {what}", run.display())));
    }
    Ok(newest)
}

/// The newest run of this name whose config is equal, except for the keys of `run` other than the seed.
fn newest_run(stem: &str, config: &Config) -> Option<PathBuf> {
    let prefix = format!("{stem}-");
    let entries = fs::read_dir(RUNS).ok()?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let equal = named.map(|entry| entry.path()).filter(|dir| {
        let text = fs::read_to_string(dir.join(CONFIG)).unwrap_or_default();
        let Ok(mut other) = serde_saphyr::from_str::<Config>(&text) else { return false };
        if other.optim.decays_norm_and_bias() == config.optim.decays_norm_and_bias() {
            // Version 0.1 wrote `true` where the default is null now.
            other.optim.decay_norm_and_bias = config.optim.decay_norm_and_bias;
        }
        let run = Run { seed: other.run.seed, ..config.run.clone() };
        Config { run, ..other } == *config
    });
    equal.max_by_key(|dir| fs::metadata(dir.join(CONFIG)).and_then(|file| file.modified()).ok())
}
