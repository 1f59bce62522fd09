//! Copies of a run (`run.copy_to`) in a store or another folder: its newest checkpoints, its best one, and its records. Rank 0
//! copies in the background, and fetches a copy where a run resumes without its run directory.
//!
//! A copy has the run directory's layout. Its checkpoints have names of their own (see [`copy_name`]), and the order of writing
//! keeps it complete: a checkpoint's files, the records, then `checkpoints/latest`; what it replaces is removed after that.

use super::checkpoint::{
    COMPLETE, NewestCheckpoint, OpenCheckpoint, complete_steps, copy_name, is_complete, read_state,
};
use super::{disk, write_atomically};
use crate::config::Config;
use crate::run_dir::{
    BAD_SAMPLES, BEST, CHECKPOINTS, CLASS_NAMES, CONFIG, CONFUSION, LATEST, LOG, METRICS, MISTAKES, SUMMARY,
    copied_step_of, step_name,
};
use crate::sys::error::{Error, Exit, Result};
use codinet_dataloader::CopyFolder;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The files of a run directory that are copied, if they exist, each time.
const RECORDS: [&str; 8] = [CONFIG, CLASS_NAMES, METRICS, BAD_SAMPLES, LOG, SUMMARY, CONFUSION, MISTAKES];
/// The longest time of a request to a store, with its retries, unless `collective.timeout_s` is shorter.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// More bytes than the first record of a run has.
const LONGEST_RECORD: usize = 1 << 20;
/// The pause after a copy that failed.
const RETRY_AFTER: Duration = Duration::from_secs(30);

fn open(url: &str, config: &Config) -> Result<CopyFolder> {
    let timeout = REQUEST_TIMEOUT.min(Duration::from_secs(config.collective.timeout_s));
    CopyFolder::open(url, timeout).map_err(|error| failure(Exit::Disk, &error))
}

/// An error of a copy; `exit` unless the URL itself is wrong.
fn failure(exit: Exit, error: &codinet_dataloader::Error) -> Error {
    let wrong_url = matches!(error, codinet_dataloader::Error::InvalidArgument(_));
    Error::new(if wrong_url { Exit::Config } else { exit }, error.to_string())
}

fn in_checkpoints(name: &str) -> String {
    format!("{CHECKPOINTS}/{name}")
}

/// The names that `latest` or `best` of a copy has, if it has that file.
fn pointer(folder: &CopyFolder, file: &str) -> Result<Option<String>> {
    let name = folder.read(&in_checkpoints(file)).map_err(|error| failure(Exit::Checkpoint, &error))?;
    Ok(name.map(|name| String::from_utf8_lossy(&name).trim().to_owned()))
}

/// A copied checkpoint that a run resumes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CopiedCheckpoint {
    url: String,
    name: String,
}

impl CopiedCheckpoint {
    /// Rank 0: the newest checkpoint of the copy at `url`, if there is one.
    pub fn find(url: &str, config: &Config) -> Result<Option<Self>> {
        let latest = pointer(&open(url, config)?, LATEST)?;
        Ok(latest.map(|name| Self { url: url.trim_end_matches('/').into(), name }))
    }

    /// Its step; none if its name is none of a copied checkpoint.
    pub fn step(&self) -> Option<u64> {
        copied_step_of(&self.name)
    }

    /// Rank 0: fetches it into the run directory `dir`, with the best checkpoint and the records of the run, and compares every
    /// file of a checkpoint with its checksum. Returns its `step-…` folder.
    pub fn fetch(&self, dir: &Path, config: &Config) -> Result<PathBuf> {
        let checkpoints = dir.join(CHECKPOINTS);
        fs::create_dir_all(&checkpoints).map_err(|error| Error::disk("make", &checkpoints, &error))?;
        let _lock = disk::lock(dir)?;
        crate::eprint_line!("fetching {} of {} into {}", self.name, self.url, dir.display());
        let folder = open(&self.url, config)?;
        let files = folder.list("").map_err(|error| failure(Exit::Checkpoint, &error))?;
        for file in RECORDS.into_iter().filter(|file| files.iter().any(|name| name == file)) {
            let fetched = folder.download(file, &dir.join(file));
            fetched.map_err(|error| failure(Exit::Checkpoint, &error))?;
        }
        if let Some(best) = pointer(&folder, BEST)?.filter(|best| *best != self.name) {
            let best = fetch_checkpoint(&folder, &best, &checkpoints)?;
            write_pointer(&checkpoints, BEST, &best)?;
        }
        let latest = fetch_checkpoint(&folder, &self.name, &checkpoints)?;
        write_pointer(&checkpoints, LATEST, &latest)?;
        Ok(latest)
    }
}

