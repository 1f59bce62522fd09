//! Dynamic inference against the network's own forward pass, and `codinet-infer` as a user runs it.

use crate::common::{SIDE, Sandbox, assert_rejected, finish, read_json, succeed, text};
use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, Dataset, ShardWriter};
use codinet_tools::infer::{Engine, Paths};
use codinet_tools::trained::TrainedNet;
use codinet_trainer::config::{
    Arch, Gates, HiddenActivation, Model, Router, RouterKind, SkipBranch, StrideIn,
};
use codinet_trainer::model::{BnMode, Decisions, Net};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use tch::{Device, Kind, Tensor};

/// A network in which images take different paths.
fn net(model: &Model, size: i64) -> Net {
    tch::manual_seed(3);
    let net = Net::new(model, 3, size, 7, 5, Device::Cpu);
    tch::no_grad(|| {
        for (name, mut tensor) in net.params.state_dict() {
            match name.rsplit('.').next() {
                Some("running_var") => drop(tensor.uniform_(0.5, 1.5)),
                Some("running_mean") => drop(tensor.uniform_(-0.3, 0.3)),
                Some("weight") if tensor.dim() == 1 => drop(tensor.uniform_(0.3, 0.7)),
                Some("weight") if name.contains("router") => drop(tensor.g_mul_scalar_(3.0)),
                Some("bias") if !name.contains("router") => drop(tensor.uniform_(-0.3, 0.3)),
                _ => {}
            }
        }
    });
    net
}

/// Images of different contrast and brightness, `[N, 3, size, size]`.
fn images(n: i64, size: i64) -> Tensor {
    tch::manual_seed(4);
    let contrast = Tensor::linspace(0.2, 3.0, n, (Kind::Float, Device::Cpu)).view([n, 1, 1, 1]);
    Tensor::randn([n, 3, size, size], (Kind::Float, Device::Cpu)) * &contrast + (1.5 - contrast)
}

fn bits(path: &Tensor) -> Vec<bool> {
    Vec::<f32>::try_from(&path.view([-1])).unwrap().into_iter().map(|u| u > 0.5).collect()
}

/// The same paths and, up to rounding, the same logits, one image at a time and in a batch.
#[test]
fn skipping_equals_masking() {
    let mut some_but_not_all = 0;
    for (arch, kind, gates, skip, stride_in, size, activation) in [
        (
            Arch::ResNet20,
            RouterKind::Fc,
            Gates::All,
            SkipBranch::Project,
            StrideIn::Conv2,
            16,
            HiddenActivation::Relu,
        ),
        (
            Arch::ResNet20,
            RouterKind::Fc,
            Gates::All,
            SkipBranch::Project,
            StrideIn::Conv2,
            16,
            HiddenActivation::None,
        ),
        (
            Arch::ResNet20,
            RouterKind::Cnn,
            Gates::All,
            SkipBranch::Shortcut,
            StrideIn::Conv2,
            16,
            HiddenActivation::Relu,
        ),
        (
            Arch::ResNet32,
            RouterKind::Rnn,
            Gates::All,
            SkipBranch::Project,
            StrideIn::Conv2,
            16,
            HiddenActivation::Relu,
        ),
        (
            Arch::ResNet18,
            RouterKind::Fc,
            Gates::SameShape,
            SkipBranch::Project,
            StrideIn::Conv2,
            40,
            HiddenActivation::Relu,
        ),
        (
            Arch::ResNet50,
            RouterKind::Fc,
            Gates::All,
            SkipBranch::Shortcut,
            StrideIn::Conv1,
            33,
            HiddenActivation::Relu,
        ),
        (
            Arch::ResNet50,
            RouterKind::Rnn,
            Gates::All,
            SkipBranch::Project,
            StrideIn::Conv2,
            40,
            HiddenActivation::Relu,
        ),
        (
            Arch::ResNet20,
            RouterKind::Fc,
            Gates::None,
            SkipBranch::Project,
            StrideIn::Conv2,
            16,
            HiddenActivation::Relu,
        ),
    ] {
        let router = Router { kind, activation, open_bias: 0.2, ..Router::default() };
        let model = Model { arch, gates, skip, stride_in, router, ..Model::default() };
        let net = net(&model, size);
        let engine = Engine::new(&net);
        let x = images(9, size);
        let masked = tch::no_grad(|| net.forward(&x, Decisions::Hard, BnMode::Running));
        let path = bits(&masked.path);
        let n = engine.gates();
        let ran = |k: usize| (0..9).filter(|image| path[image * n + k]).count();
        some_but_not_all += (0..n).filter(|&k| (1..9).contains(&ran(k))).count();
        let close = |found: &Tensor, expected: &Tensor| {
            let off = (found - expected).abs().max().double_value(&[]);
            let scale = expected.abs().max().double_value(&[]);
            assert!(off < 1e-4 * scale.max(1.0), "{arch} {kind:?}: off by {off} of {scale}");
        };
        let engines = [
            Engine::new(&net),
            Engine::on_gpu(&net, Kind::Float, 0.0),
            Engine::on_gpu(&net, Kind::Float, 1.0),
        ];
        // On a GPU the first batch is masked, and suggests capacities for the second.
        for output in engines.iter().flat_map(|engine| [0, 1].map(|_| engine.forward(&x, Paths::Routed))) {
            assert_eq!(output.path, path, "{arch} {kind:?} {skip:?}");
            close(&output.logits, &masked.logits);
        }
        for image in 0..9 {
            let one = engine.forward(&x.narrow(0, image, 1), Paths::Routed);
            assert_eq!(one.path, path[image as usize * n..][..n], "{arch} {kind:?}, image {image}");
            close(&one.logits, &masked.logits.narrow(0, image, 1));
        }
        let rates: Vec<f64> = (0..n).map(|k| ran(k) as f64 / 9.0).collect();
        let macs = (0..9).map(|image| engine.macs(&path[image * n..][..n])).sum::<f64>() / 9.0;
        assert!((macs / net.costs.mean_macs(&rates) - 1.0).abs() < 1e-9);
    }
    assert!(some_but_not_all > 10, "images take different paths: {some_but_not_all}");
}

