//! `codinet-train` as a user runs it: alone and under mpirun, stopped and resumed.

use crate::common::{Bench, finish, succeed};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn lines(run: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|line| line["kind"] == kind).collect()
}

/// A file of the last checkpoint, where it has one.
fn last(run: &Path, file: &str) -> Option<Vec<u8>> {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    fs::read(run.join("checkpoints").join(latest).join(file)).ok()
}

#[test]
fn one_rank_and_two_train_alike_and_leave_a_whole_run() {
    let bench = Bench::new();
    let runs = [1, 2].map(|ranks| {
        let run = bench.path(&format!("run{ranks}"));
        let set = format!("run.dir={}", run.display());
        let sets = ["--set", &set, "--set", "stages.0.epochs=3", "--set", "run.keep_best=false"];
        let out = succeed(&mut bench.train(ranks, &sets));
        assert!(out.contains("top-1") && out.contains("tensorboard --logdir"), "{out}");
        run
    });
    for (run, ranks) in runs.iter().zip([1, 2]) {
        let summary = json(&run.join("summary.json"));
        assert_eq!(summary["validation_images"], 37, "each validation image once");
        assert_eq!(summary["world_size"], ranks);
        for key in ["top1", "top5", "gmacs", "gmacs_static", "distinct_paths", "images_per_second", "seconds"]
        {
            assert!(summary[key].as_f64().unwrap() > 0.0, "{key}: {}", summary[key]);
        }
        assert_eq!(summary["top5"], 1.0, "four classes are all among the first five");
        assert_eq!(summary["stages"].as_array().unwrap().len(), 2);
        assert!(summary["top1"].as_f64().unwrap() > 0.5, "the classes are easy: {}", summary["top1"]);
        for file in ["config.yaml", "log.txt", "metrics.jsonl", "checkpoints/latest"] {
            assert!(run.join(file).exists(), "{file}");
        }
        let mut logs = fs::read_dir(run.join("tensorboard")).unwrap().flatten();
        let events = logs.find(|file| file.file_name().to_string_lossy().starts_with("events.")).unwrap();
        assert!(events.metadata().unwrap().len() > 1000);
        // 12 steps per epoch: a line every third, an evaluation an epoch, three checkpoints kept.
        assert_eq!(lines(run, "train").len(), 16);
        assert_eq!(lines(run, "eval").len(), 4);
        // Two checkpoints an epoch, before its evaluation and after.
        let saves = lines(run, "event");
        assert_eq!(saves.iter().filter(|event| event["event"] == "checkpoint").count(), 8);
        assert!(saves.iter().all(|event| event["blocked_s"].as_f64().unwrap() > 0.0));
        let kept = fs::read_dir(run.join("checkpoints")).unwrap().flatten();
        assert_eq!(kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-")).count(), 3);
    }
    // The same samples, crops and noise at every world size: the first losses differ by rounding and by the
    // batches that batch norm sees.
    let first = |run: &Path| lines(run, "train")[0]["samples"].as_u64().unwrap();
    assert_eq!(first(&runs[0]), first(&runs[1]));
    let loss = |run: &Path| lines(run, "train")[0]["ce"].as_f64().unwrap();
    assert!((loss(&runs[0]) / loss(&runs[1]) - 1.0).abs() < 0.2, "{} {}", loss(&runs[0]), loss(&runs[1]));
}

#[test]
fn a_run_that_was_stopped_ends_as_one_that_was_not() {
    stopped_and_resumed(&[]);
}

/// With everything on that has a state of its own: the budget's price, the bias on the gates, the mean of weights.
#[test]
fn a_run_on_a_budget_that_was_stopped_ends_as_one_that_was_not() {
    let set = "cost={budget_gmacs: 0.007, gamma_step: 0.01, calibrate: true, calibration_samples: 9}";
    let optim = "optim={accumulate: 2, ema_decay: 0.9, nesterov: true, clip_norm: 1.0, label_smoothing: 0.1}";
    let scope = "diversity.scope=global_batch";
    let (whole, bench) = stopped_and_resumed(&["--set", set, "--set", optim, "--set", scope]);
    let summary = json(&whole.join("summary.json"));
    assert_eq!(summary["stages"].as_array().unwrap().len(), 2);
    assert!(summary["ema"]["top1"].as_f64().unwrap() > 0.0);
    // A run that is over and resumed finds the same again.
    let dir = format!("run.dir={}", whole.display());
    let long = ["--set", "stages.0.epochs=4", "--set", "stages.1.epochs=2"];
    let sets =
        [&["--resume", "auto", "--set", &dir, "--set", set, "--set", optim, "--set", scope][..], &long];
    succeed(&mut bench.train(2, &sets.concat()));
    let again = json(&whole.join("summary.json"));
    for key in ["top1", "gmacs", "ema", "stages"] {
        assert_eq!(again[key], summary[key], "{key}");
    }
    let steps = lines(&whole, "train");
    let gamma = |line: &Value| line["gamma"].as_f64().unwrap();
    assert!(gamma(&steps[0]) > 0.011 && gamma(&steps[0]) < gamma(&steps[2]), "γ rises while all blocks run");
    // One block is a ninth of the cost, and nine images are held out: the bias comes that near.
    let off = summary["gmacs"].as_f64().unwrap() / 0.007 - 1.0;
    assert!(off.abs() < 0.11, "off by {off}");
}

/// Trains with these settings in one go, and with three stops; the whole run's directory.
fn stopped_and_resumed(sets: &[&str]) -> (std::path::PathBuf, Bench) {
    let bench = Bench::new();
    let (whole, parted) = (bench.path("whole"), bench.path("parted"));
    let long = [&["--set", "stages.0.epochs=4", "--set", "stages.1.epochs=2"], sets].concat();
    let command = |run: &Path| {
        let set = format!("run.dir={}", run.display());
        bench.train(2, &[&["--set", &set][..], &long, &["--resume", "auto"]].concat())
    };
    succeed(&mut command(&whole));

    let mut stops = 0;
    loop {
        // Stop each attempt once it has logged something new: in mid-epoch, whatever the machine's speed.
        let before = fs::read_to_string(parted.join("metrics.jsonl")).unwrap_or_default().len();
        let mut child = command(&parted).stdout(std::process::Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        while fs::metadata(parted.join("metrics.jsonl")).map_or(0, |file| file.len()) as usize <= before
            && child.try_wait().unwrap().is_none()
        {
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(20));
        }
        if stops < 3 {
            let kill = format!("kill -USR2 {}", child.id()); // the shell's own: there may be no other
            assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        }
        let status = child.wait().unwrap();
        if status.success() {
            break;
        }
        assert_eq!(status.code(), Some(75));
        stops += 1;
        assert!(stops < 10);
    }
    assert!(stops >= 2, "stopped {stops} times");
    for file in ["model.safetensors", "optimizer.safetensors", "ema.safetensors"] {
        let kept = last(&whole, file);
        assert!(kept == last(&parted, file), "{file} is the same to the bit");
        let expected = file != "ema.safetensors" || sets.iter().any(|set| set.contains("ema"));
        assert_eq!(kept.is_some(), expected, "{file}");
    }
    let numbers = |run: &Path| -> Vec<(u64, Value)> {
        lines(run, "eval")
            .iter()
            .map(|line| (line["step"].as_u64().unwrap(), line["train_loss"].clone()))
            .collect()
    };
    assert_eq!(numbers(&whole), numbers(&parted), "an epoch's mean does not forget what came before a stop");
    (whole, bench)
}

/// Four ranks' run, stopped after its first step, goes on with two ranks, then one: each step is what four would have made
/// of it, the samples, their mixtures, batch norm's batches and the noise included. Each leaves the optimiser's state in a file per rank.
#[test]
fn fewer_ranks_go_on_as_more_would_have() {
    let bench = Bench::new();
    let (whole, parted) = (bench.path("whole"), bench.path("parted"));
    let command = |run: &Path, ranks: usize, more: &[&str]| {
        let set = format!("run.dir={}", run.display());
        let sets =
            ["--set", &set, "--set", "run.log_every=1", "--set", "stages.0.lr=0.01", "--resume", "auto"];
        let mixed = ["--set", "data.mix.mixup_alpha=0.4", "--set", "data.mix.cutmix_alpha=1"];
        let shared = ["--set", "run.shard_optimizer=true"];
        bench.train(ranks, &[&sets[..], &mixed, &shared, more].concat())
    };
    succeed(&mut command(&whole, 4, &[]));
    for ranks in [4, 2] {
        fs::create_dir_all(&parted).unwrap();
        fs::write(parted.join("stop"), "").unwrap();
        assert_eq!(finish(&mut command(&parted, ranks, &[])).status.code(), Some(75));
        assert!(last(&parted, &format!("optimizer-{:04}.safetensors", ranks - 1)).is_some());
    }
    let out = succeed(&mut command(&parted, 1, &[]));
    assert!(out.contains("each of 1 ranks processes 4 of a step's 4 micro-batches, as before"), "{out}");
    let (ours, theirs) = (lines(&parted, "train"), lines(&whole, "train"));
    assert_eq!((ours.len(), theirs.len()), (24, 24));
    for (step, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(ours["samples"], theirs["samples"]);
        // Rounding alone tells them apart; where decisions are hard, in the second stage, it may turn one.
        if step >= 12 {
            continue;
        }
        for key in ["loss", "ce", "con", "div", "cost", "grad_norm"] {
            let (a, b) = (ours[key].as_f64().unwrap(), theirs[key].as_f64().unwrap());
            // Equal but for rounding, which grows once it has turned a ReLU: in the gradient before it does in the losses.
            let bound = if step < 4 { 1e-4 } else { 1e-2 };
            let comparable = key != "grad_norm" || step < 4;
            assert!(!comparable || (a - b).abs() <= bound * b.abs().max(0.1), "step {step}: {key} {a}, {b}");
        }
    }
    // The running statistics too: the first stage's evaluation.
    let loss = |run: &Path| lines(run, "eval")[0]["ce"].as_f64().unwrap();
    assert!((loss(&whole) - loss(&parted)).abs() < 1e-2, "{} {}", loss(&whole), loss(&parted));
}

#[test]
fn a_file_named_stop_ends_a_run_and_resume_goes_on() {
    let bench = Bench::new();
    let run = bench.path("run");
    let set = format!("run.dir={}", run.display());
    fs::create_dir_all(&run).unwrap();
    fs::write(run.join("stop"), "").unwrap();
    let output = finish(&mut bench.train(1, &["--set", &set, "--set", "stages.0.epochs=2"]));
    assert_eq!(output.status.code(), Some(75));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!run.join("stop").exists());
    let refused = finish(&mut bench.train(1, &["--set", &set]));
    assert_eq!(refused.status.code(), Some(2), "a run is not started over by accident");
    // The command that it gives to go on with works as it stands.
    let again = said.lines().find_map(|line| line.split_once("to resume: ")).unwrap().1;
    assert!(again.contains("--set stages.0.epochs=2 --resume "), "{again}");
    succeed(Command::new("sh").args(["-c", again]).current_dir(bench.folder.path()));
    assert_eq!(json(&run.join("summary.json"))["stages"][0]["epochs"], 2);
}

