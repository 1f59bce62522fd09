//! What happens to a job when one of its ranks dies or stops responding: nothing hangs, the cause is named, and the latest
//! checkpoint is complete.

use crate::common::{
    Sandbox, count_lines, latest_step, random, send_signal, shell, succeed, text, wait_until, weights,
};
use crate::reserve_machine;
use codinet_dataloader::Dataset;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The process of rank `rank` of this job.
fn process_of_rank(mpirun: &Child, rank: usize) -> Option<u32> {
    let variable = format!("OMPI_COMM_WORLD_RANK={rank}");
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let parent =
            status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<u32>().ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        let is_rank = environ.split(|byte| *byte == 0).any(|entry| entry == variable.as_bytes());
        (parent == mpirun.id() && is_rank).then_some(pid)
    })
}

/// Waits for the end of a job after `fault`: how long that took, and its output.
fn wait_for_end(mut mpirun: Child, fault: &str) -> (Duration, Output) {
    let start = Instant::now();
    wait_until(60, || format!("the job hangs after {fault}"), || mpirun.try_wait().unwrap().is_some());
    let took = start.elapsed();
    (took, mpirun.wait_with_output().unwrap())
}

/// Starts four ranks and sends `signal` to one of them in mid-training: how long the job took to end, its exit code and its
/// standard error.
fn signal_rank(sandbox: &Sandbox, run: &Path, signal: &str, rank: usize) -> (Duration, Option<i32>, String) {
    let mut command = sandbox.train_into(run, 4, &["--set", "stages.0.epochs=200"]);
    command.args(["--set", "run={log_every: 1, checkpoint_every: 5}", "--set", "collective.timeout_s=4"]);
    let mpirun = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = run.join("metrics.jsonl");
    wait_until(90, || format!("{} does not grow", metrics.display()), || count_lines(&metrics) >= 45);
    send_signal(signal, process_of_rank(&mpirun, rank).expect("a process for every rank"));
    let (took, output) = wait_for_end(mpirun, &format!("{signal} to rank {rank}"));
    (took, output.status.code(), text(&output.stderr))
}

/// Resumes from the latest checkpoint and trains to the end of its epoch.
fn assert_resumes(sandbox: &Sandbox, run: &Path) {
    let epochs = format!("stages.0.epochs={}", latest_step(run) / 12 + 1);
    let stdout = succeed(&mut sandbox.train_into(run, 2, &["--resume", "auto", "--set", &epochs]));
    assert!(stdout.contains("resuming from"), "{stdout}");
}

#[test]
fn killed_rank_ends_the_job_and_it_resumes() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    for rank in [0, 2] {
        let run = sandbox.path(&format!("run{rank}"));
        let (took, code, stderr) = signal_rank(&sandbox, &run, "KILL", rank);
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_ne!(code, Some(0));
        assert!(stderr.contains(&format!("rank {rank}")) && stderr.contains("signal 9"), "{stderr}");
        assert_resumes(&sandbox, &run);
    }
}

#[test]
fn unresponsive_rank_is_named_and_the_job_resumes() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    for rank in [0, 3] {
        let run = sandbox.path(&format!("run{rank}"));
        let (took, code, stderr) = signal_rank(&sandbox, &run, "STOP", rank);
        assert!(took > Duration::from_secs(3) && took < Duration::from_secs(40), "{took:?}");
        assert_eq!(code, Some(8), "{stderr}");
        let named = match rank {
            0 => "rank 0 does not answer".to_owned(),
            rank => format!("rank {rank} sent its last heartbeat"),
        };
        assert!(stderr.contains(&named) && stderr.contains("has waited"), "{stderr}");
        assert_resumes(&sandbox, &run);
    }
}

/// The complete checkpoints of a run, oldest first.
fn complete_checkpoints(run: &Path) -> Vec<PathBuf> {
    let mut folders = checkpoint_folders(run);
    folders.retain(|folder| folder.join("COMPLETE").exists() && !is_partial(folder));
    folders
}

/// Whether a checkpoint was begun and not completed.
fn has_partial_checkpoint(run: &Path) -> bool {
    checkpoint_folders(run).iter().any(|folder| is_partial(folder))
}