/// No block, all blocks, and some: on a GPU, more images than the capacity that the batch before suggests.
#[test]
fn forced_path_equals_forced_decisions() {
    let net = net(&Model::default(), 16);
    let engines = [Engine::new(&net), Engine::on_gpu(&net, Kind::Float, 1.0)];
    let x = images(4, 16);
    let noise = |path: &[bool]| {
        let values: Vec<f32> = path.iter().map(|&run| if run { 1e9 } else { -1e9 }).collect();
        Tensor::from_slice(&values).view([4, 9])
    };
    let mixed: Vec<bool> = (0..36).map(|i| i * i % 7 < 3).collect();
    for path in [vec![false; 36], vec![true; 36], mixed] {
        let noise = noise(&path);
        let relaxation = codinet_trainer::config::Relaxation::Gumbel;
        let forced = Decisions::Relaxed { noise: Some(&noise), temperature: 1.0, relaxation };
        let expected = tch::no_grad(|| net.forward(&x, forced, BnMode::Running)).logits;
        for engine in &engines {
            let output = engine.forward(&x, Paths::Forced(&path));
            assert_eq!(output.path, path);
            assert!(output.logits.allclose(&expected, 1e-4, 1e-4, false), "{path:?}");
            if path.iter().all(|&run| run) {
                assert!(engine.forward(&x, Paths::All).logits.allclose(&expected, 1e-4, 1e-4, false));
            }
        }
    }
}

#[test]
fn bias_equals_a_shift_of_all_gates() {
    let net = net(&Model::default(), 16);
    let x = images(6, 16);
    let mut engine = Engine::new(&net);
    engine.bias = -0.4;
    let biased = engine.forward(&x, Paths::Routed);
    let before = Engine::new(&net).forward(&x, Paths::Routed).path;
    assert_ne!(before, biased.path);
    net.shift_gates(-0.4);
    let shifted = Engine::new(&net).forward(&x, Paths::Routed);
    assert_eq!(shifted.path, biased.path);
    assert!(shifted.logits.equal(&biased.logits));
}

