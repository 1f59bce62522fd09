//! The package in examples/python computes what the Rust network does. The tests need a Python with torch, safetensors, Pillow and
//! PyYAML (`PYTHON`, else python3), and are skipped with a message where there is none.

use crate::common::{latest_checkpoint, latest_step, succeed, text};
use crate::export::{MODELS, network};
use crate::infer::{RUN, infer, lines, write_images};
use codinet_dataloader::{BatchPlan, Dataset, Loader};
use codinet_tools::export::safetensors;
use codinet_tools::trained::TrainedNet;
use codinet_trainer::config::Precision;
use codinet_trainer::data::{Normalise, loader_spec};
use codinet_trainer::model::{BnMode, Costs, Decisions, NetOutput};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use tch::{Device, Kind, Tensor};

const PACKAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/python");

const SKIPPED: &str =
    "skipped: Python lacks torch or another package of examples/python; set PYTHON to one that has them";

/// A Python that runs `script` with the package as pip installs it into `folder`; `None` where Python lacks torch.
fn python(folder: &Path, script: &str) -> Option<Command> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has = |modules: &str| {
        let import = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if !has("torch, safetensors, numpy, PIL, yaml") {
        return None;
    }
    let mut package = PathBuf::from(PACKAGE);
    if has("pip, setuptools") {
        // From a copy, because setuptools writes next to the sources.
        package = folder.join("installed");
        let copy = folder.join("python");
        succeed(Command::new("cp").arg("-r").arg(PACKAGE).arg(&copy));
        let mut install = Command::new(&python);
        install.args(["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]);
        succeed(install.arg("--target").arg(&package).arg(&copy));
    }
    let mut command = Command::new(&python);
    command.args(["-c", script]).current_dir(folder).env("PYTHONPATH", package).env("OMP_NUM_THREADS", "1");
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

fn read(file: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(file).unwrap().into_iter().collect()
}

/// What the network computes for normalised images.
fn forward(network: &TrainedNet, images: &Tensor) -> NetOutput {
    tch::no_grad(|| network.net.forward(images, Decisions::Hard, BnMode::Running))
}

/// MACs of each image, `[N]`.
fn macs(costs: &Costs, path: &Tensor) -> Tensor {
    let rows = Vec::<Vec<f64>>::try_from(path.to_kind(Kind::Double)).unwrap();
    Tensor::from_slice(&rows.iter().map(|row| costs.mean_macs(row)).collect::<Vec<f64>>())
}

/// Checks the tensors that a script wrote against the network's.
fn assert_equals(python: &HashMap<String, Tensor>, rust: &NetOutput, costs: &Costs, what: &str) {
    let close = |name: &str, expected: &Tensor| {
        let off = (&python[name] - expected).abs().max().double_value(&[]);
        let scale = expected.abs().max().double_value(&[]).max(1.0);
        assert!(off < 1e-4 * scale, "{what}: {name} is off by {off} of {scale}");
    };
    let path = rust.path.to_kind(Kind::Bool);
    assert!(python["path"].to_kind(Kind::Bool).equal(&path), "{what}: the paths differ");
    assert!(python["paths"].to_kind(Kind::Bool).equal(&path), "{what}: paths() differs");
    close("logits", &rust.logits);
    close("masked", &rust.logits);
    close("probabilities", &rust.logits.softmax(1, Kind::Float).amax([1].as_slice(), false));
    close("features", &rust.features);
    if rust.gate_logits.numel() > 0 {
        close("gates", &rust.gate_logits);
    }
    assert!(python["classes"].equal(&rust.logits.argmax(1, false)), "{what}: the classes differ");
    let macs = macs(costs, &rust.path);
    assert!(python["macs"].equal(&macs) && python["counted"].equal(&macs), "{what}: the MACs differ");
}

/// Each folder in the current one: images.safetensors through out.safetensors, to python.safetensors.
const EACH_KIND: &str = "
import codinet, pathlib, torch
from safetensors.torch import load_file, save_file

for folder in pathlib.Path('nets').iterdir():
    net = codinet.load(folder / 'out.safetensors')
    images = load_file(folder / 'images.safetensors')['images']
    result = net.predict(images, batch=4)._asdict()
    with torch.no_grad():
        result['masked'], result['gates'], _ = net(net.prepare(images))
    result |= {'paths': net.paths(images), 'features': net.features(images)}
    net.meta['macs'] = net.count_macs()
    result['counted'] = net.macs(result['path'])
    save_file({name: tensor.contiguous() for name, tensor in result.items()}, folder / 'python.safetensors')
";

#[test]
fn python_computes_what_networks_of_each_kind_do() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut python) = python(folder.path(), EACH_KIND) else { return eprintln!("{SKIPPED}") };
    let mut expected = Vec::new();
    for (index, (model, size)) in MODELS.into_iter().enumerate() {
        let folder = folder.path().join(format!("nets/{index}"));
        fs::create_dir_all(&folder).unwrap();
        let network = network(&folder, model, size, 3);
        fs::write(folder.join("out.safetensors"), safetensors(&network)).unwrap();
        let side = i64::from(size);
        let brightness = Tensor::linspace(40, 256, 6, (Kind::Float, Device::Cpu)).view([6, 1, 1, 1]);
        let images =
            (Tensor::rand([6, 3, side, side], (Kind::Float, Device::Cpu)) * brightness).to_kind(Kind::Uint8);
        Tensor::write_safetensors(&[("images", &images)], folder.join("images.safetensors")).unwrap();
        let x = (images.to_kind(Kind::Float) / 255.0 - 0.4) / 0.3;
        expected.push((folder, model, forward(&network, &x), network));
    }
    succeed(&mut python);
    let mut skipped = 0;
    for (folder, model, output, network) in expected {
        assert_equals(&read(&folder.join("python.safetensors")), &output, &network.net.costs, model);
        skipped += output.path.eq(0.0).sum(Kind::Int64).int64_value(&[]);
    }
    assert!(skipped > 10, "{skipped}");
}

/// The run, its export and a program of torch.export, on the image files.
const TRAINED_RUN: &str = "
import codinet, pathlib, sys, torch
from safetensors.torch import save_file

run, export, images = sys.argv[1:]
net = codinet.load(run)
images = codinet.read(net, sorted(pathlib.Path(images).iterdir()))
result = net.predict(images)._asdict() | {'paths': net.paths(images), 'features': net.features(images)}
with torch.no_grad():
    result['masked'], result['gates'], _ = net(net.prepare(images))
    result['exported'] = codinet.load(export).predict(images).logits
    codinet.export(net, 'net.pt2')
    result['program'] = torch.export.load('net.pt2').module()(net.prepare(images))[0]
result['counted'] = net.macs(result['path'])
save_file({name: tensor.contiguous() for name, tensor in result.items()}, 'python.safetensors')
";

#[test]
fn python_predicts_as_codinet_infer_on_a_trained_run() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut python) = python(folder.path(), TRAINED_RUN) else { return eprintln!("{SKIPPED}") };
    let run = RUN.path("run");
    let network = TrainedNet::load(&run, None, Device::Cpu).unwrap();
    let export = folder.path().join("export.safetensors");
    fs::write(&export, safetensors(&network)).unwrap();
    let files = write_images(&folder.path().join("images"), 37);
    succeed(python.arg(&run).arg(&export).arg(&files));
    let found = read(&folder.path().join("python.safetensors"));

    let dataset = Arc::new(Dataset::open(RUN.path("val").to_str().unwrap()).unwrap());
    let spec = loader_spec(&network.config, network.config.evaluation(), network.config.data.eval_size(), 1);
    let plan = [BatchPlan::new(0, (0..37).collect())].into_iter();
    let batch = Loader::new(dataset, spec, plan).unwrap().next().unwrap().unwrap();
    let (images, _) = Normalise::new(&network.config.data, Precision::Fp32, Device::Cpu).tensors(&batch);
    assert_equals(&found, &forward(&network, &images), &network.net.costs, "the run");

    let infer = lines(&succeed(&mut infer(&["--checkpoint", "run", files.to_str().unwrap(), "--logits"])));
    let paths = Vec::<Vec<f64>>::try_from(found["path"].to_kind(Kind::Double)).unwrap();
    let logits = Vec::<Vec<f64>>::try_from(found["logits"].to_kind(Kind::Double)).unwrap();
    assert_eq!(infer.len(), 37);
    for (n, line) in infer.iter().enumerate() {
        assert_eq!(line["class"], found["classes"].int64_value(&[n as i64]));
        assert_eq!(line["macs"].as_f64().unwrap(), found["macs"].double_value(&[n as i64]));
        let path: String = paths[n].iter().map(|&run| if run == 1.0 { '1' } else { '0' }).collect();
        assert_eq!(line["path"], path);
        for (ours, theirs) in line["logits"].as_array().unwrap().iter().zip(&logits[n]) {
            assert!((ours.as_f64().unwrap() - theirs).abs() < 1e-4, "image {n}: {ours}, {theirs}");
        }
    }
    assert!(found["exported"].equal(&found["logits"]), "the run and its export differ");
    assert!(found["program"].allclose(&found["masked"], 1e-5, 1e-5, false), "torch.export's program differs");
}

