//! What bad input gets: one clear line and a non-zero exit on every rank, with no hang, no backtrace and
//! nothing half-written.

use crate::common::{Bench, finish, mpirun, refused, succeed, write_shards};
use std::fs;

#[test]
fn no_shards_at_all() {
    let bench = Bench::new();
    fs::remove_dir_all(bench.path("train")).unwrap();
    refused(&mut bench.train(2, &[]), 3, &["train"]);
    fs::create_dir(bench.path("train")).unwrap();
    refused(&mut bench.train(2, &[]), 3, &["train", ".tar"]);
    assert!(!bench.path("runs").exists(), "nothing half-written");
}

#[test]
fn mixtures_need_partners() {
    let bench = Bench::new();
    let refuses =
        |set, part| refused(&mut bench.train(2, &["--set", set, "--set", "optim.accumulate=4"]), 2, &[part]);
    refuses("data.mix.mixup_alpha=0.2", "optim.batch_size to a multiple of 16");
    refuses("data.mix.cutmix_alpha=-1", "cutmix_alpha must be 0 to 1000");
    refuses("data.mix.alpha=1", "alpha");
}

#[test]
fn a_shard_is_missing() {
    let bench = Bench::new();
    fs::remove_file(bench.path("train/bars-000001.tar")).unwrap();
    refused(&mut bench.train(2, &[]), 3, &["train", "3", "2"]);
}

#[test]
fn a_tar_is_cut_short() {
    let bench = Bench::new();
    let tar = bench.path("train/bars-000002.tar");
    let bytes = fs::read(&tar).unwrap();
    fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    refused(&mut bench.train(2, &[]), 3, &["bars-000002.tar"]);
}

#[test]
fn an_image_cannot_be_decoded() {
    let bench = Bench::new();
    // The same lengths and times, so that the index still fits: only the image's own bytes are wrong.
    let tar = bench.path("train/bars-000000.tar");
    let mut bytes = fs::read(&tar).unwrap();
    let modified = fs::metadata(&tar).unwrap().modified().unwrap();
    let at = bytes.windows(4).position(|window| window == b"IDAT").unwrap();
    bytes[at + 8..at + 40].fill(0);
    fs::write(&tar, bytes).unwrap();
    fs::File::open(&tar).unwrap().set_modified(modified).unwrap();
    refused(&mut bench.train(2, &[]), 3, &["bars-000000.tar", "000000"]);
}

#[test]
fn a_label_lies_outside_the_classes() {
    let bench = Bench::new();
    refused(&mut bench.train(2, &["--set", "data.classes=3"]), 3, &["bars-000000.tar", "000003", "3"]);
}

#[test]
fn classes_are_numbered_differently() {
    let bench = Bench::new();
    for (set, names) in [("train", ["ant", "bee", "cat", "dog"]), ("val", ["ant", "cat", "dog", "elk"])] {
        let path = bench.path(set).join("dataset.json");
        let mut info: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        info["class_names"] = serde_json::json!(names);
        fs::write(path, info.to_string()).unwrap();
    }
    refused(&mut bench.train(2, &[]), 3, &["class 1 is 'bee' in data.train and 'cat' in data.val"]);
    // Where one set knows them alone, the run keeps what that one says.
    let path = bench.path("val").join("dataset.json");
    let mut info: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    info["class_names"] = serde_json::Value::Null;
    fs::write(path, info.to_string()).unwrap();
    let run = bench.path("named");
    succeed(&mut bench.train(1, &["--set", &format!("run.dir={}", run.display())]));
    assert_eq!(fs::read_to_string(run.join("class_names.json")).unwrap(), r#"["ant","bee","cat","dog"]"#);
}

/// Going on must not start anew in the same directory, where old checkpoints would outlive the new ones.
#[test]
fn checkpoints_are_of_another_format() {
    let bench = Bench::new();
    let run = bench.path("old");
    let dir = format!("run.dir={}", run.display());
    succeed(&mut bench.train(1, &["--set", &dir]));
    for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path().join("state.json");
        if let Ok(text) = fs::read_to_string(&path) {
            let mut state: serde_json::Value = serde_json::from_str(&text).unwrap();
            state.as_object_mut().unwrap().remove("epoch_samples");
            state["version"] = 3.into();
            fs::write(path, state.to_string()).unwrap();
        }
    }
    let metrics = fs::read(run.join("metrics.jsonl")).unwrap();
    let mut again = bench.train(2, &["--resume", "auto", "--set", &dir]);
    let said = String::from_utf8_lossy(&again.output().unwrap().stderr).into_owned();
    assert!(said.contains("has format 3; this program reads"), "{said}");
    refused(&mut again, 4, &["none of its checkpoints can be read"]);
    assert!(fs::read(run.join("metrics.jsonl")).unwrap() == metrics, "nothing is taken back");
}

