//! Finds checkpoints, checks them and reads their tensors.

use super::state::{TrainState, VERSION};
use super::{COMPLETE, EMA, MODEL, STATE, complete_steps, sha256};
use crate::model::Params;
use crate::optim::{Ema, Optimizer};
use crate::run_dir::{BEST, CHECKPOINTS, CONFIG, LATEST, step_of};
use crate::sys::error::{Error, Exit, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use tch::Tensor;

fn error_at(path: &Path, what: &str) -> Error {
    Error::new(Exit::Checkpoint, format!("{}: {what}", path.display()))
}

/// Whether a folder is a checkpoint whose last file has been written.
pub fn is_complete(checkpoint: &Path) -> bool {
    checkpoint.join(COMPLETE).exists() && checkpoint.join(STATE).exists()
}

/// The newest complete checkpoint of a run whose files have their checksums. Warns about each damaged one that it skips.
pub(crate) fn find_newest(run: &Path) -> Option<PathBuf> {
    let mut steps = complete_steps(&run.join(CHECKPOINTS));
    while let Some((_, step)) = steps.pop_last() {
        match read_state(&step) {
            Ok(_) => return Some(step),
            Err(error) => crate::eprint_line!("warning: {error}; skipped"),
        }
    }
    None
}

/// Reads `state.json`, and checks every file against its checksum.
pub(crate) fn read_state(checkpoint: &Path) -> Result<TrainState> {
    #[derive(Deserialize)]
    struct Format {
        version: u32,
    }
    let text = fs::read(checkpoint.join(STATE))
        .map_err(|error| error_at(checkpoint, &format!("cannot read {STATE}: {error}")))?;
    let damaged = |error: serde_json::Error| error_at(checkpoint, &format!("{STATE} is damaged: {error}"));
    let Format { version } = serde_json::from_slice(&text).map_err(damaged)?;
    if version != VERSION {
        let what = format!("has format {version}; this program reads {VERSION}");
        return Err(error_at(checkpoint, &what));
    }
    let state: TrainState = serde_json::from_slice(&text).map_err(damaged)?;
    for (name, expected) in &state.files {
        let bytes = fs::read(checkpoint.join(name))
            .map_err(|error| error_at(checkpoint, &format!("cannot read {name}: {error}")))?;
        if sha256(&bytes) != *expected {
            let what = format!("{name} is damaged: its SHA-256 is not the one in {STATE}");
            return Err(error_at(checkpoint, &what));
        }
    }
    Ok(state)
}

/// The file of weights that `path` stands for: a run directory (its newest undamaged checkpoint), a `step-…` folder, a folder of
/// a `model.safetensors` with its `config.yaml`, a file `best` or `latest` that names a step, or the file itself.
///
/// # Errors
/// No such file, or a damaged one.
pub fn find_weights(path: &Path) -> Result<PathBuf> {
    let is_bundle = path.join(MODEL).is_file() && path.join(CONFIG).is_file();
    if path.is_dir() && (is_complete(path) || is_bundle) {
        return check_weights(&path.join(MODEL));
    }
    if path.is_dir() {
        return find_newest_weights(path);
    }
    if !path.is_file() {
        return Err(error_at(path, "no such run directory, step folder or .safetensors file"));
    }
    if path.file_name().is_none_or(|name| name != BEST && name != LATEST) {
        return check_weights(path);
    }
    let name = fs::read_to_string(path).unwrap_or_default();
    let step = path.with_file_name(name.trim());
    if step_of(name.trim()).is_none() || !is_complete(&step) {
        return Err(error_at(path, "does not name a complete checkpoint in its folder"));
    }
    check_weights(&step.join(MODEL))
}

/// The weights of a run's newest checkpoint, or of an older one, with a warning, if they are damaged.
fn find_newest_weights(run: &Path) -> Result<PathBuf> {
    let mut steps = complete_steps(&run.join(CHECKPOINTS));
    let Some((_, newest)) = steps.pop_last() else {
        let what = "is no run directory or step folder: it holds no complete checkpoint";
        return Err(error_at(run, what));
    };
    let error = match check_weights(&newest.join(MODEL)) {
        Err(error) => error,
        found => return found,
    };
    while let Some((_, older)) = steps.pop_last() {
        if let Ok(file) = check_weights(&older.join(MODEL)) {
            crate::eprint_line!("warning: {error}; using {} instead", older.display());
            return Ok(file);
        }
    }
    Err(error)
}

/// `file`, if it is a `.safetensors` file and has the checksum in the `state.json` next to it, of whatever format.
fn check_weights(file: &Path) -> Result<PathBuf> {
    #[derive(Deserialize)]
    struct Checksums {
        files: BTreeMap<String, String>,
    }
    let bytes = fs::read(file).map_err(|error| error_at(file, &format!("cannot be read: {error}")))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Ok(text) = fs::read(file.with_file_name(STATE)) {
        let Checksums { files } = serde_json::from_slice(&text)
            .map_err(|error| error_at(file, &format!("the {STATE} in its folder is damaged: {error}")))?;
        if files.get(name).is_some_and(|expected| *expected != sha256(&bytes)) {
            return Err(error_at(file, &format!("is damaged: its SHA-256 is not the one in {STATE}")));
        }
    }
    safetensors::SafeTensors::deserialize(&bytes).map_err(|error| {
        if bytes.starts_with(b"PK") {
            return error_at(file, &format!("is a PyTorch file, not .safetensors; {}", convert_advice(file)));
        }
        error_at(file, &format!("is not a .safetensors file, or is cut short ({error:?})"))
    })?;
    Ok(file.to_path_buf())
}

/// The line that converts a file of `torch.save`, which is a zip archive, to .safetensors.
fn convert_advice(file: &Path) -> String {
    format!(
        "convert it: python3 -c \"import torch; from safetensors.torch import save_file; s = torch.load('{}', \
         map_location='cpu', weights_only=True); s = s.get('state_dict', s); save_file({{k: v.contiguous() for k, v in \
         s.items()}}, '{}')\"",
        file.display(),
        file.with_extension("safetensors").display()
    )
}

/// Copies the tensors of the checkpoint of `state`, written by any number of ranks, into the parameters and buffers, the
/// optimiser's state, and the moving average if there is one. If the checkpoint has no moving average, it starts from the weights.
pub(crate) fn load(
    checkpoint: &Path,
    state: &TrainState,
    params: &Params,
    optimizer: &dyn Optimizer,
    ema: Option<&mut Ema>,
) -> Result<()> {
    load_model(checkpoint, params)?;
    let mut saved = BTreeMap::new();
    for name in state.files.keys().filter(|name| name.starts_with("optimizer")) {
        saved.extend(read_tensors(&checkpoint.join(name))?);
    }
    copy_all(checkpoint, saved, &optimizer.named_state(params))?;
    let Some(ema) = ema else { return Ok(()) };
    let path = checkpoint.join(EMA);
    if path.exists() {
        return copy_all(&path, read_tensors(&path)?, &params.state_dict_of(&ema.flat, &ema.buffers));
    }
    ema.flat.copy_(params.flat());
    ema.buffers.copy_(params.flat_buffers());
    Ok(())
}

/// Copies a model file, or that of a `step-…` folder, into the parameters and buffers.
pub fn load_model(path: &Path, params: &Params) -> Result<()> {
    let file = if path.is_dir() { path.join(MODEL) } else { path.to_path_buf() };
    copy_all(&file, read_tensors(&file)?, &params.state_dict())
}

/// Copies the tensors that the weights of `path` (`model.init_from`, see [`find_weights`]) and the network have in common, in
/// name and shape. Returns a summary, with the tensors that only one of them has.
pub(crate) fn initialise_from(path: &Path, params: &Params) -> Result<String> {
    let in_setting = |error: Error| Error { message: format!("model.init_from {error}"), ..error };
    let file = find_weights(path).map_err(in_setting)?;
    let mut tensors = read_tensors(&file).map_err(in_setting)?;
    tensors.retain(|name, _| !name.ends_with("num_batches_tracked"));
    let prefix = common_prefix(tensors.keys(), params);
    let mut copied = 0;
    let mut missing = Vec::new();
    let mut reshaped = Vec::new();
    for (name, tensor) in params.state_dict() {
        match tensors.remove(&name) {
            None => missing.push(name),
            Some(source) if source.size() != tensor.size() => {
                let theirs = source.size();
                let ours = tensor.size();
                reshaped.push(format!("{name} ({theirs:?} in the file, {ours:?} here)"));
            }
            Some(source) => {
                tch::no_grad(|| tensor.shallow_clone().copy_(&source));
                copied += 1;
            }
        }
    }
    if copied == 0 {
        let what = match prefix {
            Some(prefix) => format!(
                "has this network's tensors, but with '{prefix}' before their names; write a file without it: python3 -c \
                 \"from safetensors.torch import *; save_file({{k.removeprefix('{prefix}'): v for k, v in \
                 load_file('{}').items()}}, 'renamed.safetensors')\"",
                file.display()
            ),
            None => "has none of this network's tensors; their names are torchvision's, such as conv1.weight"
                .into(),
        };
        return Err(in_setting(error_at(path, &what)));
    }
    let mut summary = format!("{copied} tensors initialised from {}", file.display());
    let unexpected: Vec<String> = tensors.into_keys().collect();
    for (what, names) in [
        ("missing in the file, initialised randomly", missing),
        ("of a different shape, initialised randomly", reshaped),
        ("unexpected, ignored", unexpected),
    ] {
        if !names.is_empty() {
            summary += &format!("\n  {} {what}: {}", names.len(), names.join(", "));
        }
    }
    Ok(summary)
}

/// What stands before the network's names in a file that has none of them as they are: `module.` by DDP, `model.` and others
/// by frameworks.
fn common_prefix<'a>(names: impl Iterator<Item = &'a String>, params: &Params) -> Option<String> {
    let ours: BTreeSet<String> = params.state_dict().into_iter().map(|(name, _)| name).collect();
    let prefixes = names.filter_map(|name| {
        let mut starts = name.match_indices('.').map(|(at, _)| at + 1);
        starts.find(|&start| ours.contains(&name[start..])).map(|start| name[..start].to_owned())
    });
    let prefixes: BTreeSet<String> = prefixes.collect();
    prefixes.into_iter().next()
}

