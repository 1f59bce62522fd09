//! `--profile`, `--find-batch`, and running out of memory.

use crate::common::{Sandbox, assert_rejected, finish, read_json, succeed, text};
use crate::reserve_machine;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const PARTS: [&str; 6] = ["loader wait", "forward", "backward", "collectives exposed", "optimizer", "host"];

#[test]
fn profile_parts_add_up_and_the_trace_has_their_spans() {
    let _machine = reserve_machine();
    for ranks in [1, 2] {
        let sandbox = Sandbox::new();
        // 20 steps, with those before and after, are more than the 12 of an epoch.
        let stdout = succeed(&mut sandbox.train(ranks, &["--profile", "20", "--set", "run.dir=here"]));
        let folder = sandbox.path("here/profile");
        let count_entries = |path: &Path| fs::read_dir(path).unwrap().count();
        assert_eq!(count_entries(&sandbox.path("here")), 1, "only the profile");
        assert_eq!(count_entries(&folder), 2 + ranks);
        let table = fs::read_to_string(folder.join("table.txt")).unwrap();
        assert!(stdout.contains(table.trim_end()), "{stdout}\n{table}");
        let profile = read_json(&folder.join("profile.json"));
        assert_eq!(profile.as_array().unwrap().len(), ranks);
        for (rank, profile) in profile.as_array().unwrap().iter().enumerate() {
            let ms = |part: &str| profile["ms"][part].as_f64().unwrap();
            let step = ms("step");
            let sum: f64 = PARTS.iter().map(|part| ms(part)).sum();
            // Parts add up exactly within a step. Their medians over different steps nearly do.
            assert!((sum / step - 1.0).abs() < 0.25, "{sum} of {step}: {profile}");
            assert!(ms("forward") > 0.0 && ms("backward") > 0.0 && ms("optimizer") > 0.0, "{profile}");
            assert!(ms("collectives hidden") + ms("collectives exposed") > 0.0, "{profile}");
            let peak = |phase: &str| profile["peak_bytes"]["phases"][phase].as_u64().unwrap();
            assert!(peak("forward") > 0 && peak("backward") >= peak("forward"), "{profile}");
            assert!(profile["peak_bytes"]["held"].as_u64().unwrap() >= peak("optimizer"), "{profile}");

            let trace = read_json(&folder.join(format!("rank{rank}.json")));
            let events = trace["traceEvents"].as_array().unwrap();
            let count = |name: &str| {
                let spans = events.iter().filter(|event| event["cat"] == "user_annotation");
                spans.filter(|event| event["name"] == name).count()
            };
            for name in ["step", "loader wait", "forward", "backward", "optimizer"] {
                assert_eq!(count(name), 3, "{name}");
            }
            assert!(
                count("collective") >= 6 && count("collective wait") >= 6,
                "an all-gather and a bucket each step"
            );
            assert!(events.iter().any(|event| event["name"] == "aten::convolution_backward"));
            let thread =
                |name: &str| events.iter().find(|event| event["name"] == name).unwrap()["tid"].clone();
            assert_ne!(thread("collective"), thread("forward"), "collectives have a thread of their own");
        }
    }
}

#[test]
fn found_batch_fits_the_memory_limit() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    let ranks = 2;
    // The highest memory use of a rank, in a run of its own.
    let peak = |batch: usize| {
        let settings = [format!("optim.batch_size={batch}"), format!("run.dir=at{batch}")];
        let args = ["--profile", "1", "--set", &settings[0], "--set", &settings[1], WIDE[0], WIDE[1]];
        succeed(&mut sandbox.train(ranks, &args));
        let profile = read_json(&sandbox.path(&format!("at{batch}/profile/profile.json")));
        let held = |rank: &Value| rank["peak_bytes"]["held"].as_u64().unwrap();
        profile.as_array().unwrap().iter().map(held).max().unwrap()
    };
    let small = peak(8);
    let large = peak(96);
    assert!(large > small + (40 << 20), "{small} {large}: images take memory");
    let limit = u64::midpoint(small, large);
    let memory = format!("{}MiB", limit >> 20);
    let search = ["--find-batch", "--memory", &memory, WIDE[0], WIDE[1]];
    let stdout = succeed(&mut sandbox.train(ranks, &search));
    let found = stdout.split("--set optim.batch_size=").nth(1).unwrap_or_else(|| panic!("{stdout}"));
    let found: usize = found.split_whitespace().next().unwrap().parse().unwrap();
    assert!(found > 8 && found < 96 && found.is_multiple_of(ranks), "{stdout}");
    assert!(stdout.contains("--set optim.lr_batch_size=8"), "{stdout}");
    let used = peak(found);
    assert!(used <= limit && limit < large, "{used} of {limit}, {large} at 96: {stdout}");
    assert!(!sandbox.path("runs").exists());
}

#[test]
fn batch_search_without_a_fit_is_rejected() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    for ranks in [1, 2] {
        let smallest = format!("a batch of {ranks} takes");
        let search = ["--find-batch", "--memory", "64MiB"];
        assert_rejected(&mut sandbox.train(ranks, &search), 10, &[&smallest, "run.precision=bf16"]);
    }
    let output = finish(&mut sandbox.train(1, &["--find-batch", "--memory", "much"]));
    assert_eq!(output.status.code(), Some(2), "the command line is invalid");
}

/// Many views: a sample's memory is far above what a process needs without any.
const WIDE: [&str; 2] = ["--set", "data.views=8"];

#[test]
fn out_of_memory_is_one_error_line() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    let train = sandbox.train(1, &["--set", "optim.batch_size=96", "--set", "data.views=64"]);
    // Enough address space to start, far too little for 6144 images.
    let limit = format!("ulimit -v {}; exec \"$0\" \"$@\"", 2 << 20);
    let mut limited = Command::new("sh");
    limited.args(["-c", &limit]).arg(train.get_program()).args(train.get_args());
    let output = finish(limited.current_dir(sandbox.folder.path()));
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(10), "{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    for part in [
        "out of memory on rank 0",
        "optim.batch_size",
        "optim.accumulate",
        "data.views",
        "bf16",
        "--find-batch",
    ] {
        assert!(errors[0].contains(part), "{part} in {stderr}");
    }
}
