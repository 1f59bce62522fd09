//! What the thread that saves a checkpoint does: it writes under another name, syncs, and renames. At any moment the folder
//! holds only whole checkpoints.
//!
//! Rank 0 writes all of it, unless `run.shard_optimizer` shares the optimiser's state out. Then each rank writes its share
//! into the same folder and puts the share's SHA-256 beside it, which tells rank 0's thread that it is there: threads call
//! no collectives.

use super::checkpoint::{EMA, MODEL, State, VERSION, checksum, optimizer_file, steps};
use super::copied::{Copied, Shape};
use super::write_whole;
use crate::config::{Config, Run};
use crate::model::Params;
use crate::optim::Ema;
use crate::run_dir::{BEST, LATEST, step_name};
use crate::sys::error::{Error, Result};
use codinet_dataloader::sync_folder;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};
use tch::Tensor;

/// One rank's files of a checkpoint, on the host; their memory stays for the next one.
#[derive(Debug)]
pub struct Writer {
    checkpoints: PathBuf,
    options: Run,
    rank: usize,
    /// How many ranks share the optimiser's state.
    sharers: usize,
    /// How long rank 0 waits for another's share.
    patience: Duration,
    /// Each file's name, and what is side by side in it.
    files: Vec<(String, Vec<Copied>)>,
    state: State,
    /// What the checkpoint's folder is called before it is whole.
    partial: PathBuf,
}

impl Writer {
    /// For the tensors of `params`; `rank` is below `sharers`.
    pub fn new(
        checkpoints: &Path,
        config: &Config,
        params: &Params,
        rank: usize,
        sharers: usize,
        patience: Duration,
    ) -> Self {
        let trained: Vec<Shape> = params.parameters.iter().map(|p| Shape::of(&p.name, &p.tensor)).collect();
        let kept: Vec<Shape> = params.buffers.iter().map(|(name, tensor)| Shape::of(name, tensor)).collect();
        let mut files = vec![(optimizer_file(rank, sharers), vec![Copied::share(&trained, rank, sharers)])];
        if rank == 0 {
            let names = [Some(MODEL), config.optim.ema_decay.and(Some(EMA))];
            let parts = || vec![Copied::all(&trained), Copied::all(&kept)];
            files.extend(names.into_iter().flatten().map(|name| (name.to_owned(), parts())));
        }
        Self {
            checkpoints: checkpoints.into(),
            options: config.run.clone(),
            rank,
            sharers,
            patience,
            files,
            state: State::default(),
            partial: PathBuf::new(),
        }
    }

    /// The main thread: takes a copy of this moment, to be called `partial` until it is whole.
    pub fn copy(
        &mut self,
        params: &Params,
        momentum: &Tensor,
        ema: Option<&Ema>,
        state: State,
        partial: PathBuf,
    ) {
        let mut sources = vec![momentum, params.flat(), params.flat_buffers()];
        sources.extend(ema.into_iter().flat_map(|ema| [&ema.flat, &ema.buffers]));
        // In the order of the files; ranks other than 0 have the first alone.
        let copies = self.files.iter_mut().flat_map(|(_, parts)| parts);
        copies.zip(sources).for_each(|(copy, source)| copy.take(source));
        (self.state, self.partial) = (state, partial);
    }

    /// The thread: writes what was copied.
    pub fn write(&mut self) -> Result<()> {
        let place = self.checkpoints.join(step_name(self.state.step));
        let written = if self.rank == 0 { self.write_checkpoint(&place) } else { self.write_share() };
        written.map_err(|error| {
            if self.rank == 0 {
                let _ = fs::remove_dir_all(&self.partial);
            }
            Error::disk("write checkpoint", &place, &error)
        })?;
        if self.rank == 0 { self.point_and_prune(&place) } else { Ok(()) }
    }

