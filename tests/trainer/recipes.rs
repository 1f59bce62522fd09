//! The shipped configs are what they say: each sound, ablations apart by one thing alone, and the ImageNet recipes
//! trained for some steps on photographs; and what a recipe may start from and keep.

use crate::common::{Bench, finish, mpirun, succeed};
use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, DatasetInfo, ShardWriter};
use codinet_trainer::config::{BUILT_IN, load};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn every_shipped_config_is_sound() {
    let names: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    assert!(names.len() > 45);
    for name in names {
        let out = succeed(Command::new(env!("CARGO_BIN_EXE_codinet-train")).args([name, "--dry-run"]));
        assert!(out.contains("GMACs static"), "{name}: {out}");
    }
}

/// Every key of a config with its value, as `a.b.c`.
fn keys(value: &Value, at: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| keys(value, &format!("{at}.{key}"), into)),
        value => drop(into.insert(at.trim_start_matches('.').to_owned(), value.clone())),
    }
}

/// The keys in which `name` differs from `base`.
fn differs(name: &str, base: &str) -> Vec<String> {
    let [ours, theirs] = [name, base].map(|name| {
        let config = load(&format!("{name}.yaml"), &[]).unwrap();
        let mut all = BTreeMap::new();
        keys(&serde_json::to_value(&config).unwrap(), "", &mut all);
        all
    });
    ours.iter().filter(|(key, value)| theirs.get(*key) != Some(value)).map(|(key, _)| key.clone()).collect()
}

#[test]
fn ablations_differ_in_what_they_are_named_for() {
    for base in ["cifar10_r110", "fashion_r20"] {
        let name = |variant: &str| format!("{base}_{variant}");
        assert_eq!(differs(&name("con"), base), ["diversity.weight"]);
        assert_eq!(differs(&name("div"), base), ["consistency.weight"]);
        assert_eq!(differs(&name("vanilla"), &name("con")), ["consistency.weight"]);
        assert_eq!(differs(&name("static"), base), ["model.gates"]);
    }
    for (name, base, key) in [
        ("cifar10_r110_gamma_0.08", "cifar10_r110", "cost.gamma"),
        ("cifar10_r110_margin_0.75", "cifar10_r110", "diversity.margin"),
        ("cifar100_r110_router_rnn", "cifar100_r110", "model.router.kind"),
        ("cifar10_r110_straight_through", "cifar10_r110", "model.router.relaxation"),
        ("imagenet_r101_static", "imagenet_r101", "model.gates"),
    ] {
        assert_eq!(differs(name, base), [key]);
    }
    let mut r101 = differs("imagenet_r101", "imagenet_r50");
    r101.sort();
    assert_eq!(r101, ["cost.budget_gmacs", "model.arch"]);
}

/// Colour JPEGs of 320 × 256 pixels: shapes and gradients that tell them apart.
fn write_photographs(folder: &Path, samples: u32) {
    fs::create_dir_all(folder).unwrap();
    let mut writer = ShardWriter::new(folder, "photos", 8).unwrap();
    let mut encoder = Encoder::new(Encoding::Jpeg { quality: 90 }).unwrap();
    for sample in 0..samples {
        let pixel = |x: u32, y: u32| {
            let disc = (x.abs_diff(160 + 8 * sample).pow(2) + y.abs_diff(128).pow(2) < 3000) as u32;
            [x * 255 / 320, y * 255 / 256, 200 * disc + 3 * sample].map(|level| level.min(255) as u8)
        };
        let pixels: Vec<u8> = (0..256).flat_map(|y| (0..320).flat_map(move |x| pixel(x, y))).collect();
        let jpeg = encoder.encode(&pixels, 320, 256, Channels::Rgb).unwrap();
        writer.write(&format!("{sample:06}"), "jpg", &jpeg, sample * 7 % 1000).unwrap();
    }
    let (shards, _) = writer.finish().unwrap();
    let info = DatasetInfo {
        version: 1,
        name: "photos".into(),
        classes: 1000,
        channels: 3,
        image_size: None,
        samples: samples.into(),
        shards: shards.into(),
        class_names: None,
    };
    info.save(folder).unwrap();
}

#[test]
fn the_imagenet_recipes_train_checkpoint_and_resume() {
    three_steps("imagenet_r50.yaml", "3.857973");
    three_steps("imagenet_r101.yaml", "7.570194");
}