fn write_pointer(checkpoints: &Path, file: &str, step: &Path) -> Result<()> {
    let name = step.file_name().unwrap_or_default();
    write_atomically(&checkpoints.join(file), name.as_encoded_bytes())
}

/// Fetches a copied checkpoint into the folder `checkpoints`, where it appears once it is whole.
fn fetch_checkpoint(folder: &CopyFolder, name: &str, checkpoints: &Path) -> Result<PathBuf> {
    let copy = in_checkpoints(name);
    let damaged = |what: &str| Error::new(Exit::Checkpoint, format!("{}: {what}", folder.location(&copy)));
    let step = copied_step_of(name).ok_or_else(|| damaged("is no copied checkpoint"))?;
    let partial = checkpoints.join(".partial-fetched");
    let _ = fs::remove_dir_all(&partial); // most often there is none
    fs::create_dir_all(&partial).map_err(|error| Error::disk("make", &partial, &error))?;
    for file in folder.list(&copy).map_err(|error| failure(Exit::Checkpoint, &error))? {
        let fetched = folder.download(&format!("{copy}/{file}"), &partial.join(&file));
        fetched.map_err(|error| failure(Exit::Checkpoint, &error))?;
    }
    if !is_complete(&partial) {
        return Err(damaged("is incomplete"));
    }
    read_state(&partial).map_err(|error| damaged(&error.message))?;
    let target = checkpoints.join(step_name(step));
    let _ = fs::remove_dir_all(&target); // a damaged one
    fs::rename(&partial, &target).map_err(|error| Error::disk("make", &target, &error))?;
    Ok(target)
}

/// Rank 0, before a run starts: checks that `run.copy_to` can be written to, by a small file that is removed again.
pub(crate) fn check_copy_is_writable(config: &Config) -> Result<()> {
    let Some(url) = &config.run.copy_to else { return Ok(()) };
    let folder = open(url, config)?;
    let test = format!(".codinet-test-{}-{}", crate::host::name(), std::process::id());
    let written = folder.write(&test, b"").and_then(|()| folder.remove(&test));
    written.map_err(|error| failure(Exit::Disk, &error))
}

/// Rank 0, before a run starts: checks that `run.copy_to` does not hold the copy of another run than the one in
/// the directory `dir`, or the one that resumes from `copied`.
pub(crate) fn check_copy_is_own(
    config: &Config,
    dir: Option<&Path>,
    copied: Option<&CopiedCheckpoint>,
) -> Result<()> {
    let Some(url) = &config.run.copy_to else { return Ok(()) };
    let folder = open(url, config)?;
    let is_fetched = copied.is_some_and(|copied| copied.url == url.trim_end_matches('/'));
    if is_fetched || pointer(&folder, LATEST)?.is_none() {
        return Ok(());
    }
    // A run's first record has the time at which it was made.
    let first_line = |bytes: Vec<u8>| bytes.split(|byte| *byte == b'\n').next().unwrap_or_default().to_vec();
    let here = dir.and_then(|dir| fs::read(dir.join(METRICS)).ok()).map(first_line);
    let there = folder.read_start(METRICS, LONGEST_RECORD);
    let there = there.map_err(|error| failure(Exit::Checkpoint, &error))?.map(first_line);
    if here.is_some() && there.as_ref().is_none_or(|line| line.is_empty() || Some(line) == here.as_ref()) {
        return Ok(());
    }
    let what = format!(
        "{url} holds the copy of another run; choose another folder, or resume that run by --resume auto and a new run.dir"
    );
    Err(Error::new(Exit::Config, what))
}

