//! What becomes of a job when one of its ranks dies or stops moving: nothing hangs, the cause is named, and the last
//! checkpoint is good.

use crate::common::{Bench, succeed};
use crate::reserve_machine;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A process of this job whose rank is `rank`.
fn process_of_rank(mpirun: &Child, rank: usize) -> Option<u32> {
    let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        let is_rank = environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes());
        (parent == mpirun.id() && is_rank).then_some(pid)
    })
}

/// Waits until `path` holds at least `lines` lines.
fn wait_for(path: &Path, lines: usize) {
    let start = Instant::now();
    while fs::read_to_string(path).map_or(0, |text| text.lines().count()) < lines {
        assert!(start.elapsed() < Duration::from_secs(90), "{} does not grow", path.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts four ranks, sends `signal` to one of them in mid-training, and waits for the end: how long that took, the exit
/// code, and what was said.
fn strike(bench: &Bench, run: &Path, signal: &str, rank: usize) -> (Duration, Option<i32>, String) {
    let set = format!("run.dir={}", run.display());
    let mut command = bench.train(4, &["--set", &set, "--set", "stages.0.epochs=200"]);
    command.args([
        "--set",
        "run.log_every=1",
        "--set",
        "run.checkpoint_every=5",
        "--set",
        "collective.timeout_s=4",
    ]);
    let mut mpirun = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&run.join("metrics.jsonl"), 45);
    let pid = process_of_rank(&mpirun, rank).expect("a process for every rank");
    let sent = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status().unwrap();
    assert!(sent.success());
    let start = Instant::now();
    while mpirun.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "the job hangs after {signal} to rank {rank}");
        std::thread::sleep(Duration::from_millis(50));
    }
    let output = mpirun.wait_with_output().unwrap();
    (start.elapsed(), output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The run goes on from its last checkpoint.
fn goes_on(bench: &Bench, run: &Path) {
    let set = format!("run.dir={}", run.display());
    let latest = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    let step: usize = latest.trim_start_matches("step-").parse().unwrap();
    let epochs = format!("stages.0.epochs={}", step / 12 + 1);
    let out = succeed(&mut bench.train(2, &["--resume", "auto", "--set", &set, "--set", &epochs]));
    assert!(out.contains("resuming from"), "{out}");
}

#[test]
fn a_rank_that_is_killed_ends_the_job() {
    let _machine = reserve_machine();
    let bench = Bench::new();
    for rank in [0, 2] {
        let run = bench.path(&format!("run{rank}"));
        let (took, code, said) = strike(&bench, &run, "KILL", rank);
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_ne!(code, Some(0));
        assert!(said.contains(&format!("rank {rank}")) && said.contains("signal 9"), "{said}");
        goes_on(&bench, &run);
    }
}

#[test]
fn a_rank_that_stops_moving_is_named() {
    let _machine = reserve_machine();
    let bench = Bench::new();
    for rank in [0, 3] {
        let run = bench.path(&format!("run{rank}"));
        let (took, code, said) = strike(&bench, &run, "STOP", rank);
        assert!(took > Duration::from_secs(3) && took < Duration::from_secs(40), "{took:?}");
        assert_eq!(code, Some(8), "{said}");
        let named = match rank {
            0 => "rank 0 does not answer".to_owned(),
            rank => format!("rank {rank} sent its last heartbeat"),
        };
        assert!(said.contains(&named) && said.contains("has waited"), "{said}");
        goes_on(&bench, &run);
    }
}

/// What lies in a run's `checkpoints`: whole checkpoints, oldest first, and begun ones.
fn checkpoints(run: &Path) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let begun = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(".partial-");
    let (begun, others): (Vec<_>, Vec<_>) = paths.into_iter().partition(begun);
    (others.into_iter().filter(|path| path.join("COMPLETE").exists()).collect(), begun)
}

/// Two ranks, a checkpoint of 90 MB each step, and kill -9 to one rank at various moments of saving: each time the run
/// goes on from the last whole checkpoint, and it ends as one that was never killed.
#[test]
fn a_run_killed_while_it_saves_goes_on_from_the_checkpoint_before() {
    let _machine = reserve_machine();
    let bench = Bench::new();
    let command = |run: &Path, every: u64| {
        let set = format!("run.dir={}", run.display());
        let every = format!("run.checkpoint_every={every}");
        let model =
            ["--set", "model.arch=resnet18", "--set", "data.train_samples=32", "--set", "stages.0.epochs=8"];
        let shared = ["--set", "run.shard_optimizer=true", "--set", &every, "--resume", "auto"];
        bench.train(2, &[&["--set", &set][..], &model, &shared].concat())
    };
    let (whole, killed) = (bench.path("whole"), bench.path("killed"));
    succeed(&mut command(&whole, 0));

    let (mut kills, mut in_mid_save) = (0, 0);
    // How long a save takes is the machine's matter: where it is over sooner, more kills come at its start.
    for wait in [0, 80, 200, 400].into_iter().chain([0; 8]) {
        if kills >= 4 && in_mid_save >= 2 {
            break;
        }
        let before = checkpoints(&killed).0;
        let mut mpirun = command(&killed, 1).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        // One more checkpoint is whole, and the next is begun.
        while mpirun.try_wait().unwrap().is_none() {
            let (now, begun) = checkpoints(&killed);
            if now.last() > before.last() && !begun.is_empty() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(wait));
        if let Some(pid) = process_of_rank(&mpirun, kills % 2) {
            let _ = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap();
        }
        let output = mpirun.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        if let Some(from) = before.last() {
            assert!(said.contains(&format!("resuming from {}", from.display())), "{from:?}: {said}");
        }
        kills += usize::from(!output.status.success());
        in_mid_save += usize::from(!checkpoints(&killed).1.is_empty());
    }
    assert!(kills >= 4 && in_mid_save >= 2, "{kills} kills, {in_mid_save} of them in mid-save");
    let from = checkpoints(&killed).0.pop().unwrap();
    let out = succeed(&mut command(&killed, 1));
    assert!(out.contains(&format!("resuming from {}", from.display())), "{out}");

    let ends = [&whole, &killed].map(|run| {
        let (mut steps, begun) = checkpoints(run);
        assert!(begun.is_empty(), "nothing is left of the saves that were cut short");
        steps.pop().unwrap()
    });
    for file in ["model.safetensors", "optimizer-0000.safetensors", "optimizer-0001.safetensors"] {
        let [whole, killed] = ends.each_ref().map(|step| fs::read(step.join(file)).unwrap());
        assert!(whole == killed, "{file} is the same to the bit");
    }
}

/// What befalls one rank of four.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// kill -9, as by the system's out-of-memory killer, at any moment.
    Killed,
    /// The same while a checkpoint is being written.
    KilledInSave,
    /// A crash in native code: SIGABRT.
    Crashed,
    /// No more memory for it: allocations fail, which is an exception in libtorch and a panic here.
    OutOfMemory,
    /// SIGSTOP.
    Stopped,
    /// All images from some moment on cannot be decoded: an error that each rank meets alone.
    BrokenData,
}

