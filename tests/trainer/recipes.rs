//! The shipped configs: each is valid, ablations differ by one key, and the ImageNet recipes train for some steps on
//! photographs. And what a run may start from and keep.

use crate::common::{
    Sandbox, assert_rejected, finish, latest_checkpoint, metrics, mpirun, program, read_json, run_dir,
    succeed, text,
};
use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, DatasetInfo, ShardWriter};
use codinet_trainer::config::{load, shipped};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use tch::Tensor;

#[test]
fn every_shipped_config_is_valid() {
    let names = shipped();
    assert!(names.len() > 45);
    for name in names {
        // Neither the data sets nor other runs, such as a teacher, are there.
        let without_others = ["--no-data", "--set", "model.init_from=null", "--set", "distill.from=null"];
        let mut command = Command::new(program("codinet-train"));
        let stdout = succeed(command.args([&name, "--dry-run"]).args(without_others));
        assert!(stdout.contains("GMACs static"), "{name}: {stdout}");
    }
}

/// Every key of a config with its value, as `a.b.c`.
fn flatten_keys(value: &Value, at: &str, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            map.iter().for_each(|(key, value)| flatten_keys(value, &format!("{at}.{key}"), into))
        }
        value => drop(into.insert(at.trim_start_matches('.').to_owned(), value.clone())),
    }
}

/// The keys in which `name` differs from `base`.
fn differing_keys(name: &str, base: &str) -> Vec<String> {
    let [variant, base] = [name, base].map(|name| {
        let config = load(name, &[]).unwrap();
        let mut all = BTreeMap::new();
        flatten_keys(&serde_json::to_value(&config).unwrap(), "", &mut all);
        all
    });
    variant.iter().filter(|(key, value)| base.get(*key) != Some(value)).map(|(key, _)| key.clone()).collect()
}

#[test]
fn ablation_configs_differ_only_in_the_named_keys() {
    for (table, base) in
        [("cifar10_table3.yaml", "cifar10_r110.yaml"), ("fashion_ablation.yaml", "fashion_r20.yaml")]
    {
        let name = |row: &str| format!("{table}:{row}");
        assert_eq!(differing_keys(&name("codinet"), base), [""; 0]);
        assert_eq!(differing_keys(&name("con"), base), ["diversity.weight"]);
        assert_eq!(differing_keys(&name("div"), base), ["consistency.weight"]);
        assert_eq!(differing_keys(&name("vanilla"), &name("con")), ["consistency.weight"]);
        assert_eq!(differing_keys(&name("static"), base), ["model.gates"]);
    }
    for (name, base, key) in [
        ("cifar10_table2.yaml:gamma_0.08", "cifar10_r110.yaml", "cost.gamma"),
        ("cifar10_table8.yaml:margin_0.75", "cifar10_r110.yaml", "diversity.margin"),
        ("cifar100_appendix.yaml:router_rnn", "cifar100_r110.yaml", "model.router.kind"),
        ("cifar10_appendix.yaml:straight_through", "cifar10_r110.yaml", "model.router.relaxation"),
        ("imagenet_table7.yaml:r101_static", "imagenet_r101.yaml", "model.gates"),
    ] {
        assert_eq!(differing_keys(name, base), [key]);
    }
    for (row, base) in [
        ("r20_authors", "cifar10_recipes.yaml:r20_paper"),
        ("r32_authors", "cifar10_recipes.yaml:r32_paper"),
        ("r110_authors", "cifar10_recipes.yaml:r110_paper"),
    ] {
        let keys = differing_keys(&format!("cifar10_recipes.yaml:{row}"), base);
        let expected = [
            "data.std",
            "data.views",
            "model.router.activation",
            "model.router.open_bias",
            "optim.batch_size",
            "paths.outputs",
            "run.evaluate_with_noise",
            "stages",
        ];
        assert_eq!(keys, expected, "{row}");
    }
    let mut r101 = differing_keys("imagenet_r101.yaml", "imagenet_r50.yaml");
    r101.sort();
    assert_eq!(r101, ["cost.budget_gmacs", "model.arch"]);
}

