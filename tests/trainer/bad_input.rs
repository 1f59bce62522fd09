//! Bad input ends the job on every rank with one error line and an exit code: no hang, no backtrace, no partial file.

use crate::common::{
    SIDE, Sandbox, assert_problems, assert_rejected, finish, latest_checkpoint, mpirun, program, read_json,
    run_dir, succeed, text, write_shards,
};
use codinet_dataloader::Channels;
use codinet_dataloader::encode::{Encoder, Encoding};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Two ranks reject the setting.
fn assert_setting_rejected(sandbox: &Sandbox, setting: &str, code: i32, parts: &[&str]) {
    assert_rejected(&mut sandbox.train(2, &["--set", setting]), code, parts);
}

/// Changes a JSON file.
fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    edit(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn missing_or_empty_shard_folder_is_rejected() {
    let sandbox = Sandbox::new();
    fs::remove_dir_all(sandbox.path("train")).unwrap();
    assert_rejected(&mut sandbox.train(2, &[]), 3, &["train"]);
    fs::create_dir(sandbox.path("train")).unwrap();
    assert_rejected(&mut sandbox.train(2, &[]), 3, &["train", ".tar"]);
    assert!(!sandbox.path("runs").exists(), "no run directory is left");
}

/// A config in which everything is wrong that a start checks: each problem with its key, its line and a fix.
#[test]
fn everything_that_keeps_a_run_from_starting_is_reported_at_once() {
    let sandbox = Sandbox::new();
    let root = sandbox.folder.path().display().to_string();
    let config = fs::read_to_string(&sandbox.config).unwrap();
    let config = config.replace("/train", "/data/imagenet/train").replace("/val", "/data/imagenet/val");
    let config = config.replace("  batch_size: 8", "  batch_size: 7");
    let config = config.replace("arch: resnet20", "arch: resnet20\n  init_from: lost.safetensors");
    fs::write(&sandbox.config, config + "cost: {budget_gmacs: 9}\n").unwrap();
    fs::create_dir(sandbox.path("old")).unwrap();
    fs::write(sandbox.path("old/config.yaml"), "").unwrap();
    let made_by = format!("codinet-data import imagenet --src FOLDER --output {root}/data/imagenet");
    let missing = |set: &str| format!("no shards at {root}/data/imagenet/{set} (there is no {root}/data)");
    let train = missing("train");
    let val = missing("val");
    let problems: [&[&str]; 6] = [
        &["bars.yaml:12: optim.batch_size is 7", "2 ranks", "a multiple of 2, or start 1 rank"],
        &["bars.yaml:27: cost.budget_gmacs is 9", "this network takes 0.00"],
        &["bars.yaml:3: data.val: ", &val, &made_by],
        &["bars.yaml:2: data.train: ", &train, &made_by],
        &["--set run.dir=old: ", "holds a run"],
        &["bars.yaml:10: model.init_from lost.safetensors: no such"],
    ];
    let settings = ["--set", "run.dir=old"];
    // A run and its dry run end alike, on ranks that are started and on those that are only asked about.
    assert_problems(&mut sandbox.train(2, &settings), 2, &problems);
    assert_problems(&mut sandbox.train(2, &[&settings[..], &["--dry-run"]].concat()), 2, &problems);
    let asked = [&settings[..], &["--dry-run", "--ranks", "2"]].concat();
    let mut dry_run = sandbox.train(1, &asked);
    assert_problems(&mut dry_run, 2, &problems);
    let stdout = text(&finish(&mut dry_run).stdout);
    assert!(stdout.contains("284966 parameters"), "the network is described all the same: {stdout}");
    let without_data = [&asked[..], &["--no-data"]].concat();
    let rest: Vec<&[&str]> = problems.iter().copied().filter(|parts| !parts[0].contains("data.")).collect();
    assert_problems(&mut sandbox.train(1, &without_data), 2, &rest);
    assert!(!sandbox.path("runs").exists(), "no run directory is left");
}

#[test]
fn dry_run_ends_with_the_exit_code_of_the_run() {
    let sandbox = Sandbox::new();
    for (setting, code) in [
        ("data.classes=4", 0),
        ("data.classes=3", 3),
        ("optim.batch_size=100", 3),
        ("cost.budget_gmacs=9", 2),
        ("model.init_from=lost.safetensors", 4),
        ("run.dir=/proc/codinet", 6),
    ] {
        let output = finish(&mut sandbox.train(1, &["--dry-run", "--set", setting]));
        assert_eq!(output.status.code(), Some(code), "{setting}: {}", text(&output.stderr));
    }
    let without_gpu = ["--dry-run", "--set", "run.device=cuda"];
    let mut command = sandbox.train(1, &without_gpu);
    assert_rejected(
        command.env("CUDA_VISIBLE_DEVICES", ""),
        2,
        &["run.device is cuda, but ", "set it to cpu"],
    );
    succeed(&mut sandbox.train(1, &[&without_gpu[..], &["--no-data"]].concat()));
    let ranks = |ranks: &str| finish(&mut sandbox.train(1, &["--dry-run", "--ranks", ranks])).status.code();
    assert_eq!([ranks("8"), ranks("3"), ranks("16")], [Some(0), Some(2), Some(2)]);
    // Without the data, a network is described on a machine that has none.
    fs::remove_dir_all(sandbox.path("train")).unwrap();
    assert_rejected(&mut sandbox.train(1, &["--dry-run"]), 3, &["data.train: no shards at "]);
    let stdout = succeed(&mut sandbox.train(1, &["--dry-run", "--no-data"]));
    assert!(stdout.contains("284966 parameters") && stdout.contains("--no-data"), "{stdout}");
}

#[test]
fn paths_that_only_a_shell_or_a_store_understands_are_rejected() {
    let sandbox = Sandbox::new();
    assert_setting_rejected(
        &sandbox,
        "run.dir=$SCRATCH/x",
        2,
        &["run.dir is $SCRATCH/x", "$SCRATCH's value"],
    );
    assert_setting_rejected(&sandbox, "run.dir=s3://b/x", 2, &["run.dir is s3://b/x", "of this machine"]);
    let output =
        finish(sandbox.train(1, &["--dry-run", "--set", "run.dir=~/x"]).env("HOME", sandbox.folder.path()));
    let home = format!("dir: {}/x", sandbox.folder.path().display());
    assert!(text(&output.stdout).contains(&home), "{}", text(&output.stdout));
    for name in ["$SCRATCH", "s3:", "~"] {
        assert!(!sandbox.path(name).exists(), "{name}");
    }
}

#[test]
fn invalid_mix_settings_are_rejected() {
    let sandbox = Sandbox::new();
    let assert_mix_rejected = |setting, part| {
        let args = ["--set", setting, "--set", "optim.accumulate=4"];
        assert_rejected(&mut sandbox.train(2, &args), 2, &[part]);
    };
    assert_mix_rejected("data.mix.mixup_alpha=0.2", "optim.batch_size to a multiple of 16");
    assert_mix_rejected("data.mix.cutmix_alpha=-1", "cutmix_alpha must be 0 to 1000");
    assert_mix_rejected("data.mix.alpha=1", "alpha");
}

#[test]
fn views_that_show_little_of_their_images_are_reported() {
    let sandbox = Sandbox::new();
    let mut encoder = Encoder::new(Encoding::Png).unwrap();
    let side = 4 * SIDE;
    let png = encoder.encode(&vec![128; (side * side) as usize], side, side, Channels::Grey).unwrap();
    for image in 0..8 {
        let class = sandbox.path(&format!("photos/kind{}", image % 4));
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{image}.png")), &png).unwrap();
    }
    let stderr = |args: &[&str]| text(&finish(&mut sandbox.train(2, args)).stderr);
    let photos = ["--set", "data.train=photos", "--set", "data.val=photos", "--dry-run"];
    let reported = stderr(&photos);
    for key in ["data.train", "data.val"] {
        let warning = format!("warning: {key}: views of 16x16 pixels show 6.2 % of a typical image (64x64)");
        assert_eq!(reported.matches(&warning).count(), 1, "only rank 0 reports {key}: {reported}");
    }
    assert!(!stderr(&["--dry-run"]).contains("typical image"), "views of all of an image");
}

#[test]
fn missing_shard_is_rejected() {
    let sandbox = Sandbox::new();
    fs::remove_file(sandbox.path("train/bars-000001.tar")).unwrap();
    assert_rejected(&mut sandbox.train(2, &[]), 3, &["train", "3", "2"]);
}

#[test]
fn truncated_shard_is_rejected() {
    let sandbox = Sandbox::new();
    let tar = sandbox.path("train/bars-000002.tar");
    let bytes = fs::read(&tar).unwrap();
    fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    assert_rejected(&mut sandbox.train(2, &[]), 3, &["bars-000002.tar"]);
}

#[test]
fn undecodable_image_is_named() {
    let sandbox = Sandbox::new();
    // The same lengths and modification time, so that the index stays valid: only the image's own bytes are wrong.
    let tar = sandbox.path("train/bars-000000.tar");
    let mut bytes = fs::read(&tar).unwrap();
    let modified = fs::metadata(&tar).unwrap().modified().unwrap();
    let at = bytes.windows(4).position(|window| window == b"IDAT").unwrap();
    bytes[at + 8..at + 40].fill(0);
    fs::write(&tar, bytes).unwrap();
    fs::File::open(&tar).unwrap().set_modified(modified).unwrap();
    assert_rejected(&mut sandbox.train(2, &[]), 3, &["bars-000000.tar", "000000"]);
}

#[test]
fn label_out_of_range_is_named() {
    let sandbox = Sandbox::new();
    let problem = |key| ["--set data.classes=3: data.classes: ", key, "bars-000000.tar", "000003", "3"];
    let problems: [&[&str]; 2] = [&problem("data.train"), &problem("data.val")];
    assert_problems(&mut sandbox.train(2, &["--set", "data.classes=3"]), 3, &problems);
}

#[test]
fn mismatched_class_names_are_rejected() {
    let sandbox = Sandbox::new();
    let set_names = |set: &str, names: Value| {
        edit_json(&sandbox.path(set).join("dataset.json"), |info| info["class_names"] = names);
    };
    set_names("train", json!(["ant", "bee", "cat", "dog"]));
    set_names("val", json!(["ant", "cat", "dog", "elk"]));
    assert_rejected(&mut sandbox.train(2, &[]), 3, &["class 1 is 'bee' in data.train and 'cat' in data.val"]);
    let sets = "data.train={sets: [{path: train}, {path: val}]}";
    let differ = ["bars-000000.tar: class 1 is 'cat', and 'bee' in", "the same classes"];
    assert_setting_rejected(&sandbox, sets, 3, &differ);
    let lost = ["--set data.train={sets: [{path: train}, {path: lost}]}: data.train: no shards at", "/lost"];
    assert_setting_rejected(&sandbox, "data.train={sets: [{path: train}, {path: lost}]}", 3, &lost);
    // Where only one set has names, the run keeps those.
    set_names("val", Value::Null);
    let run = sandbox.path("named");
    succeed(&mut sandbox.train_into(&run, 1, &[]));
    assert_eq!(fs::read_to_string(run.join("class_names.json")).unwrap(), r#"["ant","bee","cat","dog"]"#);
}

/// `--resume auto` must not start over in a directory whose checkpoints it cannot read: old and new ones would mix.
#[test]
fn checkpoint_of_another_format_is_rejected() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("old");
    succeed(&mut sandbox.train_into(&run, 1, &[]));
    for entry in fs::read_dir(run.join("checkpoints")).unwrap() {
        let state = entry.unwrap().path().join("state.json");
        if state.exists() {
            edit_json(&state, |state| {
                state.as_object_mut().unwrap().remove("epoch_samples");
                state["version"] = 3.into();
            });
        }
    }
    let metrics = fs::read(run.join("metrics.jsonl")).unwrap();
    let mut resume = sandbox.train_into(&run, 2, &["--resume", "auto"]);
    let stderr = text(&resume.output().unwrap().stderr);
    assert!(stderr.contains("has format 3; this program reads"), "{stderr}");
    assert_rejected(&mut resume, 4, &["none of its checkpoints can be read"]);
    assert!(fs::read(run.join("metrics.jsonl")).unwrap() == metrics, "metrics.jsonl has changed");
}

#[test]
fn more_lanes_than_shards_are_rejected() {
    let parts = ["data.lanes.count is 4", "3 shards", "--shard-size"];
    assert_setting_rejected(&Sandbox::new(), "data.lanes={count: 4, window: 8}", 2, &parts);
}

#[test]
fn batch_that_does_not_fit_samples_or_ranks_is_rejected() {
    let sandbox = Sandbox::new();
    let parts = ["96 samples", "100", "optim.batch_size"];
    assert_setting_rejected(&sandbox, "optim.batch_size=100", 3, &parts);
    assert_setting_rejected(&sandbox, "optim.batch_size=7", 2, &["7", "2 ranks", "optim.batch_size"]);
}

#[test]
fn invalid_settings_are_rejected() {
    let sandbox = Sandbox::new();
    let config = fs::read_to_string(&sandbox.config).unwrap();
    fs::write(&sandbox.config, config.replace("batch_size: 8\n  eval", "batchsize: 8\n  eval")).unwrap();
    assert_rejected(&mut sandbox.train(2, &[]), 2, &["bars.yaml:11", "optim.batchsize", "optim.batch_size?"]);
    assert_rejected(mpirun(2).arg(program("codinet-train")).arg("none.yaml"), 2, &["none.yaml"]);
    fs::write(&sandbox.config, &config).unwrap();
    for (setting, code, parts) in [
        ("cost.gamma=-1", 2, &["--set cost.gamma=-1", "at least 0"][..]),
        ("cost.budget_gmacs=9", 2, &["this network takes 0.00", "to 0.01"]),
        ("cost.calibrate=true", 2, &["false, without a budget_gmacs"]),
        (
            "cost={budget_gmacs: 0.007, calibrate: true, calibration_samples: 90}",
            2,
            &["more than half of the 96 training samples"],
        ),
        ("optim.accumulate=3", 2, &["a divisor of optim.batch_size"]),
        ("optim.accumulate=8", 2, &["2 ranks cannot share evenly in 8"]),
        ("model.init_from=lost.safetensors", 4, &["lost.safetensors: no such"]),
    ] {
        assert_setting_rejected(&sandbox, setting, code, parts);
    }
    assert_rejected(&mut sandbox.train(2, &["--eval-only"]), 2, &["--eval-only", "--resume"]);
}

#[test]
fn mismatched_or_damaged_checkpoint_is_rejected() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    succeed(&mut sandbox.train_into(&run, 1, &[]));
    let resume = |from: &Path, args: &[&str]| {
        let mut command = sandbox.train(2, &["--resume", from.to_str().unwrap()]);
        command.args(args);
        command
    };
    let another_network = ["another network", "layer1.3.conv1.weight"];
    let another_classifier = ["another network", "fc.weight", "[4, 64]", "[5, 64]"];
    for start in [&[][..], &["--dry-run"]] {
        let with = |setting| resume(&run, &[start, &["--set", setting]].concat());
        assert_rejected(&mut with("model.arch=resnet32"), 4, &another_network);
        assert_rejected(&mut with("data.classes=5"), 4, &another_classifier);
    }
    assert_rejected(&mut resume(Path::new("nowhere"), &[]), 4, &["nowhere"]);

    // Another number of samples.
    fs::remove_dir_all(sandbox.path("train")).unwrap();
    write_shards(&sandbox.path("train"), 64);
    assert_rejected(&mut resume(&run, &[]), 4, &["data.train"]);

    // A flipped bit: the checkpoint is rejected by name, and skipped for the one before it.
    let latest = latest_checkpoint(&run);
    let model = latest.join("model.safetensors");
    let mut bytes = fs::read(&model).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&model, &bytes).unwrap();
    assert_rejected(&mut resume(&latest, &[]), 4, &["model.safetensors", "damaged"]);
    let stderr = text(&finish(&mut resume(&run, &[])).stderr);
    assert!(stderr.contains("warning: ") && stderr.contains("damaged"), "{stderr}");
    // A truncated file.
    fs::write(&model, &bytes[..middle]).unwrap();
    assert_rejected(&mut resume(&model, &["--eval-only"]), 4, &["model.safetensors"]);
}

