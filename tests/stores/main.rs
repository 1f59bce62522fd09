//! Runs that are copied to a store (`run.copy_to`) and resumed from it, over a server of S3's protocol on loopback.

#[path = "../common/mod.rs"]
mod common;
#[path = "../dataloader/server.rs"]
mod server;

use common::{
    Sandbox, assert_rejected, finish, latest_step, metrics, random, read_json, succeed, text, wait_until,
    weights,
};
use serde_json::Value;
use server::{Server, s3};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

const URL: &str = "s3://bucket/runs/a";
const SECRET: &str = "the-secret";

/// A sandbox with a bucket and its server.
struct Store {
    sandbox: Sandbox,
    server: Option<Server>,
    address: String,
}

impl Store {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        fs::create_dir_all(sandbox.path("store/bucket")).unwrap();
        let server = s3(&sandbox.path("store"), "the-key", SECRET);
        let address = server.address.clone();
        Self { sandbox, server: Some(server), address }
    }

    /// The copy of the run, as the server's folder has it.
    fn copy(&self) -> PathBuf {
        self.sandbox.path("store/bucket/runs/a")
    }

    /// A run into `run`, with a checkpoint every 2 steps, that is copied to the store.
    fn train(&self, run: &str, ranks: usize, args: &[&str]) -> Command {
        let settings = format!("run={{log_every: 1, checkpoint_every: 2, keep_last: 2, copy_to: '{URL}'}}");
        let mut command = self.sandbox.train(ranks, &["--set", &settings]);
        command.args(["--set", &common::run_dir(&self.sandbox.path(run))]).args(args);
        self.connect(&mut command, SECRET);
        command
    }

    fn connect(&self, command: &mut Command, secret: &str) {
        for name in ["AWS_SESSION_TOKEN", "AWS_PROFILE", "HTTP_PROXY", "http_proxy"] {
            command.env_remove(name);
        }
        command
            .env("AWS_ENDPOINT_URL", format!("http://{}", self.address))
            .env("AWS_ACCESS_KEY_ID", "the-key")
            .env("AWS_SECRET_ACCESS_KEY", secret)
            .env("AWS_REGION", "us-east-1");
    }

    /// Milliseconds before each of the server's answers.
    fn set_delay(&self, delay: u64) {
        self.server.as_ref().unwrap().behaviour.delay.store(delay, Ordering::Relaxed);
    }
}