    /// Other ranks than 0: the share first, then the sign that it is there, whole whenever it is seen.
    fn write_share(&self) -> io::Result<()> {
        for (name, sum) in self.write_files()? {
            let sign = self.partial.join(name).with_extension("sha256");
            fs::write(sign.with_extension("partial"), sum)?;
            fs::rename(sign.with_extension("partial"), sign)?;
        }
        Ok(())
    }

    /// Rank 0: its own files, and when all others' are there too, what makes a checkpoint of them.
    fn write_checkpoint(&mut self, place: &Path) -> io::Result<()> {
        self.state.version = VERSION;
        self.state.files = self.write_files()?.into_iter().collect();
        for rank in 1..self.sharers {
            let name = optimizer_file(rank, self.sharers);
            let sum = self.wait_for_share(&name)?;
            self.state.files.insert(name, sum);
        }
        write_synced(&self.partial.join("state.json"), &serde_json::to_vec_pretty(&self.state)?)?;
        write_synced(&self.partial.join("COMPLETE"), &[])?;
        sync_folder(&self.partial)?;
        // The same step is saved again after its epoch's evaluation: the two exchange names at once, or, where the
        // file system cannot do that, the older one steps aside first.
        let partial = &self.partial;
        let exchanged =
            place.exists() && renameat_with(CWD, partial, CWD, place, RenameFlags::EXCHANGE).is_ok();
        if !exchanged {
            self.discard(place);
            fs::rename(partial, place)?;
        }
        sync_folder(&self.checkpoints)?;
        if exchanged {
            self.discard(partial);
        }
        Ok(())
    }

    /// Writes this rank's files; their names and checksums.
    fn write_files(&self) -> io::Result<Vec<(String, String)>> {
        fs::create_dir_all(&self.partial)?;
        let write = |(name, parts): &(String, Vec<Copied>)| {
            let tensors = parts.iter().flat_map(Copied::tensors);
            let bytes = safetensors::serialize(tensors, &None).map_err(io::Error::other)?;
            write_synced(&self.partial.join(name), &bytes)?;
            Ok((name.clone(), checksum(&bytes)))
        };
        self.files.iter().map(write).collect()
    }

    /// Rank 0: the checksum of another rank's file, once that is written.
    fn wait_for_share(&self, name: &str) -> io::Result<String> {
        let (begun, sign) = (Instant::now(), self.partial.join(name).with_extension("sha256"));
        loop {
            match fs::read_to_string(&sign) {
                Ok(sum) => return fs::remove_file(&sign).map(|()| sum),
                Err(_) if begun.elapsed() < self.patience => thread::sleep(Duration::from_millis(10)),
                Err(_) => {
                    let what = "run.shard_optimizer needs a run directory that all hosts see";
                    let waited = self.patience.as_secs_f64();
                    return Err(io::Error::other(format!("no {name} in {waited} s: {what}")));
                }
            }
        }
    }

    /// Rank 0: has `latest` and `best` follow, and removes what is not to be kept. What cannot be removed costs space
    /// alone.
    fn point_and_prune(&self, place: &Path) -> Result<()> {
        let name = |path: &Path| path.file_name().expect("a name").as_encoded_bytes().to_vec();
        write_whole(&self.checkpoints.join(LATEST), &name(place))?;
        let steps = steps(&self.checkpoints);
        let best = self.state.best.filter(|_| self.options.keep_best).map(|best| best.step);
        if let Some(best) = best.and_then(|best| steps.get(&best)) {
            write_whole(&self.checkpoints.join(BEST), &name(best))?;
        }
        for (step, old) in steps.iter().rev().skip(self.options.keep_last) {
            let every = self.options.keep_every;
            if Some(*step) != best && (every == 0 || !step.is_multiple_of(every)) {
                self.discard(old);
            }
        }
        Ok(())
    }

    /// Removes a folder, which is no checkpoint any more before the first of its files goes.
    fn discard(&self, folder: &Path) {
        let aside = self.checkpoints.join(".partial-aside");
        let _ = fs::remove_dir_all(&aside);
        let _ = fs::rename(folder, &aside);
        let _ = fs::remove_dir_all(&aside);
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