/// Prints the result of loading each argument: the sum of its logits, or the error and the warnings.
const LOAD_EACH: &str = "
import codinet, sys, torch, warnings

warnings.simplefilter('always')
images = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
for path in sys.argv[1:]:
    with warnings.catch_warnings(record=True) as caught:
        try:
            net = codinet.load(path)
            print(float(net.predict(images).logits.double().sum()), *(warning.message for warning in caught))
        except Exception as error:
            print(f'{type(error).__name__}:', str(error).replace(chr(10), ' '))
for wrong in (images.float(), images[0], images.expand(1, 3, 16, 16), images[..., :15]):
    try:
        net.predict(wrong)
    except ValueError as error:
        print(error)
";

#[test]
fn python_loads_checkpoints_and_rejects_what_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut python) = python(folder.path(), LOAD_EACH) else { return eprintln!("{SKIPPED}") };
    let path = |name: &str| folder.path().join(name);
    let copy = |from: &Path, to: &Path| succeed(Command::new("cp").arg("-r").arg(from).arg(to));
    let run = RUN.path("run");
    let step = latest_checkpoint(&run);
    let weights = step.join("model.safetensors");
    // A damaged newest checkpoint, and one of the step before that has the same weights.
    copy(&run, &path("damaged"));
    let newest = path("damaged/checkpoints").join(step.file_name().unwrap());
    let older = path("damaged/checkpoints").join(format!("step-{:08}", latest_step(&run) - 1));
    fs::create_dir_all(&older).unwrap();
    for name in ["model.safetensors", "state.json", "COMPLETE"] {
        let _ = fs::copy(newest.join(name), older.join(name)).unwrap();
    }
    let mut bytes = fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(newest.join("model.safetensors"), &bytes).unwrap();
    fs::create_dir(path("bundle")).unwrap();
    fs::copy(&weights, path("bundle/model.safetensors")).unwrap();
    fs::copy(run.join("config.yaml"), path("bundle/config.yaml")).unwrap();
    fs::copy(&weights, path("bare.safetensors")).unwrap();
    fs::write(path("cut.safetensors"), &bytes[..1000]).unwrap();
    fs::create_dir(path("other")).unwrap();
    fs::copy(&weights, path("other/model.safetensors")).unwrap();
    let config = fs::read_to_string(run.join("config.yaml")).unwrap();
    fs::write(path("other/config.yaml"), config.replace("arch: resnet20", "arch: resnet32")).unwrap();
    fs::create_dir(path("larger")).unwrap();
    fs::copy(path("bundle/model.safetensors"), path("larger/model.safetensors")).unwrap();
    fs::write(path("larger/config.yaml"), config.replace("eval_size: null", "eval_size: 24")).unwrap();
    fs::create_dir(path("empty")).unwrap();
    let same =
        [run.clone(), step.clone(), run.join("checkpoints/latest"), weights, path("bundle"), path("damaged")];
    let printed = succeed(python.args(&same).arg(step.join("ema.safetensors")).args([
        newest.to_str().unwrap(),
        "bare.safetensors",
        "cut.safetensors",
        "other",
        "larger",
        "empty",
        "nowhere",
        same[0].to_str().unwrap(),
    ]));
    let printed: Vec<&str> = printed.lines().collect();
    let sum = |line: &str| line.split(' ').next().unwrap().parse::<f64>().unwrap();
    for (path, line) in same.iter().zip(&printed) {
        assert_eq!(sum(line), sum(printed[0]), "{}: {line}", path.display());
    }
    assert!(
        printed[5].contains("is damaged") && printed[5].contains("an older checkpoint"),
        "{}",
        printed[5]
    );
    assert_ne!(sum(printed[6]), sum(printed[0]), "the mean of the weights is another network");
    for (line, parts) in printed[7..14].iter().zip([
        ["ValueError", "is damaged"],
        ["ValueError", "is in no run directory"],
        ["ValueError", "cut short"],
        ["ValueError", "belongs to another network"],
        ["ValueError", "takes torch.uint8 [N, 1, 24, 24]"],
        ["FileNotFoundError", "no complete checkpoint"],
        ["FileNotFoundError", "nowhere: no such run directory"],
    ]) {
        assert!(parts.iter().all(|part| line.contains(part)), "{line}");
    }
    let wrong = &printed[15..];
    assert_eq!(wrong.len(), 4, "{wrong:?}");
    assert!(
        wrong.iter().all(|line| line.contains("the network takes torch.uint8 [N, 1, 16, 16]")),
        "{wrong:?}"
    );
}

/// The command line: a line for each image, and errors without a traceback.
#[test]
fn python_command_line_classifies_images() {
    let folder = tempfile::tempdir().unwrap();
    let script = "import runpy; runpy.run_module('codinet', run_name='__main__')";
    let Some(mut command) = python(folder.path(), script) else { return eprintln!("{SKIPPED}") };
    let files = write_images(&folder.path().join("images"), 1);
    let file = files.join("000000.png");
    let printed = succeed(command.arg(RUN.path("run")).arg(&file));
    let line = &lines(&succeed(&mut infer(&["--checkpoint", "run", file.to_str().unwrap()])))[0];
    let path = line["path"].as_str().unwrap();
    assert!(printed.starts_with(&format!("{}: ", file.display())), "{printed}");
    assert!(printed.trim().ends_with(&format!("path {path}, {} MACs", line["macs"])), "{printed}");
    let output = command.arg("lost.png").output().unwrap();
    let stderr = text(&output.stderr);
    assert!(
        !output.status.success() && stderr.contains("error: ") && stderr.contains("lost.png"),
        "{stderr}"
    );
    assert!(!stderr.contains("Traceback"), "{stderr}");
}
