//! `.safetensors` files with torchvision's names: the whole network with its config, or only the backbone.

use crate::trained::Trained;
use codinet_trainer::config::{Arch, Config, Gates, StrideIn};
use codinet_trainer::sys::error::{Error, Exit, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use tch::Tensor;

/// All tensors; the file's metadata hold, under `codinet`, what a reader needs to build the network and to prepare images.
pub fn gated(trained: &Trained) -> Vec<u8> {
    let metadata = [("format", "pt".to_owned()), ("codinet", description(trained).to_string())];
    serialise(trained.net.params.state_dict(), &[], &metadata)
}

/// The static backbone as torchvision's `load_state_dict(strict=False)` takes it: every key, none that it doesn't know.
///
/// # Errors
/// A backbone that torchvision hasn't.
pub fn torchvision(trained: &Trained) -> Result<Vec<u8>> {
    let model = &trained.config.model;
    let refuse = |what: &str| Err(Error::new(Exit::Config, format!("--format torchvision: {what}")));
    let named = trained.net.params.state_dict();
    if !trained.net.layers.pool {
        return refuse(&format!("it has no {} for 32×32 images; use --format safetensors", model.arch));
    }
    if trained.config.data.channels != 3 {
        return refuse("its networks take three channels; use --format safetensors");
    }
    let kept = named.into_iter().filter(|(name, _)| !name.contains("router.") && !name.contains(".skip."));
    let kept: Vec<_> = kept.collect();
    let counters: Vec<String> = kept
        .iter()
        .filter_map(|(name, _)| Some(format!("{}.num_batches_tracked", name.strip_suffix(".running_mean")?)))
        .collect();
    Ok(serialise(kept, &counters, &[("format", "pt".to_owned())]))
}

/// What is to be told of an export for torchvision, which would otherwise compute something else in silence.
pub fn caution(config: &Config) -> Option<String> {
    let model = &config.model;
    let mut said = Vec::new();
    let bottleneck = !matches!(model.arch, Arch::ResNet18 | Arch::ResNet34);
    if model.stride_in == StrideIn::Conv1 && bottleneck {
        said.push("its strides lie in the 1×1 convolutions, torchvision's in the 3×3 ones: move them, or outputs differ");
    }
    if model.gates != Gates::None {
        said.push("the routers are left out: every block runs");
    }
    (!said.is_empty()).then(|| format!("note: {}", said.join("; ")))
}

/// What builds the network and prepares its images.
pub fn description(trained: &Trained) -> Value {
    let model = &trained.config.model;
    let data = &trained.config.data;
    json!({
        "version": 1,
        "arch": model.arch, "gates": model.gates, "skip": model.skip, "stride_in": model.stride_in,
        "router": model.router.kind,
        "classes": data.classes, "channels": data.channels, "image_size": data.image_size,
        "mean": data.mean, "std": data.std, "eval_resize": data.eval_resize,
        "class_names": trained.class_names,
        "macs": {
            "ends": trained.net.costs.stem + trained.net.costs.head,
            "blocks": trained.net.costs.blocks.iter().map(|block| json!({
                "name": block.name, "run": block.run, "skip": block.skip, "router": block.router,
            })).collect::<Vec<_>>(),
        },
    })
}

/// A `.safetensors` file of `tensors`, as f32, and of `counters`, which are all 0.
fn serialise(tensors: Vec<(String, Tensor)>, counters: &[String], metadata: &[(&str, String)]) -> Vec<u8> {
    let bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&size| size as usize).collect();
            (name, (shape, bytes_of(&tensor)))
        })
        .collect();
    let zero = 0i64.to_le_bytes();
    let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).expect("as many bytes");
    let floats =
        bytes.iter().map(|(name, (shape, bytes))| (name, view(Dtype::F32, shape.clone(), &bytes[..])));
    let counters = counters.iter().map(|name| (name, view(Dtype::I64, Vec::new(), &zero[..])));
    let metadata: HashMap<String, String> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    safetensors::serialize(floats.chain(counters), &Some(metadata)).expect("tensors of known sizes")
}

/// A tensor's f32 values in the order of its dimensions, little-endian.
pub fn bytes_of(tensor: &Tensor) -> Vec<u8> {
    let flat = tensor.detach().to_device(tch::Device::Cpu).contiguous().view([-1]);
    Vec::<f32>::try_from(&flat).expect("f32").into_iter().flat_map(f32::to_le_bytes).collect()
}
