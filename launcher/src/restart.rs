//! Restarts after a crash: in which run directory, with which command, and after how long a wait.

use codinet_config::{Resume, TrainArgs, load, run_dir};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest wait before a restart, unless the first wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The wait before the `restart`-th start after a crash, counted from 1: twice as long each time.
pub fn back_off(first: Duration, restart: u32) -> Duration {
    first.saturating_mul(1 << (restart - 1).min(16)).min(LONGEST_WAIT.max(first))
}

/// codinet-train's arguments for the first start, and for those after a crash, which resume the same run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commands {
    /// The first start.
    pub first: Vec<String>,
    /// Every start after it.
    pub restart: Vec<String>,
    /// The run directory that was created for them.
    pub created: Option<PathBuf>,
}

impl Commands {
    /// Without restarts: the arguments as they are.
    pub fn once(arguments: &[String]) -> Self {
        Self { first: arguments.to_vec(), restart: Vec::new(), created: None }
    }

    /// For `arguments`, which `args` are. A run that may be restarted needs a directory that is known beforehand: if neither the command line nor the config
    /// sets one, it is created here.
    pub fn new(arguments: &[String], args: TrainArgs) -> Result<Self, String> {
        let mut first = arguments.to_vec();
        let mut restart = first.clone();
        let mut created = None;
        let set_dir = |dir: &Path| ["--set".to_owned(), format!("run.dir={}", dir.display())];
        let dir_is_set = args.set.iter().any(|setting| setting.starts_with("run.dir="));
        match args.resume {
            _ if dir_is_set => {}
            // The newest run of this config: the one that the first start has resumed or made.
            Resume::Auto => {}
            // A copied run is fetched into the config's run.dir.
            Resume::From(path) if run_dir::is_copy(&path) => {}
            Resume::From(path) => restart.extend(set_dir(&run_dir::run_of(&path).unwrap_or(path))),
            Resume::Never => {
                let config = args.config.unwrap_or_default();
                if load(&config, &args.set).map_err(|error| error.to_string())?.run.dir.is_none() {
                    let dir =
                        run_dir::create_unique(&run_dir::stem(&config)).map_err(|error| error.to_string())?;
                    first.extend(set_dir(&dir));
                    restart.extend(set_dir(&dir));
                    created = Some(dir);
                }
            }
        }
        restart.extend(["--resume", "auto"].map(Into::into));
        Ok(Self { first, restart, created })
    }
}

impl Drop for Commands {
    /// Removes the run directory that was created, if it is still empty: the start has failed.
    fn drop(&mut self) {
        if let Some(dir) = &self.created {
            let _ = std::fs::remove_dir(dir); // refuses a directory with files
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(Into::into).collect()
    }

    #[test]
    fn waits_double_up_to_five_minutes() {
        let waits = [1, 2, 3, 7, 40].map(|n| back_off(Duration::from_secs(10), n).as_secs());
        assert_eq!(waits, [10, 20, 40, 300, 300]);
        assert_eq!(back_off(Duration::ZERO, 5), Duration::ZERO);
    }

    #[test]
    fn a_restart_resumes_the_same_directory() {
        for (first, added) in [
            ("my.yaml --set run.dir=x --set a=1", "--resume auto"),
            ("my.yaml --set=run.dir=x --resume=never", "--resume auto"),
            ("--set run.dir=x my.yaml", "--resume auto"),
            ("--resume=runs/a my.yaml", "--set run.dir=runs/a --resume auto"),
            ("my.yaml --find-batch --memory 1GiB --set run.dir=x", "--resume auto"),
            ("my.yaml --resume auto --set a=1", "--resume auto"),
            ("my.yaml --resume runs/a", "--set run.dir=runs/a --resume auto"),
            ("my.yaml --resume runs/a/checkpoints/step-1", "--set run.dir=runs/a --resume auto"),
            ("my.yaml --resume runs/b --set run.dir=x", "--resume auto"),
            ("my.yaml --resume s3://bucket/run", "--resume auto"),
        ] {
            let args = TrainArgs::try_parse_from(words(&format!("codinet-train {first}"))).unwrap();
            let commands = Commands::new(&words(first), args).unwrap();
            assert_eq!(commands.first, words(first));
            assert_eq!(commands.restart, words(&format!("{first} {added}")));
        }
        // The last --resume counts.
        let args =
            TrainArgs::try_parse_from(words("codinet-train my.yaml --resume runs/a --resume auto")).unwrap();
        assert_eq!(args.resume, Resume::Auto);
    }
}
