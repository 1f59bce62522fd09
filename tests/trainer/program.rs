//! `codinet-train` as a user runs it: on one rank and under mpirun, stopped and resumed.

use crate::common::{
    Sandbox, assert_rejected, finish, latest_checkpoint, metrics, program, read_json, send_signal, shell,
    succeed, text, wait_until, weights,
};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A file of the latest checkpoint, where it has one.
fn checkpoint_file(run: &Path, file: &str) -> Option<Vec<u8>> {
    fs::read(latest_checkpoint(run).join(file)).ok()
}

#[test]
fn one_and_two_ranks_write_complete_and_equivalent_runs() {
    let sandbox = Sandbox::new();
    let runs = [1, 2].map(|ranks| {
        let run = sandbox.path(&format!("run{ranks}"));
        let settings = ["--set", "stages.0.epochs=3", "--set", "run.keep_best=false"];
        let stdout = succeed(&mut sandbox.train_into(&run, ranks, &settings));
        assert!(stdout.contains("top-1") && stdout.contains("tensorboard --logdir"), "{stdout}");
        // The whole run's steps and epochs: 3 + 1 of 12 steps.
        for start in ["step 3/48 · epoch 1/4 · loss ", "step 39/48 · epoch 4/4 · loss "] {
            let line = stdout.lines().find(|line| line.starts_with(start)).expect(&stdout);
            assert!(line.contains(" img/s · ") && line.contains(" GB"), "{line}");
        }
        run
    });
    for (run, ranks) in runs.iter().zip([1, 2]) {
        let summary = read_json(&run.join("summary.json"));
        assert_eq!(summary["validation_images"], 37, "each validation image once");
        assert_eq!(summary["world_size"], ranks);
        for key in ["top1", "top5", "gmacs", "gmacs_static", "distinct_paths", "images_per_second", "seconds"]
        {
            assert!(summary[key].as_f64().unwrap() > 0.0, "{key}: {}", summary[key]);
        }
        assert_eq!(summary["top5"], 1.0, "of four classes the label is always in the top five");
        assert_eq!(summary["stages"].as_array().unwrap().len(), 2);
        assert!(summary["top1"].as_f64().unwrap() > 0.5, "the classes are easy: {}", summary["top1"]);
        for file in ["config.yaml", "log.txt", "metrics.jsonl", "checkpoints/latest"] {
            assert!(run.join(file).exists(), "{file}");
        }
        let mut files = fs::read_dir(run).unwrap().flatten();
        let events = files.find(|file| file.file_name().to_string_lossy().starts_with("events.")).unwrap();
        assert!(events.metadata().unwrap().len() > 1000);
        // 12 steps an epoch: a record every third, an evaluation each epoch, three checkpoints kept.
        assert_eq!(metrics(run, "train").len(), 16);
        assert_eq!(metrics(run, "eval").len(), 4);
        // Two checkpoints an epoch, before and after its evaluation.
        let events = metrics(run, "event");
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.iter().all(|line| line["time"].as_str().is_some_and(|time| time.ends_with('Z'))));
        assert!(lines.is_sorted_by_key(|line| line["seconds"].as_f64().unwrap()));
        assert_eq!(events.iter().filter(|event| event["event"] == "checkpoint").count(), 8);
        assert!(events.iter().all(|event| event["blocked_s"].as_f64().unwrap() > 0.0));
        let kept = fs::read_dir(run.join("checkpoints")).unwrap().flatten();
        assert_eq!(kept.filter(|entry| entry.file_name().to_string_lossy().starts_with("step-")).count(), 3);
    }
    // Samples, crops and noise are the same at every world size. The first losses differ by rounding and by the batches that
    // batch norm normalises over.
    let first = |run: &Path, key: &str| metrics(run, "train")[0][key].as_f64().unwrap();
    let [samples, losses] = ["samples", "ce"].map(|key| [first(&runs[0], key), first(&runs[1], key)]);
    assert_eq!(samples[0], samples[1]);
    assert!((losses[0] / losses[1] - 1.0).abs() < 0.2, "{losses:?}");
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
        "cost={budget_gmacs: 0.007, gamma_step: 0.01, calibrate: true, calibration_samples: 9}",
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

