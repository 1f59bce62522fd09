//! Whether and how a run goes on from a checkpoint, and the directory that it writes to.

use crate::config::Config;
use crate::error::{Error, Exit, Result};
use crate::run::checkpoint::{self, State};
use crate::run::{Place, Records, write_whole};
use std::path::Path;

/// Rank 0: makes the run directory what it must be before the first step.
pub(super) fn open(place: &Place, config: &Config, state: &State) -> Result<Records> {
    let dir = &place.dir;
    std::fs::create_dir_all(dir).map_err(|error| Error::disk("make", dir, &error))?;
    let mut records = Records::open(dir, state.step, state.sample == 0)?;
    records.settings(config);
    let resolved = serde_saphyr::to_string(config).expect("a config is YAML");
    write_whole(&dir.join("config.yaml"), resolved.as_bytes())?;
    checkpoint::remove_partial(dir);
    Ok(records)
}

/// Another number of ranks than before takes the same micro-batches, where they can be shared out: each step is then what
/// it would have been. Otherwise the batch comes in as many as the config says; and with synchronised batch norm, whose
/// statistics are those of all ranks' micro-batches taken together, it always does.
pub(super) fn share_out(state: &mut State, ranks: usize, config: &Config) -> Option<String> {
    let (before, configured) = (state.micro_batches, ranks * config.optim.accumulate);
    if before == configured {
        return None;
    }
    let synchronised = config.model.sync_batch_norm;
    if !synchronised && before.is_multiple_of(ranks) && config.optim.batch_size.is_multiple_of(before) {
        return Some(format!(
            "each of {ranks} ranks takes {} of a step's {before} micro-batches, as before",
            before / ranks
        ));
    }
    state.micro_batches = configured;
    (!synchronised).then(|| format!(
        "note: a step's batch came in {before} parts before and comes in {configured} now, so batch norm sees other batches"
    ))
}

/// Refuses to go on from a checkpoint that this config cannot continue.
pub(super) fn check(state: &State, folder: &Path, order: &(u64, u64, String), config: &Config) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", folder.display())));
    let (seed, samples, data) = &state.order;
    if *data != order.2 {
        return refuse("was trained on other samples than data.train holds now".into());
    }
    if (*seed, *samples) != (order.0, order.1) {
        return refuse(format!(
            "belongs to a run of run.seed {seed} on {samples} samples; here they are {} and {}",
            order.0, order.1
        ));
    }
    let batch = config.optim.batch_size as u64;
    if !state.sample.is_multiple_of(batch) {
        let sample = state.sample;
        return refuse(format!(
            "stands at sample {sample} of its epoch, no multiple of optim.batch_size {batch}"
        ));
    }
    let in_plan = match config.stages.get(state.stage) {
        Some(stage) => state.epoch < stage.epochs,
        None => state.stage == config.stages.len(),
    };
    if !in_plan {
        let State { stage, epoch, .. } = state;
        return refuse(format!("stands after {epoch} epochs of stages.{stage}, where this config is over"));
    }
    Ok(())
}
