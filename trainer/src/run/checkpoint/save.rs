//! Saves checkpoints in the background: training waits for a copy of the tensors on its device, and a thread does the rest. One
//! save is in progress at a time.

use super::PARTIAL;
use super::newest::NewestCheckpoint;
use super::state::TrainState;
use super::write::Writer;
use crate::config::Config;
use crate::dist::{World, on_rank_zero};
use crate::model::Params;
use crate::optim::{Ema, Optimizer};
use crate::run_dir::CHECKPOINTS;
use crate::sys::error::{Error, Result};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tch::Tensor;

/// One rank's part in saving a run's checkpoints.
#[derive(Debug)]
pub(crate) struct Saver {
    checkpoints: PathBuf,
    /// Milliseconds since 1970 at the start of the process, rank 0's: part of the names of unfinished checkpoints.
    start: u64,
    /// Checkpoints begun since then.
    saves: u64,
    /// Present while nothing is being written; never on a rank that writes nothing.
    writer: Option<Writer>,
    thread: Option<JoinHandle<(Writer, Result<()>)>>,
}

impl Saver {
    /// All ranks: for the run in the directory `run`.
    pub fn new(
        world: &World,
        run: &Path,
        config: &Config,
        params: &Params,
        optimizer: &dyn Optimizer,
    ) -> Result<Self> {
        let start = on_rank_zero(world, || Ok(jiff::Timestamp::now().as_millisecond() as u64))?;
        let checkpoints = run.join(CHECKPOINTS);
        let rank = world.rank();
        let shards = if config.run.shard_optimizer { world.ranks() } else { 1 };
        // Half the watchdog's timeout: the missing shard is reported before the watchdog finds rank 0 late.
        let shard_timeout = Duration::from_secs(config.collective.timeout_s) / 2;
        let writer = (rank < shards)
            .then(|| Writer::new(&checkpoints, config, params, optimizer, rank, shards, shard_timeout));
        Ok(Self { checkpoints, start, saves: 0, writer, thread: None })
    }

    /// Rank 0, before the first save: passes complete checkpoints on to `copier`.
    pub fn copy_with(&mut self, copier: Arc<NewestCheckpoint>) {
        if let Some(writer) = &mut self.writer {
            writer.copier = Some(copier);
        }
    }

    /// All ranks: waits for the save before, copies the tensors to the host, and starts to write them.
    pub fn save(
        &mut self,
        params: &Params,
        optimizer_state: &Tensor,
        ema: Option<&Ema>,
        state: TrainState,
    ) -> Result<()> {
        self.wait()?;
        self.saves += 1;
        let Some(mut writer) = self.writer.take() else { return Ok(()) };
        let partial = self.checkpoints.join(format!("{PARTIAL}{}-{}", self.start, self.saves));
        writer.copy(params, optimizer_state, ema, state, partial);
        let started = thread::Builder::new().name("checkpoint".into()).spawn(|| {
            let written = writer.write();
            (writer, written)
        });
        let thread = started.map_err(|error| Error::disk("start to write", &self.checkpoints, &error))?;
        self.thread = Some(thread);
        Ok(())
    }

    /// Any rank: the error of a save that has failed; does not wait for one in progress.
    pub fn check(&mut self) -> Result<()> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) { self.wait() } else { Ok(()) }
    }

    /// Any rank: waits for the save in progress. Afterwards rank 0's checkpoint, or this rank's shard of it, is on disk.
    pub fn wait(&mut self) -> Result<()> {
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let (writer, written) = thread.join().unwrap_or_else(|panic| resume_unwind(panic));
        self.writer = Some(writer);
        written
    }
}