/// Each fault so many times at random moments: how the job ended, after how long, and whether the run that goes on from its
/// last checkpoint ends with the weights of one that was never hurt. Prints a table.
#[test]
#[ignore = "takes half an hour: cargo test --release --test exclusive -- --ignored --nocapture"]
fn a_soak_of_faults() {
    let _machine = reserve_machine();
    let bench = Bench::new();
    let times = std::env::var("TIMES").map_or(20, |times| times.parse().unwrap());
    let command = |run: &Path| {
        let set = format!("run.dir={}", run.display());
        let mut command = bench.train(4, &["--resume", "auto", "--set", &set, "--set", "stages.0.epochs=8"]);
        command.args(["--set", "run.log_every=1", "--set", "run.checkpoint_every=3"]);
        command.args(["--set", "collective.timeout_s=4"]);
        command
    };
    let whole = bench.path("whole");
    succeed(&mut command(&whole));
    let expected = weights(&whole);
    println!(
        "| fault | times | job ended | slowest end, s | exit codes | named | same weights after --resume | in mid-save |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    use Fault::{BrokenData, Crashed, Killed, KilledInSave, OutOfMemory, Stopped};
    let only = std::env::var("ONLY").unwrap_or_default(); // such as Killed, where one is looked into
    for fault in [Killed, KilledInSave, Crashed, OutOfMemory, Stopped, BrokenData] {
        if !only.is_empty() && only != format!("{fault:?}") {
            continue;
        }
        let (mut slowest, mut codes, mut named, mut same, mut in_save) =
            (Duration::ZERO, std::collections::BTreeSet::new(), 0, 0, 0);
        for time in 0..times {
            let run = bench.path(&format!("{fault:?}{time}"));
            let rank = random(4) as usize;
            let mut mpirun = command(&run).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            wait_for(&run.join("metrics.jsonl"), 10 + random(60) as usize);
            if matches!(fault, KilledInSave) {
                while checkpoints(&run).1.is_empty() && mpirun.try_wait().unwrap().is_none() {}
            } else {
                std::thread::sleep(Duration::from_millis(random(100)));
            }
            let pid = process_of_rank(&mpirun, rank).expect("a process for every rank");
            let shards = bench.path("train");
            let hidden = bench.path("train-whole");
            let signal = |name: &str| shell(&format!("kill -{name} {pid}"));
            match fault {
                Killed | KilledInSave => signal("KILL"),
                Crashed => signal("ABRT"),
                Stopped => signal("STOP"),
                OutOfMemory => shell(&format!("prlimit --pid {pid} --as=1")),
                BrokenData => {
                    shell(&format!("cp -r {} {}", shards.display(), hidden.display()));
                    // In place, for ranks hold the files open: the images' bytes, not the tar's headers.
                    shell(&format!(
                        "for tar in {}/*.tar; do dd if=/dev/zero of=$tar bs=512 seek=1 count=40 conv=notrunc status=none; done",
                        shards.display()
                    ));
                }
            }
            let start = Instant::now();
            while mpirun.try_wait().unwrap().is_none() {
                assert!(start.elapsed() < Duration::from_secs(60), "the job hangs after {fault:?}");
                std::thread::sleep(Duration::from_millis(10));
            }
            slowest = slowest.max(start.elapsed());
            let output = mpirun.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            let code = output.status.code().unwrap();
            assert_ne!(code, 0, "{fault:?}: {said}");
            codes.insert(code);
            named += usize::from(match fault {
                Killed | KilledInSave => said.contains(&format!("rank {rank}")) && said.contains("signal 9"),
                Crashed => said.contains(&format!("rank {rank}")) && said.contains("signal 6"),
                OutOfMemory => said.contains(&format!("rank {rank}")) || said.contains("memory"),
                Stopped => said.contains(&format!("rank {rank} ")),
                BrokenData => said.contains("(rank ") && said.contains(".tar"),
            });
            in_save += usize::from(!checkpoints(&run).1.is_empty());
            if hidden.exists() {
                shell(&format!(
                    "cp {}/* {}/ && rm -r {}",
                    hidden.display(),
                    shards.display(),
                    hidden.display()
                ));
            }
            succeed(&mut command(&run));
            assert!(checkpoints(&run).1.is_empty(), "nothing is left of saves that were cut short");
            same += usize::from(weights(&run) == expected);
            fs::remove_dir_all(&run).unwrap();
        }
        let codes: Vec<String> = codes.iter().map(i32::to_string).collect();
        println!(
            "| {fault:?} | {times} | {times} | {:.1} | {} | {named} | {same} | {in_save} |",
            slowest.as_secs_f64(),
            codes.join(", ")
        );
        assert_eq!((named, same), (times, times), "{fault:?}");
    }
}

fn shell(command: &str) {
    assert!(Command::new("sh").args(["-c", command]).status().unwrap().success(), "{command}");
}

/// A number below `most`, another one each time.
fn random(most: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) % most
}

/// The last checkpoint's weights and momenta.
fn weights(run: &Path) -> [Vec<u8>; 2] {
    let last = checkpoints(run).0.pop().unwrap();
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(last.join(file)).unwrap())
}
