//! `codinet-analyze` as a user runs it: as one process and under mpirun, on a trained network, and on files that are none.

use crate::common::{Sandbox, assert_rejected, mpirun, succeed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Kind, Tensor};

/// A sandbox with a run of two short stages in it.
fn trained(sandbox: &Sandbox, sets: &[&str]) -> PathBuf {
    let run = sandbox.path("run");
    let set = format!("run.dir={}", run.display());
    succeed(&mut sandbox.train(1, &[&["--set", &set][..], sets].concat()));
    run
}

fn analyze(ranks: usize, sandbox: &Sandbox, args: &[&str]) -> Command {
    let program = env!("CARGO_BIN_EXE_codinet-analyze");
    let mut command = if ranks == 1 { Command::new(program) } else { mpirun(ranks) };
    if ranks > 1 {
        command.arg(program);
    }
    command.args(args).current_dir(sandbox.folder.path());
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Equal but for rounding: ranks pass batches of other sizes through the network.
fn alike(a: &Value, b: &Value, place: &str) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| alike(value, &b[key], &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b).for_each(|(a, b)| alike(a, b, place));
        }
        (Value::Number(a), Value::Number(b)) => {
            let a = a.as_f64().unwrap();
            let b = b.as_f64().unwrap();
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1e-2), "{place}: {a}, {b}");
        }
        _ => assert_eq!(a, b, "{place}"),
    }
}

#[test]
fn one_rank_and_two_find_the_same() {
    let sandbox = Sandbox::new();
    // So that images part: gates that start half open, and centres that are pushed far apart.
    let apart = "diversity={weight: 2.0, margin: 1.5}";
    let run = trained(&sandbox, &["--set", "model.router.open_bias=0", "--set", apart]);
    let out = |ranks: usize| sandbox.path(&format!("analysis{ranks}"));
    for ranks in [1, 2] {
        let run = run.display().to_string();
        let out = out(ranks).display().to_string();
        let said = succeed(&mut analyze(
            ranks,
            &sandbox,
            &[&run, "--output", &out, "--groups", "7", "--tsne-steps", "60"],
        ));
        assert!(said.contains("distinct paths") && said.contains("report.html"), "{said}");
    }
    let found = json(&out(1).join("analysis.json"));
    alike(&found, &json(&out(2).join("analysis.json")), "analysis.json");
    // What training's own evaluation found of the same weights.
    let summary = json(&run.join("summary.json"));
    assert_eq!(found["images"], 37, "each image once");
    assert!(found["distinct_paths"].as_u64().unwrap() > 1, "{found}");
    for key in ["top1", "gmacs", "gmacs_static", "distinct_paths", "path_entropy", "rates"] {
        alike(&found[key], &summary[key], key);
    }
    assert_eq!(found["similarity"]["relaxed"]["pairs"], 37 * 36 / 2);
    assert_eq!(found["consistency"].as_array().unwrap().len(), 4);
    for part in found["consistency"].as_array().unwrap() {
        assert!(part["path_kl"].as_f64().unwrap() >= 0.0 && part["prediction_kl"].as_f64().unwrap() > 0.0);
    }
    assert!(found["centre_distance"].as_f64().unwrap() > 0.0);
    for ranks in [1, 2] {
        let file = |name: &str| fs::read(out(ranks).join(name)).unwrap_or_else(|_| panic!("{name} is there"));
        for picture in
            ["frequencies", "frequent", "rates", "unchanged", "divergences", "similarity", "same_path"]
        {
            assert!(file(&format!("{picture}.png")).starts_with(b"\x89PNG"), "{picture}");
        }
        for picture in ["tsne_class", "tsne_blocks", "tsne_groups"] {
            assert!(file(&format!("{picture}.png")).starts_with(b"\x89PNG"), "{picture}");
        }
        let rows = |name: &str| String::from_utf8(file(name)).unwrap().lines().count();
        assert_eq!((rows("images.csv"), rows("rates.csv"), rows("consistency.csv")), (38, 6, 5));
        assert_eq!(rows("paths.csv") as u64, found["distinct_paths"].as_u64().unwrap() + 1);
        assert_eq!(rows("tsne.csv"), 1 + 37 + 70, "every sixth of 37 images has a group of ten");
        assert_eq!((rows("tensorboard/paths/vectors.tsv"), rows("tensorboard/paths/labels.tsv")), (37, 38));
        let page = String::from_utf8(file("report.html")).unwrap();
        assert_eq!(page.matches("data:image/png;base64,").count(), 10);
        assert!(page.contains("expected blocks run, of 9") && page.contains("0.581"));
    }
    // The same rows whatever the ranks: the order is the set's.
    let images = |ranks: usize| {
        let text = fs::read_to_string(out(ranks).join("images.csv")).unwrap();
        text.lines().skip(1).map(|line| line.split(',').take(6).map(str::to_owned).collect()).collect()
    };
    let one: Vec<Vec<String>> = images(1);
    let two: Vec<Vec<String>> = images(2);
    assert_eq!(one, two);
    assert_eq!(one[36][0], "36");
}

