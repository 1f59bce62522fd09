//! [`RunLog`]: everything that the training loop prints, records and saves.

use super::checkpoint::{Saver, TrainState, remove_unfinished};
use super::copy::Copier;
use super::recorder::Recorder;
use super::records::{EvaluationRecord, Event, Summary, TrainRecord};
use super::scalars::{MISTAKES_IMAGE, Names};
use super::{Console, name_classes, write_atomically, write_class_names};
use crate::config::Config;
use crate::dist::{World, agree, on_rank_zero};
use crate::metrics::classes::Confusion;
use crate::model::Params;
use crate::optim::{Ema, Optimizer};
use crate::run_dir;
use crate::sys::error::{Error, Result};
use codinet_dataloader::contact_sheet::ContactSheet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tch::Tensor;

/// The time between two answers of rank 0 to the ranks that wait for its copy.
const COPY_POLL: Duration = Duration::from_secs(1);

/// A run's output: the terminal and `log.txt`, `metrics.jsonl`, TensorBoard's files, `summary.json` and the checkpoints.
///
/// Every rank has one and calls the same methods. Rank 0 prints and writes; on other ranks the methods do nothing, except
/// that each rank saves its shard of a checkpoint. Before [`RunLog::open`], lines are printed and nothing is written.
#[derive(Debug)]
pub(crate) struct RunLog {
    dir: PathBuf,
    /// Declared before `recorder`, so dropped before it: a save in progress ends before the directory's lock is released.
    saver: Saver,
    /// Present on rank 0 of an open run.
    recorder: Option<Recorder>,
    /// Present there too, with `run.copy_to`.
    copier: Option<Copier>,
    /// Where the run is copied to.
    copy_to: Option<String>,
    console: Console,
}

impl RunLog {
    /// All ranks: for the run in the directory `dir`, which is not touched yet.
    pub fn new(
        world: &World,
        dir: &Path,
        config: &Config,
        params: &Params,
        optimizer: &dyn Optimizer,
    ) -> Result<Self> {
        Ok(Self {
            dir: dir.into(),
            saver: Saver::new(world, dir, config, params, optimizer)?,
            recorder: None,
            copier: None,
            copy_to: config.run.copy_to.clone(),
            console: Console::new(world.rank()),
        })
    }

    /// All ranks: afterwards the directory exists, is locked, and holds the resolved config. Records that an earlier
    /// process made after `state`, and checkpoints that it did not finish, are removed. An error is the same on all ranks.
    /// `blocks` are the gated blocks' names, `command` is what started the run.
    pub fn open(
        &mut self,
        world: &World,
        config: &Config,
        state: &TrainState,
        class_names: Option<&[String]>,
        blocks: Vec<String>,
        command: &str,
    ) -> Result<()> {
        let opened = match world.rank() {
            0 => open_recorder(&self.dir, config, state, class_names, blocks, command).and_then(|recorder| {
                self.copier = Copier::start(config, &self.dir, state.step)?;
                Ok(Some(recorder))
            }),
            _ => Ok(None),
        };
        self.recorder = agree(world, opened)?;
        if let Some(copier) = &self.copier {
            self.saver.copy_with(copier.newest());
        }
        self.console.open_log(&self.dir);
        Ok(())
    }

    /// Whether this is rank 0 of an open run: the only rank that writes files for users.
    pub fn writes(&self) -> bool {
        self.recorder.is_some()
    }

    /// The run directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Prints and logs some lines.
    pub fn say(&mut self, text: &str) {
        self.console.say(text);
    }

    /// Logs some lines without printing them.
    pub fn note(&mut self, text: &str) {
        self.console.log_only(text);
    }

    /// Shows from now on how far the run is, at `step` of `steps`.
    pub fn start_progress(&mut self, step: u64, steps: u64, status: &str) {
        self.console.start_progress(step, steps, status);
    }

    /// Whether how far the run is is shown as a bar.
    pub fn has_bar(&self) -> bool {
        self.console.has_bar()
    }

    /// After each step: whether a status is due before another step, which takes about `step_time`, is over.
    pub fn status_is_due(&mut self, step_time: Duration) -> bool {
        self.console.status_is_due(step_time)
    }

    /// Shows the status after `step` on the bar or as a line; a bar's is in `log.txt` only if it is `logged`.
    pub fn show_status(&mut self, step: u64, status: &str, logged: bool) {
        self.console.show_status(step, status, logged);
    }

    /// Removes the bar.
    pub fn end_progress(&mut self) {
        self.console.end_progress();
    }