/// bf16 has a mantissa of 8 bits.
#[test]
fn bf16_is_close_to_fp32() {
    let net = net(&Model::default(), 16);
    let x = images(6, 16);
    let path = vec![true; 54];
    let [fp32, bf16] = [Kind::Float, Kind::BFloat16]
        .map(|kind| Engine::on_gpu(&net, kind, 1.0).forward(&x, Paths::Forced(&path)).logits);
    let off = (&bf16 - &fp32).abs().max().double_value(&[]) / fp32.abs().max().double_value(&[]);
    assert!(off > 1e-6 && off < 0.05, "{off}");
}

/// A short run, which the tests share.
pub static RUN: LazyLock<Sandbox> = LazyLock::new(|| {
    let sandbox = Sandbox::new();
    succeed(&mut sandbox.train(1, &["--set", "run.dir=run", "--set", "optim.ema_decay=0.9"]));
    sandbox
});

pub fn infer(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_codinet-infer"));
    command.args(args).args(["--device", "cpu", "--threads", "1"]).current_dir(RUN.folder.path());
    command
}

pub fn lines(out: &str) -> Vec<Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The validation images as PNG files in a folder of their own.
pub fn write_images(folder: &Path, most: usize) -> PathBuf {
    let dataset = Dataset::open(RUN.path("val").to_str().unwrap()).unwrap();
    let mut encoded = Vec::new();
    fs::create_dir_all(folder).unwrap();
    for sample in 0..dataset.len().min(most) {
        let key = dataset.read(sample, &mut encoded).unwrap().key.to_owned();
        fs::write(folder.join(format!("{key}.png")), &encoded).unwrap();
    }
    folder.to_owned()
}

#[test]
fn each_image_gets_a_line_with_the_networks_prediction() {
    let together = lines(&succeed(&mut infer(&["--checkpoint", "run", "val", "--logits", "--topk", "3"])));
    assert_eq!(together.len(), 37);
    let trained = TrainedNet::load(&RUN.path("run"), None, Device::Cpu).unwrap();
    for line in &together {
        let path: Vec<bool> = line["path"].as_str().unwrap().bytes().map(|bit| bit == b'1').collect();
        assert_eq!(path.len(), 9);
        let rates: Vec<f64> = path.iter().map(|&run| f64::from(u8::from(run))).collect();
        assert_eq!(line["macs"].as_f64().unwrap(), trained.net.costs.mean_macs(&rates));
        let logits: Vec<f64> = serde_json::from_value(line["logits"].clone()).unwrap();
        let best = (0..4).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let sum: f64 = logits.iter().map(|logit| (logit - logits[best]).exp()).sum();
        assert_eq!(line["class"], best);
        assert!((line["probability"].as_f64().unwrap() * sum - 1.0).abs() < 1e-5);
        assert_eq!(line["top"].as_array().unwrap().len(), 3);
    }
    // codinet-train's evaluation gives the same accuracy.
    let right = together.iter().filter(|line| line["class"] == line["label"]).count() as f64;
    let gone = ["--set", "data.train=no/longer/there"];
    let printed = succeed(RUN.train(1, &["--eval-only", "--resume", "run"]).args(gone));
    assert!(
        printed.contains(&format!("top-1 {:.2} %", 100.0 * right / 37.0)),
        "{right} right, but {printed}"
    );
    // The same one by one, from files, and with other names of the checkpoint.
    let files = write_images(&RUN.path("files"), 37);
    let step = fs::read_to_string(RUN.path("run/checkpoints/latest")).unwrap();
    let step = format!("run/checkpoints/{}", step.trim());
    let weights = format!("{step}/model.safetensors");
    let files = files.to_str().unwrap();
    fs::create_dir(RUN.path("bundle")).unwrap();
    for (file, copy) in
        [(weights.as_str(), "bundle/model.safetensors"), ("run/config.yaml", "bundle/config.yaml")]
    {
        fs::copy(RUN.path(file), RUN.path(copy)).unwrap();
    }
    for args in [
        ["--checkpoint", "bundle", "val", "--batch", "4"],
        ["--checkpoint", "run", files, "--batch", "1"],
        ["--checkpoint", "run/checkpoints/latest", "val", "--batch", "3"],
        ["--checkpoint", &step, files, "--batch", "5"],
        ["--checkpoint", &weights, "val/bars-000000.tar", "--batch", "64"],
    ] {
        let found = lines(&succeed(&mut infer(&args)));
        assert!(found.len() >= 32, "{args:?}");
        for (a, b) in found.iter().zip(&together) {
            assert_eq!((&a["class"], &a["path"]), (&b["class"], &b["path"]), "{args:?}");
        }
    }
    // The exponential mean of the weights is another network.
    let mean = format!("{step}/ema.safetensors");
    let mean = lines(&succeed(&mut infer(&["--checkpoint", &mean, "val", "--logits"])));
    assert!(mean.iter().zip(&together).any(|(a, b)| a["logits"] != b["logits"]));
}

