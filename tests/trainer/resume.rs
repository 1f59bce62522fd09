//! Stopping and resuming `codinet-train`.

use crate::common::{
    Sandbox, assert_rejected, finish, latest_checkpoint, metrics, read_json, send_signal, succeed, text,
    wait_until, weights,
};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tch::Tensor;

/// A file of the latest checkpoint, where it has one.
fn checkpoint_file(run: &Path, file: &str) -> Option<Vec<u8>> {
    fs::read(latest_checkpoint(run).join(file)).ok()
}

#[test]
fn interrupted_run_equals_uninterrupted() {
    train_with_stops(&Sandbox::new(), &[]);
}

/// With everything on that has a state of its own: the budget's controller, the calibrated bias, the mean of weights.
#[test]
fn interrupted_run_on_a_budget_equals_uninterrupted() {
    let settings = [
        "--set",
        "cost={budget_gmacs: 0.007, control: price, gamma_step: 0.01, calibrate: true, calibration_samples: 9}",
        "--set",
        "optim={accumulate: 2, ema_decay: 0.9, nesterov: true, clip_norm: 1.0, label_smoothing: 0.1}",
        "--set",
        "diversity.scope=global_batch",
    ];
    let sandbox = Sandbox::new();
    let whole = train_with_stops(&sandbox, &settings);
    let summary = read_json(&whole.join("summary.json"));
    assert_eq!(summary["stages"].as_array().unwrap().len(), 2);
    assert!(summary["ema"]["top1"].as_f64().unwrap() > 0.0);
    // A finished run that is resumed repeats its results.
    succeed(&mut sandbox.train_into(&whole, 2, &[&LONG[..], &settings, &["--resume", "auto"]].concat()));
    let repeated = read_json(&whole.join("summary.json"));
    for key in ["top1", "gmacs", "ema", "stages"] {
        assert_eq!(repeated[key], summary[key], "{key}");
    }
    let steps = metrics(&whole, "train");
    let gamma = |step: &Value| step["gamma"].as_f64().unwrap();
    assert!(gamma(&steps[0]) > 0.011 && gamma(&steps[0]) < gamma(&steps[2]), "γ rises while all blocks run");
    // One block is a ninth of the cost, and nine images are held out: the calibrated bias comes that close.
    let error = summary["gmacs"].as_f64().unwrap() / 0.007 - 1.0;
    assert!(error.abs() < 0.11, "off by {error}");
}

