//! Whether a run can start. Its start, `--dry-run` and `codinet-launch doctor` go through this one list of checks.

use super::resume::check_checkpoint;
use super::teacher::check_teacher;
use crate::config::{Config, Resume, Routing};
use crate::data::{Datasets, check_batch_size};
use crate::dist::device::choose_local_device;
use crate::dist::{World, agree, on_rank_zero, replicas};
use crate::model::Net;
use crate::optim::calibration::check_budget;
use crate::run::{
    RunLocation, check_copy_is_own, check_copy_is_writable, check_run_dir, checkpoint, checkpoint_space,
    resolve_run_dir,
};
use crate::run_dir::{self, RUNS};
use crate::sys::error::{Error, Exit, Problems, Result};
use crate::text::counted;
use std::path::Path;
use tch::Device;

/// Fewer images than this in a batch of batch norm make its statistics noisy (Wu & He, arXiv 1803.08494, Fig. 1).
const FEW_IMAGES: usize = 16;

/// A run that is to start, on one rank.
pub(crate) struct Start<'a> {
    pub config: &'a Config,
    /// This rank.
    pub rank: usize,
    /// How many ranks share the work.
    pub ranks: usize,
    /// The device of this rank; none if it is not chosen yet.
    pub device: Option<Device>,
    /// Whether this machine has the data; if not, it is not the one that will train, and neither they nor its GPUs are checked.
    pub has_data: bool,
    /// The run directory; none for steps that write no checkpoints.
    pub directory: Option<Directory<'a>>,
    /// Where a key of the config is set, for messages.
    pub place: &'a dyn Fn(&str) -> Option<String>,
}

/// How the run directory is chosen.
pub(crate) struct Directory<'a> {
    /// The start of a new directory's name.
    pub stem: &'a str,
    pub resume: &'a Resume,
}

/// What the checks of one rank have opened and found.
#[derive(Default)]
pub(crate) struct Checked {
    /// The data sets, unless they have problems or are not on this machine.
    pub data: Option<Datasets>,
    /// On rank 0: where the run writes; none if it makes a new directory.
    location: Option<RunLocation>,
    /// Lines for the log.
    notes: Vec<String>,
    /// What keeps the run from starting.
    pub problems: Problems,
}

/// What a run starts with.
pub(crate) struct Started {
    pub data: Datasets,
    pub location: RunLocation,
    /// Lines for the log.
    pub notes: Vec<String>,
}

impl Start<'_> {
    /// This rank: opens the data; rank 0 also finds the run directory and copies the tensors of `model.init_from` into `net`.
    /// Nothing is written, except a file for a moment where the run is copied to.
    pub fn check(&self, net: &Net) -> Checked {
        let config = self.config;
        let mut checked = Checked::default();
        let problems = &mut checked.problems;
        problems.collect("optim.batch_size", check_batch_size(config, self.ranks));
        problems.collect("model.routing", check_fixed_path(config, net));
        problems.collect("cost.budget_gmacs", check_budget(config, &net.costs));
        let device = match self.device {
            None if self.has_data => {
                problems.collect("run.device", choose_local_device(config.run.device, "run.device", 0))
            }
            chosen => chosen,
        };
        if config.run.replay_every > 0 && device.is_some_and(Device::is_cuda) {
            let what = "run.replay_every compares results bit by bit, but a GPU's algorithms are not deterministic; set it to 0";
            problems.collect("run.replay_every", Err::<(), _>(Error::new(Exit::Config, what)));
        }
        if self.has_data {
            match Datasets::open(config, device.unwrap_or(Device::Cpu)) {
                Ok(data) => checked.data = Some(data),
                Err(others) => problems.extend(others),
            }
        }
        if self.rank > 0 {
            return checked;
        }
        let mut resumes = false;
        if let Some(Directory { stem, resume }) = self.directory {
            if let Some(data) = &checked.data {
                problems.collect("data.train", data.print_notes(config));
            }
            let key = if matches!(resume, Resume::From(_)) { "" } else { "run.dir" };
            let writable = problems.collect("run.copy_to", check_copy_is_writable(config));
            let location =
                writable.and_then(|()| problems.collect(key, resolve_run_dir(stem, config, resume)));
            if let Some(location) = location {
                let run = location.as_ref().map(|location| location.dir.as_path());
                let copied = location.as_ref().and_then(|location| location.copied.as_ref());
                let dir = run.unwrap_or(Path::new(RUNS));
                resumes = location.as_ref().is_some_and(RunLocation::resumes);
                let space = checkpoint_space(config, &net.params);
                let has_checkpoint = location.as_ref().is_some_and(|location| location.checkpoint.is_some());
                problems.collect("run.dir", check_run_dir(dir, &space, has_checkpoint));
                if let Some(folder) = location.as_ref().and_then(|location| location.checkpoint.as_ref()) {
                    let fits = check_checkpoint(folder, config, checked.data.as_ref(), &net.params);
                    problems.collect("", fits);
                }
                problems.collect("run.copy_to", check_copy_is_own(config, run, copied));
                checked.location = location;
            }
        }
        problems.collect("distill.from", check_teacher(config));
        if let Some(path) = config.model.init_from.as_ref().filter(|_| !resumes) {
            let initialised = checkpoint::initialise_from(Path::new(path), &net.params);
            checked.notes.extend(problems.collect("model.init_from", initialised));
        }
        checked
    }

    /// All ranks: checks, makes a new run directory if there is none to use, fetches a copied checkpoint, and gives all ranks the
    /// first weights.
    pub fn start(&self, world: &World, net: &Net) -> Result<Started> {
        let Checked { data, location, notes, problems } = self.check(net);
        agree(world, problems.into_result(self.place))?;
        let data = data.expect("a run that starts has data");
        let location = match self.directory {
            None => RunLocation::default(),
            Some(Directory { stem, .. }) => on_rank_zero(world, || match location {
                Some(RunLocation { dir, copied: Some(copied), .. }) => {
                    let folder = copied.fetch(&dir, self.config)?;
                    check_checkpoint(&folder, self.config, Some(&data), &net.params)?;
                    Ok(RunLocation { dir, checkpoint: Some(folder), copied: None })
                }
                Some(location) => Ok(location),
                None => Ok(RunLocation { dir: run_dir::create_unique(stem)?, ..RunLocation::default() }),
            })?,
        };
        if self.config.model.init_from.is_some() && location.checkpoint.is_none() {
            replicas::broadcast_all(world, &[net.params.flat(), net.params.flat_buffers()])?;
        }
        Ok(Started { data, location, notes })
    }
}