fn is_partial(folder: &Path) -> bool {
    folder.file_name().unwrap().to_string_lossy().starts_with(".partial-")
}

fn checkpoint_folders(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    folders.sort();
    folders
}

/// Two ranks write a checkpoint of 90 MB each step, and `kill -9` hits one of them at various moments of saving. Each time
/// the run resumes from the latest complete checkpoint. It ends with the weights of an uninterrupted run.
#[test]
fn kill_during_save_resumes_from_the_previous_checkpoint() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    let command = |run: &Path, every: u64| {
        let every = format!("run.checkpoint_every={every}");
        let model =
            ["--set", "model.arch=resnet18", "--set", "data.train_samples=32", "--set", "stages.0.epochs=8"];
        let sharded = ["--set", "run.shard_optimizer=true", "--set", &every, "--resume", "auto"];
        sandbox.train_into(run, 2, &[&model[..], &sharded].concat())
    };
    let whole = sandbox.path("whole");
    let killed = sandbox.path("killed");
    succeed(&mut command(&whole, 0));

    let mut kills = 0;
    let mut kills_in_save = 0;
    // The machine decides how long a save takes: where it is short, more kills hit its start.
    for delay in [0, 80, 200, 400].into_iter().chain([0; 8]) {
        if kills >= 4 && kills_in_save >= 2 {
            break;
        }
        let before = complete_checkpoints(&killed);
        let mut mpirun = command(&killed, 1).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let start = Instant::now();
        // One more checkpoint is complete, and the next one is begun.
        while mpirun.try_wait().unwrap().is_none() {
            let partial = has_partial_checkpoint(&killed);
            if partial && complete_checkpoints(&killed).last() > before.last() {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(2));
        }
        std::thread::sleep(Duration::from_millis(delay));
        if let Some(pid) = process_of_rank(&mpirun, kills % 2) {
            // It may have ended by itself in the meantime.
            let _ = Command::new("sh").args(["-c", &format!("kill -9 {pid}")]).status().unwrap();
        }
        let output = mpirun.wait_with_output().unwrap();
        let stdout = text(&output.stdout);
        if let Some(from) = before.last() {
            assert!(stdout.contains(&format!("resuming from {}", from.display())), "{from:?}: {stdout}");
        }
        kills += usize::from(!output.status.success());
        kills_in_save += usize::from(has_partial_checkpoint(&killed));
    }
    assert!(kills >= 4 && kills_in_save >= 2, "{kills} kills, {kills_in_save} of them during a save");
    let from = complete_checkpoints(&killed).pop().unwrap();
    let stdout = succeed(&mut command(&killed, 1));
    assert!(stdout.contains(&format!("resuming from {}", from.display())), "{stdout}");

    let last = [&whole, &killed].map(|run| {
        assert!(!has_partial_checkpoint(run), "partial checkpoints are removed");
        complete_checkpoints(run).pop().unwrap()
    });
    for file in ["model.safetensors", "optimizer-0000.safetensors", "optimizer-0001.safetensors"] {
        let [whole, killed] = last.each_ref().map(|checkpoint| fs::read(checkpoint.join(file)).unwrap());
        assert!(whole == killed, "{file} differs");
    }
}

/// What happens to one rank of four, or to what it needs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// `kill -9` at any moment, as by the system's out-of-memory killer.
    Killed,
    /// The same while a checkpoint is being written.
    KilledInSave,
    /// A crash in native code: SIGABRT.
    Aborted,
    /// Another: SIGSEGV.
    Segfault,
    /// Ctrl-C: SIGINT to mpirun.
    Interrupted,
    /// Allocations fail: an exception in libtorch and a panic in Rust.
    OutOfMemory,
    /// SIGSTOP.
    Stopped,
    /// From some moment on no image can be decoded: an error that each rank meets by itself.
    BrokenData,
    /// From some moment on a file cannot be read to its end: a FIFO that nobody writes to.
    HungFileSystem,
    /// The run directory's disk is full when a checkpoint is saved.
    FullDisk,
}

