//! Faults at random moments of training, of every kind that this machine can make: the job ends, names the cause, and resumes to
//! the weights of an uninterrupted run.

use crate::common::{Sandbox, count_lines, random, send_signal, shell, succeed, text, wait_until, weights};
use crate::faults::{has_partial_checkpoint, process_of_rank, wait_for_end, write_class_folders};
use crate::network::Hosts;
use crate::reserve_machine;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

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
    /// From some moment on no file can be read to its end: each is a FIFO that nobody writes to.
    HungFileSystem,
    /// The run directory's disk is full when a checkpoint is saved.
    FullDisk,
    /// A decode thread panics: strace makes its reads return more bytes than they were to read.
    Panicked,
    /// The connection between two hosts is cut.
    LostNetwork,
}

const FAULTS: [Fault; 12] = [
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
    Fault::Panicked,
    Fault::LostNetwork,
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

/// Whether strace may change another process's system calls.
fn can_trace() -> bool {
    let mut traced = Command::new("sleep").arg("0.5").spawn().unwrap();
    let pid = traced.id().to_string();
    let strace = Command::new("strace").args(["-qq", "-o", "/dev/null", "-p", &pid]).status();
    traced.wait().unwrap();
    strace.is_ok_and(|status| status.success())
}

impl Fault {
    /// Injects it into a job.
    fn inject(self, sandbox: &Sandbox, mpirun: &Child, rank: usize, hosts: Option<&Hosts>) {
        let pid = || process_of_rank(mpirun, rank).expect("a process for every rank");
        let folder = sandbox.folder.path().display();
        match self {
            Self::Killed | Self::KilledInSave => send_signal("KILL", pid()),
            Self::Aborted => send_signal("ABRT", pid()),
            // Twice: Rust's handler, which looks for stack overflows, returns from the first, as a real fault would repeat.
            Self::Segfault => {
                let pid = pid();
                send_signal("SEGV", pid);
                std::thread::sleep(Duration::from_millis(100));
                send_signal("SEGV", pid);
            }
            Self::Interrupted => send_signal("INT", mpirun.id()),
            Self::OutOfMemory => shell(&format!("prlimit --pid {} --as=1", pid())),
            Self::Stopped => send_signal("STOP", pid()),
            // In place, because ranks hold the files open: the images' bytes, not the tar's headers.
            Self::BrokenData => shell(&format!(
                "cp -r {folder}/train {folder}/train-whole; for tar in {folder}/train/*.tar; do \
                 dd if=/dev/zero of=$tar bs=512 seek=1 count=40 conv=notrunc status=none; done"
            )),
            Self::HungFileSystem => shell(&format!(
                "cp -r {folder}/folders {folder}/folders-whole; for file in {folder}/folders/*/*.png; do \
                 mkfifo $file.new; mv $file.new $file; done"
            )),
            Self::FullDisk => {
                shell(&format!("dd if=/dev/zero of={folder}/disk/filler bs=64k status=none; true"))
            }
            // It ends with the rank.
            Self::Panicked => shell(&format!(
                "strace -f -qq -o /dev/null -p {} -e inject=preadv:retval=1000000000 </dev/null >/dev/null 2>&1 &",
                pid()
            )),
            Self::LostNetwork => hosts.expect("a pair of hosts").cut(),
        }
    }

    /// Ends its cause.
    fn remove(self, sandbox: &Sandbox, hosts: Option<&Hosts>) {
        let folder = sandbox.folder.path().display();
        match self {
            Self::BrokenData => {
                shell(&format!("cp {folder}/train-whole/* {folder}/train/; rm -r {folder}/train-whole"));
            }
            Self::HungFileSystem => {
                shell(&format!("rm -r {folder}/folders; mv {folder}/folders-whole {folder}/folders"));
            }
            Self::FullDisk => shell(&format!("rm {folder}/disk/filler")),
            Self::LostNetwork => hosts.expect("a pair of hosts").reconnect(),
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
            Self::HungFileSystem => stderr.contains("s for data (") && stderr.contains(".png"),
            Self::Panicked => {
                stderr.contains(&format!("a bug in codinet-train on rank {rank} at dataloader"))
            }
            Self::LostNetwork => stderr.contains("rank 0 has waited "),
            Self::FullDisk => stderr.contains("No space left on device"),
        }
    }

    /// The longest time from the fault to the job's end: what hangs ends after `collective.timeout_s` (4 s here).
    fn longest_end(self) -> Duration {
        Duration::from_secs(match self {
            Self::Stopped | Self::HungFileSystem | Self::LostNetwork => 15,
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
    let hosts = Hosts::create(&sandbox);
    let command = |run: &Path, fault: Option<Fault>| {
        let mut command = match (&hosts, fault) {
            (Ok(hosts), Some(Fault::LostNetwork)) => hosts.train(&sandbox, run),
            _ => sandbox.train_into(run, 4, &[]),
        };
        command.args(["--resume", "auto", "--set", "stages.0.epochs=8"]);
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
        let obstacle = match (fault, &hosts) {
            (Fault::FullDisk, _) if small_disk.is_none() => Some("only root may mount a small disk"),
            (Fault::Panicked, _) if !can_trace() => {
                Some("no strace, or it may not trace: apt-get install strace")
            }
            (Fault::LostNetwork, Err(obstacle)) => Some(*obstacle),
            _ => None,
        };
        if let Some(obstacle) = obstacle {
            println!("skipped {fault:?}: {obstacle}");
            continue;
        }
        let hosts = hosts.as_ref().ok();
        let expected = match fault {
            Fault::HungFileSystem | Fault::LostNetwork => weights_of_whole(Some(fault)),
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
            fault.inject(&sandbox, &mpirun, rank, hosts);
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
            if fault == Fault::LostNetwork {
                hosts.expect("a pair of hosts").wait_for_remote_ranks();
            }
            fault.remove(&sandbox, hosts);
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
