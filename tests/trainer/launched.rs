//! `codinet-launch` with the real codinet-train: restarts after crashes, signals, and the doctor's checks.

use crate::common::{
    Sandbox, program, random, run_dir, send_signal, shell, succeed, text, wait_until, weights,
};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

fn launcher() -> Command {
    Command::new(program("codinet-launch"))
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The ranks of a job: codinet-train processes that mpirun, a child of the launcher, has started.
fn ranks(launcher: &Child) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut ranks: Vec<u32> = pids
        .filter(|&pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "codinet-train" && parent(pid).and_then(parent) == Some(launcher.id())
        })
        .collect();
    ranks.sort_unstable();
    ranks
}

#[test]
fn run_with_three_killed_ranks_equals_uninterrupted_run() {
    let sandbox = Sandbox::new();
    let command = |run: &Path, restarts: &str| {
        let mut command = launcher();
        command.args(["-n", "2", "--max-restarts", restarts, "--back-off", "1"]).arg(&sandbox.config);
        command.args(["--set", &run_dir(run), "--set", "stages.0.epochs=6"]);
        command.args(["--set", "run={log_every: 1, checkpoint_every: 2}"]);
        command.current_dir(sandbox.folder.path());
        command
    };
    let whole = sandbox.path("whole");
    let killed = sandbox.path("killed");
    succeed(&mut command(&whole, "0"));

    let log = sandbox.path("stdout");
    let errors = sandbox.path("stderr");
    let stdout = fs::File::create(&log).unwrap();
    let stderr = fs::File::create(&errors).unwrap();
    let mut job = command(&killed, "3").stdout(stdout).stderr(stderr).spawn().unwrap();
    let output = || fs::read_to_string(&log).unwrap();
    for kill in 0..3 {
        // A few steps after each start, and not before there is a checkpoint to resume from.
        let steps = 3 + random(12) as usize;
        let latest = killed.join("checkpoints/latest");
        wait_until(120, output, || {
            assert!(job.try_wait().unwrap().is_none(), "it ended before kill {kill}: {}", output());
            let output = output();
            let starts = output.matches("mpirun -n").count();
            let since_start = output.rsplit("mpirun ").next().unwrap_or_default();
            starts > kill && since_start.matches("] step ").count() >= steps && latest.exists()
        });
        let ranks = ranks(&job);
        assert_eq!(ranks.len(), 2);
        // Rank 0, which prints, is the first to go.
        let victim = if kill == 0 { 0 } else { random(2) as usize };
        send_signal("KILL", ranks[victim]);
    }
    let status = job.wait().unwrap();
    let errors = fs::read_to_string(errors).unwrap();
    assert!(status.success(), "{status}\n{}\n{errors}", output());
    for restart in 1..=3 {
        let line = format!("exit code 9 (mpirun ended with 137); restart {restart} of 3");
        assert!(errors.contains(&line), "{errors}");
    }
    assert!(errors.contains(" failed first; its last lines:"), "{errors}");
    assert_eq!(output().matches("resuming from").count(), 3, "{}", output());
    assert!(weights(&whole) == weights(&killed), "weights or momenta differ");
}

#[test]
fn killing_the_launcher_ends_all_ranks() {
    let sandbox = Sandbox::new();
    let mut command = launcher();
    command.args(["-n", "2"]).arg(&sandbox.config).args(["--set", "stages.0.epochs=100000"]);
    let mut job = command.current_dir(sandbox.folder.path()).stdout(Stdio::null()).spawn().unwrap();
    let mut started = Vec::new();
    wait_until(
        60,
        || "no ranks".into(),
        || {
            started = ranks(&job);
            started.len() >= 2
        },
    );
    job.kill().unwrap();
    job.wait().unwrap();
    let survives = |pid: &u32| Path::new(&format!("/proc/{pid}")).exists();
    wait_until(30, || format!("{started:?} survive"), || !started.iter().any(survives));
}

/// `timeout` and schedulers signal a program and then its group. That must not count as the second signal, which ends at once.
#[test]
fn duplicate_signal_is_one_stop_request() {
    let mut launched = launcher();
    launched.args(["-n", "2"]);
    for mut command in [launched, Command::new(program("codinet-train"))] {
        let sandbox = Sandbox::new();
        let run = sandbox.path("run");
        command.arg(&sandbox.config).args(["--set", "stages.0.epochs=100000", "--set", &run_dir(&run)]);
        command.current_dir(sandbox.folder.path());
        let mut job = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let metrics = run.join("metrics.jsonl");
        let has_step = || fs::read_to_string(&metrics).is_ok_and(|lines| lines.contains("\"train\""));
        wait_until(60, || "no step".into(), has_step);
        for _ in 0..2 {
            send_signal("TERM", job.id());
        }
        assert_eq!(job.wait().unwrap().code(), Some(75));
        assert!(run.join("checkpoints/latest").exists());
    }
}