const FAULTS: [Fault; 10] = [
    Fault::Killed,
    Fault::KilledInSave,
    Fault::Aborted,
    Fault::Segfault,
    Fault::Interrupted,
    Fault::OutOfMemory,
    Fault::Stopped,
    Fault::BrokenData,
    Fault::HungFileSystem,
    Fault::FullDisk,
];

/// A folder on a disk of its own, which can be full.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it; `None` where that is not allowed.
    fn mount(folder: &Path) -> Option<Self> {
        fs::create_dir(folder).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=64m", "tmpfs"]).arg(folder).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(folder.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The training images as class folders, whose files are opened when they are read.
fn write_class_folders(sandbox: &Sandbox) {
    let dataset = Dataset::open(sandbox.path("train").to_str().unwrap()).unwrap();
    let mut encoded = Vec::new();
    for sample in 0..dataset.len() {
        let read = dataset.read(sample, &mut encoded).unwrap();
        let class = sandbox.path(&format!("folders/kind{}", read.label));
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{sample}.png")), &encoded).unwrap();
    }
}

impl Fault {
    /// Injects it into a job.
    fn inject(self, sandbox: &Sandbox, mpirun: &Child, rank: usize) {
        let pid = process_of_rank(mpirun, rank).expect("a process for every rank");
        let folder = sandbox.folder.path().display();
        match self {
            Self::Killed | Self::KilledInSave => send_signal("KILL", pid),
            Self::Aborted => send_signal("ABRT", pid),
            // Twice: Rust's handler, which looks for stack overflows, returns from the first, as a real fault would repeat.
            Self::Segfault => {
                send_signal("SEGV", pid);
                std::thread::sleep(Duration::from_millis(100));
                send_signal("SEGV", pid);
            }
            Self::Interrupted => send_signal("INT", mpirun.id()),
            Self::OutOfMemory => shell(&format!("prlimit --pid {pid} --as=1")),
            Self::Stopped => send_signal("STOP", pid),
            // In place, because ranks hold the files open: the images' bytes, not the tar's headers.
            Self::BrokenData => shell(&format!(
                "cp -r {folder}/train {folder}/train-whole; for tar in {folder}/train/*.tar; do \
                 dd if=/dev/zero of=$tar bs=512 seek=1 count=40 conv=notrunc status=none; done"
            )),
            Self::HungFileSystem => shell(&format!(
                "cp -r {folder}/folders {folder}/folders-whole; for file in {folder}/folders/*/*.png; do \
                 rm $file; mkfifo $file; done"
            )),
            Self::FullDisk => {
                shell(&format!("dd if=/dev/zero of={folder}/disk/filler bs=64k status=none; true"))
            }
        }
    }

    /// Ends its cause.
    fn remove(self, sandbox: &Sandbox) {
        let folder = sandbox.folder.path().display();
        match self {
            Self::BrokenData => {
                shell(&format!("cp {folder}/train-whole/* {folder}/train/; rm -r {folder}/train-whole"));
            }
            Self::HungFileSystem => {
                shell(&format!("rm -r {folder}/folders; mv {folder}/folders-whole {folder}/folders"));
            }
            Self::FullDisk => shell(&format!("rm {folder}/disk/filler")),
            _ => {}
        }
    }

    /// Whether the job's output names its cause.
    fn is_named(self, stderr: &str, rank: usize) -> bool {
        let names_rank = stderr.contains(&format!("rank {rank}"));
        match self {
            Self::Killed | Self::KilledInSave => names_rank && stderr.contains("signal 9"),
            Self::Aborted => names_rank && stderr.contains("signal 6"),
            Self::Segfault => names_rank && stderr.contains("signal 11"),
            Self::Interrupted => stderr.contains("resume"),
            Self::OutOfMemory => names_rank || stderr.contains("memory"),
            Self::Stopped => stderr.contains(&format!("rank {rank} ")),
            Self::BrokenData => stderr.contains("(rank ") && stderr.contains(".tar"),
            Self::HungFileSystem => stderr.contains("has waited"),
            Self::FullDisk => stderr.contains("No space left on device"),
        }
    }

    /// The longest time from the fault to the job's end: what hangs ends after `collective.timeout_s` (4 s here), on rank 0,
    /// or some seconds later on others.
    fn longest_end(self) -> Duration {
        Duration::from_secs(match self {
            Self::Stopped => 30,
            Self::HungFileSystem => 20,
            _ => 10,
        })
    }
}

/// Injects each fault TIMES times (default: once) at random moments. Prints a table: how each job ended, after how long, and
/// whether the resumed run ended with the weights of an uninterrupted one. With `ONLY=Killed`, studies one fault.
#[test]
fn random_faults_end_the_job_and_it_resumes() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    write_class_folders(&sandbox);
    let small_disk = SmallDisk::mount(&sandbox.path("disk"));
    let times = std::env::var("TIMES").map_or(1, |times| times.parse().unwrap());
    let only = std::env::var("ONLY").unwrap_or_default();
    let command = |run: &Path, fault: Option<Fault>| {
        let mut command = sandbox.train_into(run, 4, &["--resume", "auto", "--set", "stages.0.epochs=8"]);
        command.args(["--set", "run={log_every: 1, checkpoint_every: 3}"]);
        command.args(["--set", "collective.timeout_s=4"]);
        if fault == Some(Fault::HungFileSystem) {
            command.args(["--set", "data.train=folders"]);
        }
        command
    };
    let weights_of_whole = |fault| {
        let whole = sandbox.path(&format!("whole-{fault:?}"));
        succeed(&mut command(&whole, fault));
        weights(&whole)
    };
    let expected = weights_of_whole(None);
    println!(
        "| fault | times | slowest end, s | exit codes | named | same weights after --resume | in mid-save |"
    );
    println!("|---|---|---|---|---|---|---|");
    for fault in FAULTS.into_iter().filter(|fault| only.is_empty() || only == format!("{fault:?}")) {
        if fault == Fault::FullDisk && small_disk.is_none() {
            println!("skipped FullDisk: only root may mount a small disk");
            continue;
        }
        let expected = match fault {
            Fault::HungFileSystem => weights_of_whole(Some(fault)),
            _ => expected.clone(),
        };
        let mut slowest = Duration::ZERO;
        let mut codes = BTreeSet::new();
        let mut named = 0;
        let mut same = 0;
        let mut in_save = 0;
        for time in 0..times {
            let run = match fault {
                Fault::FullDisk => sandbox.path(&format!("disk/{time}")),
                _ => sandbox.path(&format!("{fault:?}{time}")),
            };
            let rank = random(4) as usize;
            let mut mpirun = command(&run, Some(fault));
            let mut mpirun = mpirun.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
            let metrics = run.join("metrics.jsonl");
            let lines = 10 + random(50) as usize;
            wait_until(
                90,
                || format!("{} does not grow", metrics.display()),
                || count_lines(&metrics) >= lines,
            );
            if fault == Fault::KilledInSave {
                while !has_partial_checkpoint(&run) && mpirun.try_wait().unwrap().is_none() {}
            } else {
                std::thread::sleep(Duration::from_millis(random(100)));
            }
            fault.inject(&sandbox, &mpirun, rank);
            let (took, output) = wait_for_end(mpirun, &format!("{fault:?}"));
            slowest = slowest.max(took);
            assert!(took < fault.longest_end(), "{fault:?}: {took:?}");
            let stderr = text(&output.stderr);
            let code = output.status.code().unwrap();
            assert_ne!(code, 0, "{fault:?}: {stderr}");
            codes.insert(code);
            let is_named = fault.is_named(&stderr, rank);
            assert!(is_named, "{fault:?}: {stderr}");
            named += usize::from(is_named);
            in_save += usize::from(has_partial_checkpoint(&run));
            fault.remove(&sandbox);
            succeed(&mut command(&run, Some(fault)));
            assert!(!has_partial_checkpoint(&run), "partial checkpoints are removed");
            same += usize::from(weights(&run) == expected);
            fs::remove_dir_all(&run).unwrap();
        }
        let codes: Vec<String> = codes.iter().map(i32::to_string).collect();
        println!(
            "| {fault:?} | {times} | {:.1} | {} | {named} | {same} | {in_save} |",
            slowest.as_secs_f64(),
            codes.join(", ")
        );
        assert_eq!(same, times, "{fault:?}");
    }
}
