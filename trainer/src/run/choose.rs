//! Which directory a run writes to, and which checkpoint it goes on from.

use super::checkpoint;
use crate::config::{Config, Run};
use crate::sys::error::{Error, Exit, Result};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `--resume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Start anew; a directory that holds a run is refused.
    Never,
    /// Go on in `run.dir`, else in the newest `runs/<config name>-*` of an equal config; start anew where
    /// there is none.
    Auto,
    /// Go on from this run directory or `step-…` folder.
    From(PathBuf),
}

/// Where a run writes, and what it goes on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The run directory.
    pub dir: PathBuf,
    /// The `step-…` folder to go on from.
    pub checkpoint: Option<PathBuf>,
}

impl FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        Ok(match text {
            "never" => Self::Never,
            "auto" => Self::Auto,
            path => Self::From(path.into()),
        })
    }
}

/// Rank 0: picks the place; `name` is the config's. A directory that is named here is made here, so that two runs
/// that start at once get one each.
pub fn choose(name: &str, config: &Config, resume: &Resume) -> Result<Place> {
    let set = config.run.dir.as_ref().map(PathBuf::from);
    match resume {
        Resume::Never => match set {
            Some(dir) if holds_run(&dir) => Err(occupied(&dir)),
            Some(dir) => Ok(Place { dir, checkpoint: None }),
            None => Ok(Place { dir: fresh(name)?, checkpoint: None }),
        },
        Resume::Auto => match set.or_else(|| newest(name, config)) {
            Some(dir) => Ok(Place { checkpoint: newest_readable(&dir)?, dir }),
            None => Ok(Place { dir: fresh(name)?, checkpoint: None }),
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
        Some(newest) => (path.to_path_buf(), newest),
        None if checkpoint::is_complete(path) => {
            let run = path.canonicalize().ok().and_then(|path| Some(path.parent()?.parent()?.to_path_buf()));
            (run.unwrap_or_else(|| path.into()), path.to_path_buf())
        }
        None => return refuse("holds no complete checkpoint"),
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
    if newest.is_none() && !checkpoint::steps(&run.join("checkpoints")).is_empty() {
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
    dir.join("config.yaml").exists() || dir.join("checkpoints").exists()
}

/// Makes `runs/<name>-<time>`, or the first of its kind that is free.
fn fresh(name: &str) -> Result<PathBuf> {
    let stem = format!("runs/{name}-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
    let names = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
    let claim = |dir: PathBuf| match fs::create_dir(&dir) {
        Ok(()) => Some(Ok(dir)),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
        Err(error) => Some(Err(Error::disk("make", &dir, &error))),
    };
    fs::create_dir_all("runs").map_err(|error| Error::disk("make", Path::new("runs"), &error))?;
    names.map(PathBuf::from).find_map(claim).expect("an endless list of names")
}

/// The newest run of this name whose config differs in nothing but where and how it runs.
fn newest(name: &str, config: &Config) -> Option<PathBuf> {
    let prefix = format!("{name}-");
    let entries = fs::read_dir("runs").ok()?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let equal = named.map(|entry| entry.path()).filter(|dir| {
        let text = fs::read_to_string(dir.join("config.yaml")).unwrap_or_default();
        let place = |theirs: &Config| Run { seed: theirs.run.seed, ..config.run.clone() };
        serde_saphyr::from_str::<Config>(&text)
            .is_ok_and(|theirs| Config { run: place(&theirs), ..theirs } == *config)
    });
    equal.max_by_key(|dir| fs::metadata(dir.join("config.yaml")).and_then(|file| file.modified()).ok())
}