/// A run that was given a new directory resumes in that one, not in an older run of the same config.
#[test]
fn restart_resumes_its_own_run_directory() {
    let sandbox = Sandbox::new();
    let mut command = launcher();
    command.args(["-n", "2", "--max-restarts", "1", "--back-off", "0"]).arg(&sandbox.config);
    command.args(["--set", "run={log_every: 1, checkpoint_every: 2}", "--set", "stages.0.epochs=200"]);
    let log = sandbox.path("stdout");
    let stdout = fs::File::create(&log).unwrap();
    command.current_dir(sandbox.folder.path()).stdout(stdout).stderr(Stdio::null());
    let mut job = command.spawn().unwrap();
    let output = || fs::read_to_string(&log).unwrap();
    let wait_for = |part: &str, times: usize| {
        wait_until(120, output, || output().matches(part).count() >= times);
    };
    wait_for("] step ", 5);
    send_signal("KILL", ranks(&job)[1]);
    wait_for("resuming from", 1);
    wait_for("] step ", 8);
    // After a stop request it does not restart.
    send_signal("TERM", job.id());
    assert_eq!(job.wait().unwrap().code(), Some(75), "{}", output());
    let runs: Vec<PathBuf> =
        fs::read_dir(sandbox.path("runs")).unwrap().map(|run| run.unwrap().path()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert!(runs[0].join("checkpoints/latest").exists());
}

/// What `codinet-launch doctor --json` reports.
#[derive(Debug)]
struct Diagnosis {
    code: Option<i32>,
    /// The checks that are not green.
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Problem {
    check: String,
    state: String,
    found: String,
}

/// Runs the doctor; `wrapper` are words in front of its command.
fn diagnose(sandbox: &Sandbox, wrapper: &[&str], args: &[&str]) -> Diagnosis {
    let program = program("codinet-launch");
    let mut command = match wrapper {
        [] => Command::new(program),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program);
            command
        }
    };
    command.args(["doctor", "--json"]).args(args).current_dir(sandbox.folder.path());
    let output = command.output().unwrap();
    let stdout = text(&output.stdout);
    let report: Value = serde_json::from_str(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {stdout}{}", text(&output.stderr)));
    let field = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let not_green = report["checks"].as_array().unwrap().iter().filter(|check| check["state"] != "green");
    let problems = not_green
        .inspect(|check| assert!(check["fix"].is_string(), "{check}"))
        .map(|check| Problem {
            check: field(check, "name"),
            state: field(check, "state"),
            found: field(check, "found"),
        })
        .collect();
    Diagnosis { code: output.status.code(), problems }
}

/// Asserts that the only red check is `check`, and that its message contains `part`.
fn assert_red(diagnosis: &Diagnosis, check: &str, part: &str) {
    let red: Vec<&Problem> = diagnosis.problems.iter().filter(|problem| problem.state == "red").collect();
    assert_eq!(diagnosis.code, Some(1), "{diagnosis:?}");
    assert!(
        red.len() == 1 && red[0].check == check && red[0].found.contains(part),
        "{check}, {part}: {diagnosis:?}"
    );
}

#[test]
fn doctor_names_each_fault() {
    let sandbox = Sandbox::new();
    let config = sandbox.config.to_str().unwrap();
    let healthy = diagnose(&sandbox, &[], &["-n", "2", config]);
    assert_eq!(healthy.code, Some(0), "{healthy:?}");
    assert!(fs::read_dir(sandbox.folder.path()).unwrap().count() == 3, "it leaves no file behind");

    // A config that requests a GPU, on a machine without one.
    if !Path::new("/proc/driver/nvidia/gpus").exists() {
        let diagnosis = diagnose(&sandbox, &[], &["-n", "1", config, "--set", "run.device=cuda"]);
        assert_red(&diagnosis, "gpus", "run.device is cuda, but rank 0");
    }
    // GPUs that only nvidia-smi lists, as in a container: the driver has them, and CUDA does not.
    if !Path::new("/proc/driver/nvidia/gpus").exists() {
        let tools = sandbox.path("tools");
        fs::create_dir(&tools).unwrap();
        fs::write(tools.join("nvidia-smi"), "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-0)'\n").unwrap();
        shell(&format!("chmod +x {}/nvidia-smi", tools.display()));
        let path = format!("PATH={}:{}", tools.display(), std::env::var("PATH").unwrap());
        let diagnosis = diagnose(&sandbox, &["env", &path], &["-n", "1", config, "--set", "run.device=auto"]);
        assert_red(&diagnosis, "gpus", "has 1 GPU, but libtorch sees none on rank 0");
        fs::remove_dir_all(&tools).unwrap();
    }
    // One core of several.
    if std::thread::available_parallelism().unwrap().get() > 1 {
        let diagnosis = diagnose(&sandbox, &["taskset", "-c", "0"], &["-n", "1", config]);
        assert_red(&diagnosis, "cores", "rank 0 may run on 1 of ");
    }
    // An invalid config.
    let diagnosis = diagnose(&sandbox, &[], &["-n", "1", config, "--set", "run.sed=1"]);
    assert_red(&diagnosis, "config", "run.sed");
    // A missing shard.
    let shard = sandbox.path("train/bars-000001.tar");
    fs::rename(&shard, sandbox.path("hidden")).unwrap();
    assert_red(&diagnose(&sandbox, &[], &["-n", "1", config]), "data", "data.train: ");
    fs::rename(sandbox.path("hidden"), &shard).unwrap();
    // A full disk.
    let full = sandbox.path("full");
    fs::create_dir(&full).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&full).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        println!("skipped: a full disk, because only root may mount a small one");
        return;
    }
    let run = format!("run.dir={}/run", full.display());
    let diagnosis = diagnose(&sandbox, &[], &["-n", "1", config, "--set", &run]);
    assert!(Command::new("umount").arg(&full).status().unwrap().success());
    assert_red(&diagnosis, "disk", "No space left on device");
}

#[test]
fn doctor_names_a_missing_mpirun() {
    let sandbox = Sandbox::new();
    let diagnosis = diagnose(&sandbox, &["env", "CODINET_MPIRUN=/nowhere/mpirun"], &["-n", "2"]);
    assert_red(&diagnosis, "mpi", "cannot run /nowhere/mpirun");
}
