//! Exports equal the network: `.safetensors` files every tensor, ONNX files the logits and paths, which a small interpreter of
//! the operators computes here. `bench/infer_check.py` checks the same files with onnxruntime and PyTorch.

use crate::common::{assert_rejected, succeed};
use codinet_tools::export::proto::{Attribute, Graph, Model as Onnx, Node};
use codinet_tools::export::{onnx, safetensors, torchvision};
use codinet_tools::trained::TrainedNet;
use codinet_trainer::config::Skip;
use codinet_trainer::model::{BnMode, Decisions};
use prost::Message;
use safetensors::SafeTensors;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::process::Command;
use tch::{Device, Kind, Tensor};

/// A network with different running statistics in each channel, and its weights in `folder`.
pub fn network(folder: &Path, model: &str, size: u32, channels: u32) -> TrainedNet {
    let config = folder.join("net.yaml");
    let text = format!(
        "data: {{train: t, val: v, classes: 5, channels: {channels}, image_size: {size}, mean: [0.4], std: [0.3]}}\n\
         model: {model}\nstages: [{{epochs: 1, lr: 0.1}}]\n"
    );
    std::fs::write(&config, text).unwrap();
    let name = config.to_str().unwrap();
    let net = codinet_trainer::model::Net::from_config(
        &codinet_trainer::config::load(name, &[]).unwrap(),
        Device::Cpu,
    );
    tch::manual_seed(5);
    tch::no_grad(|| {
        for (name, mut tensor) in net.params.state_dict() {
            if name.ends_with("running_var") {
                let _ = tensor.uniform_(0.5, 1.5);
            } else if name.contains("router") && tensor.dim() == 2 {
                let _ = tensor.g_mul_scalar_(3.0);
            } else if tensor.dim() == 1 && !name.contains("router") {
                let _ = tensor.uniform_(0.2, 0.6);
            }
        }
    });
    let file = folder.join("net.safetensors");
    let named: Vec<_> =
        net.params.state_dict().into_iter().map(|(name, tensor)| (name, tensor.contiguous())).collect();
    Tensor::write_safetensors(&named, &file).unwrap();
    TrainedNet::load(&file, Some(name), Device::Cpu).unwrap()
}

fn names(bytes: &[u8]) -> BTreeSet<String> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    file.names().into_iter().cloned().collect()
}

#[test]
fn safetensors_have_every_tensor_and_the_architecture() {
    let folder = tempfile::tempdir().unwrap();
    let network = network(folder.path(), "{arch: resnet20}", 16, 1);
    let bytes = safetensors(&network);
    let file = folder.path().join("out.safetensors");
    std::fs::write(&file, &bytes).unwrap();
    let read: HashMap<String, Tensor> = Tensor::read_safetensors(&file).unwrap().into_iter().collect();
    let named = network.net.params.state_dict();
    assert_eq!(read.len(), named.len());
    for (name, tensor) in named {
        assert!(read[&name].equal(&tensor), "{name}");
    }
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let description = &metadata.metadata().as_ref().unwrap()["codinet"];
    let description: serde_json::Value = serde_json::from_str(description).unwrap();
    assert_eq!(description["arch"], "resnet20");
    assert_eq!(description["router"], "fc");
    assert_eq!(description["classes"], 5);
    // An export can be loaded again.
    TrainedNet::load(&file, folder.path().join("net.yaml").to_str(), Device::Cpu).unwrap();
}

/// The keys of torchvision 0.26's resnet18, by its naming; those of the others differ only in number.
#[test]
fn torchvision_export_has_exactly_torchvisions_keys() {
    let norm = |name: &str| {
        ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
            .map(|part| format!("{name}.{part}"))
    };
    let mut expected: BTreeSet<String> = ["conv1.weight", "fc.weight", "fc.bias"].map(String::from).into();
    expected.extend(norm("bn1"));
    for (stage, block) in [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)] {
        let name = format!("layer{stage}.{block}");
        for i in [1, 2] {
            expected.insert(format!("{name}.conv{i}.weight"));
            expected.extend(norm(&format!("{name}.bn{i}")));
        }
        if stage > 1 && block == 0 {
            expected.insert(format!("{name}.downsample.0.weight"));
            expected.extend(norm(&format!("{name}.downsample.1")));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let network = network(folder.path(), "{arch: resnet18}", 32, 3);
    assert_eq!(names(&torchvision(&network).unwrap()), expected);
}

/// The values of the graph, by ONNX's definition of the operators, computed with libtorch.
fn compute(model: &Onnx, images: &Tensor) -> HashMap<String, Tensor> {
    let graph = model.graph.as_ref().unwrap();
    let mut values: HashMap<String, Tensor> = HashMap::from([("images".to_owned(), images.shallow_clone())]);
    for constant in &graph.initializer {
        let kind = if constant.data_type == 1 { Kind::Float } else { Kind::Int64 };
        values
            .insert(constant.name.clone(), Tensor::from_data_size(&constant.raw_data, &constant.dims, kind));
    }
    compute_nodes(graph, &mut values);
    values
}

/// Adds the values of a graph's nodes, and of those of the branches that are taken.
fn compute_nodes(graph: &Graph, values: &mut HashMap<String, Tensor>) {
    for node in &graph.node {
        let inputs: Vec<Tensor> = node.input.iter().map(|name| values[name].shallow_clone()).collect();
        let outputs = if node.op_type == "If" {
            assert_eq!(inputs[0].size(), [1]);
            let taken = if inputs[0].int64_value(&[0]) == 1 { "then_branch" } else { "else_branch" };
            let branch = find(node, taken).g.as_ref().unwrap();
            assert!(branch.input.is_empty() && branch.initializer.is_empty());
            compute_nodes(branch, values);
            branch.output.iter().map(|output| values[&output.name].shallow_clone()).collect()
        } else {
            operate(node, &inputs)
        };
        assert_eq!(outputs.len(), node.output.len());
        for (name, value) in node.output.iter().zip(outputs) {
            assert!(values.insert(name.clone(), value).is_none(), "{name} is defined twice");
        }
    }
}

fn find<'a>(node: &'a Node, name: &str) -> &'a Attribute {
    node.attribute.iter().find(|attribute| attribute.name == name).expect("an attribute")
}

