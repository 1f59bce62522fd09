//! `codinet-analyze` as a user runs it: as one process and under mpirun, on a trained network, and on files that are none.

use crate::common::{Sandbox, assert_rejected, latest_checkpoint, metrics, mpirun, read_json, succeed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tch::{Kind, Tensor};

/// A sandbox with a run of two short stages in it.
fn trained(sandbox: &Sandbox, sets: &[&str]) -> PathBuf {
    let run = sandbox.path("run");
    succeed(&mut sandbox.train_into(&run, 1, sets));
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

/// The bytes of a run's event files.
fn events(run: &Path) -> Vec<u8> {
    let files = fs::read_dir(run).unwrap().map(|entry| entry.unwrap().path());
    let is_event_file =
        |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("events.out.tfevents.");
    files.filter(is_event_file).flat_map(|path| fs::read(path).unwrap()).collect()
}

/// Equal up to rounding: with more ranks, batches are smaller.
fn assert_close(a: &Value, b: &Value, place: &str) {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>(), "{place}");
            a.iter().for_each(|(key, value)| assert_close(value, &b[key], &format!("{place}.{key}")));
        }
        (Value::Array(a), Value::Array(b)) => {
            assert_eq!(a.len(), b.len(), "{place}");
            a.iter().zip(b).for_each(|(a, b)| assert_close(a, b, place));
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
fn one_rank_and_two_give_the_same_analysis() {
    let sandbox = Sandbox::new();
    // So that images take different paths.
    let diversity = "diversity={weight: 2.0, margin: 1.5}";
    let run = trained(&sandbox, &["--set", "model.router.open_bias=0", "--set", diversity]);
    let out = |ranks: usize| sandbox.path(&format!("analysis{ranks}"));
    for ranks in [1, 2] {
        let run = run.display().to_string();
        let out = out(ranks).display().to_string();
        let printed = succeed(&mut analyze(
            ranks,
            &sandbox,
            &[&run, "--output", &out, "--groups", "7", "--tsne-steps", "60"],
        ));
        assert!(printed.contains("distinct paths") && printed.contains("report.html"), "{printed}");
    }
    let analysis = read_json(&out(1).join("analysis.json"));
    assert_close(&analysis, &read_json(&out(2).join("analysis.json")), "analysis.json");
    // Training evaluated the same weights.
    let summary = read_json(&run.join("summary.json"));
    assert_eq!(analysis["images"], 37, "each image once");
    assert!(analysis["distinct_paths"].as_u64().unwrap() > 1, "{analysis}");
    for key in ["top1", "gmacs", "gmacs_static", "distinct_paths", "path_entropy", "rates"] {
        assert_close(&analysis[key], &summary[key], key);
    }
    for key in ["class_accuracy", "worst_classes", "confused_pairs"] {
        assert_close(&analysis[key], &summary[key], key);
    }
    let mistakes = 37 - (37.0 * summary["top1"].as_f64().unwrap()).round() as usize;
    assert!(mistakes > 0, "{summary}");
    let tag = b"accuracy/mistakes";
    assert!(events(&run).windows(tag.len()).any(|window| window == tag));
    let trained_confusion = fs::read(run.join("confusion.csv")).unwrap();
    assert_eq!(analysis["similarity"]["relaxed"]["pairs"], 37 * 36 / 2);
    assert_eq!(analysis["consistency"].as_array().unwrap().len(), 4);
    for part in analysis["consistency"].as_array().unwrap() {
        assert!(part["path_kl"].as_f64().unwrap() >= 0.0 && part["prediction_kl"].as_f64().unwrap() > 0.0);
    }
    assert!(analysis["centre_distance"].as_f64().unwrap() > 0.0);
    for ranks in [1, 2] {
        let file =
            |name: &str| fs::read(out(ranks).join(name)).unwrap_or_else(|_| panic!("{name} is missing"));
        for chart in
            ["frequencies", "frequent", "rates", "unchanged", "divergences", "similarity", "same_path"]
        {
            assert!(file(&format!("{chart}.png")).starts_with(b"\x89PNG"), "{chart}");
        }
        assert!(file("confusion.png").starts_with(b"\x89PNG"));
        assert_eq!(file("confusion.csv"), trained_confusion);
        for chart in ["tsne_class", "tsne_blocks", "tsne_groups"] {
            assert!(file(&format!("{chart}.png")).starts_with(b"\x89PNG"), "{chart}");
        }
        let rows = |name: &str| String::from_utf8(file(name)).unwrap().lines().count();
        assert_eq!((rows("images.csv"), rows("rates.csv"), rows("consistency.csv")), (38, 6, 5));
        assert_eq!((rows("classes.csv"), rows("mistakes.csv")), (5, 1 + mistakes.min(24)));
        assert_eq!(rows("paths.csv") as u64, analysis["distinct_paths"].as_u64().unwrap() + 1);
        assert_eq!(rows("tsne.csv"), 1 + 37 + 70, "every sixth of 37 images has a group of ten");
        assert_eq!((rows("tensorboard/paths/vectors.tsv"), rows("tensorboard/paths/labels.tsv")), (37, 38));
        let page = String::from_utf8(file("report.html")).unwrap();
        assert_eq!(page.matches("data:image/png;base64,").count(), 11 + mistakes.min(24));
        assert!(page.contains("expected blocks run, of 9") && page.contains("0.581"));
        assert!(page.contains("probability v: the mean of Σ v"), "terms are explained");
        assert!(page.contains("/val: another network on another data set"), "{page}");
    }
    // The rows are in the order of the set at any number of ranks.
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
fn parts_features_and_comparison_write_their_files() {
    let sandbox = Sandbox::new();
    let run = trained(&sandbox, &[]);
    let run_name = run.display().to_string();
    // One-hot labels as features: images of a class have similarity 1, others 0.
    let labels: Vec<i64> = (0..37).map(|sample| sample % 4).collect();
    let features = Tensor::from_slice(&labels).one_hot(4).to_kind(Kind::Float);
    let file = sandbox.path("labels.npy");
    features.write_npy(&file).unwrap();
    let file = file.display().to_string();
    succeed(&mut analyze(1, &sandbox, &[&run_name, "paths", "similarity", "--features", &file]));
    let folder = run.join("analysis");
    let analysis = read_json(&folder.join("analysis.json"));
    assert!(analysis.get("consistency").is_none() && !folder.join("tsne_class.png").exists());
    assert_eq!(analysis["similarity"]["features"], file);
    let mean = analysis["similarity"]["relaxed"]["mean_feature_similarity"].as_f64().unwrap();
    // 10 images of class 0 and 9 of each other: 45 + 3·36 pairs within a class.
    assert!((mean - 153.0 / 666.0).abs() < 1e-9, "{mean}");

    let printed = succeed(&mut analyze(2, &sandbox, &["compare", &run_name, &run_name, "--output", "side"]));
    assert!(printed.contains("top-1, %") && printed.contains("PCC"), "{printed}");
    for file in [
        "report.html",
        "comparison.csv",
        "accuracy.png",
        "accuracy.svg",
        "training_pairs_inside.png",
        "training_gmacs.svg",
    ] {
        assert!(sandbox.path("side").join(file).exists(), "{file}");
    }
    let table = fs::read_to_string(sandbox.path("side/comparison.csv")).unwrap();
    assert!(table.lines().nth(1).unwrap().starts_with("run,2,ResNet20,fc,gumbel,0.2,0.2,0.5,"), "{table}");
}

#[test]
fn bad_input_is_rejected_with_one_line() {
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

    // The config of another architecture; a file that is cut short.
    let text = fs::read_to_string(&sandbox.config).unwrap();
    fs::write(sandbox.path("other.yaml"), text.replace("resnet20", "resnet32")).unwrap();
    assert_rejected(&mut analyze(1, &sandbox, &[&name, "--config", "other.yaml"]), 4, &["another network"]);
    let weights = latest_checkpoint(&run).join("model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let cut = weights.display().to_string();
    assert_rejected(
        &mut analyze(2, &sandbox, &[&name, "--checkpoint", &cut]),
        4,
        &["model.safetensors", "damaged"],
    );

    let static_run = sandbox.path("static");
    succeed(&mut sandbox.train_into(&static_run, 1, &["--set", "model.gates=none"]));
    assert_rejected(
        &mut analyze(2, &sandbox, &[&static_run.display().to_string()]),
        2,
        &["no gates", "compare"],
    );
    succeed(&mut analyze(2, &sandbox, &[&static_run.display().to_string(), "accuracy"]));
    let page = fs::read_to_string(static_run.join("analysis/report.html")).unwrap();
    assert!(page.contains("Confidently wrong") && !page.contains("distinct paths"), "{page}");
    let confusion = |folder: &Path| fs::read(folder.join("confusion.csv")).unwrap();
    assert_eq!(confusion(&static_run.join("analysis")), confusion(&static_run));
    let printed = succeed(&mut analyze(1, &sandbox, &["compare", &static_run.display().to_string()]));
    assert!(printed.contains("ResNet20"), "{printed}");
    fs::remove_file(static_run.join("summary.json")).unwrap();
    assert_rejected(&mut analyze(1, &sandbox, &["compare", "static"]), 4, &["static", "--resume"]);
}

/// Path statistics, settings, the gates' heat map, and the projector's files.
#[test]
fn training_writes_tensorboard_files() {
    let sandbox = Sandbox::new();
    let run = trained(&sandbox, &["--set", "run.projector_every=1"]);
    let train = metrics(&run, "train");
    for line in &train {
        let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
        // 8 samples with 2 views each.
        assert!((1.0..=16.0).contains(&number("distinct_paths")));
        assert!((0.0..=4.0).contains(&number("path_entropy")));
        assert!((0.0..3.0).contains(&number("spread")) && number("centre_distance") < 3.0);
        assert_eq!((number("spread_margin"), number("centre_distance_margin")), (0.2, 0.5));
        // L_con is positive if the mean distance from the centre exceeds the margin.
        let excess = (number("spread") - 0.2).max(0.0);
        assert!(number("con") >= excess * excess - 1e-6, "{line}");
    }
    assert!(train[0]["spread"].as_f64().unwrap() > 0.0, "noise moves views apart");
    assert!(metrics(&run, "eval").iter().all(|line| line["path_entropy"].as_f64().unwrap() >= 0.0));
    let logs = run.join("tensorboard");
    let config = fs::read_to_string(run.join("projector_config.pbtxt")).unwrap();
    assert_eq!(config.matches("tensor_name").count(), 2);
    for step in ["paths-step-00000012", "paths-step-00000024"] {
        let rows = |name: &str| fs::read_to_string(logs.join(step).join(name)).unwrap().lines().count();
        assert_eq!((rows("vectors.tsv"), rows("labels.tsv")), (37, 38), "{step}");
    }
    let events = events(&run);
    let contains = |what: &[u8]| events.windows(what.len()).any(|window| window == what);
    for what in [
        "_hparams_/session_end_info",
        "routing/rates_over_time",
        "accuracy/confusion",
        "accuracy/worst_class",
        "accuracy_by_class/3",
        "diversity.margin",
        "_overview/1_loss",
        "accuracy/top1_eval",
        "routing_rates/layer1.0",
        "Nats.",
        "run/config",
        "run/command",
        "custom_scalars__config__",
        "system/memory",
    ] {
        assert!(contains(what.as_bytes()), "{what}");
    }
    assert!(contains(b"\x89PNG"));
}
