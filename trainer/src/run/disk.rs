//! Whether a run directory can be written to, and whether its disk has space for the checkpoints.

use crate::config::probe::{CheckpointSpace, Space};
use crate::config::{Config, OptimizerKind};
use crate::host;
use crate::model::Params;
use crate::sys::error::{Error, Exit, Result};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// What the checkpoints of a run of `config` take.
pub(crate) fn checkpoint_space(config: &Config, params: &Params) -> CheckpointSpace {
    let means = if config.optim.optimizer == OptimizerKind::Sgd { 1 } else { 2 }; // momenta, or Adam's m and v
    let copies = 1 + means + i64::from(config.optim.ema_decay.is_some()); // weights, and their moving average
    CheckpointSpace {
        bytes: (4 * params.count() * copies) as u64,
        checkpoints: (config.run.keep_last + usize::from(config.run.keep_best) + 1) as u64,
    }
}

/// The folder `dir`, or the nearest one above it that exists.
pub(crate) fn existing_folder(dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    absolute.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/")).into()
}

/// Free bytes of a folder's disk, for this user.
pub(crate) fn free_bytes(folder: &Path) -> Option<u64> {
    rustix::fs::statvfs(folder).map(|disk| disk.f_bavail * disk.f_frsize).ok()
}

/// Locks a run directory against other runs, until the file is closed.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(|error| Error::disk("open", dir, &error))?;
    // On a file system without locks, the user has to see to it.
    if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
        let what = format!("{} is in use by another run; choose another run.dir", dir.display());
        return Err(Error::new(Exit::Config, what));
    }
    Ok(file)
}

/// Rank 0: checks that a run can write checkpoints to `dir`. A folder that is made for the test is removed. A run that resumes
/// from a checkpoint has one of the two that it needs.
pub(crate) fn check_run_dir(dir: &Path, space: &CheckpointSpace, resumes: bool) -> Result<()> {
    let folder = existing_folder(dir);
    let test = folder.join(format!(".codinet-test-{}-{}", host::name(), std::process::id()));
    let writes = fs::create_dir(&test).and_then(|()| fs::remove_dir(&test));
    let action = if dir.exists() { "write to" } else { "make" };
    writes.map_err(|error| Error::disk(action, dir, &error))?;
    if dir.exists() {
        lock(dir)?; // until the end of this line
    }
    let free = free_bytes(&folder);
    let present = if resumes { space.bytes } else { 0 };
    if free.is_some_and(|free| space.judge(free.saturating_add(present)) == Space::TooLittle) {
        let what = format!(
            "run.dir: {} has {:.1} MB free, too little for two checkpoints of {:.1} MB each; free some space, or set run.dir to \
             another disk",
            folder.display(),
            free.unwrap_or(0) as f64 / 1e6,
            space.bytes as f64 / 1e6
        );
        return Err(Error::new(Exit::Disk, what));
    }
    Ok(())
}
