//! cluster/gpu/check.sh without a GPU: the same code on the CPU, with small networks, in half a minute. It needs a Python with
//! torch (`PYTHON`, else python3), and is skipped with a message where there is none.

use crate::common::{program, read_json, text};
use crate::reserve_machine;
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/gpu/check.sh");

/// Runs the script: whether it succeeded, and all that it printed.
fn check(args: &[&str], results: &Path) -> (bool, String) {
    let mut command = Command::new(SCRIPT);
    command.args(args).arg("--output").arg(results).arg("--codinet-train").arg(program("codinet-train"));
    let output = command.output().unwrap();
    (output.status.success(), text(&[output.stdout, output.stderr].concat()))
}

#[test]
fn gpu_check_runs_on_a_cpu() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let has_gpu = "import torch; print(torch.cuda.is_available())";
    let has_gpu = Command::new(&python).args(["-c", has_gpu]).output();
    let Some(has_gpu) = has_gpu.ok().filter(|output| output.status.success()) else {
        return eprintln!("skipped: {python} has no torch; set PYTHON to one that has");
    };
    let _machine = reserve_machine();
    let results = tempfile::tempdir().unwrap();
    let (success, output) = check(&["--device", "cpu", "--quick"], results.path());
    assert!(success, "{output}");
    let table = std::fs::read_to_string(results.path().join("gpu-check.md")).unwrap();
    assert!(table.contains("ResNet-20, gated") && output.contains(table.trim()), "{output}");
    let result = read_json(&results.path().join("gpu-check.json"));
    for row in result["inference"].as_array().unwrap() {
        assert!(row["gated"].as_f64().unwrap() > 0.0, "{row}");
    }
    for row in result["fast"].as_array().unwrap() {
        for (program, cell) in row["programs"].as_object().unwrap() {
            let speeds = cell["images_per_second"].as_array().unwrap();
            assert!(speeds.iter().any(|speed| speed.as_f64().unwrap() > 0.0), "{program}: {cell}");
        }
    }
    if text(&has_gpu.stdout).trim() == "False" {
        let (success, output) = check(&[], results.path());
        assert!(!success && output.lines().count() == 1 && output.contains("no GPU"), "{output}");
    }
}