#[test]
fn run_directory_in_use_or_of_another_run_is_rejected() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    fs::create_dir(&run).unwrap();
    let lock = fs::File::open(&run).unwrap();
    lock.lock().unwrap();
    assert_rejected(&mut sandbox.train_into(&run, 2, &[]), 2, &["in use", "run.dir"]);
    assert_rejected(&mut sandbox.train_into(&run, 1, &["--dry-run"]), 2, &["in use", "run.dir"]);
    lock.unlock().unwrap();
    succeed(&mut sandbox.train_into(&run, 1, &[]));
    assert_rejected(&mut sandbox.train_into(&run, 2, &[]), 2, &["holds a run", "--resume auto"]);
    // A run may not branch off into another run's directory.
    let branch = sandbox.path("branch");
    fs::create_dir_all(branch.join("checkpoints")).unwrap();
    let resume = ["--resume", run.to_str().unwrap()];
    assert_rejected(&mut sandbox.train_into(&branch, 1, &resume), 2, &["branch holds a run"]);
    // It may not resume past the end of its config, or with another seed.
    let shorter = [&resume[..], &["--set", "stages=[{epochs: 1}]"]].concat();
    for ranks in [1, 2] {
        let shorter = [&shorter[..], if ranks == 1 { &["--dry-run"] } else { &[] }].concat();
        assert_rejected(&mut sandbox.train(ranks, &shorter), 4, &["stages.2", "past this config's end"]);
    }
    let seed = [&resume[..], &["--set", "run.seed=2"]].concat();
    assert_rejected(&mut sandbox.train(2, &seed), 4, &["run.seed 1"]);
}