impl Drop for Saver {
    /// A save in progress is completed, however the run ends.
    fn drop(&mut self) {
        if let Err(error) = self.wait() {
            crate::eprint_line!("warning: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Best, find_newest, load, read_state};
    use super::*;
    use crate::config::OptimizerKind;
    use crate::config::{Optim, Run};
    use crate::model::Role;
    use crate::optim::new_optimizer;
    use std::fs;
    use tch::{Device, Kind, no_grad};

    /// A convolution, a norm's scale and bias, and a running mean.
    fn params(seed: f64) -> Params {
        let mut params = Params::default();
        let values = |shape: &[i64]| {
            let count: i64 = shape.iter().product();
            (Tensor::arange(count, (Kind::Float, Device::Cpu)) + seed).sin().view(shape)
        };
        for (name, shape) in [("conv.weight", &[4, 3, 2, 2][..]), ("bn.weight", &[4]), ("bn.bias", &[40])] {
            let role = Role { router: false, norm_or_bias: shape.len() == 1, head: false };
            let _ = params.register_parameter(name.into(), values(shape), role);
        }
        let _ = params.register_buffer("bn.running_mean".into(), values(&[4]));
        params.flatten(Device::Cpu);
        params
    }

    fn saver(run: &Path, rank: usize, shards: usize, options: Run) -> Saver {
        saver_of(OptimizerKind::Sgd, run, rank, shards, options)
    }

    fn saver_of(optimizer: OptimizerKind, run: &Path, rank: usize, shards: usize, options: Run) -> Saver {
        let checkpoints = run.join(CHECKPOINTS);
        let shard_timeout = Duration::from_secs(2);
        let optim = Optim { optimizer, ema_decay: Some(0.9), ..Optim::default() };
        let config = Config { run: options, optim, ..Config::default() };
        let params = params(0.0);
        let optimizer = new_optimizer(&params, &config.optim);
        let writer =
            Writer::new(&checkpoints, &config, &params, optimizer.as_ref(), rank, shards, shard_timeout);
        let writer = Some(writer);
        Saver { checkpoints, start: 1, saves: 0, writer, thread: None }
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn checkpoint_loads_alike_from_any_number_of_shards() {
        for kind in [OptimizerKind::Sgd, OptimizerKind::AdamW, OptimizerKind::Lamb] {
            assert_loads_alike_from_any_number_of_shards(kind);
        }
    }

    fn assert_loads_alike_from_any_number_of_shards(kind: OptimizerKind) {
        let saved = params(1.0);
        let optim = Optim { optimizer: kind, ..Optim::default() };
        let optimizer = new_optimizer(&saved, &optim);
        let state = optimizer.state();
        let count = state.numel() as i64;
        let values = (Tensor::arange(count, (Kind::Float, Device::Cpu)) + 0.5).sin();
        no_grad(|| state.shallow_clone().copy_(&values));
        for shards in [1, 2, 5] {
            let run = tempfile::tempdir().unwrap();
            let mut savers: Vec<Saver> =
                (0..shards).map(|rank| saver_of(kind, run.path(), rank, shards, Run::default())).collect();
            for saver in &mut savers {
                let ema = Ema::new(&params(3.0), 0.9);
                saver
                    .save(&saved, state, Some(&ema), TrainState { step: 7, ..TrainState::default() })
                    .unwrap();
            }
            drop(savers);
            let folder = find_newest(run.path()).unwrap();
            let state = read_state(&folder).unwrap();
            assert_eq!(names(&folder).len(), 4 + shards, "{:?}", names(&folder));
            assert_eq!(state.files.len(), 2 + shards, "a checksum each");
            let other = params(2.0);
            let mut ema = Ema::new(&other, 0.9);
            let read = new_optimizer(&other, &optim);
            load(&folder, &state, &other, read.as_ref(), Some(&mut ema)).unwrap();
            assert!(other.flat().equal(saved.flat()) && other.flat_buffers().equal(saved.flat_buffers()));
            assert!(read.state().equal(&values));
            assert!(ema.flat.equal(params(3.0).flat()) && ema.buffers.equal(params(3.0).flat_buffers()));
        }
    }

    #[test]
    fn newest_best_and_every_nth_checkpoint_are_kept() {
        let run = tempfile::tempdir().unwrap();
        let options = Run { keep_last: 2, keep_every: 4, ..Run::default() };
        let mut saver = saver(run.path(), 0, 1, options);
        let params = params(1.0);
        for step in 1..=9 {
            for samples in [step, 2 * step] {
                let best = (step >= 3).then_some(Best { top1: 0.5, step: 3 });
                let state = TrainState { step, samples, best, ..TrainState::default() };
                saver.save(&params, params.flat(), None, state).unwrap();
            }
        }
        saver.wait().unwrap();
        let folder = run.path().join(CHECKPOINTS);
        let steps = ["step-00000003", "step-00000004", "step-00000008", "step-00000009"];
        assert_eq!(names(&folder), [&["best", "latest"], &steps[..]].concat());
        assert_eq!(fs::read_to_string(folder.join("best")).unwrap(), steps[0]);
        assert_eq!(fs::read_to_string(folder.join("latest")).unwrap(), steps[3]);
        assert_eq!(read_state(&folder.join(steps[3])).unwrap().samples, 18, "the second of the same step");
    }

    #[test]
    fn missing_shard_is_named_and_leaves_no_checkpoint() {
        let run = tempfile::tempdir().unwrap();
        let mut saver = saver(run.path(), 0, 2, Run::default());
        let params = params(1.0);
        saver.save(&params, params.flat(), None, TrainState::default()).unwrap();
        let error = saver.wait().unwrap_err();
        assert!(error.message.contains("no optimizer-0001.safetensors in 2 s"), "{error}");
        assert!(names(&run.path().join(CHECKPOINTS)).is_empty(), "nothing half-written");
    }
}