/// The recipes of timm and FFCV take their own optimisers, losses and augmentation to the end of two epochs of two steps. So does
/// CoDiNet on A3, from the weights of the static network, which also teaches it.
#[test]
fn recipes_from_elsewhere_train_on_two_ranks() {
    let folder = tempfile::tempdir().unwrap();
    write_photographs(&folder.path().join("train"), 10);
    write_photographs(&folder.path().join("val"), 3);
    for (recipe, name) in [
        ("imagenet_ffcv_16.yaml", "ffcv"),
        ("imagenet_rsb_a3.yaml", "runs/a3"),
        ("imagenet_codinet_a3.yaml", "runs/codinet_a3"),
    ] {
        let run = folder.path().join(name);
        let mut command = mpirun(2);
        command.arg(program("codinet-train")).arg(recipe);
        for setting in [
            &run_dir(&run),
            "data.train=train",
            "data.val=val",
            "data={image_size: 64, eval_size: 96, eval_resize: 96}",
            "run={log_every: 1, threads: 1, device: cpu}",
            "optim={batch_size: 4, eval_batch_size: 4}",
            "stages.0.epochs=2",
            "stages.0.image_size={from: 64, to: 96, from_epoch: 0, to_epoch: 1}",
            "stages.0.warmup_epochs=1",
        ] {
            command.args(["--set", setting]);
        }
        let is_gated = name == "runs/codinet_a3";
        if is_gated {
            command.args(["--set", "cost={budget_gmacs: 0.6, calibration_samples: 2}"]);
        }
        succeed(command.current_dir(folder.path()));
        let lines = metrics(&run, "train");
        assert_eq!(lines.len(), 4, "{recipe}");
        assert!(
            lines.iter().all(|line| line["ce"].as_f64().is_some_and(f64::is_finite)),
            "{recipe}: {lines:?}"
        );
        assert_eq!(lines[0]["grad_norm_routers"].as_f64().unwrap() > 0.0, is_gated, "{recipe}");
        assert_eq!(lines[0]["distill"].as_f64().is_some_and(|loss| loss > 0.0), is_gated, "{recipe}");
    }
}

#[test]
fn ffcv_configs_differ_in_their_epochs() {
    for name in ["imagenet_ffcv_40.yaml", "imagenet_ffcv_88.yaml"] {
        assert_eq!(differing_keys(name, "imagenet_ffcv_16.yaml"), ["stages"]);
    }
}

/// Colour JPEGs of 320 × 256 pixels, each with its own disc over a gradient.
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
fn imagenet_configs_train_stop_and_resume() {
    assert_three_steps_resume("imagenet_r50.yaml", "3.857973");
    assert_three_steps_resume("imagenet_r101.yaml", "7.570194");
}

/// Three steps a stage at 224 pixels on two ranks, with a stop and a resume between them.
fn assert_three_steps_resume(recipe: &str, gmacs_static: &str) {
    let folder = tempfile::tempdir().unwrap();
    write_photographs(&folder.path().join("train"), 14);
    write_photographs(&folder.path().join("val"), 5);
    let run = folder.path().join("run");
    let train = |args: &[&str]| {
        let mut command = mpirun(2);
        command.arg(program("codinet-train")).arg(recipe).args(args);
        for setting in [
            &run_dir(&run),
            "data.train=train",
            "data.val=val",
            "run={log_every: 1, checkpoint_every: 1, threads: 1, device: cpu}",
            "optim={batch_size: 4, eval_batch_size: 4}",
            "cost.calibration_samples=2",
            "stages.0.epochs=1",
            "stages.0.warmup_epochs=1",
            "stages.1.epochs=1",
        ] {
            command.args(["--set", setting]);
        }
        command.current_dir(folder.path());
        command
    };
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("stop"), "").unwrap();
    let stopped = finish(&mut train(&[]));
    assert_eq!(stopped.status.code(), Some(75), "{}", text(&stopped.stderr));
    let stdout = succeed(&mut train(&["--resume", "auto"]));
    assert!(stdout.contains("resuming from") && stdout.contains("(step 2)"), "{stdout}");
    let summary = read_json(&run.join("summary.json"));
    assert_eq!(summary["validation_images"], 5);
    assert_eq!(format!("{:.6}", summary["gmacs_static"].as_f64().unwrap()), gmacs_static);
    assert_eq!(metrics(&run, "train").len(), 6);
}