/// Views of 16, then 32 pixels within the first stage, of 24 in the second, mixed; evaluation at 40.
#[test]
fn interrupted_run_with_image_sizes_equals_uninterrupted() {
    let sandbox = Sandbox::new();
    let settings = [
        "--set",
        "data.eval_size=40",
        "--set",
        "data.eval_resize=40",
        "--set",
        "data.crop={random_resized: {scale: [0.3, 1.0], ratio: [0.75, 1.3333333]}}",
        "--set",
        "stages.0.image_size={from: 16, to: 32, from_epoch: 0, to_epoch: 3, multiple: 8}",
        "--set",
        "stages.1.image_size=24",
        "--set",
        "data.mix.cutmix_alpha=1",
    ];
    let whole = train_with_stops(&sandbox, &settings);
    // MACs are those of evaluation.
    let summary = read_json(&whole.join("summary.json"));
    let gmacs = format!("{:.6} GMACs static", summary["gmacs_static"].as_f64().unwrap());
    for (setting, same) in [("data.image_size=40", true), ("data.image_size=16", false)] {
        let output = sandbox.train(1, &["--set", setting, "--dry-run"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.contains(&gmacs), same, "{gmacs}, {setting}: {text}");
    }
}

/// Two sets; an epoch draws one sample in three from the smaller, with its classes balanced: some samples several times
/// an epoch, others in some epochs only.
#[test]
fn interrupted_run_on_weighted_sets_equals_uninterrupted() {
    let sandbox = Sandbox::new();
    let sets = "{sets: [{path: train, weight: 2}, {path: val, weight: 1}], balance_classes: true, epoch_samples: 120}";
    let settings = ["--set", &format!("data.train={sets}")];
    let whole = train_with_stops(&sandbox, &settings);
    let steps = metrics(&whole, "train");
    assert_eq!(steps[steps.len() - 1]["step"], 6 * 120 / 8, "six epochs of 120 samples");
    // Other weights are another order.
    let weight = ["--set", "data.train.sets.0.weight=3", "--resume", "auto"];
    let mut other = sandbox.train_into(&whole, 2, &[&LONG[..], &settings, &weight].concat());
    assert_rejected(&mut other, 4, &["drew the sets or classes of data.train by other weights"]);
}

/// Without weights, several sets are trained as one set of all their shards.
#[test]
fn sets_without_weights_equal_one_set() {
    let sandbox = Sandbox::new();
    // The shards of one set, in two folders.
    for (folder, shard) in
        [("first", "bars-000000.tar"), ("second", "bars-000001.tar"), ("second", "bars-000002.tar")]
    {
        fs::create_dir_all(sandbox.path(folder)).unwrap();
        fs::copy(sandbox.path("train").join(shard), sandbox.path(folder).join(shard)).unwrap();
    }
    let one = sandbox.path("one");
    succeed(&mut sandbox.train_into(&one, 1, &[]));
    let sets = sandbox.path("sets");
    let setting = "data.train={sets: [{path: first}, {path: second}]}";
    succeed(&mut sandbox.train_into(&sets, 1, &["--set", setting]));
    assert!(weights(&one) == weights(&sets), "the weights differ");
}

/// Hard gates whose temperature falls, path vectors that are not the gates' decisions, a penalty for missing a budget, and a second stage
/// that skips for real.
#[test]
fn interrupted_run_with_a_temperature_schedule_equals_uninterrupted() {
    let settings = [
        "--set",
        "model.router={relaxation: straight_through, temperature: {exponential: {from: 5, to: 0.1}}}",
        "--set",
        "model.router={noise: per_sample, activation: none, open_bias: 0}",
        "--set",
        "paths.outputs=both",
        "--set",
        "run={evaluate_with_noise: true, replay_every: 7}",
        "--set",
        "stages.1={noise: true, skip: real}",
        "--set",
        "cost.budget_gmacs=0.007",
    ];
    let sandbox = Sandbox::new();
    let whole = train_with_stops(&sandbox, &settings);
    // Four epochs of twelve steps in which routers train: T of step s is 5·(0.1/5)^(s/48), counted from 0.
    for line in metrics(&whole, "train") {
        let step = line["step"].as_u64().unwrap();
        match line["temperature"].as_f64() {
            Some(found) => {
                let expected = 5.0 * (0.1f64 / 5.0).powf((step - 1) as f64 / 48.0);
                assert!(step <= 48 && (found - expected).abs() < 1e-9, "step {step}: {found}");
            }
            None => assert!(step > 48, "step {step}: routers are frozen"),
        }
    }
    let summary = read_json(&whole.join("summary.json"));
    let noisy = &summary["with_noise"];
    let paths = |of: &Value| of["distinct_paths"].as_u64().unwrap();
    assert!(paths(noisy) > paths(&summary), "noise makes paths: {noisy}");
    let last = metrics(&whole, "eval").pop().unwrap();
    assert_eq!(
        (&last["noise_top1"], &last["noise_distinct_paths"]),
        (&noisy["top1"], &noisy["distinct_paths"])
    );
}

/// Mixed images, micro-batches and two ranks; the teacher is a static network, with whose weights the run starts.
#[test]
fn interrupted_run_with_a_teacher_equals_uninterrupted() {
    let sandbox = Sandbox::new();
    let teacher = sandbox.path("teacher");
    succeed(&mut sandbox.train_into(&teacher, 1, &["--set", "model.gates=none"]));
    let from = format!("distill={{from: {}, weight: 0.25}}", teacher.display());
    let init = format!("model.init_from={}", teacher.display());
    let settings = [
        "--set",
        &from,
        "--set",
        &init,
        "--set",
        "optim={accumulate: 2, label_smoothing: 0.1}",
        "--set",
        "data.mix.mixup_alpha=0.5",
    ];
    let whole = train_with_stops(&sandbox, &settings);
    for line in metrics(&whole, "train") {
        let number = |name: &str| line[name].as_f64().unwrap();
        let weights = if line["stage"] == "relaxed" { [0.2, 0.2, 0.01] } else { [0.0; 3] };
        let terms =
            ["con", "div", "cost"].into_iter().zip(weights).map(|(name, weight)| weight * number(name));
        let expected = 0.75 * number("ce") + 0.25 * number("distill") + terms.sum::<f64>();
        assert!(number("distill") > 0.0 && (number("loss") - expected).abs() < 1e-5, "{line}");
    }
    let share = read_json(&whole.join("summary.json"))["teacher_share"].as_f64().unwrap();
    assert!((0.2..0.25).contains(&share), "one forward pass of four: {share}");
    assert!(fs::read_to_string(whole.join("log.txt")).unwrap().contains("of a training step's MACs"));

    let rejected = |setting: &str, code: i32, parts: &[&str]| {
        assert_rejected(&mut sandbox.train(1, &["--set", &from, "--set", setting]), code, parts);
    };
    rejected("data.classes=5", 2, &["distill.from", "its data.classes is 4, here it is 5"]);
    rejected("distill.from=lost", 4, &["distill.from lost", "no such run directory"]);
}

#[test]
fn interrupted_run_with_lamb_equals_uninterrupted() {
    let settings = [
        "--set",
        "optim={optimizer: lamb, weight_decay: 0.02, ema_decay: 0.9, lr_factors: {routers: 0.5, head: 2}}",
        "--set",
        "run.log_every=1",
    ];
    let sandbox = Sandbox::new();
    let whole = train_with_stops(&sandbox, &settings);
    for line in metrics(&whole, "train") {
        let number = |name: &str| line[name].as_f64().unwrap();
        let parts = ["routers", "head", "rest"].map(|part| number(&format!("grad_norm_{part}")));
        let norm = parts.iter().map(|norm| norm * norm).sum::<f64>().sqrt();
        let frozen = line["stage"] == "hard";
        assert!((norm / number("grad_norm") - 1.0).abs() < 1e-4, "{line}");
        assert_eq!(parts[0] == 0.0, frozen, "{line}");
    }
    // The optimiser's state is the means of gradients and squares, and the counts of the updates.
    let file = latest_checkpoint(&whole).join("optimizer.safetensors");
    let state: HashMap<String, Tensor> = Tensor::read_safetensors(file).unwrap().into_iter().collect();
    assert!(state.contains_key("exp_avg.conv1.weight") && state.contains_key("exp_avg_sq.fc.bias"));
    assert_eq!(Vec::<f32>::try_from(&state["step"]).unwrap(), [72.0, 48.0], "routers are frozen in stage 2");
}

/// With mixed images, the binary cross entropy and stochastic depth.
#[test]
fn interrupted_static_run_with_adamw_equals_uninterrupted() {
    let settings = [
        "--set",
        "optim={optimizer: adamw, weight_decay: 0.05, betas: [0.9, 0.98], clip_norm: 1.0}",
        "--set",
        "optim={loss: binary_cross_entropy, bce_threshold: 0.2, label_smoothing: 0.1}",
        "--set",
        "data.mix={mixup_alpha: 0.1, cutmix_alpha: 1.0}",
        "--set",
        "model={gates: none, drop_path: 0.2}",
        "--set",
        "stages.0.lr=0.002",
        "--set",
        "stages.1.lr=0.001",
    ];
    let sandbox = Sandbox::new();
    let whole = train_with_stops(&sandbox, &settings);
    let losses: Vec<f64> = metrics(&whole, "train").iter().map(|line| line["ce"].as_f64().unwrap()).collect();
    // Four classes: ln 2 at the start, where all are as likely as not.
    assert!(losses[0] < 1.0 && losses[losses.len() - 1] < 0.9 * losses[0], "{losses:?}");
    let gated = ["--set", "model.drop_path=0.1"];
    assert_rejected(&mut sandbox.train(1, &gated), 2, &["model.drop_path", "model.gates none"]);
}

#[test]
fn checkpoint_of_another_optimizer_is_refused() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("stop"), "").unwrap();
    assert_eq!(finish(&mut sandbox.train_into(&run, 1, &[])).status.code(), Some(75));
    let resume = ["--resume", "auto", "--set", "optim.optimizer=adamw"];
    let refusal =
        "was trained with optim.optimizer sgd, here it is adamw; resume with sgd, or start a new run";
    assert_rejected(&mut sandbox.train_into(&run, 1, &resume), 4, &[refusal]);
    // A checkpoint of version 0.1 names no optimiser: it is SGD's.
    let file = latest_checkpoint(&run).join("state.json");
    let mut state = read_json(&file);
    assert_eq!(state.as_object_mut().unwrap().remove("optimizer"), Some("sgd".into()));
    fs::write(&file, state.to_string()).unwrap();
    assert_rejected(&mut sandbox.train_into(&run, 1, &resume), 4, &[refusal]);
    let stdout = succeed(&mut sandbox.train_into(&run, 1, &["--resume", "auto"]));
    assert!(stdout.contains("resuming from"), "{stdout}");
}

