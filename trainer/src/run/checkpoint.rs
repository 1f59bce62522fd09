//! Checkpoints: `checkpoints/step-00001234/` with `model.safetensors`, `optimizer.safetensors` (or, shared out over ranks,
//! `optimizer-0000.safetensors` and so on), `ema.safetensors` where there is a mean of weights, `state.json` and an empty
//! `COMPLETE`; then `checkpoints/latest`. Here they are read; [`super::saver`] writes them.

use crate::metrics::MetricsSum;
use crate::model::Params;
use crate::optim::{Ema, GammaController};
use crate::run_dir::{CHECKPOINTS, step_name, step_of};
use crate::sys::error::{Error, Exit, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

pub(super) const VERSION: u32 = 4;
pub(super) const MODEL: &str = "model.safetensors";
pub(super) const EMA: &str = "ema.safetensors";

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
    pub epoch_samples: u64,
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
    /// γ and its controller.
    #[serde(rename = "price")]
    pub gamma: GammaController,
    /// The best evaluation so far.
    pub best: Option<Best>,
    /// The sum of the metrics since the last log line.
    #[serde(rename = "tally")]
    pub metrics_sum: MetricsSum,
    /// The current epoch's finite losses, so that their mean does not forget what came before a stop.
    pub epoch_loss: Mean,
    /// Mean training loss of the last epoch that is done; none where none is, or where no loss of it was finite.
    pub train_loss: Option<f64>,
    /// Results of the stages that are done.
    pub stages: Vec<StageResult>,
    /// What the order of samples depends on.
    pub order: Order,
    /// SHA-256 of each file.
    pub files: BTreeMap<String, String>,
}

/// A mean that grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    /// Takes in one more.
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    /// The mean of those taken in; of none, none.
    pub fn get(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / self.count as f64)
    }
}

/// What the order of samples depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// `run.seed`.
    pub seed: u64,
    /// How many samples are trained on.
    pub samples: u64,
    /// The training set's fingerprint.
    pub data: String,
}

/// What a stage came to, as `summary.json` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageResult {
    /// Its name.
    pub name: String,
    /// Its epochs.
    pub epochs: u64,
    /// Share of validation images whose class came first.
    pub top1: f64,
    /// Share of validation images whose class came among the first five.
    pub top5: f64,
    /// Top-1 by the decisions that it trained with, without noise.
    pub top1_as_trained: f64,
    /// What hard decisions lack to those (Section 3.4).
    pub training_inference_gap: f64,
    /// Mean GMACs per validation image.
    pub gmacs: f64,
    /// `cost.budget_gmacs`.
    pub budget_gmacs: Option<f64>,
    /// How many different routing paths the validation images took.
    pub distinct_paths: usize,
    /// Mean training loss of its last epoch.
    pub train_loss: Option<f64>,
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
        self.best = self.best.filter(|best| run.join(CHECKPOINTS).join(step_name(best.step)).exists());
    }
}

/// The file of rank `rank`'s share of the optimiser's state, where `sharers` ranks have one each.
pub(super) fn optimizer_file(rank: usize, sharers: usize) -> String {
    match sharers {
        1 => "optimizer.safetensors".into(),
        _ => format!("optimizer-{rank:04}.safetensors"),
    }
}

