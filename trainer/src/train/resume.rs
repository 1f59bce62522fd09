//! Whether and how a run goes on from a checkpoint.

use crate::config::Config;
use crate::dist::replicas;
use crate::dist::{World, rank_zeros};
use crate::model::Params;
use crate::optim::Ema;
use crate::run::Place;
use crate::run::checkpoint::{self, Order, State};
use crate::sys::error::{Error, Exit, Result};
use std::path::Path;
use tch::Tensor;

/// All ranks: fills the tensors from the place's checkpoint, and returns its state; where there is none, neither. Rank 0 alone
/// reads: a file system that ranks share is not asked by each of them.
pub(super) fn load(
    world: &World,
    place: &Place,
    order: &Order,
    config: &Config,
    params: &Params,
    momentum: &Tensor,
    mut ema: Option<&mut Ema>,
) -> Result<Option<State>> {
    let Some(folder) = &place.checkpoint else { return Ok(None) };
    let state = rank_zeros(world, || {
        let mut state = checkpoint::read_state(folder)?;
        checkpoint::load(folder, &state, params, momentum, ema.as_deref_mut())?;
        check(&state, folder, order, config)?;
        state.forget_lost_best(&place.dir);
        Ok(serde_json::to_string(&state).expect("a state is JSON"))
    })?;
    let mut held = vec![params.flat(), params.flat_buffers(), momentum];
    held.extend(ema.iter().flat_map(|ema| [&ema.flat, &ema.buffers]));
    replicas::take_rank_zeros(world, &held)?;
    Ok(Some(serde_json::from_str(&state).expect("rank 0 wrote it")))
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
fn check(state: &State, folder: &Path, order: &Order, config: &Config) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", folder.display())));
    let Order { seed, samples, data } = &state.order;
    if *data != order.data {
        return refuse("was trained on other samples than data.train holds now".into());
    }
    if (*seed, *samples) != (order.seed, order.samples) {
        return refuse(format!(
            "belongs to a run of run.seed {seed} on {samples} samples; here they are {} and {}",
            order.seed, order.samples
        ));
    }
    let batch = config.optim.batch_size as u64;
    let sample = state.epoch_samples;
    if !sample.is_multiple_of(batch) {
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
