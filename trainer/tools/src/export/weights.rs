//! `.safetensors` files with torchvision's names: the whole network with its architecture, or only the backbone.

use crate::trained::TrainedNet;
use codinet_trainer::config::{Arch, Config, Gates, Routing, StrideIn};
use codinet_trainer::sys::error::{Error, Exit, Result};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use tch::Tensor;

/// All tensors; the file's metadata has the [`description`] under `codinet`.
pub fn safetensors(network: &TrainedNet) -> Vec<u8> {
    let metadata = [("format", "pt".to_owned()), ("codinet", description(network).to_string())];
    serialise(network.net.params.state_dict(), &[], &metadata)
}

/// The static backbone for torchvision's `load_state_dict`: all of its keys, and no other.
///
/// # Errors
/// A backbone that torchvision does not have.
pub fn torchvision(network: &TrainedNet) -> Result<Vec<u8>> {
    let model = &network.config.model;
    let refuse = |what: &str| Err(Error::new(Exit::Config, format!("--format torchvision: {what}")));
    if !network.net.layers.pool {
        return refuse(&format!("it has no {} for 32×32 images; use --format safetensors", model.arch));
    }
    if network.config.data.channels != 3 {
        return refuse("its networks take three channels; use --format safetensors");
    }
    if model.routing != Routing::Routers {
        return refuse("a fixed path lacks blocks of its networks; use --format safetensors");
    }
    let mut backbone = network.net.params.state_dict();
    backbone.retain(|(name, _)| !name.contains("router.") && !name.contains(".skip."));
    let counters: Vec<String> = backbone
        .iter()
        .filter_map(|(name, _)| Some(format!("{}.num_batches_tracked", name.strip_suffix(".running_mean")?)))
        .collect();
    Ok(serialise(backbone, &counters, &[("format", "pt".to_owned())]))
}

/// What an export for torchvision's model does not compute as this network does.
pub fn torchvision_note(config: &Config) -> Option<String> {
    let model = &config.model;
    let mut notes = Vec::new();
    let bottleneck = !matches!(model.arch, Arch::ResNet18 | Arch::ResNet34);
    if model.stride_in == StrideIn::Conv1 && bottleneck {
        notes.push("its strides are in the 1×1 convolutions, torchvision's in the 3×3 ones: move them, or outputs differ");
    }
    if model.gates != Gates::None {
        notes.push("the routers are left out: every block runs");
    }
    (!notes.is_empty()).then(|| format!("note: {}", notes.join("; ")))
}

/// The architecture, the preparation of images, and MACs: enough for a reader to build the network.
pub fn description(network: &TrainedNet) -> Value {
    let model = &network.config.model;
    let data = &network.config.data;
    json!({
        "version": 1,
        "arch": model.arch, "gates": model.gates, "skip": model.skip, "stride_in": model.stride_in,
        "routing": model.routing, "router": model.router.kind, "activation": model.router.activation,
        "classes": data.classes, "channels": data.channels, "image_size": data.eval_size(),
        "mean": data.mean, "std": data.std, "eval_resize": data.eval_resize,
        "class_names": network.class_names,
        "macs": {
            "ends": network.net.costs.stem + network.net.costs.head,
            "blocks": network.net.costs.blocks.iter().map(|block| json!({
                "name": block.name, "run": block.run, "skip": block.skip, "router": block.router,
            })).collect::<Vec<_>>(),
        },
    })
}

/// A `.safetensors` file of `tensors` in f32, and of `counters`, which are 0.
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