#[test]
fn parts_features_and_comparisons() {
    let sandbox = Sandbox::new();
    let run = trained(&sandbox, &[]);
    let run_name = run.display().to_string();
    // The labels, one hot, as a feature: images of a class are alike, others are not.
    let labels: Vec<i64> = (0..37).map(|sample| sample % 4).collect();
    let features = Tensor::from_slice(&labels).one_hot(4).to_kind(Kind::Float);
    let file = sandbox.path("labels.npy");
    features.write_npy(&file).unwrap();
    let file = file.display().to_string();
    succeed(&mut analyze(1, &sandbox, &[&run_name, "paths", "similarity", "--features", &file]));
    let folder = run.join("analysis");
    let found = json(&folder.join("analysis.json"));
    assert!(found.get("consistency").is_none() && !folder.join("tsne_class.png").exists());
    assert_eq!(found["similarity"]["features"], file);
    let mean = found["similarity"]["relaxed"]["mean_feature_similarity"].as_f64().unwrap();
    // 10 images of class 0 and 9 of each other: 45 + 3·36 pairs within a class.
    assert!((mean - 153.0 / 666.0).abs() < 1e-9, "{mean}");

    let said = succeed(&mut analyze(2, &sandbox, &["compare", &run_name, &run_name, "--output", "side"]));
    assert!(said.contains("top-1, %") && said.contains("PCC"), "{said}");
    for file in ["report.html", "comparison.csv", "accuracy.png", "accuracy.svg"] {
        assert!(sandbox.path("side").join(file).exists(), "{file}");
    }
    let table = fs::read_to_string(sandbox.path("side/comparison.csv")).unwrap();
    assert!(table.lines().nth(1).unwrap().starts_with("run,2,ResNet20,fc,gumbel,0.2,0.2,0.5,"), "{table}");
}