#[test]
fn shipped_network_classifies_photographs() {
    let folder = RUN.path("photographs");
    fs::create_dir(&folder).unwrap();
    let mut encoder = Encoder::new(Encoding::Png).unwrap();
    for (name, width, height) in [("wide", 64, 48), ("tall", 40, 90)] {
        let pixels: Vec<u8> = (0..width * height * 3).map(|at| (at * 7 % 251) as u8).collect();
        fs::write(
            folder.join(format!("{name}.png")),
            encoder.encode(&pixels, width, height, Channels::Rgb).unwrap(),
        )
        .unwrap();
    }
    let network = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/cifar10_r20");
    let found = lines(&succeed(&mut infer(&["--checkpoint", network, folder.to_str().unwrap()])));
    assert_eq!(found.len(), 2);
    let names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];
    for line in found {
        assert_eq!(line["name"], names[line["class"].as_u64().unwrap() as usize], "{line}");
        assert_eq!(line["path"].as_str().unwrap().len(), 9, "{line}");
    }
}

#[test]
fn report_agrees_with_the_lines() {
    // The network may be right everywhere, so every fifth image has another label.
    let val = Dataset::open(RUN.path("val").to_str().unwrap()).unwrap();
    let folder = RUN.path("relabelled");
    fs::create_dir(&folder).unwrap();
    let mut writer = ShardWriter::new(&folder, "bars", 32).unwrap();
    let mut encoded = Vec::new();
    for sample in 0..val.len() {
        let info = val.read(sample, &mut encoded).unwrap();
        let label = if sample % 5 == 0 { (info.label + 1) % 4 } else { info.label };
        writer.write(info.key, "png", &encoded, label).unwrap();
    }
    writer.finish().unwrap();
    let args = ["--checkpoint", "run", "relabelled", "--report", "accuracy"];
    let images = lines(&succeed(&mut infer(&args)));
    let summary = read_json(&RUN.path("accuracy/summary.json"));
    assert_eq!(summary["images"], 37);
    let count = |class: usize, predicted: usize| {
        images.iter().filter(|line| line["label"] == class && line["class"] == predicted).count()
    };
    let mut counts = String::from("class,predicted,images\n");
    for class in 0..4 {
        let all: usize = (0..4).map(|predicted| count(class, predicted)).sum();
        let accuracy = summary["class_accuracy"][class].as_f64().unwrap();
        assert_eq!(accuracy, count(class, class) as f64 / all as f64, "class {class}");
        for predicted in (0..4).filter(|&predicted| count(class, predicted) > 0) {
            counts += &format!("{class},{predicted},{}\n", count(class, predicted));
        }
    }
    assert_eq!(fs::read_to_string(RUN.path("accuracy/confusion.csv")).unwrap(), counts);
    let mut wrong: Vec<&Value> = images.iter().filter(|line| line["class"] != line["label"]).collect();
    let probability = |line: &Value| line["probability"].as_f64().unwrap();
    wrong.sort_by(|a, b| probability(b).total_cmp(&probability(a))); // stable
    let mistakes = fs::read_to_string(RUN.path("accuracy/mistakes.csv")).unwrap();
    assert!(!wrong.is_empty() && mistakes.lines().count() == 1 + wrong.len().min(24), "{mistakes}");
    for (row, line) in mistakes.lines().skip(1).zip(wrong) {
        let ran = line["path"].as_str().unwrap().matches('1').count().to_string();
        let fields: Vec<&str> = row.split(',').collect();
        let [class, predicted] = ["label", "class"].map(|key| line[key].to_string());
        assert_eq!(fields[..3], [line["image"].as_str().unwrap(), &class, &predicted], "{row}");
        assert!((fields[3].parse::<f64>().unwrap() - probability(line)).abs() < 1e-6, "{row}");
        assert_eq!(fields[4], ran, "{row}");
    }
    let files = write_images(&RUN.path("no_labels"), 2);
    let unlabelled = ["--checkpoint", "run", files.to_str().unwrap(), "--report", "accuracy"];
    assert_rejected(&mut infer(&unlabelled), 2, &["no image has a label", "name a data set"]);
}