/// Hard gates whose temperature falls, and path vectors that are not the gates' decisions.
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
        "stages.1.noise=true",
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
    // After 2 of 12 steps of a cosine: 0.05·(1 + cos(π/6))/2 = 0.0467, and over two epochs 0.05·(1 + cos(π/12))/2 = 0.0491.
    let note = "changes the schedule of stages.0: the learning rate is 0.0491 from here, instead of 0.0467";
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
fn records_reach_a_command_that_may_end_and_is_started_again() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let copy = sandbox.path("copy.jsonl");
    let on_record = |command: String| format!("run.on_record={command}");
    let all = on_record(format!("cat >> {}", copy.display()));
    succeed(&mut sandbox.train_into(&run, 2, &["--set", &all]));
    assert_eq!(fs::read_to_string(&copy).unwrap(), fs::read_to_string(run.join("metrics.jsonl")).unwrap());
    // A command that ends after its first record.
    let once = on_record("head -n 1 >/dev/null; exit 3".into());
    let output = finish(&mut sandbox.train_into(&sandbox.path("second"), 1, &["--set", &once]));
    assert!(output.status.success(), "training does not depend on it");
    let stderr = text(&output.stderr);
    assert!(stderr.contains("warning: run.on_record: the command ended (exit status: 3)"), "{stderr}");
}

/// An MLflow server on a port of this machine, until it is dropped.
struct MlflowServer {
    process: Child,
    url: String,
}

impl MlflowServer {
    fn start(python: &str, folder: &Path) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let store = format!("sqlite:///{}", folder.join("mlflow.db").display());
        let mut command = Command::new(python);
        command.args(["-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", &store]);
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).current_dir(folder);
        let log = || File::options().create(true).append(true).open(folder.join("server.log")).unwrap();
        let process = command.stdout(log()).stderr(log()).process_group(0).spawn().unwrap();
        let describe = || fs::read_to_string(folder.join("server.log")).unwrap();
        wait_until(120, describe, || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { process, url: format!("http://127.0.0.1:{port}") }
    }
}

impl Drop for MlflowServer {
    fn drop(&mut self) {
        shell(&format!("kill -- -{}", self.process.id())); // its workers too
        let _ = self.process.wait();
    }
}

/// examples/mlflow_records.py with a server and a client of MLflow itself. It needs a Python with mlflow (`PYTHON`, else
/// python3), and is skipped with a message where there is none.
#[test]
fn records_reach_an_mlflow_server() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let import = Command::new(&python).args(["-c", "import mlflow"]).output();
    if !import.is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: {python} has no mlflow; set PYTHON to one that has");
    }
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let server = MlflowServer::start(&python, sandbox.folder.path());
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/mlflow_records.py");
    let hook = format!("run.on_record={python} {example} bars");
    let mut train = sandbox.train_into(&run, 1, &["--set", &hook]);
    succeed(train.env("MLFLOW_TRACKING_URI", &server.url));
    let read = "import json, mlflow
client = mlflow.MlflowClient()
run, = client.search_runs([mlflow.set_experiment('codinet').experiment_id])
points = lambda name: [[point.step, point.value] for point in client.get_metric_history(run.info.run_id, name)]
print(json.dumps({name: sorted(points(name)) for name in run.data.metrics}))";
    // The run may be over before the example has sent its last record.
    let mut found = Value::Null;
    let expected = |kind: &str, name: &str| {
        let point = |line: &Value| json!([line["step"], line[name]]);
        Value::Array(metrics(&run, kind).iter().map(point).collect())
    };
    let evaluations = expected("eval", "top1");
    for _ in 0..10 {
        let mut client = Command::new(&python);
        let out = succeed(client.args(["-c", read]).env("MLFLOW_TRACKING_URI", &server.url));
        found = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        if found["eval/top1"] == evaluations {
            break;
        }
    }
    assert_eq!(found["eval/top1"], evaluations);
    for name in ["loss", "gmacs", "lr"] {
        assert_eq!(found[format!("train/{name}")], expected("train", name), "{name}");
    }
    let last = metrics(&run, "eval").pop().unwrap();
    assert_eq!(found["eval/class_accuracy/3"][1], json!([last["step"], last["class_accuracy"][3]]));
}