#[test]
fn init_from_reports_missing_unexpected_and_mismatched_tensors() {
    let sandbox = Sandbox::new();
    let first = sandbox.path("first");
    succeed(&mut sandbox.train_into(&first, 1, &[]));
    let init_from = |path: &Path| format!("model.init_from={}", path.display());
    // A static network from a gated one, whose routers are unexpected.
    let run = sandbox.path("static");
    let settings = ["--set", &init_from(&first), "--set", "model.gates=none"];
    let stdout = succeed(&mut sandbox.train_into(&run, 2, &settings));
    assert!(stdout.contains("97 tensors initialised from") && !stdout.contains("missing"), "{stdout}");
    assert!(stdout.contains("46 unexpected, ignored: layer1.0.router.fc1.bias"), "{stdout}");
    assert!(fs::read_to_string(run.join("log.txt")).unwrap().contains("97 tensors initialised from"));
    // A gated one of more classes from the static one's file: routers are missing, the classifier has another shape.
    let weights = latest_checkpoint(&run).join("model.safetensors");
    let stdout = succeed(&mut sandbox.train(1, &["--set", &init_from(&weights), "--set", "data.classes=5"]));
    assert!(
        stdout.contains("46 missing in the file, initialised randomly: layer2.0.skip.0.weight"),
        "{stdout}"
    );
    let mismatched =
        "2 of a different shape, initialised randomly: fc.weight ([4, 64] in the file, [5, 64] here)";
    assert!(stdout.contains(mismatched), "{stdout}");
    // Files that hold no weights, or hold them under other names.
    let assert_init_rejected = |path: &Path, parts: &[&str]| {
        assert_rejected(&mut sandbox.train(1, &["--set", &init_from(path)]), 4, parts);
    };
    assert_init_rejected(&sandbox.config, &["not a .safetensors file"]);
    let wrapped = sandbox.path("wrapped.safetensors");
    let tensors = Tensor::read_safetensors(&weights).unwrap();
    let renamed: Vec<_> = tensors.iter().map(|(name, tensor)| (format!("module.{name}"), tensor)).collect();
    Tensor::write_safetensors(&renamed, &wrapped).unwrap();
    assert_init_rejected(&wrapped, &["'module.' before their names", "k.removeprefix('module.')"]);
    let pickled = sandbox.path("resnet.pth");
    fs::write(&pickled, b"PK\x03\x04 an archive").unwrap();
    assert_init_rejected(&pickled, &["PyTorch file", "torch.load('", "resnet.safetensors"]);
}

#[test]
fn best_checkpoint_is_kept() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    // A rate that grows until it ruins the weights: the best epoch is not among the last two.
    let rates = "stages=[{epochs: 4, lr: 0.05}, {epochs: 4, lr: 3.0}]";
    succeed(&mut sandbox.train_into(&run, 1, &["--set", rates, "--set", "run.keep_last=2"]));
    let evaluations = metrics(&run, "eval");
    let top1 = |evaluation: &Value| evaluation["top1"].as_f64().unwrap();
    let highest = evaluations.iter().map(top1).fold(0.0, f64::max);
    let best = evaluations.iter().find(|evaluation| top1(evaluation) == highest).unwrap();
    let step = |evaluation: &Value| evaluation["step"].as_u64().unwrap();
    let name = fs::read_to_string(run.join("checkpoints/best")).unwrap();
    assert_eq!(name, format!("step-{:08}", step(best)));
    assert!(step(best) < step(&evaluations[evaluations.len() - 2]), "older than the last two");
    let checkpoint = run.join("checkpoints").join(name);
    let stdout = succeed(&mut sandbox.train(1, &["--eval-only", "--resume", checkpoint.to_str().unwrap()]));
    assert!(stdout.contains(&format!("top-1 {:.2} %", 100.0 * highest)), "{stdout}");
}