/// By the blocks' rates, and by a search.
#[test]
fn fixed_path_is_printed_as_a_value_of_the_config() {
    let path = |args: &[&str]| infer(&[&["path", "--checkpoint", "run", "--gates"], args].concat());
    for choice in [&["4", "train"][..], &["4", "--search", "--limit", "40", "train"]] {
        let printed = succeed(&mut path(choice));
        let gates =
            printed.trim().strip_prefix("{fixed: [").and_then(|rest| rest.strip_suffix("]}")).unwrap();
        let gates: Vec<usize> = gates.split(", ").map(|gate| gate.parse().unwrap()).collect();
        assert!(gates.len() == 4 && gates.is_sorted() && gates[3] < 9, "{printed}");
        let setting = format!("model.routing={}", printed.trim());
        succeed(&mut RUN.train(1, &["--dry-run", "--set", &setting]));
    }
    assert_rejected(&mut path(&["10", "train"]), 2, &["--gates is 10", "9 gates"]);
    let files = write_images(&RUN.path("no_labels_for_a_search"), 2);
    let unlabelled = ["4", "--search", files.to_str().unwrap()];
    assert_rejected(&mut path(&unlabelled), 2, &["have no labels", "name a data set"]);
}

#[test]
fn random_paths_are_left_to_training() {
    let random = ["--set", "model.routing={random: 0.5}", "--set", "run.dir=random"];
    succeed(&mut RUN.train(1, &random));
    let command = &mut infer(&["--checkpoint", "random", "val"]);
    assert_rejected(command, 2, &["has random paths", "--eval-only"]);
}

#[test]
fn budget_changes_the_cost() {
    let out =
        succeed(&mut infer(&["curve", "--checkpoint", "run", "--found-on", "0", "--plot", "curve.svg"]));
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!((rows.len(), rows[0][2], rows[1][0], rows[1][1]), (13, "gmacs", "as trained", "0.0000"));
    let gmacs: Vec<f64> = rows[2..].iter().map(|row| row[2].parse().unwrap()).collect();
    assert!(gmacs.is_sorted(), "{gmacs:?}");
    assert!(gmacs[10] > 1.5 * gmacs[0], "{gmacs:?}");
    let drawn = fs::read_to_string(RUN.path("curve.svg")).unwrap();
    assert!(drawn.starts_with("<svg") && drawn.contains("as trained"), "{drawn}");
    let wrong = ["curve", "--checkpoint", "run", "--plot", "curve.pdf"];
    assert_rejected(&mut infer(&wrong), 2, &["curve.pdf", ".svg or .png"]);
    let budget = format!("{:.6}", (gmacs[0] + gmacs[10]) / 2.0);
    let output = finish(&mut infer(&["--checkpoint", "run", "val", "--budget-gmacs", &budget]));
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && printed.contains("a bias of "), "{printed}");
    assert_rejected(
        &mut infer(&["--checkpoint", "run", "val", "--budget-gmacs", "3"]),
        2,
        &["--budget-gmacs is 3", "all"],
    );
    let files = write_images(&RUN.path("unlabelled"), 2);
    let files = files.to_str().unwrap();
    assert_rejected(&mut infer(&["curve", "--checkpoint", "run", files]), 2, &["no labels"]);
}