#[test]
fn fewer_shards_than_lanes() {
    let bench = Bench::new();
    let lanes = "data.lanes={count: 4, window: 8}";
    refused(
        &mut bench.train(2, &["--set", lanes]),
        2,
        &["data.lanes.count is 4", "3 shards", "--shard-size"],
    );
}

#[test]
fn fewer_samples_than_a_batch() {
    let bench = Bench::new();
    refused(
        &mut bench.train(2, &["--set", "optim.batch_size=100"]),
        3,
        &["96 samples", "100", "optim.batch_size"],
    );
    refused(&mut bench.train(2, &["--set", "optim.batch_size=7"]), 2, &["7", "2 ranks", "optim.batch_size"]);
}

#[test]
fn a_config_is_wrong() {
    let bench = Bench::new();
    let text = fs::read_to_string(&bench.config).unwrap();
    fs::write(&bench.config, text.replace("batch_size: 8\n  eval", "batchsize: 8\n  eval")).unwrap();
    refused(&mut bench.train(2, &[]), 2, &["bars.yaml:11", "`batchsize`", "`batch_size`"]);
    refused(mpirun(2).arg(env!("CARGO_BIN_EXE_codinet-train")).arg("none.yaml"), 2, &["none.yaml"]);
    fs::write(&bench.config, &text).unwrap();
    refused(&mut bench.train(2, &["--set", "cost.gamma=-1"]), 2, &["--set cost.gamma=-1", "at least 0"]);
    refused(
        &mut bench.train(2, &["--set", "cost.budget_gmacs=9"]),
        2,
        &["this network takes 0.00", "to 0.01"],
    );
    refused(&mut bench.train(2, &["--set", "cost.calibrate=true"]), 2, &["false, without a budget_gmacs"]);
    let held = "cost={budget_gmacs: 0.007, calibrate: true, calibration_samples: 90}";
    refused(&mut bench.train(2, &["--set", held]), 2, &["more than half of the 96 training samples"]);
    refused(&mut bench.train(2, &["--set", "optim.accumulate=3"]), 2, &["a divisor of optim.batch_size"]);
    refused(&mut bench.train(2, &["--set", "optim.accumulate=8"]), 2, &["2 ranks cannot share evenly in 8"]);
    let lost = "model.init_from=lost.safetensors";
    refused(&mut bench.train(2, &["--set", lost]), 4, &["lost.safetensors: no such"]);
    refused(&mut bench.train(2, &["--eval-only"]), 2, &["--eval-only", "--resume"]);
}

#[test]
fn a_checkpoint_is_of_another_network_or_damaged() {
    let bench = Bench::new();
    let run = bench.path("run");
    let set = format!("run.dir={}", run.display());
    succeed(&mut bench.train(1, &["--set", &set]));
    let resume = ["--resume", run.to_str().unwrap()];
    let other = [&resume[..], &["--set", "model.arch=resnet32"]].concat();
    refused(&mut bench.train(2, &other), 4, &["another network", "layer1.3.conv1.weight"]);
    let classes = [&resume[..], &["--set", "data.classes=5"]].concat();
    refused(&mut bench.train(2, &classes), 4, &["another network", "fc.weight", "[4, 64]", "[5, 64]"]);
    refused(&mut bench.train(2, &["--resume", "nowhere"]), 4, &["nowhere"]);

    // The samples of another data set.
    fs::remove_dir_all(bench.path("train")).unwrap();
    write_shards(&bench.path("train"), 64);
    refused(&mut bench.train(2, &resume), 4, &["data.train"]);

    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let model = run.join("checkpoints").join(latest).join("model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&model, &bytes).unwrap();
    let step = model.parent().unwrap();
    refused(&mut bench.train(2, &["--resume", step.to_str().unwrap()]), 4, &["model.safetensors", "damaged"]);
    let output = finish(&mut bench.train(2, &resume));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("warning: ") && said.contains("damaged"), "the one before is taken: {said}");
    fs::write(&model, &bytes[..middle]).unwrap();
    refused(
        &mut bench.train(2, &["--eval-only", "--resume", model.to_str().unwrap()]),
        4,
        &["model.safetensors"],
    );
}

