//! Checkpoints: `checkpoints/step-00001234/` with `model.safetensors`, `optimizer.safetensors`, `state.json`
//! and an empty `COMPLETE`, then `checkpoints/latest`.
//!
//! A checkpoint is written under another name, synced, and renamed: at any moment the folder holds only
//! whole ones.

use super::{sync_folder, write_whole};
use crate::budget::Price;
use crate::config::Run;
use crate::error::{Error, Exit, Result};
use crate::metrics::Tally;
use crate::model::Params;
use crate::optim::Ema;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use tch::Tensor;

const VERSION: u32 = 3;
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const EMA: &str = "ema.safetensors";

/// Where training stands, beside the tensors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Format of this file.
    pub version: u32,
    /// Steps taken since the start of the run.
    pub step: u64,
    /// The stage that goes on, from 0.
    pub stage: usize,
    /// Epochs of that stage that are done.
    pub epoch: u64,
    /// Samples of the current epoch that are done, over all ranks.
    pub sample: u64,
    /// Samples seen since the start of the run.
    pub samples: u64,
    /// Seconds spent so far.
    pub seconds: f64,
    /// Seconds spent in training steps so far.
    pub training_seconds: f64,
    /// How many micro-batches the global batch comes in, over all ranks.
    pub micro_batches: usize,
    /// Steps that were left out because something was not finite.
    pub skipped: u64,
    /// Where γ stands.
    pub price: Price,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// What the steps since the last log line measured.
    pub tally: Tally,
    /// Sum of the current epoch's losses, so that its mean does not forget what came before a stop.
    pub epoch_loss: f64,
    /// Results of the stages that are done, as `summary.json` has them.
    pub stages: Vec<serde_json::Value>,
    /// What the order of samples depends on: the seed, how many samples are used, and the data's fingerprint.
    pub order: (u64, u64, String),
    /// SHA-256 of each file.
    pub files: BTreeMap<String, String>,
}

/// The best evaluation of a run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Its top-1.
    pub top1: f64,
    /// The step after which it was found.
    pub step: u64,
}

impl State {
    /// Forgets a best checkpoint that this run's directory does not hold: that of a run that was branched off from.
    pub fn forget_lost_best(&mut self, run: &Path) {
        self.best = self.best.filter(|best| run.join("checkpoints").join(step_name(best.step)).exists());
    }
}

/// Rank 0: writes the checkpoint of `state.step` and drops all but the newest `keep`, and the best one if that is kept.
pub fn save(
    run: &Path,
    params: &Params,
    momentum: &Tensor,
    ema: Option<&Ema>,
    mut state: State,
    options: &Run,
) -> Result<PathBuf> {
    let folder = run.join("checkpoints");
    let place = folder.join(step_name(state.step));
    let partial = folder.join(format!(".partial-{}", step_name(state.step)));
    state.version = VERSION;
    let mut write = || -> io::Result<()> {
        let _ = fs::remove_dir_all(&partial); // left by a run that was killed while saving
        fs::create_dir_all(&partial)?;
        let mut files = vec![(MODEL, params.named()), (OPTIMIZER, params.named_views(momentum))];
        files.extend(ema.map(|ema| (EMA, params.named_as(&ema.flat, &ema.buffers))));
        for (name, tensors) in files {
            let path = partial.join(name);
            let tensors: Vec<_> =
                tensors.into_iter().map(|(name, tensor)| (name, tensor.contiguous())).collect();
            Tensor::write_safetensors(&tensors, &path).map_err(io::Error::other)?;
            state.files.insert(name.into(), checksum(&path)?);
            File::open(&path)?.sync_all()?;
        }
        for (name, bytes) in [("state.json", serde_json::to_vec_pretty(&state)?), ("COMPLETE", Vec::new())] {
            let path = partial.join(name);
            fs::write(&path, bytes)?;
            File::open(&path)?.sync_all()?;
        }
        sync_folder(&partial)?;
        // The same step is saved again after its epoch's evaluation: the two exchange names at once, or, where the
        // file system cannot do that, the older one steps aside first.
        if place.exists() && renameat_with(CWD, &partial, CWD, &place, RenameFlags::EXCHANGE).is_err() {
            let aside = folder.join(".partial-aside");
            let _ = fs::remove_dir_all(&aside);
            fs::rename(&place, aside)?;
        }
        if !place.exists() {
            fs::rename(&partial, &place)?;
        }
        sync_folder(&folder)
    };
    write().map_err(|error| {
        let _ = fs::remove_dir_all(&partial);
        Error::disk("write checkpoint", &place, &error)
    })?;
    write_whole(&folder.join("latest"), place.file_name().expect("a name").as_encoded_bytes())?;
    let best = state.best.filter(|_| options.keep_best).map(|best| step_name(best.step));
    if let Some(best) = best.as_ref().filter(|best| folder.join(best).exists()) {
        write_whole(&folder.join("best"), best.as_bytes())?;
    }
    let is_best = |path: &Path| best.as_deref() == path.file_name().and_then(|name| name.to_str());
    // What cannot be removed costs space alone. A checkpoint stops being complete before it goes.
    for old in steps(&folder).iter().rev().skip(options.keep_last).filter(|old| !is_best(old)) {
        let _ = fs::remove_file(old.join("COMPLETE"));
        let _ = fs::remove_dir_all(old);
    }
    remove_partial(run);
    Ok(place)
}

fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Rank 0: removes what a run that was killed while saving has left.
pub fn remove_partial(run: &Path) {
    for entry in fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".partial-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The newest complete checkpoint of a run whose files are what they were; one that is damaged is named and passed
/// over.
pub fn newest(run: &Path) -> Option<PathBuf> {
    let mut steps = steps(&run.join("checkpoints"));
    while let Some(step) = steps.pop() {
        match read_state(&step) {
            Ok(_) => return Some(step),
            Err(error) => eprintln!("warning: {error}; passed over"),
        }
    }
    None
}

/// Whether a folder is a checkpoint that was written to its end.
pub fn is_complete(checkpoint: &Path) -> bool {
    checkpoint.join("COMPLETE").exists() && checkpoint.join("state.json").exists()
}

/// Reads where training stood, and checks every file against its checksum.
pub fn read_state(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join("state.json");
    let broken = |what: String| Error::new(Exit::Checkpoint, format!("{}: {what}", checkpoint.display()));
    let text = fs::read(&path).map_err(|error| broken(format!("cannot read state.json: {error}")))?;
    let state: State =
        serde_json::from_slice(&text).map_err(|error| broken(format!("state.json is damaged: {error}")))?;
    if state.version != VERSION {
        return Err(broken(format!("has format {}; this program reads {VERSION}", state.version)));
    }
    for (name, expected) in &state.files {
        let sum = checksum(&checkpoint.join(name))
            .map_err(|error| broken(format!("cannot read {name}: {error}")))?;
        if sum != *expected {
            return Err(broken(format!("{name} is damaged: its SHA-256 is not the one in state.json")));
        }
    }
    Ok(state)
}

/// Fills the parameters and buffers, the momenta, and the running mean of weights where there is one, from a
/// checkpoint. One that has no mean yet starts it from its weights.
pub fn load(checkpoint: &Path, params: &Params, momentum: &Tensor, ema: Option<&mut Ema>) -> Result<()> {
    fill(&checkpoint.join(MODEL), &params.named())?;
    fill(&checkpoint.join(OPTIMIZER), &params.named_views(momentum))?;
    let Some(ema) = ema else { return Ok(()) };
    if checkpoint.join(EMA).exists() {
        return fill(&checkpoint.join(EMA), &params.named_as(&ema.flat, &ema.buffers));
    }
    ema.flat.copy_(params.flat());
    ema.buffers.copy_(params.flat_buffers());
    Ok(())
}

/// Fills what a file of weights (`model.init_from`) and the network both have, in name and shape; says what either has
/// that the other has not.
pub fn start_from(path: &Path, params: &Params) -> Result<String> {
    let refuse =
        |what: String| Error::new(Exit::Checkpoint, format!("model.init_from {}: {what}", path.display()));
    let read = Tensor::read_safetensors(path)
        .map_err(|error| refuse(format!("cannot be read: {}", error.to_string().replace('\n', " "))))?;
    let mut read: BTreeMap<String, Tensor> = read.into_iter().collect();
    read.retain(|name, _| !name.ends_with("num_batches_tracked"));
    let (mut filled, mut missing, mut reshaped) = (0, Vec::new(), Vec::new());
    for (name, tensor) in params.named() {
        match read.remove(&name) {
            None => missing.push(name),
            Some(source) if source.size() != tensor.size() => {
                reshaped.push(format!("{name} ({:?} there, {:?} here)", source.size(), tensor.size()));
            }
            Some(source) => {
                tch::no_grad(|| tensor.shallow_clone().copy_(&source));
                filled += 1;
            }
        }
    }
    if filled == 0 {
        return Err(refuse(
            "has none of this network's tensors; names are torchvision's, such as conv1.weight".into(),
        ));
    }
    let mut said = format!("{filled} tensors start from {}", path.display());
    let unexpected: Vec<String> = read.into_keys().collect();
    for (what, names) in [
        ("missing there, drawn anew", missing),
        ("of another shape, drawn anew", reshaped),
        ("unexpected, not used", unexpected),
    ] {
        if !names.is_empty() {
            said += &format!("\n  {} {what}: {}", names.len(), names.join(", "));
        }
    }
    Ok(said)
}

/// Fills the parameters and buffers from a model file or a `step-…` folder.
pub fn load_model(path: &Path, params: &Params) -> Result<()> {
    let file = if path.is_dir() { path.join(MODEL) } else { path.to_path_buf() };
    fill(&file, &params.named())
}

fn fill(path: &Path, into: &[(String, Tensor)]) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", path.display())));
    let mut read = match Tensor::read_safetensors(path) {
        Ok(tensors) => tensors.into_iter().collect::<BTreeMap<_, _>>(),
        Err(error) => return refuse(format!("cannot be read: {}", error.to_string().replace('\n', " "))),
    };
    let missing: Vec<&str> =
        into.iter().map(|(name, _)| name.as_str()).filter(|name| !read.contains_key(*name)).collect();
    if let Some(first) = missing.first() {
        return refuse(format!(
            "is of another network: {} tensors are missing, such as {first}",
            missing.len()
        ));
    }
    for (name, tensor) in into {
        let source = read.remove(name).expect("looked for above");
        if source.size() != tensor.size() {
            let (theirs, ours) = (source.size(), tensor.size());
            return refuse(format!("is of another network: {name} is {theirs:?} there and {ours:?} here"));
        }
        tch::no_grad(|| tensor.shallow_clone().copy_(&source));
    }
    match read.keys().next() {
        Some(name) => {
            refuse(format!("is of another network: it has {} tensors too many, such as {name}", read.len()))
        }
        None => Ok(()),
    }
}

/// Complete checkpoints, oldest first.
fn steps(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
    let mut steps: Vec<PathBuf> = entries.filter(|path| named(path) && is_complete(path)).collect();
    steps.sort();
    steps
}

fn checksum(path: &Path) -> io::Result<String> {
    Ok(Sha256::digest(fs::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect())
}