#[test]
fn bench_prints_a_row_for_each_case() {
    let config = RUN.config.to_str().unwrap();
    let args = ["bench", "--config", config, "--batch", "1,3", "--share", "40,80", "--rounds", "1"];
    let out = succeed(&mut infer(&args));
    assert_eq!(out.lines().filter(|line| line.starts_with("ResNet20")).count(), 4, "{out}");
    let out = succeed(&mut infer(&["bench", "--checkpoint", "run", "--batch", "2", "--rounds", "1"]));
    assert_eq!(out.lines().filter(|line| line.starts_with("ResNet20")).count(), 1, "{out}");
}

#[test]
fn bad_checkpoints_are_rejected() {
    let step = fs::read_to_string(RUN.path("run/checkpoints/latest")).unwrap();
    let weights = RUN.path("run/checkpoints").join(step.trim()).join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let config = RUN.config.to_str().unwrap();
    let rejected = |path: &str, more: &[&str], code: i32, parts: &[&str]| {
        assert_rejected(infer(&["--checkpoint", path, "val"]).args(more), code, parts);
    };
    rejected("nowhere", &[], 4, &["nowhere", "no such run"]);
    rejected("val", &[], 4, &["val", "no complete checkpoint"]);
    let bare = |name: &str, bytes: &[u8]| {
        fs::create_dir_all(RUN.path("bare")).unwrap();
        fs::write(RUN.path("bare").join(name), bytes).unwrap();
        format!("bare/{name}")
    };
    let with = ["--config", config];
    let whole = bare("whole.safetensors", &bytes);
    assert_eq!(lines(&succeed(infer(&["--checkpoint", &whole, "val"]).args(with))).len(), 37);
    rejected(&whole, &[], 2, &["whole.safetensors", "--config"]);
    rejected(
        &bare("half.safetensors", &bytes[..bytes.len() / 2]),
        &with,
        4,
        &["half.safetensors", "cut short"],
    );
    rejected(&bare("empty.safetensors", b""), &with, 4, &["empty.safetensors", "cut short"]);
    rejected(
        &bare("words.txt", b"no checkpoint at all"),
        &with,
        4,
        &["words.txt", "not a .safetensors file"],
    );
    rejected(
        &bare("photo.png", b"\x89PNG\r\n\x1a\n12345678"),
        &with,
        4,
        &["photo.png", "not a .safetensors file"],
    );
    for (other, part) in [("cifar10_r32.yaml", "layer1.3"), ("cifar10_r20_none.yaml", "no such file")] {
        let code = if part == "no such file" { 2 } else { 4 };
        rejected(&whole, &["--config", other], code, &[part]);
    }
    // A damaged checkpoint in a run, without an earlier one.
    let run = RUN.path("damaged");
    let folder = run.join("checkpoints/step-00000001");
    fs::create_dir_all(&folder).unwrap();
    fs::copy(RUN.path("run/config.yaml"), run.join("config.yaml")).unwrap();
    for name in ["state.json", "COMPLETE"] {
        fs::copy(weights.with_file_name(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("model.safetensors"), &bytes[..bytes.len() - 1]).unwrap();
    rejected("damaged", &[], 4, &["step-00000001", "is damaged"]);
    rejected("damaged/checkpoints/step-00000001", &[], 4, &["step-00000001", "is damaged"]);
}

#[test]
fn bad_images_get_a_line_with_the_error() {
    let folder = RUN.path("odd");
    fs::create_dir_all(folder.join("empty")).unwrap();
    fs::write(folder.join("words.png"), b"no image").unwrap();
    fs::write(folder.join("notes.txt"), b"no image").unwrap();
    let rejected = |images: &[&str], code: i32, parts: &[&str]| {
        assert_rejected(infer(&["--checkpoint", "run"]).args(images), code, parts);
    };
    rejected(&["odd/words.png"], 3, &["1 of 1 images"]);
    rejected(&["odd/notes.txt"], 3, &["odd/notes.txt", ".png"]);
    rejected(&["odd/empty"], 3, &["odd/empty", "holds no"]);
    rejected(&["odd/lost.jpg"], 3, &["odd/lost.jpg"]);
    rejected(&[], 2, &["no images"]);
    // Good images still get their predictions.
    let good = write_images(&RUN.path("good"), 2);
    let good = good.to_str().unwrap();
    for batch in ["1", "64"] {
        let images = ["--batch", batch, good, "odd/words.png", good];
        let output = finish(infer(&["--checkpoint", "run"]).args(images));
        assert_eq!(output.status.code(), Some(3));
        let found = lines(&String::from_utf8_lossy(&output.stdout));
        let unread: Vec<bool> = found.iter().map(|line| line["error"].is_string()).collect();
        assert_eq!(unread, [false, false, true, false, false], "in the order of the images");
        assert_eq!(found[2]["image"], "odd/words.png");
    }
    let nothing_to_find_on =
        infer(&["--checkpoint", "run", "odd/words.png", "--budget-gmacs", "0.01"]).output().unwrap();
    assert_eq!(nothing_to_find_on.status.code(), Some(3));
}

#[test]
fn views_that_show_little_of_their_images_are_reported() {
    let mut encoder = Encoder::new(Encoding::Png).unwrap();
    let side = 4 * SIDE;
    let png = encoder.encode(&vec![128; (side * side) as usize], side, side, Channels::Grey).unwrap();
    let photo = RUN.path("large.png");
    fs::write(&photo, png).unwrap();
    let stderr = |path: &str| text(&finish(&mut infer(&["--checkpoint", "run", path])).stderr);
    let reported = stderr("large.png");
    let warning = "warning: the images: views of 16x16 pixels show 6.2 % of a typical image (64x64); set data.eval_resize";
    assert!(reported.starts_with(warning), "{reported}");
    assert!(!stderr("val").contains("typical image"));
}

/// The names are the run's; a folder with a subfolder for each has labels.
#[test]
fn folder_of_class_folders_has_labels() {
    let classes = Dataset::open(RUN.path("val").to_str().unwrap()).unwrap().classes().unwrap();
    let names: Vec<String> = (0..classes).map(|class| format!("kind{class}")).collect();
    let run = RUN.path("named");
    fs::create_dir_all(&run).unwrap();
    let weights = TrainedNet::load(&RUN.path("run"), None, Device::Cpu).unwrap().file;
    fs::copy(&weights, run.join("model.safetensors")).unwrap();
    fs::copy(RUN.path("run/config.yaml"), run.join("config.yaml")).unwrap();
    fs::write(run.join("class_names.json"), serde_json::to_vec(&names).unwrap()).unwrap();
    for name in &names {
        let _ = write_images(&RUN.path("photos").join(name), 2);
    }
    let found = lines(&succeed(&mut infer(&["--checkpoint", "named/model.safetensors", "photos"])));
    let labels: Vec<_> = found.iter().map(|line| line["label"].as_u64().unwrap()).collect();
    assert_eq!(labels, (0..classes as u64).flat_map(|class| [class; 2]).collect::<Vec<_>>());
    assert!(found[0]["image"].as_str().unwrap().starts_with("photos/kind0/"), "{}", found[0]);
    assert!(found.iter().all(|line| line["name"] == format!("kind{}", line["class"])));
}

/// The rates that training logs are those of hard decisions, and the logged cost is that of these rates.
#[test]
fn logged_rates_are_those_of_inference() {
    let costs = TrainedNet::load(&RUN.path("run"), None, Device::Cpu).unwrap().net.costs;
    let text = fs::read_to_string(RUN.path("run/metrics.jsonl")).unwrap();
    let train: Vec<Value> = lines(&text).into_iter().filter(|line| line["kind"] == "train").collect();
    let rates = |line: &Value, name: &str| -> Vec<f64> {
        line[name].as_array().unwrap().iter().map(|rate| rate.as_f64().unwrap()).collect()
    };
    for line in &train {
        let gmacs = costs.mean_macs(&rates(line, "rates")) / 1e9;
        assert!((gmacs - line["gmacs"].as_f64().unwrap()).abs() < 1e-9, "{line}");
    }
    assert_ne!(
        rates(&train[0], "rates"),
        rates(&train[0], "rates_as_trained"),
        "routers train, by relaxed decisions"
    );
}

#[test]
fn unwritable_output_is_an_error() {
    let unwritable =
        infer(&["--checkpoint", "run", "val", "--output", "odd/none/preds.jsonl"]).output().unwrap();
    assert_eq!(unwritable.status.code(), Some(6));
}
