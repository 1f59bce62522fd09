//! Going on after a crash: in which run directory, with which words, and after how long a wait.

use crate::plan::Facts;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest wait before another start.
const LONGEST: Duration = Duration::from_secs(300);

/// The wait before the `restart`-th start after a crash, counted from 1: twice as long each time.
pub fn back_off(first: Duration, restart: u32) -> Duration {
    first.saturating_mul(1 << (restart - 1).min(16)).min(LONGEST.max(first))
}

/// codinet-train's words for the first start, and for those after a crash, which go on in the same run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Words {
    /// The first start.
    pub first: Vec<String>,
    /// Every start after it.
    pub again: Vec<String>,
}

impl Words {
    /// A run that may be started again needs a directory that is known beforehand: where neither the command line nor the
    /// config has one, it is made here.
    pub fn new(arguments: &[String]) -> Result<Self, String> {
        let told = Told::read(arguments);
        let (mut first, mut again) = (arguments.to_vec(), told.without_resume(arguments));
        let set = |dir: &Path| ["--set".to_owned(), format!("run.dir={}", dir.display())];
        match told.resume.as_deref() {
            _ if told.dir => {}
            // The newest run of this config: the one that the first start went on with, or made.
            Some("auto") => {}
            Some(path) if path != "never" => again.extend(set(&run_of(Path::new(path)))),
            _ if Facts::of(&told.config, &told.sets)?.config.run.dir.is_some() => {}
            _ => {
                let dir = fresh(&told.config)?;
                first.extend(set(&dir));
                again.extend(set(&dir));
            }
        }
        again.extend(["--resume", "auto"].map(Into::into));
        Ok(Self { first, again })
    }
}

/// What codinet-train's arguments say, as far as a restart has to know.
#[derive(Debug, Default)]
struct Told {
    config: String,
    resume: Option<String>,
    sets: Vec<String>,
    /// Whether one of the settings is the run directory.
    dir: bool,
    /// Places of the words that say `--resume`.
    places: Vec<usize>,
}

impl Told {
    fn read(arguments: &[String]) -> Self {
        let (mut told, mut at) = (Self::default(), 0);
        while at < arguments.len() {
            let (name, value, taken) = match arguments[at].split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned()), 1),
                _ => (arguments[at].as_str(), arguments.get(at + 1).cloned(), 2),
            };
            match (name, value) {
                ("--resume", Some(value)) => {
                    told.places.extend(at..at + taken);
                    told.resume = Some(value);
                }
                ("--set", Some(value)) => {
                    told.dir |= value.starts_with("run.dir=");
                    told.sets.push(value);
                }
                ("--profile" | "--memory", Some(_)) => {}
                (option, _) if option.starts_with('-') => {
                    at += 1;
                    continue;
                }
                _ => {
                    // The only word that stands alone.
                    told.config.clone_from(&arguments[at]);
                    at += 1;
                    continue;
                }
            }
            at += taken;
        }
        told
    }

    fn without_resume(&self, arguments: &[String]) -> Vec<String> {
        let kept = arguments.iter().enumerate().filter(|(at, _)| !self.places.contains(at));
        kept.map(|(_, word)| word.clone()).collect()
    }
}

/// The run directory that `--resume PATH` goes on in: PATH, or what a `step-…` folder lies in.
fn run_of(path: &Path) -> PathBuf {
    let of_step = || {
        let checkpoints = path.parent().filter(|parent| parent.ends_with("checkpoints"))?;
        checkpoints.parent().map(Path::to_path_buf)
    };
    of_step().unwrap_or_else(|| path.into())
}

/// Makes `runs/<config>-<time>`, or the first of its kind that is free, as codinet-train would.
fn fresh(config: &str) -> Result<PathBuf, String> {
    let name = Path::new(config).file_stem().unwrap_or_default().to_string_lossy();
    let stem = format!("runs/{name}-{}", jiff::Zoned::now().strftime("%Y%m%d-%H%M%S"));
    let failed = |error| format!("cannot make {stem}: {error}; set run.dir");
    std::fs::create_dir_all("runs").map_err(failed)?;
    let mut names = std::iter::once(stem.clone()).chain((2..).map(|n| format!("{stem}-{n}")));
    loop {
        let dir = PathBuf::from(names.next().expect("an endless list of names"));
        match std::fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Words {
        let arguments: Vec<String> = line.split_whitespace().map(Into::into).collect();
        Words::new(&arguments).unwrap()
    }

    #[test]
    fn waits_double_and_end() {
        let waits = [1, 2, 3, 7, 40].map(|n| back_off(Duration::from_secs(10), n).as_secs());
        assert_eq!(waits, [10, 20, 40, 300, 300]);
        assert_eq!(back_off(Duration::ZERO, 5), Duration::ZERO);
    }

    #[test]
    fn a_restart_goes_on_in_the_same_directory() {
        for (first, again) in [
            ("my.yaml --set run.dir=x --set a=1", "my.yaml --set run.dir=x --set a=1 --resume auto"),
            ("my.yaml --set=run.dir=x --resume=never", "my.yaml --set=run.dir=x --resume auto"),
            ("--set run.dir=x my.yaml", "--set run.dir=x my.yaml --resume auto"),
            ("--resume=runs/a my.yaml", "my.yaml --set run.dir=runs/a --resume auto"),
            ("my.yaml --memory 1GiB --set run.dir=x", "my.yaml --memory 1GiB --set run.dir=x --resume auto"),
            ("my.yaml --resume auto --set a=1", "my.yaml --set a=1 --resume auto"),
            ("my.yaml --resume runs/a", "my.yaml --set run.dir=runs/a --resume auto"),
            ("my.yaml --resume runs/a/checkpoints/step-1", "my.yaml --set run.dir=runs/a --resume auto"),
            ("my.yaml --resume runs/b --set run.dir=x", "my.yaml --set run.dir=x --resume auto"),
        ] {
            let made = words(first);
            assert_eq!((made.first.join(" "), made.again.join(" ")), (first.into(), again.into()));
        }
    }
}