/// Three steps a stage at 224 pixels on two ranks, with a stop and a resume between them.
fn three_steps(recipe: &str, gmacs_static: &str) {
    let folder = tempfile::tempdir().unwrap();
    write_photographs(&folder.path().join("train"), 14);
    write_photographs(&folder.path().join("val"), 5);
    let run = folder.path().join("run");
    let train = |more: &[&str]| {
        let mut command = mpirun(2);
        command.args([env!("CARGO_BIN_EXE_codinet-train"), recipe]).args(more);
        for set in [
            &format!("run.dir={}", run.display()),
            "data.train=train",
            "data.val=val",
            "run={log_every: 1, checkpoint_every: 1, threads: 1, device: cpu}",
            "optim={batch_size: 4, eval_batch_size: 4}",
            "cost.calibration_samples=2",
            "stages.0.epochs=1",
            "stages.0.warmup_epochs=1",
            "stages.1.epochs=1",
        ] {
            command.args(["--set", set]);
        }
        command.current_dir(folder.path());
        command
    };
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("stop"), "").unwrap();
    let stopped = finish(&mut train(&[]));
    assert_eq!(stopped.status.code(), Some(75), "{}", String::from_utf8_lossy(&stopped.stderr));
    let out = succeed(&mut train(&["--resume", "auto"]));
    assert!(out.contains("resuming from") && out.contains("(step 1)"), "{out}");
    let summary: Value = serde_json::from_slice(&fs::read(run.join("summary.json")).unwrap()).unwrap();
    assert_eq!(summary["validation_images"], 5);
    assert_eq!(format!("{:.6}", summary["gmacs_static"].as_f64().unwrap()), gmacs_static);
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("\"kind\":\"train\"")).count(), 6);
}

#[test]
fn a_network_starts_from_anothers_weights() {
    let bench = Bench::new();
    let first = bench.path("first");
    succeed(&mut bench.train(1, &["--set", &format!("run.dir={}", first.display())]));
    let from = format!("model.init_from={}", first.display());
    // A static network from a gated one, whose routers are unexpected.
    let run = bench.path("static");
    let dir = format!("run.dir={}", run.display());
    let out = succeed(&mut bench.train(2, &["--set", &from, "--set", "model.gates=none", "--set", &dir]));
    assert!(out.contains("97 tensors start from") && !out.contains("missing"), "{out}");
    assert!(out.contains("46 unexpected, not used: layer1.0.router.fc1.bias"), "{out}");
    assert!(fs::read_to_string(run.join("log.txt")).unwrap().contains("97 tensors start from"));
    // A gated one of more classes from the static one's file: routers are missing, the classifier is of another shape.
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let weights = run.join("checkpoints").join(latest).join("model.safetensors");
    let from = format!("model.init_from={}", weights.display());
    let out = succeed(&mut bench.train(1, &["--set", &from, "--set", "data.classes=5"]));
    assert!(out.contains("46 missing there, drawn anew: layer2.0.skip.0.weight"), "{out}");
    assert!(out.contains("2 of another shape, drawn anew: fc.weight ([4, 64] there, [5, 64] here)"), "{out}");
    let refused =
        finish(&mut bench.train(1, &["--set", &format!("model.init_from={}", bench.config.display())]));
    assert_eq!(refused.status.code(), Some(4));
}

#[test]
fn the_best_checkpoint_is_kept() {
    let bench = Bench::new();
    let run = bench.path("run");
    let set = format!("run.dir={}", run.display());
    // A rate that grows until it ruins what was learnt: the best epoch is not among the last two.
    let rates = "stages=[{epochs: 4, lr: 0.05}, {epochs: 4, lr: 3.0}]";
    succeed(&mut bench.train(1, &["--set", &set, "--set", rates, "--set", "run.keep_last=2"]));
    let evaluations: Vec<Value> = fs::read_to_string(run.join("metrics.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|line| line["kind"] == "eval")
        .collect();
    let top1 = |line: &Value| line["top1"].as_f64().unwrap();
    let highest = evaluations.iter().map(top1).fold(0.0, f64::max);
    let best = evaluations.iter().find(|line| top1(line) == highest).unwrap();
    let name = fs::read_to_string(run.join("checkpoints/best")).unwrap();
    assert_eq!(name, format!("step-{:08}", best["step"].as_u64().unwrap()));
    assert!(
        best["step"].as_u64() < evaluations[evaluations.len() - 2]["step"].as_u64(),
        "older than those kept"
    );
    let step = run.join("checkpoints").join(name);
    let out = succeed(&mut bench.train(1, &["--eval-only", "--resume", step.to_str().unwrap()]));
    assert!(out.contains(&format!("top-1 {:.2} %", 100.0 * highest)), "{out}");
}
