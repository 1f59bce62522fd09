//! Writes a checkpoint, on a thread of its own: under a temporary name, synced, then renamed. At any moment the folder
//! `checkpoints` holds only complete checkpoints.
//!
//! Rank 0 writes all files. With `run.shard_optimizer`, each rank writes its shard of the optimiser's state into the same
//! folder, and next to it a marker with the shard's SHA-256. Rank 0 waits for the markers: these threads call no collectives.

use super::host_snapshot::{HostSnapshot, TensorShape};
use super::newest::NewestCheckpoint;
use super::state::{TrainState, VERSION};
use super::{COMPLETE, EMA, MODEL, PARTIAL, STATE, complete_steps, optimizer_file, sha256};
use crate::config::{Config, Run};
use crate::model::Params;
use crate::optim::{Ema, Optimizer};
use crate::run::write_atomically;
use crate::run_dir::{BEST, LATEST, step_name};
use crate::sys::error::{Error, Result};
use codinet_dataloader::sync_folder;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use tch::Tensor;

/// One rank's files of a checkpoint, in buffers on the host that serve every checkpoint of the run.
#[derive(Debug)]
pub(super) struct Writer {
    checkpoints: PathBuf,
    options: Run,
    rank: usize,
    /// The number of ranks that write a shard of the optimiser's state.
    shards: usize,
    /// How long rank 0 waits for another rank's shard.
    shard_timeout: Duration,
    /// Each file's name, and the buffers with its tensors.
    files: Vec<(String, Vec<HostSnapshot>)>,
    state: TrainState,
    /// The folder of the checkpoint until it is complete.
    partial: PathBuf,
    /// Rank 0, with `run.copy_to`: where complete checkpoints are passed on.
    pub copier: Option<Arc<NewestCheckpoint>>,
}

impl Writer {
    /// For the tensors of `params` and of `optimizer`, on a rank below `shards`.
    pub fn new(
        checkpoints: &Path,
        config: &Config,
        params: &Params,
        optimizer: &dyn Optimizer,
        rank: usize,
        shards: usize,
        shard_timeout: Duration,
    ) -> Self {
        let parameters: Vec<TensorShape> =
            params.parameters.iter().map(|p| TensorShape::new(&p.name, &p.tensor)).collect();
        let buffers: Vec<TensorShape> =
            params.buffers.iter().map(|(name, tensor)| TensorShape::new(name, tensor)).collect();
        let state = optimizer.named_state(params);
        let state: Vec<TensorShape> =
            state.iter().map(|(name, tensor)| TensorShape::new(name, tensor)).collect();
        let shard = vec![HostSnapshot::shard(&state, rank, shards)];
        let mut files = vec![(optimizer_file(rank, shards), shard)];
        if rank == 0 {
            let names = [Some(MODEL), config.optim.ema_decay.and(Some(EMA))];
            let snapshots = || vec![HostSnapshot::whole(&parameters), HostSnapshot::whole(&buffers)];
            files.extend(names.into_iter().flatten().map(|name| (name.to_owned(), snapshots())));
        }
        Self {
            checkpoints: checkpoints.into(),
            options: config.run.clone(),
            rank,
            shards,
            shard_timeout,
            files,
            state: TrainState::default(),
            partial: PathBuf::new(),
            copier: None,
        }
    }

    /// The main thread: copies the tensors to the host, for the checkpoint of `state` in the folder `partial`.
    pub fn copy(
        &mut self,
        params: &Params,
        optimizer_state: &Tensor,
        ema: Option<&Ema>,
        state: TrainState,
        partial: PathBuf,
    ) {
        let mut sources = vec![optimizer_state, params.flat(), params.flat_buffers()];
        sources.extend(ema.into_iter().flat_map(|ema| [&ema.flat, &ema.buffers]));
        // In the order of the files; ranks other than 0 have only the first.
        let snapshots = self.files.iter_mut().flat_map(|(_, snapshots)| snapshots);
        for (snapshot, source) in snapshots.zip(sources) {
            snapshot.copy_from(source);
        }
        self.state = state;
        self.partial = partial;
    }

    /// The writing thread: writes what was copied. An error leaves no part of the checkpoint.
    pub fn write(&mut self) -> Result<()> {
        self.files.iter_mut().flat_map(|(_, snapshots)| snapshots).for_each(HostSnapshot::fetch);
        let folder = self.checkpoints.join(step_name(self.state.step));
        let written = if self.rank == 0 { self.write_checkpoint(&folder) } else { self.write_shard() };
        written.map_err(|error| {
            if self.rank == 0 {
                let _ = fs::remove_dir_all(&self.partial);
            }
            Error::disk("write checkpoint", &folder, &error)
        })?;
        if self.rank == 0 { self.point_and_prune(&folder) } else { Ok(()) }
    }