/// Evaluated by one process and, resumed after its end, by three ranks, which share 37 images unevenly.
#[test]
fn accuracy_by_class_is_independent_of_the_number_of_ranks() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    succeed(&mut sandbox.train_into(&run, 1, &["--set", "optim.batch_size=12"]));
    let files = || {
        let read = |name: &str| fs::read_to_string(run.join(name)).unwrap();
        let summary = read_json(&run.join("summary.json"));
        let classes = ["class_accuracy", "worst_classes", "confused_pairs"].map(|key| summary[key].clone());
        let mistake = |line: &str| -> (String, f64) {
            let mut fields: Vec<&str> = line.split(',').collect();
            let probability = fields.remove(3).parse().unwrap();
            (fields.join(","), probability)
        };
        let mistakes = read("mistakes.csv");
        let mut mistakes: Vec<(String, f64)> = mistakes.lines().skip(1).map(mistake).collect();
        assert!(mistakes.is_sorted_by(|a, b| a.1 >= b.1));
        mistakes.sort_by(|a, b| a.0.cmp(&b.0)); // rounding may exchange two
        (classes, read("confusion.csv"), mistakes)
    };
    let (classes, confusion, mistakes) = files();
    let images =
        confusion.lines().skip(1).map(|line| line.rsplit(',').next().unwrap().parse::<usize>().unwrap());
    assert_eq!(images.sum::<usize>(), 37);
    for name in ["summary.json", "confusion.csv", "mistakes.csv"] {
        fs::remove_file(run.join(name)).unwrap();
    }
    let resume = ["--resume", run.to_str().unwrap(), "--set", "optim.batch_size=12"];
    succeed(&mut sandbox.train(3, &resume));
    let (other_classes, other_confusion, other_mistakes) = files();
    assert_eq!((other_classes, other_confusion), (classes, confusion));
    assert!(!mistakes.is_empty() && mistakes.len() == other_mistakes.len());
    for (a, b) in mistakes.iter().zip(&other_mistakes) {
        assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-3, "{a:?}, {b:?}");
    }
}

#[test]
fn replayed_steps_change_no_result() {
    let sandbox = Sandbox::new();
    let [plain, replayed] = [0, 2].map(|every| {
        let run = sandbox.path(&format!("run{every}"));
        let every = format!("run.replay_every={every}");
        succeed(&mut sandbox.train_into(&run, 2, &["--set", &every, "--set", "optim.accumulate=2"]));
        weights(&run)
    });
    assert!(plain == replayed);
}

/// A batch system may set it for every job. OpenMP then binds the first thread, and all that it starts, to one core.
#[test]
fn rank_uses_all_its_cores_whatever_binds_openmp() {
    let cores = |variable: Option<(&str, &str)>| {
        let mut command = Command::new(program("codinet-train"));
        command.arg("--probe").envs(variable).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let probe: Value = serde_json::from_str(&line).unwrap();
        probe["probe"]["ranks"][0]["cpu_list"].as_str().unwrap().to_owned()
    };
    let all = cores(None);
    for variable in [("OMP_PROC_BIND", "true"), ("OMP_PLACES", "cores"), ("GOMP_CPU_AFFINITY", "0-255")] {
        assert_eq!(cores(Some(variable)), all, "{variable:?}");
    }
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

#[test]
fn eval_only_repeats_the_accuracy_of_training() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    succeed(&mut sandbox.train_into(&run, 1, &[]));
    let files = fs::read_dir(&run).unwrap().count();
    let top1 = read_json(&run.join("summary.json"))["top1"].as_f64().unwrap();
    let top1 = format!("top-1 {:.2} %", 100.0 * top1);
    for ranks in [1, 2] {
        let stdout = succeed(&mut sandbox.train(ranks, &["--eval-only", "--resume", run.to_str().unwrap()]));
        assert!(stdout.contains(&top1) && stdout.contains("of 37 images"), "{stdout}");
    }
    assert_eq!(fs::read_dir(&run).unwrap().count(), files);
    assert!(!sandbox.path("runs").exists());
}

