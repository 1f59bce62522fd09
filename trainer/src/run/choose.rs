//! Which directory a run writes to, and which checkpoint it goes on from.

use super::checkpoint;
use crate::config::{Config, Resume, Run};
use crate::run_dir::{self, CHECKPOINTS, CONFIG};
use crate::sys::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};

/// Where a run writes, and what it goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The run directory.
    pub dir: PathBuf,
    /// The `step-…` folder to go on from.
    pub checkpoint: Option<PathBuf>,
}

/// Rank 0: picks the place; `name` is the config's. A directory that is named here is made here, so that two runs
/// that start at once get one each.
pub fn choose(name: &str, config: &Config, resume: &Resume) -> Result<Place> {
    let set = config.run.dir.as_ref().map(PathBuf::from);
    match resume {
        Resume::Never => match set {
            Some(dir) if holds_run(&dir) => Err(occupied(&dir)),
            Some(dir) => Ok(Place { dir, checkpoint: None }),
            None => Ok(Place { dir: run_dir::create_unique(name)?, checkpoint: None }),
        },
        Resume::Auto => match set.or_else(|| newest(name, config)) {
            Some(dir) => Ok(Place { checkpoint: newest_readable(&dir)?, dir }),
            None => Ok(Place { dir: run_dir::create_unique(name)?, checkpoint: None }),
        },
        Resume::From(path) => from(path, set),
    }
}

/// Rank 0: the weights that `--eval-only` is to evaluate: a `.safetensors` file, unharmed as far as can be told.
pub fn choose_weights(name: &str, config: &Config, resume: &Resume) -> Result<PathBuf> {
    let run = match resume {
        Resume::Never => None,
        Resume::Auto => config.run.dir.as_ref().map(PathBuf::from).or_else(|| newest(name, config)),
        Resume::From(path) => Some(path.clone()),
    };
    let run = run.ok_or_else(|| {
        let what = "--eval-only needs weights: add --resume RUN, where RUN is a run directory, a step folder or a \
                    .safetensors file";
        Error::new(Exit::Config, what)
    })?;
    checkpoint::weights(&run)
}

/// `--resume PATH`: goes on in the run that PATH belongs to, or branches off into `run.dir`.
fn from(path: &Path, set: Option<PathBuf>) -> Result<Place> {
    let refuse = |what: &str| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", path.display())));
    if !path.is_dir() {
        return refuse("no such run directory or checkpoint; --resume takes auto, never, or such a path");
    }
    let (own, checkpoint) = match checkpoint::newest(path) {
        Some(newest) => (Some(path.to_path_buf()), newest),
        None if checkpoint::is_complete(path) => (run_dir::run_of(path), path.to_path_buf()),
        None => return refuse("holds no complete checkpoint"),
    };
    let Some(own) = own else {
        return match set {
            Some(dir) if holds_run(&dir) => Err(occupied(&dir)),
            Some(dir) => Ok(Place { dir, checkpoint: Some(checkpoint) }),
            None => refuse("is in no run directory; set run.dir to a new folder to branch off from here"),
        };
    };
    let same = |a: &Path, b: &Path| {
        a == b || a.canonicalize().ok().is_some_and(|a| b.canonicalize().ok() == Some(a))
    };
    match set.filter(|dir| !same(dir, &own)) {
        Some(dir) if holds_run(&dir) => Err(occupied(&dir)),
        Some(dir) => Ok(Place { dir, checkpoint: Some(checkpoint) }),
        None if checkpoint::newest(&own)
            .is_some_and(|newest| newest.file_name() > checkpoint.file_name()) =>
        {
            refuse("its run has gone on since; set run.dir to a new folder to branch off from here")
        }
        None => Ok(Place { dir: own, checkpoint: Some(checkpoint) }),
    }
}

/// The run's newest checkpoint, where it has any; that none of those it has can be read is no reason to start anew.
fn newest_readable(run: &Path) -> Result<Option<PathBuf>> {
    let newest = checkpoint::newest(run);
    if newest.is_none() && !checkpoint::steps(&run.join(CHECKPOINTS)).is_empty() {
        let what =
            "none of its checkpoints can be read, as said above; set run.dir to a new folder to start anew";
        return Err(Error::new(Exit::Checkpoint, format!("{}: {what}", run.display())));
    }
    Ok(newest)
}

fn occupied(dir: &Path) -> Error {
    let dir = dir.display();
    Error::new(
        Exit::Config,
        format!("{dir} holds a run; --resume auto goes on with it, another run.dir starts anew"),
    )
}

fn holds_run(dir: &Path) -> bool {
    dir.join(CONFIG).exists() || dir.join(CHECKPOINTS).exists()
}

/// The newest run of this name whose config differs in nothing but where and how it runs.
fn newest(name: &str, config: &Config) -> Option<PathBuf> {
    let prefix = format!("{name}-");
    let entries = fs::read_dir("runs").ok()?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let equal = named.map(|entry| entry.path()).filter(|dir| {
        let text = fs::read_to_string(dir.join(CONFIG)).unwrap_or_default();
        let place = |theirs: &Config| Run { seed: theirs.run.seed, ..config.run.clone() };
        serde_saphyr::from_str::<Config>(&text)
            .is_ok_and(|theirs| Config { run: place(&theirs), ..theirs } == *config)
    });
    equal.max_by_key(|dir| fs::metadata(dir.join(CONFIG)).and_then(|file| file.modified()).ok())
}
