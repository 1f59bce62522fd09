//! `codinet-launch` with the real codinet-train: crashes survived, and a machine looked over.

use crate::common::{Bench, succeed};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// `codinet-launch`, which the workspace builds beside codinet-train.
fn launcher() -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_codinet-train")).with_file_name("codinet-launch");
    assert!(program.exists(), "{} is missing: cargo build --release", program.display());
    Command::new(program)
}

/// The parent of a process.
fn parent(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The ranks of a job: codinet-train processes that mpirun, a child of the launcher, has started.
fn ranks(launcher: &Child) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut ranks: Vec<u32> = pids
        .filter(|&pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "codinet-train" && parent(pid).and_then(parent) == Some(launcher.id())
        })
        .collect();
    ranks.sort_unstable();
    ranks
}

/// The last checkpoint's weights and momenta.
fn weights(run: &Path) -> [Vec<u8>; 2] {
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let last = run.join("checkpoints").join(latest.trim());
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(last.join(file)).unwrap())
}

/// A number below `most`, another one each time.
fn random(most: usize) -> usize {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(()) % most as u64) as usize
}

#[test]
fn three_kills_of_random_ranks_are_survived() {
    let bench = Bench::new();
    let command = |run: &Path, restarts: &str| {
        let mut command = launcher();
        command.args(["-n", "2", "--max-restarts", restarts, "--back-off", "1"]).arg(&bench.config);
        command.args(["--set", &format!("run.dir={}", run.display()), "--set", "stages.0.epochs=6"]);
        command.args(["--set", "run.log_every=1", "--set", "run.checkpoint_every=2"]);
        command.current_dir(bench.folder.path());
        command
    };
    let (whole, killed) = (bench.path("whole"), bench.path("killed"));
    succeed(&mut command(&whole, "0"));

    let log = bench.path("said");
    let (out, err) = (fs::File::create(&log).unwrap(), fs::File::create(bench.path("errors")).unwrap());
    let mut launched = command(&killed, "3").stdout(out).stderr(err).spawn().unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    for kill in 0..3 {
        let start = Instant::now();
        // Each time a few steps after it has started, or gone on: the lines of steps that were said since; the first time not
        // before there is a checkpoint to go on from.
        let wait = 3 + random(12);
        let steps = || {
            let said = said();
            let now = said.rsplit("mpirun ").next().unwrap_or_default().to_owned();
            (said.matches("mpirun -n").count(), now.matches("] step ").count())
        };
        let latest = killed.join("checkpoints/latest");
        while steps().0 <= kill || steps().1 < wait || !latest.exists() {
            assert!(launched.try_wait().unwrap().is_none(), "it ended before kill {kill}: {}", said());
            assert!(start.elapsed() < Duration::from_secs(120), "{}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
        let ranks = ranks(&launched);
        assert_eq!(ranks.len(), 2);
        // Rank 0, which speaks, is among them.
        let victim = format!("kill -9 {}", ranks[if kill == 0 { 0 } else { random(2) }]);
        assert!(Command::new("sh").args(["-c", &victim]).status().unwrap().success());
    }
    let status = launched.wait().unwrap();
    let errors = fs::read_to_string(bench.path("errors")).unwrap();
    assert!(status.success(), "{status}\n{}\n{errors}", said());
    for restart in 1..=3 {
        assert!(
            errors.contains(&format!("exit code 9 (mpirun ended with 137); restart {restart} of 3")),
            "{errors}"
        );
    }
    assert!(errors.contains(" failed first; its last lines:"), "{errors}");
    assert_eq!(said().matches("resuming from").count(), 3, "{}", said());
    assert!(weights(&whole) == weights(&killed), "the weights and momenta are the same to the bit");
}

/// Whatever ends the launcher ends its job.
#[test]
fn a_launcher_that_is_killed_leaves_no_rank_behind() {
    let bench = Bench::new();
    let mut command = launcher();
    command.args(["-n", "2"]).arg(&bench.config).args(["--set", "stages.0.epochs=100000"]);
    let mut launched = command.current_dir(bench.folder.path()).stdout(Stdio::null()).spawn().unwrap();
    let mut started = Vec::new();
    let begun = Instant::now();
    while started.len() < 2 {
        assert!(begun.elapsed() < Duration::from_secs(60), "no ranks");
        std::thread::sleep(Duration::from_millis(50));
        started = ranks(&launched);
    }
    launched.kill().unwrap();
    launched.wait().unwrap();
    let killed = Instant::now();
    let left = || started.iter().any(|pid| Path::new(&format!("/proc/{pid}")).exists());
    while left() {
        assert!(killed.elapsed() < Duration::from_secs(30), "{started:?} go on");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `timeout` and schedulers signal a program and then its group: one request, not the second that ends at once.
#[test]
fn a_signal_that_comes_twice_at_once_is_one_request() {
    let mut launched = launcher();
    launched.args(["-n", "2"]);
    for mut command in [launched, Command::new(env!("CARGO_BIN_EXE_codinet-train"))] {
        let bench = Bench::new();
        let run = bench.folder.path().join("run");
        command.arg(&bench.config).args(["--set", "stages.0.epochs=100000"]).arg("--set");
        command.arg(format!("run.dir={}", run.display())).current_dir(bench.folder.path());
        let mut job = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while !fs::read_to_string(run.join("metrics.jsonl")).is_ok_and(|lines| lines.contains("\"train\"")) {
            assert!(begun.elapsed() < Duration::from_secs(60), "no step");
            std::thread::sleep(Duration::from_millis(50));
        }
        for _ in 0..2 {
            succeed(Command::new("kill").args(["-TERM", &job.id().to_string()]));
        }
        assert_eq!(job.wait().unwrap().code(), Some(75));
        assert!(run.join("checkpoints/latest").exists());
    }
}

/// A run that had no directory of its own goes on in the one that it was given, not in an older run of the same config.
#[test]
fn a_restart_finds_its_own_run() {
    let bench = Bench::new();
    let mut command = launcher();
    command.args(["-n", "2", "--max-restarts", "1", "--back-off", "0"]).arg(&bench.config);
    command.args([
        "--set",
        "run.log_every=1",
        "--set",
        "run.checkpoint_every=2",
        "--set",
        "stages.0.epochs=200",
    ]);
    let log = bench.path("said");
    let out = fs::File::create(&log).unwrap();
    command.current_dir(bench.folder.path()).stdout(out).stderr(Stdio::null());
    let mut launched = command.spawn().unwrap();
    let said = || fs::read_to_string(&log).unwrap();
    let wait_for = |what: &str, times: usize| {
        let start = Instant::now();
        while said().matches(what).count() < times {
            assert!(start.elapsed() < Duration::from_secs(120), "{}", said());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    wait_for("] step ", 5);
    let victim = format!("kill -9 {}", ranks(&launched)[1]);
    assert!(Command::new("sh").args(["-c", &victim]).status().unwrap().success());
    wait_for("resuming from", 1);
    wait_for("] step ", 8);
    // Asked to stop, it does, and is not started again.
    assert!(
        Command::new("sh").args(["-c", &format!("kill -TERM {}", launched.id())]).status().unwrap().success()
    );
    assert_eq!(launched.wait().unwrap().code(), Some(75), "{}", said());
    let runs: Vec<PathBuf> =
        fs::read_dir(bench.path("runs")).unwrap().map(|run| run.unwrap().path()).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert!(runs[0].join("checkpoints/latest").exists());
}

/// `codinet-launch doctor --json`: the exit code, and what is not green.
fn doctor(bench: &Bench, before: &[&str], args: &[&str]) -> (Option<i32>, Vec<(String, String, String)>) {
    let program = launcher();
    let mut command = match before {
        [] => launcher(),
        [first, rest @ ..] => {
            let mut command = Command::new(first);
            command.args(rest).arg(program.get_program());
            command
        }
    };
    command.args(["doctor", "--json"]).args(args).current_dir(bench.folder.path());
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let told: Value = serde_json::from_str(&said).unwrap_or_else(|error| {
        panic!("{error}: {said}{}", String::from_utf8_lossy(&output.stderr));
    });
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let checks = told["checks"].as_array().unwrap().iter().filter(|check| check["state"] != "green");
    let checks = checks.inspect(|check| assert!(check["fix"].is_string(), "{check}"));
    let found =
        checks.map(|check| (text(check, "name"), text(check, "state"), text(check, "found"))).collect();
    (output.status.code(), found)
}

/// Whether the one thing that is red is `name`, in these words.
fn names(told: &(Option<i32>, Vec<(String, String, String)>), name: &str, words: &str) {
    let red: Vec<_> = told.1.iter().filter(|(_, state, _)| state == "red").collect();
    assert_eq!(told.0, Some(1), "{told:?}");
    assert!(red.len() == 1 && red[0].0 == name && red[0].2.contains(words), "{name}, {words}: {told:?}");
}

#[test]
fn the_doctor_names_what_is_broken() {
    let bench = Bench::new();
    let config = bench.config.to_str().unwrap();
    let well = doctor(&bench, &[], &["-n", "2", config]);
    assert_eq!(well.0, Some(0), "{well:?}");
    assert!(fs::read_dir(bench.folder.path()).unwrap().count() == 3, "nothing is left behind");

    // A GPU that the config asks for, where there is none.
    if !Path::new("/proc/driver/nvidia/gpus").exists() {
        let told = doctor(&bench, &[], &["-n", "1", config, "--set", "run.device=cuda"]);
        names(&told, "gpus", "run.device is cuda, but rank 0");
    }
    // One core of several.
    if std::thread::available_parallelism().unwrap().get() > 1 {
        let told = doctor(&bench, &["taskset", "-c", "0"], &["-n", "1", config]);
        names(&told, "cores", "rank 0 may run on 1 of ");
    }
    // A config that is none.
    names(&doctor(&bench, &[], &["-n", "1", config, "--set", "run.sed=1"]), "config", "run.sed");
    // A shard that is gone.
    let shard = bench.path("train/bars-000001.tar");
    fs::rename(&shard, bench.path("hidden")).unwrap();
    names(&doctor(&bench, &[], &["-n", "1", config]), "data", "data.train: ");
    fs::rename(bench.path("hidden"), &shard).unwrap();
    // A full disk.
    let full = bench.path("full");
    fs::create_dir(&full).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&full).output();
    if !mounted.is_ok_and(|mounted| mounted.status.success()) {
        println!("skipped: a full disk, for which a small one has to be mounted, by root");
        return;
    }
    let set = format!("run.dir={}/run", full.display());
    let told = doctor(&bench, &[], &["-n", "1", config, "--set", &set]);
    assert!(Command::new("umount").arg(&full).status().unwrap().success());
    names(&told, "disk", "No space left on device");
}

/// An MPI that joins nobody: what the program was not built with.
#[test]
fn the_doctor_names_an_mpi_that_is_missing() {
    let bench = Bench::new();
    let told = doctor(&bench, &["env", "CODINET_MPIRUN=/nowhere/mpirun"], &["-n", "2"]);
    names(&told, "mpi", "cannot run /nowhere/mpirun");
}