    /// Ranks other than 0: writes the shard, then its marker, which is renamed into place with its whole content.
    fn write_shard(&self) -> io::Result<()> {
        for (name, checksum) in self.write_files()? {
            let marker = self.partial.join(name).with_extension("sha256");
            fs::write(marker.with_extension("partial"), checksum)?;
            fs::rename(marker.with_extension("partial"), marker)?;
        }
        Ok(())
    }

    /// Rank 0: writes its own files, waits for the other ranks' shards, and makes the checkpoint complete.
    fn write_checkpoint(&mut self, folder: &Path) -> io::Result<()> {
        self.state.version = VERSION;
        self.state.files = self.write_files()?.into_iter().collect();
        for rank in 1..self.shards {
            let name = optimizer_file(rank, self.shards);
            let checksum = self.wait_for_shard(&name)?;
            self.state.files.insert(name, checksum);
        }
        write_synced(&self.partial.join(STATE), &serde_json::to_vec_pretty(&self.state)?)?;
        write_synced(&self.partial.join(COMPLETE), &[])?;
        sync_folder(&self.partial)?;
        // An epoch's last step is saved again after the evaluation. The two folders then exchange their names in one step; if
        // the file system cannot do that, the older one is removed first.
        let partial = &self.partial;
        let exchanged =
            folder.exists() && renameat_with(CWD, partial, CWD, folder, RenameFlags::EXCHANGE).is_ok();
        if !exchanged {
            self.discard(folder);
            fs::rename(partial, folder)?;
        }
        sync_folder(&self.checkpoints)?;
        if exchanged {
            self.discard(partial);
        }
        Ok(())
    }

    /// Writes this rank's files; returns their names and checksums.
    fn write_files(&self) -> io::Result<Vec<(String, String)>> {
        fs::create_dir_all(&self.partial)?;
        let write = |(name, snapshots): &(String, Vec<HostSnapshot>)| {
            let tensors = snapshots.iter().flat_map(HostSnapshot::tensors);
            let bytes = safetensors::serialize(tensors, &None).map_err(io::Error::other)?;
            write_synced(&self.partial.join(name), &bytes)?;
            Ok((name.clone(), sha256(&bytes)))
        };
        self.files.iter().map(write).collect()
    }

    /// Rank 0: the checksum of another rank's shard, once that is written.
    fn wait_for_shard(&self, name: &str) -> io::Result<String> {
        let start = Instant::now();
        let marker = self.partial.join(name).with_extension("sha256");
        loop {
            match fs::read_to_string(&marker) {
                Ok(checksum) => return fs::remove_file(&marker).map(|()| checksum),
                Err(_) if start.elapsed() < self.shard_timeout => thread::sleep(Duration::from_millis(10)),
                Err(_) => {
                    let what = "run.shard_optimizer needs a run directory that all hosts share";
                    let waited = self.shard_timeout.as_secs_f64();
                    return Err(io::Error::other(format!("no {name} in {waited} s: {what}")));
                }
            }
        }
    }

    /// Rank 0: updates `latest` and `best`, removes checkpoints that need not be kept, and passes this one on to be copied.
    fn point_and_prune(&self, folder: &Path) -> Result<()> {
        let name = |path: &Path| path.file_name().expect("a name").as_encoded_bytes().to_vec();
        write_atomically(&self.checkpoints.join(LATEST), &name(folder))?;
        let steps = complete_steps(&self.checkpoints);
        let best = self.state.best.filter(|_| self.options.keep_best).map(|best| best.step);
        if let Some(best) = best.and_then(|best| steps.get(&best)) {
            write_atomically(&self.checkpoints.join(BEST), &name(best))?;
        }
        for (step, old) in steps.iter().rev().skip(self.options.keep_last) {
            let every = self.options.keep_every;
            if Some(*step) != best && (every == 0 || !step.is_multiple_of(every)) {
                self.discard(old);
            }
        }
        if let Some(copier) = &self.copier {
            copier.offer(folder);
        }
        Ok(())
    }

    /// Removes a folder. It is renamed first, so that it is no checkpoint while files are missing from it. What cannot be
    /// removed costs space only.
    fn discard(&self, folder: &Path) {
        let renamed = self.checkpoints.join(format!("{PARTIAL}removed"));
        let _ = fs::remove_dir_all(&renamed);
        let _ = fs::rename(folder, &renamed);
        let _ = fs::remove_dir_all(&renamed);
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
