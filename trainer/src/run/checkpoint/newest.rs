//! The newest complete checkpoint, as the thread that writes checkpoints passes it to the one that copies them (`run.copy_to`).

use super::{COMPLETE, STATE, is_complete, sha256};
use crate::run_dir::step_of;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A checkpoint with all of its files open: they can be read although it is removed or replaced meanwhile.
#[derive(Debug)]
pub(crate) struct OpenCheckpoint {
    pub step: u64,
    /// The name of its copy.
    pub name: String,
    /// Its files; `COMPLETE` is the last.
    pub files: Vec<(String, File)>,
}

impl OpenCheckpoint {
    /// Opens the files of a `step-…` folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        for entry in fs::read_dir(folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            files.push((name.clone(), File::open(folder.join(name))?));
        }
        files.sort_by_key(|(name, _)| (name == COMPLETE, name == STATE, name.clone()));
        let name = copy_name(folder)?;
        Ok(Self { step: step_in(folder)?, name, files })
    }
}

/// The name of a checkpoint's copy. A step may be saved twice, before its evaluation and after it: the copies differ by 8
/// digits of the checksum of `state.json`, so that neither overwrites the other's files.
pub(crate) fn copy_name(folder: &Path) -> io::Result<String> {
    if !is_complete(folder) {
        return Err(io::Error::other("not a complete checkpoint"));
    }
    let checksum = sha256(&fs::read(folder.join(STATE))?);
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name}-{}", &checksum[..8]))
}

fn step_in(folder: &Path) -> io::Result<u64> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    step_of(&name).ok_or_else(|| io::Error::other("not a step's folder"))
}

/// Room for one checkpoint, between two threads. A newer one replaces one that is still there.
#[derive(Debug, Default)]
pub(crate) struct NewestCheckpoint {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    newest: Option<OpenCheckpoint>,
    closed: bool,
}

impl NewestCheckpoint {
    /// The writing thread: passes a complete checkpoint on. One that cannot be opened is left out: training does not end for a
    /// copy.
    pub fn offer(&self, folder: &Path) {
        match OpenCheckpoint::open(folder) {
            Ok(checkpoint) => self.change(|state| state.newest = Some(checkpoint)),
            Err(error) => crate::eprint_line!("warning: cannot copy {}: {error}", folder.display()),
        }
    }

    /// No checkpoint follows.
    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// The copying thread: waits for a checkpoint, until the end or, at most, for `limit`. Returns it, and whether it is the last.
    pub fn wait(&self, limit: Duration) -> (Option<OpenCheckpoint>, bool) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = |state: &mut State| state.newest.is_none() && !state.closed;
        let waited = self.changed.wait_timeout_while(state, limit, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        (state.newest.take(), state.closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(folder: &Path, content: &str) {
        fs::create_dir_all(folder).unwrap();
        for file in [COMPLETE, STATE, "model.safetensors"] {
            fs::write(folder.join(file), content).unwrap();
        }
    }

    #[test]
    fn newer_checkpoint_replaces_one_that_waits_and_open_files_outlive_their_folder() {
        let run = tempfile::tempdir().unwrap();
        let newest = NewestCheckpoint::default();
        for step in ["step-00000001", "step-00000002"] {
            write(&run.path().join(step), step);
            newest.offer(&run.path().join(step));
        }
        let folder = run.path().join("step-00000002");
        let before = copy_name(&folder).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let (checkpoint, last) = newest.wait(Duration::ZERO);
        let checkpoint = checkpoint.unwrap();
        assert_eq!((checkpoint.step, &checkpoint.name, last), (2, &before, false));
        let names: Vec<&str> = checkpoint.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["model.safetensors", STATE, COMPLETE]);
        let text = io::read_to_string(&checkpoint.files[0].1).unwrap();
        assert_eq!(text, "step-00000002");
        write(&folder, "saved again");
        assert_ne!(copy_name(&folder).unwrap(), before);
        newest.close();
        assert!(matches!(newest.wait(Duration::from_secs(60)), (None, true)));
    }
}