/// Six epochs: several stops fall into them.
const LONG: [&str; 4] = ["--set", "stages.0.epochs=4", "--set", "stages.1.epochs=2"];

/// Trains with these settings without a stop, and with three stops; both end alike. Returns the first run's directory.
fn train_with_stops(sandbox: &Sandbox, settings: &[&str]) -> PathBuf {
    let whole = sandbox.path("whole");
    let stopped = sandbox.path("stopped");
    let command =
        |run: &Path| sandbox.train_into(run, 2, &[&LONG[..], settings, &["--resume", "auto"]].concat());
    succeed(&mut command(&whole));

    let mut stops = 0;
    loop {
        // Stop each attempt once it has logged something new: in mid-epoch, at any speed of the machine.
        let log = stopped.join("metrics.jsonl");
        let logged = || fs::metadata(&log).map_or(0, |file| file.len());
        let before = logged();
        let mut job = command(&stopped).stdout(Stdio::null()).spawn().unwrap();
        wait_until(60, || "no step".into(), || logged() > before || job.try_wait().unwrap().is_some());
        if stops < 3 {
            send_signal("USR2", job.id());
        }
        let status = job.wait().unwrap();
        if status.success() {
            break;
        }
        assert_eq!(status.code(), Some(75));
        stops += 1;
        assert!(stops < 10);
    }
    assert!(stops >= 2, "stopped {stops} times");
    for file in ["model.safetensors", "optimizer.safetensors", "ema.safetensors"] {
        let expected = checkpoint_file(&whole, file);
        assert!(expected == checkpoint_file(&stopped, file), "{file} differs");
        let has_ema = settings.iter().any(|setting| setting.contains("ema"));
        assert_eq!(expected.is_some(), file != "ema.safetensors" || has_ema, "{file}");
    }
    // Seconds continue after each stop.
    for kind in ["train", "eval"] {
        let seconds: Vec<f64> =
            metrics(&stopped, kind).iter().map(|line| line["seconds"].as_f64().unwrap()).collect();
        assert!(seconds.is_sorted() && seconds[0] > 0.0, "{kind}: {seconds:?}");
    }
    let train_losses = |run: &Path| -> Vec<(u64, Value)> {
        let evaluations = metrics(run, "eval");
        evaluations.iter().map(|line| (line["step"].as_u64().unwrap(), line["train_loss"].clone())).collect()
    };
    assert_eq!(
        train_losses(&whole),
        train_losses(&stopped),
        "an epoch's mean includes the steps before a stop"
    );
    whole
}