/// Rank 0: removes what a run that was killed while saving has left.
pub fn remove_partial(run: &Path) {
    for entry in fs::read_dir(run.join(CHECKPOINTS)).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".partial-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The newest complete checkpoint of a run whose files are what they were; one that is damaged is named and passed
/// over.
pub fn newest(run: &Path) -> Option<PathBuf> {
    let mut steps = steps(&run.join(CHECKPOINTS));
    while let Some((_, step)) = steps.pop_last() {
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

/// What a `state.json` of any format has.
#[derive(Deserialize)]
struct Format {
    version: u32,
}

/// Reads where training stood, and checks every file against its checksum.
pub fn read_state(checkpoint: &Path) -> Result<State> {
    let path = checkpoint.join("state.json");
    let broken = |what: String| Error::new(Exit::Checkpoint, format!("{}: {what}", checkpoint.display()));
    let text = fs::read(&path).map_err(|error| broken(format!("cannot read state.json: {error}")))?;
    let damaged = |error: serde_json::Error| broken(format!("state.json is damaged: {error}"));
    let Format { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version != VERSION {
        return Err(broken(format!("has format {version}; this program reads {VERSION}")));
    }
    let state: State = serde_json::from_slice(&text).map_err(damaged)?;
    for (name, expected) in &state.files {
        let bytes = fs::read(checkpoint.join(name))
            .map_err(|error| broken(format!("cannot read {name}: {error}")))?;
        if checksum(&bytes) != *expected {
            return Err(broken(format!("{name} is damaged: its SHA-256 is not the one in state.json")));
        }
    }
    Ok(state)
}

/// The weights that `path` holds or names, unharmed as far as can be told: those of a run's newest checkpoint, of a
/// `step-…` folder, of the step that a file `best` or `latest` names, or the file itself.
pub fn weights(path: &Path) -> Result<PathBuf> {
    let refuse = |what: &str| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", path.display())));
    if path.is_dir() && is_complete(path) {
        return unharmed(&path.join(MODEL));
    }
    if path.is_dir() {
        let mut steps = steps(&path.join(CHECKPOINTS));
        let Some((_, newest)) = steps.pop_last() else {
            return refuse("no run directory or step folder: it holds no complete checkpoint");
        };
        let first = unharmed(&newest.join(MODEL));
        let Err(error) = &first else { return first };
        while let Some((_, older)) = steps.pop_last() {
            if let Ok(file) = unharmed(&older.join(MODEL)) {
                eprintln!("warning: {error}; {} is taken", older.display());
                return Ok(file);
            }
        }
        return first;
    }
    if !path.is_file() {
        return refuse("no such run directory, step folder or .safetensors file");
    }
    match path.file_name().and_then(|name| name.to_str()) {
        Some("best" | "latest") => {
            let name = fs::read_to_string(path).unwrap_or_default();
            let step = path.with_file_name(name.trim());
            if name.trim().starts_with("step-") && is_complete(&step) {
                return unharmed(&step.join(MODEL));
            }
            refuse("does not name a complete checkpoint beside it")
        }
        _ => unharmed(path),
    }
}

/// `file`, where it has the checksum that a `state.json` beside it, of whatever format, knows for it.
fn unharmed(file: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Sums {
        files: BTreeMap<String, String>,
    }
    let broken = |what: &str| Error::new(Exit::Checkpoint, format!("{}: {what}", file.display()));
    let bytes = fs::read(file).map_err(|error| broken(&format!("cannot be read: {error}")))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Ok(text) = fs::read(file.with_file_name("state.json")) {
        let sums: Sums = serde_json::from_slice(&text)
            .map_err(|error| broken(&format!("the state.json beside it is damaged: {error}")))?;
        if sums.files.get(name).is_some_and(|sum| *sum != checksum(&bytes)) {
            return Err(broken("is damaged: its SHA-256 is not the one in state.json"));
        }
    }
    safetensors::SafeTensors::deserialize(&bytes)
        .map_err(|error| broken(&format!("is no .safetensors file, or is cut short ({error:?})")))?;
    Ok(file.to_path_buf())
}

/// Fills the parameters and buffers, the momenta, and the running mean of weights where there is one, from the checkpoint
/// of `state`, however many ranks wrote it. One that has no mean yet starts it from its weights.
pub fn load(
    checkpoint: &Path,
    state: &State,
    params: &Params,
    momentum: &Tensor,
    ema: Option<&mut Ema>,
) -> Result<()> {
    load_model(checkpoint, params)?;
    let mut momenta = BTreeMap::new();
    for name in state.files.keys().filter(|name| name.starts_with("optimizer")) {
        momenta.extend(read(&checkpoint.join(name))?);
    }
    fill(checkpoint, momenta, &params.named_views(momentum))?;
    let Some(ema) = ema else { return Ok(()) };
    let path = checkpoint.join(EMA);
    if path.exists() {
        return fill(&path, read(&path)?, &params.state_dict_of(&ema.flat, &ema.buffers));
    }
    ema.flat.copy_(params.flat());
    ema.buffers.copy_(params.flat_buffers());
    Ok(())
}

/// Fills what the weights that `path` (`model.init_from`) holds or names, as [`weights`] has it, and the network both have,
/// in name and shape; says what either has that the other has not.
pub fn start_from(path: &Path, params: &Params) -> Result<String> {
    let refuse =
        |what: String| Error::new(Exit::Checkpoint, format!("model.init_from {}: {what}", path.display()));
    let found = weights(path).and_then(|path| Ok((read(&path)?, path)));
    let (mut read, path) =
        found.map_err(|error| Error { message: format!("model.init_from {error}"), ..error })?;
    read.retain(|name, _| !name.ends_with("num_batches_tracked"));
    let (mut filled, mut missing, mut reshaped) = (0, Vec::new(), Vec::new());
    for (name, tensor) in params.state_dict() {
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
    fill(&file, read(&file)?, &params.state_dict())
}

/// A file's tensors by their names.
fn read(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let tensors = Tensor::read_safetensors(path).map_err(|error| {
        let error = error.to_string().replace('\n', " ");
        Error::new(Exit::Checkpoint, format!("{}: cannot be read: {error}", path.display()))
    })?;
    Ok(tensors.into_iter().collect())
}

/// Copies what was `read` from `path` into the tensors of the same names; both must have the same, in the same shapes.
fn fill(path: &Path, mut read: BTreeMap<String, Tensor>, into: &[(String, Tensor)]) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Checkpoint, format!("{}: {what}", path.display())));
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

/// Complete checkpoints by their steps.
pub(super) fn steps(folder: &Path) -> BTreeMap<u64, PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let numbered = entries.filter_map(|entry| Some((step_of(entry.file_name().to_str()?)?, entry.path())));
    numbered.filter(|(_, path)| is_complete(path)).collect()
}

/// SHA-256, as `sha256sum` prints it.
pub(super) fn checksum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
