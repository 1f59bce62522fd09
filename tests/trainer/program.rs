//! `codinet-train` as a user runs it: on one rank and under mpirun.

use crate::common::{
    Sandbox, assert_rejected, finish, metrics, program, read_json, shell, succeed, text, wait_until, weights,
};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

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