fn operate(node: &Node, x: &[Tensor]) -> Vec<Tensor> {
    let find = |name: &str| find(node, name);
    let list = |x: &Tensor| Vec::<i64>::try_from(x).unwrap();
    vec![match node.op_type.as_str() {
        "Conv" => {
            let strides = &find("strides").ints;
            let pads = &find("pads").ints;
            x[0].conv2d(&x[1], x.get(2), &strides[..], &pads[..2], [1, 1], 1)
        }
        "MaxPool" => x[0].max_pool2d(&find("kernel_shape").ints[..], [2, 2], [1, 1], [1, 1], false),
        "Relu" => x[0].relu(),
        "Sigmoid" => x[0].sigmoid(),
        "Tanh" => x[0].tanh(),
        "Add" => &x[0] + &x[1],
        "Mul" => &x[0] * &x[1],
        "MatMul" => x[0].matmul(&x[1]),
        "Gemm" => {
            assert_eq!(find("transB").i, 1);
            x[0].linear(&x[1], Some(&x[2]))
        }
        "ReduceMean" => {
            assert_eq!((find("keepdims").i, find("keepdims").kind), (0, 2));
            x[0].mean_dim(&find("axes").ints[..], false, None)
        }
        "GreaterOrEqual" => x[0].ge_tensor(&x[1]),
        "Cast" => x[0].to_kind(Kind::Float),
        "Reshape" => x[0].reshape(list(&x[1])),
        "Where" => x[1].where_self(&x[0], &x[2]),
        "Slice" => {
            let from = list(&x[1]);
            let axes = list(&x[3]);
            let steps = list(&x[4]);
            (0..axes.len()).fold(x[0].shallow_clone(), |y, i| y.slice(axes[i], from[i], None, steps[i]))
        }
        "Pad" => {
            let pads = list(&x[1]);
            let reversed: Vec<i64> = (0..4).rev().flat_map(|i| [pads[i], pads[i + 4]]).collect();
            x[0].constant_pad_nd(reversed)
        }
        "Concat" => Tensor::cat(x, find("axis").i),
        "Identity" => x[0].shallow_clone(),
        "Split" => return x[0].chunk(node.output.len() as i64, find("axis").i),
        other => panic!("the operator {other} is not implemented here"),
    }]
}

/// A model of each kind, and the side of its images.
pub const MODELS: [(&str, u32); 9] = [
    ("{arch: resnet20, router: {open_bias: 0.1}}", 16),
    ("{arch: resnet20, skip: shortcut, router: {kind: cnn, open_bias: 0.0}}", 16),
    ("{arch: resnet20, router: {open_bias: 0.0, activation: none}}", 16),
    ("{arch: resnet20, router: {kind: rnn, open_bias: 0.0}}", 16),
    ("{arch: resnet18, gates: same_shape, router: {open_bias: 0.1}}", 40),
    ("{arch: resnet50, stride_in: conv1, router: {open_bias: 0.1, hidden: {units: 16}}}", 40),
    ("{arch: resnet20, gates: none}", 16),
    ("{arch: resnet20, routing: {fixed: [0, 4, 7]}}", 16),
    ("{arch: resnet18, skip: shortcut, routing: {fixed: [1, 2]}}", 40),
];