/// A run on four ranks, stopped after its first step, continues on two ranks, then on one. Each step is what four ranks would
/// have computed: the same samples, mixtures, batches of batch norm and noise. Each run shards the optimiser's state by rank.
#[test]
fn resuming_on_fewer_ranks_repeats_the_same_steps() {
    let sandbox = Sandbox::new();
    let whole = sandbox.path("whole");
    let stopped = sandbox.path("stopped");
    let command = |run: &Path, ranks: usize| {
        let settings = [
            "run={log_every: 1, shard_optimizer: true}",
            "stages.0.lr=0.01",
            "data.mix.mixup_alpha=0.4",
            "data.mix.cutmix_alpha=1",
        ];
        let mut command = sandbox.train_into(run, ranks, &["--resume", "auto"]);
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        command
    };
    succeed(&mut command(&whole, 4));
    for ranks in [4, 2] {
        fs::create_dir_all(&stopped).unwrap();
        fs::write(stopped.join("stop"), "").unwrap();
        assert_eq!(finish(&mut command(&stopped, ranks)).status.code(), Some(75));
        let shard = format!("optimizer-{:04}.safetensors", ranks - 1);
        assert!(checkpoint_file(&stopped, &shard).is_some());
    }
    let stdout = succeed(&mut command(&stopped, 1));
    assert!(
        stdout.contains("each of 1 ranks processes 4 of a step's 4 micro-batches, as before"),
        "{stdout}"
    );
    let found = metrics(&stopped, "train");
    let expected = metrics(&whole, "train");
    assert_eq!((found.len(), expected.len()), (24, 24));
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(found["samples"], expected["samples"]);
        // They differ by rounding only. In the second stage decisions are hard, and rounding may flip one.
        if step >= 12 {
            continue;
        }
        for key in ["loss", "ce", "con", "div", "cost", "grad_norm"] {
            let [found, expected] = [found, expected].map(|record| record[key].as_f64().unwrap());
            // Rounding errors grow once one has switched a ReLU: in the gradient sooner than in the losses.
            let bound = if step < 4 { 1e-4 } else { 1e-2 };
            let comparable = key != "grad_norm" || step < 4;
            assert!(
                !comparable || (found - expected).abs() <= bound * expected.abs().max(0.1),
                "step {step}: {key} {found}, {expected}"
            );
        }
    }
    // The running statistics too: the first stage's evaluation.
    let [found, expected] = [&stopped, &whole].map(|run| metrics(run, "eval")[0]["ce"].as_f64().unwrap());
    assert!((found - expected).abs() < 1e-2, "{found} {expected}");
}