    /// Records what happened at a step.
    pub fn event(&mut self, step: u64, event: &Event) -> Result<()> {
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.record("event", step, event))
    }

    /// Records the means of the steps up to `step`.
    pub fn train_step(&mut self, step: u64, record: &TrainRecord) -> Result<()> {
        self.recorder.as_mut().map_or(Ok(()), |recorder| recorder.record("train", step, record))
    }

    /// Records an evaluation after `step`, and draws its confusion matrix and the gates' rates so far for TensorBoard.
    pub fn evaluation(&mut self, step: u64, record: &EvaluationRecord, confusion: &Confusion) -> Result<()> {
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        recorder.record("eval", step, record)?;
        recorder.draw_confusion(step, confusion);
        recorder.draw_gate_rates(step);
        Ok(())
    }

    /// Writes `summary.json`: the run has ended at `step`. TensorBoard gets the picture of its mistakes.
    pub fn finish(&mut self, step: u64, summary: &Summary, mistakes: Option<ContactSheet>) -> Result<()> {
        let Some(recorder) = &mut self.recorder else { return Ok(()) };
        // Converted to a tree first, because its keys are sorted.
        let tree = serde_json::to_value(summary).expect("a summary is JSON");
        let text = serde_json::to_vec_pretty(&tree).expect("a tree is JSON");
        write_atomically(&self.dir.join(run_dir::SUMMARY), &text)?;
        recorder.image(step, MISTAKES_IMAGE, mistakes);
        recorder.record_end();
        Ok(())
    }

    /// All ranks: copies the tensors to the host and starts to write them as the checkpoint of `state`, once the save
    /// before has ended. Rank 0 records how long training waited.
    pub fn save(
        &mut self,
        params: &Params,
        optimizer_state: &Tensor,
        ema: Option<&Ema>,
        state: TrainState,
    ) -> Result<()> {
        let start = Instant::now();
        let step = state.step;
        self.saver.save(params, optimizer_state, ema, state)?;
        self.event(step, &Event::Checkpoint { blocked_s: start.elapsed().as_secs_f64() })
    }

    /// Any rank: the error of a save that has failed; does not wait for one in progress.
    pub fn check_save(&mut self) -> Result<()> {
        self.saver.check()
    }

    /// Any rank: waits for the save in progress. Afterwards rank 0's checkpoint, or this rank's shard of it, is on disk.
    pub fn wait_for_save(&mut self) -> Result<()> {
        self.saver.wait()
    }

    /// All ranks, after the last save: waits until the newest checkpoint and the records are copied (`run.copy_to`). The time is
    /// limited by that of requests to the store; meanwhile no collective takes longer than a second.
    pub fn finish_copy(&mut self, world: &World) -> Result<()> {
        let Some(url) = self.copy_to.clone() else { return Ok(()) };
        let mut announced = false;
        loop {
            let copier = &mut self.copier;
            let finished =
                on_rank_zero(world, || copier.as_mut().map_or(Ok(true), |copier| copier.finish(COPY_POLL)))?;
            if finished {
                self.say(&format!("copied to {url}"));
                return Ok(());
            }
            if !std::mem::replace(&mut announced, true) {
                self.say(&format!("copying to {url}"));
            }
        }
    }

    /// Whether a user asks the run to stop by a file named `stop` in its directory.
    pub fn stop_file_exists(&self) -> bool {
        self.writes() && self.dir.join(run_dir::STOP).exists()
    }

    /// Removes that file: the run is about to end.
    pub fn remove_stop_file(&self) {
        if self.writes() {
            let _ = fs::remove_file(self.dir.join(run_dir::STOP)); // most often there is none
        }
    }
}

/// Rank 0: prepares the run directory for the first step.
fn open_recorder(
    dir: &Path,
    config: &Config,
    state: &TrainState,
    class_names: Option<&[String]>,
    blocks: Vec<String>,
    command: &str,
) -> Result<Recorder> {
    fs::create_dir_all(dir).map_err(|error| Error::disk("make", dir, &error))?;
    let names = Names { blocks, classes: name_classes(class_names, config.data.classes as usize) };
    let mut recorder = Recorder::open(dir, state.step, state.epoch_samples == 0, state.seconds, names)?;
    recorder.record_start(config, command);
    if let Some(hook) = &config.run.on_record {
        recorder.start_hook(hook);
    }
    let resolved = serde_saphyr::to_string(config).expect("a config is YAML");
    write_atomically(&dir.join(run_dir::CONFIG), resolved.as_bytes())?;
    if let Some(names) = class_names {
        write_class_names(dir, names)?;
    }
    remove_unfinished(dir);
    Ok(recorder)
}
