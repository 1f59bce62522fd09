//! Where a run starts: the weights of `model.init_from`, or a checkpoint's tensors and state.

use super::model::Model;
use crate::config::{self, Config};
use crate::data::Datasets;
use crate::dist::{World, on_rank_zero, replicas};
use crate::model::Params;
use crate::optim::GammaController;
use crate::optim::schedule::{format_lr, learning_rate};
use crate::run::RunLocation;
use crate::run::checkpoint::{self, Order, TrainState};
use crate::run_dir;
use crate::sys::error::{Error, Exit, Result};
use crate::text::counted;
use std::path::Path;

/// All ranks: the state of a new run or, if `location` has a checkpoint, of that one, whose tensors are copied into `model`;
/// and notes for the log.
pub(super) fn load_state(
    world: &World,
    config: &Config,
    location: &RunLocation,
    data: &Datasets,
    model: &mut Model,
) -> Result<(TrainState, Vec<String>)> {
    let initial = GammaController::new(config.cost.gamma);
    let micro_batches = world.ranks() * config.optim.accumulate;
    let Some(folder) = &location.checkpoint else {
        return Ok((
            TrainState {
                order: order(config, data),
                gamma: initial,
                micro_batches,
                optimizer: config.optim.optimizer,
                ..TrainState::default()
            },
            Vec::new(),
        ));
    };
    // Rank 0 reads the files, so that a shared file system serves one reader.
    let mut state = on_rank_zero(world, || {
        let mut state = checkpoint::read_state(folder)?;
        let Model { net, optimizer, ema, .. } = model;
        checkpoint::load(folder, &state, &net.params, optimizer.as_ref(), ema.as_mut())?;
        state.forget_lost_best(&location.dir);
        Ok(state)
    })?;
    replicas::broadcast_all(world, &model.saved())?;
    let mut notes: Vec<String> = redistribute(&mut state, world.ranks(), config).into_iter().collect();
    let path = run_dir::run_of(folder).map(|run| run.join(run_dir::CONFIG));
    if let Some(Ok(before)) = path.map(|path| config::load(&path.to_string_lossy(), &[])) {
        notes.extend(compare_rates(&state, &before, config));
        notes.extend(compare_ended_stages(&state, &before, config));
    }
    if config.budget().is_none() {
        state.gamma = initial;
    }
    Ok((state, notes))
}

/// The order of samples of a run of `config`.
fn order(config: &Config, data: &Datasets) -> Order {
    let mut set = data.train.fingerprint();
    let train = &config.data.train;
    if train.weights().is_some() || train.balances_classes() {
        // Behind a blank: how often samples are drawn.
        let sizes = data.train.set_sizes();
        set += &format!(" {sizes:?}, {:?}, balance_classes {}", train.weights(), train.balances_classes());
    }
    Order { seed: config.run.seed, samples: data.samples as u64, data: set }
}

/// A line for the log if `config` changes the learning rate with which a run of the config `before` was to continue.
fn compare_rates(state: &TrainState, before: &Config, config: &Config) -> Option<String> {
    let epoch = state.epoch as f64 + state.epoch_samples as f64 / state.order.samples as f64;
    let lr = |config: &Config| Some(learning_rate(config, config.stages.get(state.stage)?, epoch));
    let planned = lr(before)?;
    let now = lr(config)?;
    let differs = (planned - now).abs() > 1e-6 * planned.max(now);
    differs.then(|| {
        format!(
            "note: this config changes the schedule of stages.{}: the learning rate is {} from here, instead of {}",
            state.stage,
            format_lr(now),
            format_lr(planned)
        )
    })
}

/// Lines for the log about stages that have ended and whose epochs `config` changes.
fn compare_ended_stages(state: &TrainState, before: &Config, config: &Config) -> Vec<String> {
    let stages = before.stages.iter().zip(&config.stages).take(state.stage).enumerate();
    let changed = stages.filter(|(_, (before, now))| before.epochs != now.epochs);
    changed
        .map(|(k, (before, now))| {
            format!(
                "note: stages.{k} has ended after {}, and the {} of this config are not trained; to train on, add a \
                 stage, or start a new run from this one by model.init_from",
                counted(before.epochs as usize, "epoch"),
                now.epochs
            )
        })
        .collect()
}

/// Distributes a step's micro-batches over the present ranks. A changed number of ranks keeps the number of micro-batches if
/// it divides them: each step is then what it was before. Otherwise, and always with synchronised batch norm, whose
/// statistics cover all ranks' micro-batches together, the number follows from the config.
fn redistribute(state: &mut TrainState, ranks: usize, config: &Config) -> Option<String> {
    let before = state.micro_batches;
    let configured = ranks * config.optim.accumulate;
    if before == configured {
        return None;
    }
    let synchronised = config.model.sync_batch_norm;
    if !synchronised && before.is_multiple_of(ranks) && config.optim.batch_size.is_multiple_of(before) {
        return Some(format!(
            "each of {ranks} ranks processes {} of a step's {before} micro-batches, as before",
            before / ranks
        ));
    }
    state.micro_batches = configured;
    (!synchronised).then(|| {
        format!(
            "note: a step's batch had {before} parts before and has {configured} now, so batch norm sees other batches"
        )
    })
}

/// Checks that the checkpoint `folder` is of this optimiser and has the tensors of this network and, if there are data, that this
/// config can continue it.
/// `params` become its weights.
pub(super) fn check_checkpoint(
    folder: &Path,
    config: &Config,
    data: Option<&Datasets>,
    params: &Params,
) -> Result<()> {
    let state = checkpoint::read_state(folder)?;
    let before = state.optimizer;
    let now = config.optim.optimizer;
    if before != now {
        let what = format!(
            "{}: was trained with optim.optimizer {before}, here it is {now}; resume with {before}, or start a new run \
             with its weights by model.init_from",
            folder.display()
        );
        return Err(Error::new(Exit::Checkpoint, what));
    }
    checkpoint::load_model(folder, params)?;
    data.map_or(Ok(()), |data| check_compatible(&state, folder, &order(config, data), config))
}

/// Checks that this config can continue the checkpoint.
fn check_compatible(state: &TrainState, folder: &Path, order: &Order, config: &Config) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", folder.display())));
    let Order { seed, samples, data } = &state.order;
    let set = |data: &str| data.split(' ').next().map(str::to_owned);
    if *data != order.data && set(data) == set(&order.data) {
        let what = "drew the sets or classes of data.train by other weights; set the same weights and balance_classes, or \
                    start a new run with model.init_from";
        return refuse(what.into());
    }
    if *data != order.data {
        return refuse("was trained on other samples than data.train holds now".into());
    }
    if (*seed, *samples) != (order.seed, order.samples) {
        return refuse(format!(
            "belongs to a run of run.seed {seed} on {samples} samples; here they are {} and {}",
            order.seed, order.samples
        ));
    }
    let batch_size = config.optim.batch_size as u64;
    let sample = state.epoch_samples;
    if !sample.is_multiple_of(batch_size) {
        return refuse(format!(
            "stands at sample {sample} of its epoch, not a multiple of optim.batch_size {batch_size}"
        ));
    }
    let TrainState { stage, epoch, .. } = *state;
    let within_plan = match config.stages.get(stage) {
        Some(stage) => epoch < stage.epochs,
        None => stage == config.stages.len(),
    };
    if !within_plan {
        return refuse(format!("stands after {epoch} epochs of stages.{stage}, past this config's end"));
    }
    Ok(())
}