/// An image's random path is a function of the seed and the image, so that evaluations agree whatever the ranks.
#[test]
fn random_paths_train_and_are_evaluated_alike() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    let random = ["--set", "model.routing={random: 0.6}", "--set", "optim={accumulate: 2}"];
    succeed(&mut sandbox.train_into(&run, 2, &random));
    let summary = read_json(&run.join("summary.json"));
    let rates: Vec<f64> = serde_json::from_value(summary["rates"].clone()).unwrap();
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    assert!(rates.len() == 9 && (mean - 0.6).abs() < 0.1, "{rates:?}");
    assert!(summary["distinct_paths"].as_u64().unwrap() > 20, "{summary}");
    for line in metrics(&run, "train") {
        assert_eq!(line["rates"], line["rates_as_trained"], "gates decide in training as in inference");
    }
    let top1 = format!("top-1 {:.2} %", 100.0 * summary["top1"].as_f64().unwrap());
    let paths = format!("{} distinct paths", summary["distinct_paths"]);
    let evaluate = [&random[..], &["--eval-only", "--resume", run.to_str().unwrap()]].concat();
    for ranks in [1, 3] {
        let stdout = succeed(&mut sandbox.train(ranks, &evaluate));
        assert!(stdout.contains(&top1) && stdout.contains(&paths), "{stdout}");
    }
}

#[test]
fn fixed_path_trains_as_a_static_network() {
    let sandbox = Sandbox::new();
    let run = sandbox.path("run");
    succeed(&mut sandbox.train_into(&run, 1, &["--set", "model.routing={fixed: [0, 3, 4, 8]}"]));
    let summary = read_json(&run.join("summary.json"));
    assert_eq!(summary["gmacs"], summary["gmacs_static"]);
    assert_eq!((&summary["distinct_paths"], &summary["rates"]), (&1.into(), &Value::Array(Vec::new())));
    assert!(summary["top1"].as_f64().unwrap() > 0.5, "the classes are easy: {}", summary["top1"]);
    let rejected = |routing: &str, parts: &[&str]| {
        let setting = format!("model.routing={routing}");
        assert_rejected(&mut sandbox.train(1, &["--set", &setting]), 2, parts);
    };
    rejected("{fixed: [0, 9]}", &["model.routing runs gate 9", "are 0 to 8"]);
    rejected("{fixed: [4, 3]}", &["model.routing", "rising order"]);
    rejected("{random: 0}", &["model.routing", "between 0 and 1"]);
}

