//! cluster/gpu/check.sh without a GPU: the same code on the CPU, small, half a minute. Needs a Python with torch, which PYTHON may
//! name; said to be left out where there is none.

use crate::reserve_machine;
use std::path::Path;
use std::process::Command;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cluster/gpu/check.sh");

fn check(args: &[&str], out: &Path) -> (bool, String) {
    let mut command = Command::new(SCRIPT);
    command
        .args(args)
        .arg("--output")
        .arg(out)
        .args(["--codinet-train", env!("CARGO_BIN_EXE_codinet-train")]);
    let done = command.output().unwrap();
    (done.status.success(), String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned())
}

#[test]
fn the_check_runs_on_a_cpu() {
    let _machine = reserve_machine();
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    let torch = "import torch; print(torch.cuda.is_available())";
    let found = Command::new(&python).args(["-c", torch]).output();
    let Some(found) = found.ok().filter(|found| found.status.success()) else {
        return eprintln!("left out: {python} has no torch; set PYTHON to one that has");
    };
    let out = tempfile::tempdir().unwrap();
    let (right, said) = check(&["--device", "cpu", "--quick"], out.path());
    assert!(right, "{said}");
    let read = |name: &str| std::fs::read_to_string(out.path().join(name)).unwrap();
    let table = read("gpu-check.md");
    assert!(table.contains("ResNet-20, gated") && said.contains(table.trim()), "{said}");
    let result: serde_json::Value = serde_json::from_str(&read("gpu-check.json")).unwrap();
    for row in result["fast"].as_array().unwrap() {
        for (program, cell) in row["programs"].as_object().unwrap() {
            let speeds = cell["images_per_second"].as_array().unwrap();
            assert!(speeds.iter().any(|speed| speed.as_f64().unwrap() > 0.0), "{program}: {cell}");
        }
    }
    if String::from_utf8_lossy(&found.stdout).trim() == "False" {
        let (right, said) = check(&[], out.path());
        assert!(!right && said.lines().count() == 1 && said.contains("no GPU"), "{said}");
    }
}
