//! Which directory a run writes to, and which checkpoint it resumes from.

use super::checkpoint;
use super::copy::CopiedCheckpoint;
use crate::config::{Config, Resume, Run};
use crate::run_dir::{self, CHECKPOINTS, CONFIG, RUNS};
use crate::sys::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// A run's directory and starting point.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunLocation {
    /// The run directory.
    pub dir: PathBuf,
    /// The `step-…` folder to resume from.
    pub checkpoint: Option<PathBuf>,
    /// The copied checkpoint to fetch and resume from.
    pub(crate) copied: Option<CopiedCheckpoint>,
}

impl RunLocation {
    /// Whether the run continues an earlier one.
    pub(crate) fn resumes(&self) -> bool {
        self.checkpoint.is_some() || self.copied.is_some()
    }
}

/// Rank 0: the location of a run of `config`, as `resume` asks for; none if a new directory is to be made under [`RUNS`],
/// whose name starts with `stem`.
pub(crate) fn resolve_run_dir(stem: &str, config: &Config, resume: &Resume) -> Result<Option<RunLocation>> {
    let configured = config.run.dir.as_ref().map(PathBuf::from);
    let dir = match resume {
        Resume::From(path) if run_dir::is_copy(path) => {
            return resolve_copied(&path.to_string_lossy(), configured, config).map(Some);
        }
        Resume::From(path) => return resolve_resumed(path, configured).map(Some),
        Resume::Auto => configured.or_else(|| newest_run(stem, config)),
        Resume::Never => configured,
    };
    match dir {
        None => Ok(None),
        Some(dir) if *resume == Resume::Auto => {
            let checkpoint = newest_checkpoint(&dir)?;
            let copied = match &config.run.copy_to {
                Some(url) => CopiedCheckpoint::find(url, config)?,
                None => None,
            };
            Ok(Some(newer(dir, checkpoint, copied)))
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
    Ok(RunLocation { dir: run, checkpoint: Some(checkpoint), copied: None })
}

/// `--resume URL`: resumes the run whose copy is at `url`, in the directory `configured`.
fn resolve_copied(url: &str, configured: Option<PathBuf>, config: &Config) -> Result<RunLocation> {
    let dir = configured.ok_or_else(|| {
        let what = format!("{url}: set run.dir to the folder of this machine where the copied run goes on");
        Error::new(Exit::Config, what)
    })?;
    let checkpoint = newest_checkpoint(&dir)?;
    let copied = CopiedCheckpoint::find(url, config)?.ok_or_else(|| {
        let what = format!("{url}: holds no copied run: checkpoints/latest is missing; check the URL");
        Error::new(Exit::Checkpoint, what)
    })?;
    let location = newer(dir, checkpoint, Some(copied));
    if let Some(folder) = &location.checkpoint {
        crate::eprint_line!(
            "note: {} is not older than the copy at {url}, so it is resumed",
            folder.display()
        );
    }
    Ok(location)
}

/// The location of a run whose newest checkpoint in `dir` is `checkpoint`, and elsewhere `copied`: it resumes from the copy only if
/// that is of a later step.
fn newer(dir: PathBuf, checkpoint: Option<PathBuf>, copied: Option<CopiedCheckpoint>) -> RunLocation {
    let step = |folder: &PathBuf| run_dir::step_of(folder.file_name()?.to_str()?);
    let local = checkpoint.as_ref().and_then(step);
    let copied = copied.filter(|copied| local.is_none() || copied.step() > local);
    RunLocation { dir, checkpoint: checkpoint.filter(|_| copied.is_none()), copied }
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
    Ok(RunLocation { dir, checkpoint, copied: None })
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