#[test]
fn list_names_every_shipped_config() {
    let stdout = succeed(Command::new(program("codinet-train")).arg("--list"));
    for (name, _) in codinet_trainer::config::BUILT_IN {
        assert!(stdout.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {stdout}");
    }
}

#[test]
fn failed_start_leaves_no_run_directory() {
    let sandbox = Sandbox::new();
    let broken = ["--set", "model.init_from=/nowhere.safetensors"];
    assert!(!finish(&mut sandbox.train(1, &broken)).status.success());
    assert!(!sandbox.path("runs").exists());
    // With restarts the launcher makes the directory beforehand.
    let mut launcher = Command::new(program("codinet-launch"));
    launcher.args(["-n", "1", "--max-restarts", "1"]).arg(&sandbox.config).args(broken);
    assert!(!finish(launcher.current_dir(sandbox.folder.path())).status.success());
    assert_eq!(fs::read_dir(sandbox.path("runs")).unwrap().count(), 0);
}

#[test]
fn a_bar_shows_the_progress_on_a_terminal() {
    let sandbox = Sandbox::new();
    for (name, ranks) in [("codinet-train", ""), ("codinet-launch", "-n 2 ")] {
        let line = format!("{} {ranks}{}", program(name).display(), sandbox.config.display());
        let mut terminal = Command::new("script");
        terminal.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm").env("COLUMNS", "100");
        let stdout = succeed(terminal.current_dir(sandbox.folder.path()));
        assert!(stdout.contains("/24 · epoch 1/2 · loss ") && stdout.contains(" img/s · "), "{stdout}");
        assert!(!stdout.contains("step 3/24") && !stdout.contains("@progress"), "{stdout}");
        assert!(stdout.contains("top-1"), "{stdout}");
    }
}

#[test]
fn closed_pipe_is_no_error() {
    let sandbox = Sandbox::new();
    let config = sandbox.config.to_str().unwrap();
    let data = sandbox.path("train");
    let train = ["codinet-train", config, "--dry-run"];
    let inspect = ["codinet-data", "inspect", data.to_str().unwrap()];
    let programs = ["train", "launch", "data", "infer", "export", "analyze"];
    let programs = programs.map(|name| format!("codinet-{name}"));
    let completions = programs.iter().map(|name| vec![name.as_str(), "--completions", "bash"]);
    for words in completions.chain([train.to_vec(), inspect.to_vec()]) {
        let command = format!("{} {}", program(words[0]).display(), words[1..].join(" "));
        let line = format!("{{ {command}; echo $? >status; }} 2>errors | true");
        let mut shell = Command::new("sh");
        assert!(shell.args(["-c", &line]).current_dir(sandbox.folder.path()).status().unwrap().success());
        let read = |name: &str| fs::read_to_string(sandbox.path(name)).unwrap();
        wait_until(60, || format!("{words:?}"), || sandbox.path("status").exists());
        assert_eq!((read("status").trim(), read("errors").as_str()), ("0", ""), "{words:?}");
        fs::remove_file(sandbox.path("status")).unwrap();
    }
    // Nobody reads the errors either: each program ends with the code that it would end with.
    for (name, args) in [("train", "nowhere.yaml"), ("launch", "nowhere.yaml"), ("data", "inspect nowhere")] {
        let program = program(&format!("codinet-{name}"));
        let code = Command::new(&program).args(args.split(' ')).output().unwrap().status.code().unwrap();
        let line =
            format!("{{ sleep 0.2; {} {args}; echo $? >{name}-code; }} 2>&1 | true", program.display());
        succeed(Command::new("sh").args(["-c", &line]).current_dir(sandbox.folder.path()));
        let read = || fs::read_to_string(sandbox.path(&format!("{name}-code"))).unwrap_or_default();
        wait_until(60, || name.to_owned(), || !read().is_empty());
        assert_eq!(read().trim(), code.to_string(), "{name}");
    }
}

#[test]
fn dry_run_prints_the_plan_and_writes_nothing() {
    let sandbox = Sandbox::new();
    let stdout = succeed(&mut sandbox.train(2, &["--dry-run"]));
    for part in [
        "gamma: 0.01",
        "layer3.2",
        "284966 parameters",
        "12 steps per epoch of 8 samples",
        "37 validation images",
        "8 samples a step = 2 ranks × 4 samples; batch norm sees 8 images at once: few for its statistics",
    ] {
        assert_eq!(stdout.matches(part).count(), 1, "{part} in {stdout}");
    }
    let stdout = succeed(&mut sandbox.train(1, &["--dry-run", "--set", "optim.lr_batch_size=256"]));
    for part in ["relaxed: lr 0.05 × 8/256 = 0.0016", "hard: lr 0.01 × 8/256 = 3.1e-4"] {
        assert_eq!(stdout.matches(part).count(), 1, "{part} in {stdout}");
    }
    assert!(!sandbox.path("runs").exists());
}

/// A rate that the batch size scales is not the one that the config says: the run's start says which it is.
#[test]
fn start_says_the_rate_and_the_samples_of_a_rank() {
    let sandbox = Sandbox::new();
    let stdout =
        succeed(&mut sandbox.train(2, &["--set", "optim.lr_batch_size=256", "--set", "stages=[{lr: 0.01}]"]));
    for part in ["train: lr 0.01 × 8/256 = 3.1e-4", "8 samples a step = 2 ranks × 4 samples"] {
        assert_eq!(stdout.matches(part).count(), 1, "{part} in {stdout}");
    }
}

/// Whether `whole` has every field of `part` with its value.
fn contains(whole: &Value, part: &Value) -> bool {
    match part {
        Value::Object(part) => part.iter().all(|(key, part)| contains(&whole[key], part)),
        _ => whole == part,
    }
}

/// The launcher's tests use tests/dry_run.json as this program's output.
#[test]
fn dry_run_json_has_the_fields_that_the_launcher_reads() {
    let stdout = succeed(&mut Sandbox::new().train(1, &["--dry-run=json"]));
    let printed = serde_json::from_str(&stdout).unwrap();
    let expected = read_json(Path::new("../tests/dry_run.json"));
    assert!(contains(&printed, &expected), "{printed} lacks some of {expected}");
}