#[test]
fn stop_file_stops_and_the_printed_command_resumes() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("stop"), "").unwrap();
    let output = finish(&mut sandbox.train_into(&run, 1, &["--set", "stages.0.epochs=2"]));
    assert_eq!(output.status.code(), Some(75));
    assert!(!run.join("stop").exists());
    let repeated = finish(&mut sandbox.train_into(&run, 1, &[]));
    assert_eq!(repeated.status.code(), Some(2), "a run is not overwritten by accident");
    let stderr = text(&output.stderr);
    let resume = stderr.lines().find_map(|line| line.split_once("to resume: ")).unwrap().1;
    assert!(resume.contains("--set stages.0.epochs=2 --resume "), "{resume}");
    succeed(Command::new("sh").args(["-c", resume]).current_dir(sandbox.folder.path()));
    assert_eq!(read_json(&run.join("summary.json"))["stages"][0]["epochs"], 2);
}

#[test]
fn changed_schedule_is_reported_on_resume() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("stop"), "").unwrap();
    assert_eq!(finish(&mut sandbox.train_into(&run, 1, &[])).status.code(), Some(75));
    let resume = |settings: &[&str]| {
        fs::write(run.join("stop"), "").unwrap();
        let output = finish(&mut sandbox.train_into(&run, 1, &[&["--resume", "auto"], settings].concat()));
        assert_eq!(output.status.code(), Some(75));
        text(&output.stdout)
    };
    assert!(!resume(&[]).contains("learning rate"));
    // After 4 of 12 steps of a cosine: 0.05·(1 + cos(π/3))/2 = 0.0375, and over two epochs 0.05·(1 + cos(π/6))/2 = 0.0467.
    let note = "changes the schedule of stages.0: the learning rate is 0.0467 from here, instead of 0.0375";
    let changed = resume(&["--set", "stages.0.epochs=2"]);
    assert!(changed.contains(note), "{changed}");
    // More epochs for a stage that has ended.
    let resume = ["--resume", "auto", "--set", "stages.0.epochs=2", "--set", "stages.1.epochs=1"];
    succeed(&mut sandbox.train_into(&run, 1, &resume));
    let longer = succeed(&mut sandbox.train_into(&run, 1, &[&resume[..5], &["stages.1.epochs=3"]].concat()));
    let note = "note: stages.1 has ended after 1 epoch, and the 3 of this config are not trained; to train on, add a stage";
    assert!(longer.contains(note), "{longer}");
}

#[test]
fn resume_auto_finds_the_newest_run_of_the_same_config() {
    let sandbox = Sandbox::new();
    succeed(&mut sandbox.train(1, &[]));
    let run = fs::read_dir(sandbox.path("runs")).unwrap().next().unwrap().unwrap().path();
    assert!(run.file_name().unwrap().to_string_lossy().starts_with("bars-"));
    let stdout = succeed(&mut sandbox.train(1, &["--resume", "auto"]));
    assert!(stdout.contains("resuming from"), "{stdout}");
    // Another learning rate is another run.
    let stdout = succeed(&mut sandbox.train(1, &["--resume", "auto", "--set", "stages.0.lr=0.02"]));
    assert!(!stdout.contains("resuming from"), "{stdout}");
    assert_eq!(fs::read_dir(sandbox.path("runs")).unwrap().count(), 2);
}