#[test]
fn a_run_directory_belongs_to_one_run_at_a_time() {
    let bench = Bench::new();
    let run = bench.path("run");
    fs::create_dir(&run).unwrap();
    let set = format!("run.dir={}", run.display());
    let other = fs::File::open(&run).unwrap();
    other.lock().unwrap();
    refused(&mut bench.train(2, &["--set", &set]), 2, &["in use", "run.dir"]);
    other.unlock().unwrap();
    succeed(&mut bench.train(1, &["--set", &set]));
    refused(&mut bench.train(2, &["--set", &set]), 2, &["holds a run", "--resume auto"]);
    // Nor may a run branch off into another's directory, or go on past the end of its config.
    let branch = bench.path("branch");
    fs::create_dir_all(branch.join("checkpoints")).unwrap();
    let into = format!("run.dir={}", branch.display());
    refused(
        &mut bench.train(1, &["--resume", run.to_str().unwrap(), "--set", &into]),
        2,
        &["branch holds a run"],
    );
    let shorter = ["--resume", run.to_str().unwrap(), "--set", "stages=[{epochs: 1}]"];
    refused(&mut bench.train(2, &shorter), 4, &["stages.2", "config is over"]);
    let seed = ["--resume", run.to_str().unwrap(), "--set", "run.seed=2"];
    refused(&mut bench.train(2, &seed), 4, &["run.seed 1"]);
}

#[test]
fn settings_do_not_suit_the_images() {
    let bench = Bench::new();
    refused(&mut bench.train(2, &["--set", "data.image_size=18"]), 3, &["16x16", "18x18"]);
    refused(&mut bench.train(2, &["--set", "data.eval_resize=8"]), 2, &["data.eval_resize", "16"]);
    refused(&mut bench.train(2, &["--set", "data.crop={pad: {pixels: 99999}}"]), 2, &["data.crop", "pixels"]);
    assert!(!bench.path("runs").exists());
}

#[test]
fn a_disk_is_read_only_or_full() {
    let bench = Bench::new();
    refused(&mut bench.train(2, &["--set", "run.dir=/proc/codinet"]), 6, &["/proc/codinet"]);
    // A limit on file sizes stands in for a full disk: the write of the 45 MB model itself fails.
    let run = bench.path("run");
    let mut limited = mpirun(2);
    limited.args([
        "sh",
        "-c",
        "trap '' XFSZ; ulimit -f 40000; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_codinet-train"),
    ]);
    limited.arg(&bench.config).args([
        "--set",
        &format!("run.dir={}", run.display()),
        "--set",
        "model.arch=resnet18",
    ]);
    refused(&mut limited, 6, &["checkpoint", "step-00000012"]);
    let left = fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(left, 0, "no half-written checkpoint");
}

#[test]
fn ranks_that_share_a_checkpoint_see_no_common_disk() {
    let bench = Bench::new();
    let mut apart = mpirun(2);
    let each_its_own = format!("cd \"$(mktemp -d -p {})\"; exec \"$@\"", bench.folder.path().display());
    apart.args(["sh", "-c", &each_its_own, "sh", env!("CARGO_BIN_EXE_codinet-train")]).arg(&bench.config);
    apart.args(["--set", "run={dir: run, shard_optimizer: true}", "--set", "collective.timeout_s=4"]);
    refused(&mut apart, 6, &["step-00000012", "no optimizer-0001.safetensors", "run.shard_optimizer"]);
}

#[test]
fn a_loss_that_is_not_finite_ends_with_its_step_and_parts() {
    let bench = Bench::new();
    let run = bench.path("run");
    let set = format!("run.dir={}", run.display());
    let args = ["--set", &set, "--set", "stages.0.lr=1e30", "--set", "stages.0.schedule=constant"];
    refused(&mut bench.train(2, &args), 5, &["step ", "not finite: ", " of rank 0, ", " of rank 1 (ce "]);
    assert!(!run.join("checkpoints/latest").exists(), "no checkpoint of such weights");
}

#[test]
fn steps_that_are_not_finite_may_be_left_out() {
    let bench = Bench::new();
    let run = bench.path("run");
    let set = format!("run.dir={}", run.display());
    // A margin beyond f32 makes L_div infinite in every step.
    let args = ["--set", &set, "--set", "diversity.margin=1e30", "--set", "optim.on_nonfinite=skip"];
    let out = succeed(&mut bench.train(2, &args));
    assert!(out.contains("step 12: not finite: div of rank 0, div of rank 1 (ce "), "{out}");
    // In the second stage, where the diversity loss has no weight, gradients are finite.
    assert!(out.contains("skipped the update, 12 so far") && !out.contains("update, 13 so far"), "{out}");
    assert!(out.contains("updated, because its gradient is finite"), "{out}");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("step not finite")).count(), 24);
    // Nothing has moved in the first stage, running statistics neither.
    let model = run.join("checkpoints/step-00000012/model.safetensors");
    let tensors = tch::Tensor::read_safetensors(model).unwrap();
    let means: Vec<_> = tensors.iter().filter(|(name, _)| name.ends_with("running_mean")).collect();
    assert!(means.len() > 10 && means.iter().all(|(_, mean)| mean.equal(&mean.zeros_like())));
}