/// Rank 0: the thread that copies a run.
#[derive(Debug)]
pub(super) struct Copier {
    newest: Arc<NewestCheckpoint>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Copier {
    /// Starts to copy the run in the directory `dir`, beginning with the checkpoint that it resumed from, if there is one; none
    /// without `run.copy_to`.
    pub fn start(config: &Config, dir: &Path, resumed_step: u64) -> Result<Option<Self>> {
        let Some(url) = &config.run.copy_to else { return Ok(None) };
        let newest = Arc::new(NewestCheckpoint::default());
        let resumed = dir.join(CHECKPOINTS).join(step_name(resumed_step));
        if is_complete(&resumed) {
            newest.offer(&resumed);
        }
        let mut copy = Copy {
            folder: open(url, config)?,
            dir: dir.into(),
            found: None,
            best: None,
            newest: newest.clone(),
            last: None,
        };
        let started = thread::Builder::new().name("copy".into()).spawn(move || copy.run());
        let thread = started.map_err(|error| Error::disk("start to copy to", Path::new(url), &error))?;
        Ok(Some(Self { newest, thread: Some(thread) }))
    }

    /// Where complete checkpoints are passed to it.
    pub fn newest(&self) -> Arc<NewestCheckpoint> {
        self.newest.clone()
    }

    /// Waits at most for `limit` until the newest checkpoint and the records are copied; returns whether they are. No
    /// checkpoint may follow.
    pub fn finish(&mut self, limit: Duration) -> Result<bool> {
        self.newest.close();
        let start = Instant::now();
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if start.elapsed() > limit {
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(10));
        }
        let Some(thread) = self.thread.take() else { return Ok(true) };
        thread.join().unwrap_or_else(|panic| resume_unwind(panic)).map(|()| true)
    }
}

/// What the copying thread knows of the copy.
struct Copy {
    folder: CopyFolder,
    /// The run directory.
    dir: PathBuf,
    newest: Arc<NewestCheckpoint>,
    /// The checkpoints in the copy that are this run's, by their names, and whether they are complete; none until the first request
    /// has been answered.
    found: Option<BTreeMap<String, bool>>,
    /// What `best` in the copy names, if it is known.
    best: Option<String>,
    /// The step of the last copy, and when it was complete.
    last: Option<(u64, Instant)>,
}

impl Copy {
    /// Copies until no checkpoint follows. A copy that fails is tried again, and training goes on; the error is that of the last
    /// copy, after the run's end.
    fn run(&mut self) -> Result<()> {
        let mut current = None;
        let mut uploaded = 0;
        let mut warned = false;
        let mut pause = Duration::MAX;
        loop {
            let (next, last) = self.newest.wait(pause);
            if next.is_some() {
                current = next;
                uploaded = 0;
            }
            let mut copied = Ok(());
            if let Some(checkpoint) = &current {
                copied = self.copy_checkpoint(checkpoint, &mut uploaded);
            }
            if last {
                copied = copied.and_then(|()| self.copy_best()).and_then(|()| self.copy_records());
            }
            match copied {
                Ok(()) => {
                    current = None;
                    pause = Duration::MAX;
                    if std::mem::take(&mut warned) {
                        crate::eprint_line!("note: {}: {}", self.folder.location(""), self.describe_last());
                    }
                }
                Err(error) if last => {
                    let what = format!(
                        "{error}; the copy of the run is not complete ({}), but {} has all of it: copy that, or start the same \
                         command with --resume auto, which copies again",
                        self.describe_last(),
                        self.dir.display()
                    );
                    return Err(Error { message: what, ..failure(Exit::Disk, &error) });
                }
                Err(error) => {
                    pause = RETRY_AFTER;
                    if !std::mem::replace(&mut warned, true) {
                        let last = self.describe_last();
                        let seconds = RETRY_AFTER.as_secs();
                        crate::eprint_line!(
                            "warning: {error}; training goes on, and the copy is tried again every {seconds} s; {last}"
                        );
                    }
                }
            }
            if last {
                return Ok(());
            }
        }
    }

    fn describe_last(&self) -> String {
        match self.last {
            Some((step, at)) => {
                format!(
                    "the newest copied checkpoint is that of step {step}, {} s old",
                    at.elapsed().as_secs()
                )
            }
            None => "no checkpoint has been copied since the start".into(),
        }
    }