/// A file's tensors by their names.
fn read_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let tensors = Tensor::read_safetensors(path).map_err(|error| {
        let error = error.to_string().replace('\n', " ");
        error_at(path, &format!("cannot be read: {error}"))
    })?;
    Ok(tensors.into_iter().collect())
}

/// Copies `source`, read from `path`, into the tensors of the same names. Both must have the same names and shapes.
fn copy_all(path: &Path, mut source: BTreeMap<String, Tensor>, target: &[(String, Tensor)]) -> Result<()> {
    let mismatch = |what: String| Err(error_at(path, &format!("belongs to another network: {what}")));
    let missing: Vec<&str> =
        target.iter().map(|(name, _)| name.as_str()).filter(|name| !source.contains_key(*name)).collect();
    if let Some(first) = missing.first() {
        return mismatch(format!("it lacks {} tensors, such as {first}", missing.len()));
    }
    for (name, tensor) in target {
        let source = source.remove(name).expect("checked above");
        if source.size() != tensor.size() {
            let theirs = source.size();
            let ours = tensor.size();
            return mismatch(format!("{name} is {theirs:?} in it and {ours:?} in this config"));
        }
        tch::no_grad(|| tensor.shallow_clone().copy_(&source));
    }
    if let Some(name) = source.keys().next() {
        return mismatch(format!("it has {} tensors too many, such as {name}", source.len()));
    }
    Ok(())
}