#[test]
fn auto_finds_the_newest_run_of_an_equal_config() {
    let bench = Bench::new();
    succeed(&mut bench.train(1, &[]));
    let run = fs::read_dir(bench.path("runs")).unwrap().next().unwrap().unwrap().path();
    assert!(run.file_name().unwrap().to_string_lossy().starts_with("bars-"));
    let out = succeed(&mut bench.train(1, &["--resume", "auto"]));
    assert!(out.contains("resuming from"), "{out}");
    // Another learning rate is another run.
    let out = succeed(&mut bench.train(1, &["--resume", "auto", "--set", "stages.0.lr=0.02"]));
    assert!(!out.contains("resuming from"), "{out}");
    assert_eq!(fs::read_dir(bench.path("runs")).unwrap().count(), 2);
}

#[test]
fn evaluation_alone_finds_what_training_found() {
    let bench = Bench::new();
    let run = bench.path("run");
    succeed(&mut bench.train(1, &["--set", &format!("run.dir={}", run.display())]));
    let before = fs::read_dir(&run).unwrap().count();
    let top1 = json(&run.join("summary.json"))["top1"].as_f64().unwrap();
    for ranks in [1, 2] {
        let out = succeed(&mut bench.train(ranks, &["--eval-only", "--resume", run.to_str().unwrap()]));
        assert!(
            out.contains(&format!("top-1 {:.2} %", 100.0 * top1)) && out.contains("of 37 images"),
            "{out}"
        );
    }
    assert_eq!(fs::read_dir(&run).unwrap().count(), before);
    assert!(!bench.path("runs").exists());
}

#[test]
fn a_dry_run_shows_the_plan_and_touches_nothing() {
    let bench = Bench::new();
    let out = succeed(&mut bench.train(2, &["--dry-run"]));
    for part in [
        "gamma: 0.01",
        "layer3.2",
        "284966 parameters",
        "12 steps per epoch of 8 samples",
        "37 validation images",
    ] {
        assert_eq!(out.matches(part).count(), 1, "{part} in {out}");
    }
    assert!(!bench.path("runs").exists());
}

/// Whether `whole` has everything that `part` has.
fn holds(whole: &Value, part: &Value) -> bool {
    match part {
        Value::Object(part) => part.iter().all(|(key, part)| holds(&whole[key], part)),
        _ => whole == part,
    }
}

/// tests/dry_run.json is what the launcher's tests take for this program's answer.
#[test]
fn a_dry_run_for_programs_is_what_the_launcher_reads() {
    let out = succeed(&mut Bench::new().train(1, &["--dry-run=json"]));
    let (said, read) = (serde_json::from_str(&out).unwrap(), json(Path::new("../tests/dry_run.json")));
    assert!(holds(&said, &read), "{said} lacks some of {read}");
}
