//! `--profile`, `--find-batch`, and what happens where memory does not suffice.

use crate::common::{Bench, finish, refused, succeed};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

const PARTS: [&str; 6] = ["loader wait", "forward", "backward", "collectives exposed", "optimizer", "host"];

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_profile_has_a_table_that_adds_up_and_a_trace_with_its_ranges() {
    for ranks in [1, 2] {
        let bench = Bench::new();
        // 20 steps and those before and after are more than the 12 of an epoch.
        let out = succeed(&mut bench.train(ranks, &["--profile", "20", "--set", "run.dir=here"]));
        let folder = bench.path("here/profile");
        let entries = |path: &Path| fs::read_dir(path).unwrap().count();
        assert_eq!((entries(&bench.path("here")), entries(&folder)), (1, 2 + ranks), "nothing else of a run");
        let table = fs::read_to_string(folder.join("table.txt")).unwrap();
        assert!(out.contains(table.trim_end()), "{out}\n{table}");
        let profile = json(&folder.join("profile.json"));
        assert_eq!(profile.as_array().unwrap().len(), ranks);
        for (rank, told) in profile.as_array().unwrap().iter().enumerate() {
            let ms = |part: &str| told["ms"][part].as_f64().unwrap();
            let (step, sum) = (ms("step"), PARTS.iter().map(|part| ms(part)).sum::<f64>());
            // In each step they add up to the rounding; medians of parts, of steps that differ, nearly.
            assert!((sum / step - 1.0).abs() < 0.25, "{sum} of {step}: {told}");
            assert!(ms("forward") > 0.0 && ms("backward") > 0.0 && ms("optimizer") > 0.0, "{told}");
            assert!(ms("collectives hidden") + ms("collectives exposed") > 0.0, "{told}");
            let peak = |phase: &str| told["peak_bytes"]["phases"][phase].as_u64().unwrap();
            assert!(peak("forward") > 0 && peak("backward") >= peak("forward"), "{told}");
            assert!(told["peak_bytes"]["held"].as_u64().unwrap() >= peak("optimizer"), "{told}");

            let trace = json(&folder.join(format!("rank{rank}.json")));
            let events = trace["traceEvents"].as_array().unwrap();
            let count = |name: &str| {
                events
                    .iter()
                    .filter(|event| event["name"] == name && event["cat"] == "user_annotation")
                    .count()
            };
            for name in ["step", "loader wait", "forward", "backward", "optimizer"] {
                assert_eq!(count(name), 3, "{name}");
            }
            assert!(
                count("collective") >= 6 && count("collective wait") >= 6,
                "an all-gather and a bucket a step"
            );
            assert!(events.iter().any(|event| event["name"] == "aten::convolution_backward"));
            let thread =
                |name: &str| events.iter().find(|event| event["name"] == name).unwrap()["tid"].clone();
            assert_ne!(thread("collective"), thread("forward"), "collectives have a thread of their own");
        }
    }
}

#[test]
fn the_batch_that_is_found_fits_and_a_larger_one_does_not() {
    let (bench, ranks) = (Bench::new(), 2);
    // What a rank takes at most, in a run of its own.
    let peak = |batch: usize| {
        let sets = [format!("optim.batch_size={batch}"), format!("run.dir=at{batch}")];
        let args = ["--profile", "1", "--set", &sets[0], "--set", &sets[1], WIDE[0], WIDE[1]];
        succeed(&mut bench.train(ranks, &args));
        let profile = json(&bench.path(&format!("at{batch}/profile/profile.json")));
        let held = |rank: &Value| rank["peak_bytes"]["held"].as_u64().unwrap();
        profile.as_array().unwrap().iter().map(held).max().unwrap()
    };
    let (small, large) = (peak(8), peak(96));
    assert!(large > small + (40 << 20), "{small} {large}: images that take memory");
    let limit = u64::midpoint(small, large);
    let memory = format!("{}MiB", limit >> 20);
    let out = succeed(&mut bench.train(ranks, &["--find-batch", "--memory", &memory, WIDE[0], WIDE[1]]));
    let found = out.split("--set optim.batch_size=").nth(1).unwrap_or_else(|| panic!("{out}"));
    let found: usize = found.split_whitespace().next().unwrap().parse().unwrap();
    assert!(found > 8 && found < 96 && found.is_multiple_of(ranks), "{out}");
    assert!(out.contains("--set optim.lr_batch_size=8"), "{out}");
    let taken = peak(found);
    assert!(taken <= limit && limit < large, "{taken} of {limit}, {large} at 96: {out}");
    assert!(!bench.path("runs").exists());
}

#[test]
fn a_search_that_finds_nothing_says_so() {
    let bench = Bench::new();
    for ranks in [1, 2] {
        let least = format!("a batch of {ranks} takes");
        let tiny = ["--find-batch", "--memory", "64MiB"];
        refused(&mut bench.train(ranks, &tiny), 10, &[&least, "run.precision=bf16"]);
    }
    let output = finish(&mut bench.train(1, &["--find-batch", "--memory", "much"]));
    assert_eq!(output.status.code(), Some(2), "the command line is wrong");
}

/// Many views: what a sample takes is far above what a process takes by itself.
const WIDE: [&str; 2] = ["--set", "data.views=8"];

#[test]
fn running_out_of_memory_is_one_line() {
    let bench = Bench::new();
    let train = bench.train(1, &["--set", "optim.batch_size=96", "--set", "data.views=64"]);
    // Enough address space to start, far too little for 6144 images.
    let line = format!("ulimit -v {}; exec \"$0\" \"$@\"", 2 << 20);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", &line])
        .arg(train.get_program())
        .args(train.get_args())
        .current_dir(bench.folder.path());
    let output = finish(&mut limited);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(10), "{said}");
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    for part in [
        "out of memory on rank 0",
        "optim.batch_size",
        "optim.accumulate",
        "data.views",
        "bf16",
        "--find-batch",
    ] {
        assert!(errors[0].contains(part), "{part} in {said}");
    }
}
