//! Which directory a run writes to, and which checkpoint it goes on from.

use super::checkpoint;
use crate::config::Config;
use crate::error::{Error, Exit, Result};
use std::fs;
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

/// Rank 0: picks the place; `name` is the config's. Nothing is written.
pub fn choose(name: &str, config: &Config, resume: &Resume) -> Result<Place> {
    let set = config.run.dir.as_ref().map(PathBuf::from);
    match resume {
        Resume::Never => {
            let dir = set.unwrap_or_else(|| fresh(name));
            if holds_run(&dir) {
                let dir = dir.display();
                return Err(Error::new(
                    Exit::Config,
                    format!(
                        "{dir} holds a run; add --resume auto to go on with it, or choose another run.dir"
                    ),
                ));
            }
            Ok(Place { dir, checkpoint: None })
        }
        Resume::Auto => {
            let dir = set.or_else(|| newest(name, config)).unwrap_or_else(|| fresh(name));
            let checkpoint = checkpoint::newest(&dir);
            Ok(Place { dir, checkpoint })
        }
        Resume::From(path) => from(path, set),
    }
}

fn from(path: &Path, set: Option<PathBuf>) -> Result<Place> {
    let missing = |what: &str| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", path.display())));
    if !path.is_dir() {
        return missing("no such run directory or checkpoint; --resume takes auto, never, or such a path");
    }
    if let Some(checkpoint) = checkpoint::newest(path) {
        return Ok(Place { dir: set.unwrap_or_else(|| path.into()), checkpoint: Some(checkpoint) });
    }
    if !checkpoint::is_complete(path) {
        return missing("holds no complete checkpoint");
    }
    let own = path.canonicalize().ok().and_then(|path| Some(path.parent()?.parent()?.to_path_buf()));
    let dir = set.or(own.clone()).unwrap_or_else(|| path.into());
    let later = own.as_deref() == dir.canonicalize().ok().as_deref()
        && checkpoint::newest(&dir).and_then(|newest| newest.canonicalize().ok()) != path.canonicalize().ok();
    if later {
        return missing("its run has gone on since; set run.dir to a new folder to branch off from here");
    }
    Ok(Place { dir, checkpoint: Some(path.into()) })
}

fn holds_run(dir: &Path) -> bool {
    dir.join("config.yaml").exists() || dir.join("checkpoints").exists()
}

fn fresh(name: &str) -> PathBuf {
    let stem = format!("runs/{name}-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
    let names = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
    names.map(PathBuf::from).find(|dir| !dir.exists()).expect("an endless list of names")
}

/// The newest run of this name whose config differs in nothing but where and how it runs.
fn newest(name: &str, config: &Config) -> Option<PathBuf> {
    let prefix = format!("{name}-");
    let entries = fs::read_dir("runs").ok()?.flatten();
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
    let equal = named.filter(|entry| {
        let text = fs::read_to_string(entry.path().join("config.yaml")).unwrap_or_default();
        serde_saphyr::from_str::<Config>(&text)
            .is_ok_and(|theirs| Config { run: config.run.clone(), ..theirs } == *config)
    });
    equal
        .map(|entry| entry.path())
        .max_by_key(|dir| fs::metadata(dir.join("config.yaml")).and_then(|m| m.modified()).ok())
}