#[test]
fn what_cannot_be_analysed_gets_one_line() {
    let sandbox = Sandbox::new();
    let run = trained(&sandbox, &[]);
    let name = run.display().to_string();
    assert_rejected(&mut analyze(2, &sandbox, &["nowhere"]), 4, &["nowhere"]);
    fs::create_dir(sandbox.path("empty")).unwrap();
    assert_rejected(&mut analyze(1, &sandbox, &["empty"]), 4, &["empty", "no"]);
    assert_rejected(&mut analyze(1, &sandbox, &["compare", "empty"]), 4, &["empty: no run directory"]);
    assert_rejected(&mut analyze(2, &sandbox, &[&name, "--data", "empty"]), 3, &["empty", ".tar"]);
    assert_rejected(&mut analyze(1, &sandbox, &[&name, "--classes", "2,4"]), 2, &["--classes 4", "0 to 3"]);
    Tensor::zeros([36, 3], (Kind::Float, tch::Device::Cpu)).write_npy(sandbox.path("short.npy")).unwrap();
    assert_rejected(
        &mut analyze(2, &sandbox, &[&name, "--features", "short.npy"]),
        3,
        &["short.npy", "has 36 rows; the validation set has 37 images"],
    );

    // Another architecture, by the config that is given; a file cut short.
    let text = fs::read_to_string(&sandbox.config).unwrap();
    fs::write(sandbox.path("other.yaml"), text.replace("resnet20", "resnet32")).unwrap();
    assert_rejected(&mut analyze(1, &sandbox, &[&name, "--config", "other.yaml"]), 4, &["another network"]);
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let weights = run.join("checkpoints").join(latest).join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let cut = weights.display().to_string();
    assert_rejected(
        &mut analyze(2, &sandbox, &[&name, "--checkpoint", &cut]),
        4,
        &["model.safetensors", "damaged"],
    );

    let static_run = sandbox.path("static");
    let set = format!("run.dir={}", static_run.display());
    succeed(&mut sandbox.train(1, &["--set", &set, "--set", "model.gates=none"]));
    assert_rejected(
        &mut analyze(2, &sandbox, &[&static_run.display().to_string()]),
        2,
        &["no gates", "compare"],
    );
    let said = succeed(&mut analyze(1, &sandbox, &["compare", &static_run.display().to_string()]));
    assert!(said.contains("ResNet20"), "{said}");
    fs::remove_file(static_run.join("summary.json")).unwrap();
    assert_rejected(&mut analyze(1, &sandbox, &["compare", "static"]), 4, &["static", "--resume"]);
}

/// What TensorBoard is told in training: what a collapse shows in, settings, a picture, and the projector's files.
#[test]
fn training_tells_tensorboard() {
    let sandbox = Sandbox::new();
    let run = trained(&sandbox, &["--set", "run.projector_every=1"]);
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|line| line["kind"] == kind).cloned().collect::<Vec<Value>>();
    for line in of("train") {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        // 8 samples with 2 views each.
        assert!((1.0..=16.0).contains(&number("distinct_paths")));
        assert!((0.0..=4.0).contains(&number("path_entropy")));
        assert!((0.0..3.0).contains(&number("spread")) && number("centre_distance") < 3.0);
        assert_eq!((number("spread_margin"), number("centre_distance_margin")), (0.2, 0.5));
        // A mean distance from the centre above the margin is what L_con comes from.
        let excess = (number("spread") - 0.2).max(0.0);
        assert!(number("con") >= excess * excess - 1e-6, "{line}");
    }
    assert!(of("train")[0]["spread"].as_f64().unwrap() > 0.0, "noise moves views apart");
    assert!(of("eval").iter().all(|line| line["path_entropy"].as_f64().unwrap() >= 0.0));
    let logs = run.join("tensorboard");
    let config = fs::read_to_string(logs.join("projector_config.pbtxt")).unwrap();
    assert_eq!(config.matches("tensor_name").count(), 2);
    for step in ["paths-step-00000012", "paths-step-00000024"] {
        let rows = |name: &str| fs::read_to_string(logs.join(step).join(name)).unwrap().lines().count();
        assert_eq!((rows("vectors.tsv"), rows("labels.tsv")), (37, 38), "{step}");
    }
    let mut events = Vec::new();
    for entry in fs::read_dir(&logs).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        events.extend(fs::read(entry.path()).unwrap());
    }
    let holds = |what: &[u8]| events.windows(what.len()).any(|window| window == what);
    for what in
        ["_hparams_/experiment", "_hparams_/session_end_info", "train_rates/over_time", "diversity.margin"]
    {
        assert!(holds(what.as_bytes()), "{what}");
    }
    assert!(holds(b"\x89PNG"));
}
