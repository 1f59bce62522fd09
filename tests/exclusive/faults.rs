//! What happens to a job when one of its ranks dies or stops responding: nothing hangs, the cause is named, and the latest
//! checkpoint is complete.

use crate::common::{Sandbox, count_lines, latest_step, send_signal, succeed, text, wait_until};
use crate::reserve_machine;
use codinet_dataloader::Dataset;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The process of rank `rank` of this job.
pub fn process_of_rank(mpirun: &Child, rank: usize) -> Option<u32> {
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
pub fn wait_for_end(mut mpirun: Child, fault: &str) -> (Duration, Output) {
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
        assert!(took > Duration::from_secs(3) && took < Duration::from_secs(15), "{took:?}");
        assert_eq!(code, Some(8), "{stderr}");
        let named = format!("rank {rank} sent its last heartbeat");
        assert!(stderr.contains(&named) && stderr.contains("has waited"), "{stderr}");
        assert_resumes(&sandbox, &run);
    }
}

/// The training images as class folders, whose files are opened when they are read.
pub fn write_class_folders(sandbox: &Sandbox) {
    let dataset = Dataset::open(sandbox.path("train").to_str().unwrap()).unwrap();
    let mut encoded = Vec::new();
    for sample in 0..dataset.len() {
        let read = dataset.read(sample, &mut encoded).unwrap();
        let class = sandbox.path(&format!("folders/kind{}", read.label));
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{sample}.png")), &encoded).unwrap();
    }
}

/// Replaces a file by a FIFO.
fn make_fifo(file: &Path) {
    let fifo = file.with_extension("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    fs::rename(&fifo, file).unwrap();
}

/// From now on, whoever opens a file gets its bytes after `delay`, while `answers` is set, and then none.
fn make_slow(file: &Path, delay: Duration, answers: &Arc<AtomicBool>) {
    let bytes = fs::read(file).unwrap();
    make_fifo(file);
    let file = file.to_owned();
    let answers = answers.clone();
    std::thread::spawn(move || {
        loop {
            // Waits for a reader; the folder is gone at the end of the test.
            let Ok(mut fifo) = File::options().write(true).open(&file) else { return };
            std::thread::sleep(delay);
            while !answers.load(Ordering::Relaxed) {
                std::thread::park(); // holds the file open
            }
            if fifo.write_all(&bytes).is_err() {
                return;
            }
            make_fifo(&file); // for the next reader: this one has to come to the end
        }
    });
}

/// One process reads files that take 0.7 s each, so that a batch of four takes longer than the timeout of 2 s.
#[test]
fn slow_files_train_and_files_that_hang_end_the_job() {
    let _machine = reserve_machine();
    let sandbox = Sandbox::new();
    write_class_folders(&sandbox);
    let run = sandbox.path("run");
    let mut command = sandbox.train_into(&run, 1, &["--set", "data={train: folders, decode_threads: 1}"]);
    command.args(["--set", "collective={timeout_s: 2, first_timeout_s: 20}", "--set", "optim.batch_size=4"]);
    command.args(["--set", "run.log_every=1", "--set", "stages.0.epochs=500"]);
    let mut training = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let metrics = run.join("metrics.jsonl");
    let steps = || count_lines(&metrics);
    wait_until(60, || "no step is logged".into(), || steps() >= 2);
    let answers = Arc::new(AtomicBool::new(true));
    for class in fs::read_dir(sandbox.path("folders")).unwrap() {
        for file in fs::read_dir(class.unwrap().path()).unwrap() {
            make_slow(&file.unwrap().path(), Duration::from_millis(700), &answers);
        }
    }
    let before = steps();
    wait_until(60, || "a slow loader does not train".into(), || steps() >= before + 7);
    assert!(training.try_wait().unwrap().is_none());
    answers.store(false, Ordering::Relaxed);
    let (took, output) = wait_for_end(training, "files hang");
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{stderr}");
    assert!(took > Duration::from_secs(1) && took < Duration::from_secs(15), "{took:?}");
    let named = stderr.contains("error: rank 0 on ") && stderr.contains(" s for data (folders/kind");
    assert!(named && stderr.contains(".png) after step "), "{stderr}");
}

/// The complete checkpoints of a run, oldest first.
fn complete_checkpoints(run: &Path) -> Vec<PathBuf> {
    let mut folders = checkpoint_folders(run);
    folders.retain(|folder| folder.join("COMPLETE").exists() && !is_partial(folder));
    folders
}

/// Whether a checkpoint was begun and not completed.
pub fn has_partial_checkpoint(run: &Path) -> bool {
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