    /// Copies a checkpoint and the records, after which `latest` names it; then the best one; then removes the copies of checkpoints
    /// that the run directory has no more. `uploaded` counts its copied files.
    fn copy_checkpoint(
        &mut self,
        checkpoint: &OpenCheckpoint,
        uploaded: &mut usize,
    ) -> Result<(), codinet_dataloader::Error> {
        self.upload(checkpoint, uploaded)?;
        self.copy_records()?;
        self.folder.write(&in_checkpoints(LATEST), checkpoint.name.as_bytes())?;
        self.last = Some((checkpoint.step, Instant::now()));
        self.copy_best()?;
        self.prune(&checkpoint.name)
    }

    /// The checkpoints of this run in the copy: at first those that an earlier process has copied.
    fn found(&mut self) -> Result<&mut BTreeMap<String, bool>, codinet_dataloader::Error> {
        if self.found.is_none() {
            let mut found = BTreeMap::new();
            for name in self.folder.list(CHECKPOINTS)? {
                if copied_step_of(&name).is_some() {
                    let files = self.folder.list(&in_checkpoints(&name))?;
                    found.insert(name, files.iter().any(|file| file == COMPLETE));
                }
            }
            self.found = Some(found);
        }
        Ok(self.found.get_or_insert_default())
    }

    /// Copies a checkpoint's files, unless an earlier process has.
    fn upload(
        &mut self,
        checkpoint: &OpenCheckpoint,
        uploaded: &mut usize,
    ) -> Result<(), codinet_dataloader::Error> {
        let complete = self.found()?.entry(checkpoint.name.clone()).or_default();
        if *complete {
            return Ok(());
        }
        for (file, open) in &checkpoint.files[*uploaded..] {
            self.folder.upload(&in_checkpoints(&format!("{}/{file}", checkpoint.name)), open)?;
            *uploaded += 1;
        }
        self.found()?.insert(checkpoint.name.clone(), true);
        Ok(())
    }

    /// Copies the best checkpoint, if it is no copy yet, and names it in `best`.
    fn copy_best(&mut self) -> Result<(), codinet_dataloader::Error> {
        let checkpoints = self.dir.join(CHECKPOINTS);
        let Ok(best) = fs::read_to_string(checkpoints.join(BEST)) else { return Ok(()) };
        // A better one may replace it just now; that one follows.
        let Ok(checkpoint) = OpenCheckpoint::open(&checkpoints.join(best.trim())) else { return Ok(()) };
        self.upload(&checkpoint, &mut 0)?;
        self.folder.write(&in_checkpoints(BEST), checkpoint.name.as_bytes())?;
        self.best = Some(checkpoint.name);
        Ok(())
    }

    fn copy_records(&self) -> Result<(), codinet_dataloader::Error> {
        for name in RECORDS {
            if let Ok(file) = File::open(self.dir.join(name)) {
                self.folder.upload(name, &file)?;
            }
        }
        Ok(())
    }

    /// Removes the copies of this run's checkpoints that the run directory has no more and that neither `latest` nor `best` names.
    fn prune(&mut self, latest: &str) -> Result<(), codinet_dataloader::Error> {
        // While a better one replaces it, `best` in the copy names a checkpoint that the run directory has no more.
        if self.best.is_none() {
            let best = self.folder.read(&in_checkpoints(BEST))?;
            self.best = best.map(|name| String::from_utf8_lossy(&name).trim().to_owned());
        }
        let local = complete_steps(&self.dir.join(CHECKPOINTS));
        let kept: BTreeSet<String> = local.values().filter_map(|folder| copy_name(folder).ok()).collect();
        let found: Vec<String> = self.found()?.keys().cloned().collect();
        let is_named = |name: &str| name == latest || self.best.as_deref() == Some(name);
        let removed: Vec<String> =
            found.into_iter().filter(|name| !is_named(name) && !kept.contains(name)).collect();
        for name in &removed {
            self.folder.remove_folder(&in_checkpoints(name))?;
            self.found()?.remove(name);
        }
        Ok(())
    }
}
