//! Runs that are copied to another folder (`run.copy_to`) and resumed from there. tests/stores copies to a store.

use crate::common::{Sandbox, assert_rejected, finish, metrics, read_json, succeed, weights};
use std::fs;

#[test]
fn stopped_run_resumes_bit_identical_from_its_copy() {
    let sandbox = Sandbox::new();
    let whole = sandbox.path("whole");
    succeed(&mut sandbox.train_into(&whole, 1, &["--set", "run.log_every=1"]));
    let copy = sandbox.path("copies/a");
    let copy_to = format!("run={{log_every: 1, copy_to: {}}}", copy.display());
    let args = ["--set", &copy_to, "--resume", "auto"];
    let stopped = sandbox.path("stopped");
    fs::create_dir(&stopped).unwrap();
    fs::write(stopped.join("stop"), "").unwrap();
    assert_eq!(finish(&mut sandbox.train_into(&stopped, 1, &args)).status.code(), Some(75));
    let latest = fs::read_to_string(copy.join("checkpoints/latest")).unwrap();
    assert!(copy.join("checkpoints").join(&latest).join("COMPLETE").exists(), "{latest}");

    // A damaged copy is refused, before anything of it is used.
    let model = copy.join("checkpoints").join(&latest).join("model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() - 1]).unwrap();
    let elsewhere = sandbox.path("elsewhere");
    assert_rejected(
        &mut sandbox.train_into(&elsewhere, 1, &args),
        4,
        &[&latest, "model.safetensors is damaged"],
    );
    fs::write(&model, bytes).unwrap();

    let stdout = succeed(&mut sandbox.train_into(&elsewhere, 1, &args));
    assert!(stdout.contains("resuming from") && stdout.contains("copied to"), "{stdout}");
    assert!(weights(&elsewhere) == weights(&whole));
    let losses = |run: &std::path::Path| -> Vec<serde_json::Value> {
        metrics(run, "train").iter().map(|line| line["loss"].clone()).collect()
    };
    assert_eq!(losses(&elsewhere), losses(&whole));
    let summary = |run: &std::path::Path| read_json(&run.join("summary.json"))["stages"].clone();
    assert_eq!(summary(&copy), summary(&whole));

    // The first directory is older than the copy, and a new one by --resume PATH needs run.dir.
    let stdout = succeed(&mut sandbox.train_into(&stopped, 1, &args));
    assert!(stdout.contains("(step 24)"), "{stdout}");
    let path = copy.display().to_string();
    assert_rejected(&mut sandbox.train(1, &["--resume", &path]), 2, &[&path, "set run.dir"]);
    // Another run does not overwrite the copy.
    let new = sandbox.path("new");
    assert_rejected(
        &mut sandbox.train_into(&new, 1, &args[..2]),
        2,
        &["copy_to", "holds the copy of another run"],
    );
    fs::write(sandbox.path("file"), "").unwrap();
    let file = format!("run.copy_to={}", sandbox.path("file").display());
    assert_rejected(&mut sandbox.train_into(&new, 1, &["--set", &file]), 6, &["copy_to", "cannot create"]);
}

#[cfg(not(feature = "remote"))]
#[test]
fn store_needs_the_feature_remote() {
    let sandbox = Sandbox::new();
    let url = ["--set", "run.copy_to=s3://bucket/a"];
    assert_rejected(&mut sandbox.train(1, &url), 2, &["run.copy_to", "s3://bucket/a", "feature `remote`"]);
}