/// The names of the checkpoint folders that have files.
fn checkpoints(run: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let full =
        entries.filter(|entry| fs::read_dir(entry.path()).is_ok_and(|mut files| files.next().is_some()));
    full.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

/// The name that a file `latest` or `best` has.
fn pointer(run: &Path, file: &str) -> String {
    fs::read_to_string(run.join("checkpoints").join(file)).unwrap()
}

/// The records of a kind, without times.
fn results(run: &Path, kind: &str) -> Vec<Value> {
    let mut records = metrics(run, kind);
    for record in &mut records {
        let fields = record.as_object_mut().unwrap();
        fields.retain(|name, _| {
            ["step", "loss", "train_loss", "top1", "ce", "grad_norm", "samples"].contains(&name.as_str())
        });
    }
    records
}

fn assert_equal_runs(found: &Path, expected: &Path) {
    assert!(weights(found) == weights(expected), "weights or momenta differ");
    for kind in ["train", "eval"] {
        assert_eq!(results(found, kind), results(expected, kind));
    }
    for key in ["top1", "train_loss", "stages"] {
        assert_eq!(
            read_json(&found.join("summary.json"))[key],
            read_json(&expected.join("summary.json"))[key]
        );
    }
}

#[test]
fn copy_equals_the_run_directory_and_resumes_on_other_ranks() {
    let store = Store::new();
    let run = store.sandbox.path("run");
    let stdout = succeed(&mut store.train("run", 2, &["--set", "run.shard_optimizer=true"]));
    assert!(stdout.contains(&format!("copied to {URL}")), "{stdout}");
    let copy = store.copy();
    // Each checkpoint of the run directory that was copied, the newest and the best of them for certain, and no other.
    let copied = checkpoints(&copy);
    let local = checkpoints(&run);
    let steps: BTreeSet<String> = copied.iter().map(|name| name[..13].to_owned()).collect();
    assert!(steps.is_subset(&local) && copied.len() == steps.len(), "{copied:?} of {local:?}");
    for file in ["latest", "best"] {
        let name = pointer(&copy, file);
        let step = pointer(&run, file);
        assert!(name.starts_with(&format!("{step}-")), "{name} of {step}");
        for entry in fs::read_dir(run.join("checkpoints").join(&step)).unwrap() {
            let path = entry.unwrap().path();
            let other = copy.join("checkpoints").join(&name).join(path.file_name().unwrap());
            assert!(fs::read(&path).unwrap() == fs::read(other).unwrap(), "{}", path.display());
        }
    }
    for file in ["config.yaml", "metrics.jsonl", "summary.json", "confusion.csv", "mistakes.csv"] {
        assert!(fs::read(run.join(file)).unwrap() == fs::read(copy.join(file)).unwrap(), "{file}");
    }

    // Another run would overwrite it.
    assert_rejected(&mut store.train("other", 1, &[]), 2, &["copy_to", URL, "holds the copy of another run"]);
    // The run continues in a new directory, on another number of ranks, and repeats its results.
    let stdout = succeed(&mut store.train("fetched", 1, &["--resume", URL]));
    assert!(stdout.contains("(step 24)"), "{stdout}");
    let fetched = store.sandbox.path("fetched");
    assert_eq!(
        read_json(&fetched.join("summary.json"))["top1"],
        read_json(&run.join("summary.json"))["top1"]
    );
    // A directory that is not older is resumed as it is.
    let output = finish(&mut store.train("run", 2, &["--resume", URL, "--set", "run.shard_optimizer=true"]));
    assert!(output.status.success() && text(&output.stderr).contains("is not older than the copy"));
}

#[test]
fn run_killed_while_copying_resumes_bit_identical_from_the_store() {
    let store = Store::new();
    let mut whole = store.sandbox.train_into(&store.sandbox.path("whole"), 1, &["--set", "run.log_every=1"]);
    succeed(whole.args(["--set", "run.checkpoint_every=2"]));
    let mut resumed = 0;
    let mut stderr = String::new();
    for attempt in 0.. {
        assert!(attempt < 40, "the run does not end: {stderr}");
        // Each attempt starts in an empty directory, as on another machine.
        let name = format!("run{attempt}");
        let run = store.sandbox.path(&name);
        let latest = store.copy().join("checkpoints/latest");
        let before = fs::read_to_string(&latest).ok();
        resumed += usize::from(before.is_some());
        store.set_delay(10 + random(20));
        let mut job = store.train(&name, 1, &["--resume", "auto"]);
        let mut job = job.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let is_new = || fs::read_to_string(&latest).ok() != before;
        wait_until(60, || "no copy".into(), || is_new() || job.try_wait().unwrap().is_some());
        if attempt < 6 {
            std::thread::sleep(Duration::from_millis(random(300)));
            let _ = job.kill(); // it may have ended
        }
        let output = job.wait_with_output().unwrap();
        stderr = text(&output.stderr);
        // Whatever moment it was, the store names a complete checkpoint.
        let named = store.copy().join("checkpoints").join(fs::read_to_string(&latest).unwrap());
        assert!(named.join("COMPLETE").exists(), "{}", named.display());
        if output.status.success() {
            assert_equal_runs(&run, &store.sandbox.path("whole"));
            break;
        }
    }
    assert!(resumed > 1, "resumed {resumed} times");
}

#[test]
fn run_outlives_a_store_that_goes_away() {
    let mut store = Store::new();
    store.set_delay(30);
    let run = store.sandbox.path("run");
    let mut command = store.train("run", 2, &["--set", "collective.timeout_s=4"]);
    let mut job = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let copied = store.copy().join("checkpoints/latest");
    wait_until(60, || "no copy".into(), || copied.exists() || job.try_wait().unwrap().is_some());
    store.server = None;
    let output = job.wait_with_output().unwrap();
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{stderr}");
    let warnings = stderr.lines().filter(|line| line.contains("warning: cannot")).count();
    assert!(warnings <= 1, "{stderr}");
    let error = stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    for part in ["no connection", "the copy of the run is not complete", "step", "--resume auto"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert_eq!(latest_step(&run), 24, "the run itself is complete");
    assert!(run.join("summary.json").exists());

    // Once the store is back, the same command completes the copy.
    let server = s3(&store.sandbox.path("store"), "the-key", SECRET);
    store.address = server.address.clone();
    store.server = Some(server);
    succeed(&mut store.train("run", 2, &["--resume", "auto"]));
    assert!(pointer(&store.copy(), "latest").starts_with("step-00000024-"));
    assert_eq!(read_json(&store.copy().join("summary.json")), read_json(&run.join("summary.json")));
}

#[test]
fn store_without_rights_is_refused_at_the_start() {
    let store = Store::new();
    for args in [&[][..], &["--dry-run"], &["--resume", "auto"]] {
        let mut command = store.train("run", 1, args);
        store.connect(&mut command, "wrong-secret");
        let parts = ["copy_to", URL, "access denied", "that may write to it"];
        assert_rejected(&mut command, 6, &parts);
        assert!(!store.sandbox.path("run").exists());
    }
    let mut command = store.train("run", 1, &["--dry-run"]);
    succeed(&mut command);
    assert!(
        !store.copy().exists() || fs::read_dir(store.copy()).unwrap().next().is_none(),
        "the test file is removed"
    );
    assert_rejected(&mut store.train("run", 1, &["--resume", URL]), 4, &[URL, "holds no copied run"]);
}