#[test]
fn settings_that_contradict_the_images_are_rejected() {
    let sandbox = Sandbox::new();
    assert_setting_rejected(&sandbox, "data.image_size=18", 3, &["data.val: ", "16x16", "18x18"]);
    assert_setting_rejected(&sandbox, "data.eval_resize=8", 2, &["data.eval_resize", "16"]);
    assert_setting_rejected(&sandbox, "data.crop={pad: {pixels: 99999}}", 2, &["data.crop", "pixels"]);
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn failed_write_leaves_no_partial_checkpoint() {
    let sandbox = Sandbox::new();
    assert_setting_rejected(&sandbox, "run.dir=/proc/codinet", 6, &["/proc/codinet"]);
    // A limit on file sizes stands in for a full disk: writing the model's 45 MB fails.
    let run = sandbox.path("run");
    let mut limited = mpirun(2);
    limited.args(["sh", "-c", "trap '' XFSZ; ulimit -f 40000; exec \"$@\"", "sh"]);
    limited.arg(program("codinet-train")).arg(&sandbox.config);
    limited.args(["--set", &run_dir(&run), "--set", "model.arch=resnet18"]);
    assert_rejected(&mut limited, 6, &["checkpoint", "step-00000012"]);
    let left = fs::read_dir(run.join("checkpoints")).unwrap().count();
    assert_eq!(left, 0, "no partial checkpoint is left");
}

/// Each rank works in a folder of its own, as on hosts that share no disk.
#[test]
fn sharded_checkpoint_without_a_shared_disk_is_rejected() {
    let sandbox = Sandbox::new();
    let mut command = mpirun(2);
    let enter_own_folder = format!("cd \"$(mktemp -d -p {})\"; exec \"$@\"", sandbox.folder.path().display());
    command.args(["sh", "-c", &enter_own_folder, "sh"]).arg(program("codinet-train")).arg(&sandbox.config);
    command.args(["--set", "run={dir: run, shard_optimizer: true}", "--set", "collective.timeout_s=4"]);
    let parts = ["step-00000012", "no optimizer-0001.safetensors", "run.shard_optimizer"];
    assert_rejected(&mut command, 6, &parts);
}

#[test]
fn nonfinite_loss_is_reported_with_its_step_and_terms() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let settings = ["--set", "stages.0.lr=1e30", "--set", "stages.0.schedule=constant"];
    let parts = ["step ", "not finite: ", " of rank 0, ", " of rank 1 (ce "];
    assert_rejected(&mut sandbox.train_into(&run, 2, &settings), 5, &parts);
    assert!(!run.join("checkpoints/latest").exists(), "no checkpoint of such weights");
}

#[test]
fn skipped_nonfinite_steps_leave_the_weights_unchanged() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    // A margin beyond f32 makes L_div infinite in every step.
    let settings = ["--set", "diversity.margin=1e30", "--set", "optim.on_nonfinite=skip"];
    let stdout = succeed(&mut sandbox.train_into(&run, 2, &settings));
    assert!(stdout.contains("step 12: not finite: div of rank 0, div of rank 1 (ce "), "{stdout}");
    // In the second stage the diversity loss has no weight, so what it is does not matter.
    assert!(stdout.contains("skipped the update, 12 so far"), "{stdout}");
    assert!(!stdout.contains("skipped the update, 13 so far"), "{stdout}");
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.lines().filter(|line| line.contains("step not finite")).count(), 12);
    // The first stage has moved nothing, not even the running statistics.
    let model = run.join("checkpoints/step-00000012/model.safetensors");
    let tensors = tch::Tensor::read_safetensors(model).unwrap();
    let means: Vec<_> = tensors.iter().filter(|(name, _)| name.ends_with("running_mean")).collect();
    assert!(means.len() > 10 && means.iter().all(|(_, mean)| mean.equal(&mean.zeros_like())));
}