/// Checks that the network has the gates of a fixed path.
fn check_fixed_path(config: &Config, net: &Net) -> Result<()> {
    let Routing::Fixed(gates) = &config.model.routing else { return Ok(()) };
    let count = net.possible_gates;
    match gates.iter().find(|&&gate| gate >= count) {
        None => Ok(()),
        Some(gate) => {
            let last = count - 1;
            let what = format!(
                "model.routing runs gate {gate}, but the gates of this network are 0 to {last}; leave it out"
            );
            Err(Error::new(Exit::Config, what))
        }
    }
}

/// The micro-batch of each rank, over which batch norm computes its statistics; none if it is the whole batch.
pub(crate) fn describe_shares(config: &Config, ranks: usize) -> Option<String> {
    let micros = config.optim.accumulate;
    let parts = ranks * micros;
    let batch = config.optim.batch_size;
    if parts == 1 || !batch.is_multiple_of(parts) {
        return None;
    }
    let samples = batch / parts;
    let images = samples * config.data.views;
    let micro_batches = if micros > 1 { format!(" × {micros} micro-batches") } else { String::new() };
    let few = if !config.model.sync_batch_norm && images < FEW_IMAGES {
        ": few for its statistics; start fewer ranks, raise optim.batch_size, or set model.sync_batch_norm"
    } else {
        ""
    };
    Some(format!(
        "{batch} samples a step = {}{micro_batches} × {}; batch norm sees {} at once{few}",
        counted(ranks, "rank"),
        counted(samples, "sample"),
        counted(if config.model.sync_batch_norm { images * ranks } else { images }, "image"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ranks_share_of_a_batch_is_described() {
        let mut config = Config::default();
        config.optim.batch_size = 128;
        assert_eq!(describe_shares(&config, 1), None);
        assert_eq!(describe_shares(&config, 3), None, "an uneven batch is refused");
        let line = describe_shares(&config, 4).unwrap();
        assert_eq!(line, "128 samples a step = 4 ranks × 32 samples; batch norm sees 64 images at once");
        config.optim.accumulate = 2;
        assert!(
            describe_shares(&config, 64)
                .unwrap()
                .starts_with("128 samples a step = 64 ranks × 2 micro-batches × 1 sample; ")
        );
        assert!(describe_shares(&config, 64).unwrap().contains("2 images at once: few for its statistics"));
        config.model.sync_batch_norm = true;
        assert!(describe_shares(&config, 64).unwrap().ends_with("batch norm sees 128 images at once"));
    }
}