#[test]
fn onnx_gives_the_networks_logits_and_paths() {
    let mut skipped = 0;
    for (model, size) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let network = network(folder.path(), model, size, 3);
        let onnx = Onnx::decode(&onnx(&network, Skip::Masked)[..]).unwrap();
        assert_eq!((onnx.ir_version, onnx.opset_import[0].version), (8, 17));
        let contrast = Tensor::linspace(0.2, 3.0, 6, (Kind::Float, Device::Cpu)).view([6, 1, 1, 1]);
        let images = Tensor::randn([6, 3, size.into(), size.into()], (Kind::Float, Device::Cpu)) * contrast;
        let (values, expected) = tch::no_grad(|| {
            (compute(&onnx, &images), network.net.forward(&images, Decisions::Hard, BnMode::Running))
        });
        let off = (&values["logits"] - &expected.logits).abs().max().double_value(&[]);
        assert!(off < 1e-4, "{model}: off by {off}");
        let outputs: Vec<&str> =
            onnx.graph.as_ref().unwrap().output.iter().map(|output| output.name.as_str()).collect();
        if expected.path.size()[1] == 0 {
            assert_eq!(outputs, ["logits"]);
            continue;
        }
        assert_eq!(outputs, ["logits", "gates", "path"]);
        assert!(values["path"].equal(&expected.path), "{model}");
        assert!(values["gates"].allclose(&expected.gate_logits, 1e-4, 1e-4, false), "{model}");
        skipped += expected.path.eq(0.0).sum(Kind::Int64).int64_value(&[]);
    }
    assert!(skipped > 10, "{skipped}");
}

#[test]
fn onnx_with_skipping_computes_only_the_path() {
    let mut skipped = 0;
    for (model, size) in MODELS {
        let folder = tempfile::tempdir().unwrap();
        let network = network(folder.path(), model, size, 3);
        let onnx = Onnx::decode(&onnx(&network, Skip::Real)[..]).unwrap();
        let contrast = Tensor::linspace(0.2, 3.0, 6, (Kind::Float, Device::Cpu)).view([6, 1, 1, 1]);
        let images = Tensor::randn([6, 3, size.into(), size.into()], (Kind::Float, Device::Cpu)) * contrast;
        for image in images.chunk(6, 0) {
            let (values, expected) = tch::no_grad(|| {
                (compute(&onnx, &image), network.net.forward(&image, Decisions::Hard, BnMode::Running))
            });
            let off = (&values["logits"] - &expected.logits).abs().max().double_value(&[]);
            assert!(off < 1e-4, "{model}: off by {off}");
            if expected.path.size()[1] == 0 {
                continue;
            }
            assert!(values["path"].equal(&expected.path), "{model}");
            let path = Vec::<f64>::try_from(expected.path.get(0)).unwrap();
            if !model.contains("kind: rnn") {
                // The first step of the LSTM has fewer MACs than are counted for it.
                let macs = computed_macs(onnx.graph.as_ref().unwrap(), &values);
                assert_eq!(macs as f64, network.net.costs.mean_macs(&path), "{model}, path {path:?}");
            }
            skipped += path.iter().filter(|&&runs| runs == 0.0).count();
        }
    }
    assert!(skipped > 10, "{skipped}");
}

/// MACs of the convolutions and linear layers of a graph and its branches whose values were computed, for one image.
fn computed_macs(graph: &Graph, values: &HashMap<String, Tensor>) -> usize {
    let of_node = |node: &Node| {
        let branches = node.attribute.iter().filter_map(|attribute| attribute.g.as_ref());
        let in_branches: usize = branches.map(|branch| computed_macs(branch, values)).sum();
        let own = match (node.op_type.as_str(), values.get(&node.output[0])) {
            ("Conv", Some(y)) => values[&node.input[1]].numel() * (y.size()[2] * y.size()[3]) as usize,
            ("Gemm", Some(_)) => values[&node.input[1]].numel(),
            _ => 0,
        };
        own + in_branches
    };
    graph.node.iter().map(of_node).sum()
}

#[test]
fn program_writes_files_or_explains_why_not() {
    let folder = tempfile::tempdir().unwrap();
    drop(network(folder.path(), "{arch: resnet20}", 16, 3));
    let export = |checkpoint: &str, format: &str, out: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codinet-export"));
        command.args([
            "--checkpoint",
            checkpoint,
            "--config",
            "net.yaml",
            "--format",
            format,
            "--output",
            out,
        ]);
        command.current_dir(folder.path());
        command
    };
    for format in ["safetensors", "onnx"] {
        let out = format!("out.{format}");
        let printed = succeed(&mut export("net.safetensors", format, &out));
        assert!(
            printed.contains(&out) && folder.path().join(&out).metadata().unwrap().len() > 1_000_000,
            "{printed}"
        );
    }
    let rejected = |checkpoint: &str, format: &str, code: i32, parts: &[&str]| {
        assert_rejected(&mut export(checkpoint, format, "none"), code, parts);
        assert!(!folder.path().join("none").exists());
    };
    rejected("net.safetensors", "torchscript", 2, &["--torchscript", "examples/python"]);
    rejected("net.safetensors", "torchvision", 2, &["ResNet20", "safetensors"]);
    rejected("net.yaml", "onnx", 4, &["net.yaml", "not a .safetensors file"]);
    rejected("lost", "onnx", 4, &["lost", "no such"]);
    assert_rejected(&mut export("net.safetensors", "onnx", "no/folder/out"), 6, &["no/folder/out"]);
}
