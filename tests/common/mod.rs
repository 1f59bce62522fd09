//! What integration tests share: small shards to train on, commands with the flags that these machines need, and readers of
//! a run directory.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses its own part")]

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, DatasetInfo, ShardWriter};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Side of the images that the tests train on, in pixels.
pub const SIDE: u32 = 16;

/// A program of any crate here, which lies one folder above the test binary.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().parent().unwrap().with_file_name(name);
    assert!(path.exists(), "{} is missing; cargo build --release --workspace makes it", path.display());
    path
}

/// `mpirun -n ranks`, for root and ordinary users, on however few cores, under Open MPI 4, 5 or MPICH.
pub fn mpirun(ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["-n", &ranks.to_string()]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1").env("OMPI_MCA_hwloc_base_binding_policy", "none");
    command.env("PRTE_MCA_rmaps_default_mapping_policy", ":oversubscribe");
    command.env("OMPI_MCA_mpi_yield_when_idle", "1");
    command
}

/// Writes `samples` grey images of four classes as shards of at most 32 into `folder`. They show bars: direction and
/// brightness depend on the class, the noise over them on the sample.
pub fn write_shards(folder: &Path, samples: u32) {
    fs::create_dir_all(folder).unwrap();
    let mut writer = ShardWriter::new(folder, "bars", 32).unwrap();
    let mut encoder = Encoder::new(Encoding::Png).unwrap();
    for sample in 0..samples {
        let label = sample % 4;
        let pixels: Vec<u8> = (0..SIDE * SIDE)
            .map(|at| {
                let x = at % SIDE;
                let y = at / SIDE;
                let along = if label % 2 == 0 { x } else { y };
                let bar = if along / 4 % 2 == 0 { 60 + 100 * (label / 2) } else { 20 };
                let noise = (sample.wrapping_mul(2_654_435_761) ^ at.wrapping_mul(40_503)) >> 7 & 31;
                (bar + noise) as u8
            })
            .collect();
        let png = encoder.encode(&pixels, SIDE, SIDE, Channels::Grey).unwrap();
        writer.write(&format!("{sample:06}"), "png", &png, label).unwrap();
    }
    let (shards, _) = writer.finish().unwrap();
    let info = DatasetInfo {
        version: 1,
        name: "bars".into(),
        classes: 4,
        channels: 1,
        image_size: Some(SIDE),
        samples: samples.into(),
        shards: shards.into(),
        class_names: None,
    };
    info.save(folder).unwrap();
}

/// A temporary folder with training and validation shards and a config that trains on them in seconds.
pub struct Sandbox {
    pub folder: tempfile::TempDir,
    pub config: PathBuf,
}

impl Sandbox {
    /// 96 training samples, 37 for validation: a prime number, which no world size divides.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_shards(&folder.path().join("train"), 96);
        write_shards(&folder.path().join("val"), 37);
        let config = folder.path().join("bars.yaml");
        let text = format!(
            "data:\n  train: {root}/train\n  val: {root}/val\n  classes: 4\n  channels: 1\n  image_size: {SIDE}\n  \
             crop: {{pad: {{pixels: 2}}}}\nmodel:\n  arch: resnet20\noptim:\n  batch_size: 8\n  eval_batch_size: 8\n\
             run:\n  log_every: 3\n  device: cpu\n  threads: 1\nstages:\n  - name: relaxed\n    epochs: 1\n    lr: 0.05\n    \
             schedule: cosine\n  - name: hard\n    epochs: 1\n    lr: 0.01\n    routers: freeze\n",
            root = folder.path().display()
        );
        fs::write(&config, text).unwrap();
        Self { folder, config }
    }

    /// A path inside the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `codinet-train` on the config, on `ranks` ranks; one rank runs without mpirun.
    pub fn train(&self, ranks: usize, args: &[&str]) -> Command {
        let program = program("codinet-train");
        let mut command = if ranks == 1 { Command::new(&program) } else { mpirun(ranks) };
        if ranks > 1 {
            command.arg(&program);
        }
        command.arg(&self.config).args(args).current_dir(self.folder.path());
        command
    }

    /// The same, with `run` as the run directory.
    pub fn train_into(&self, run: &Path, ranks: usize, args: &[&str]) -> Command {
        let mut command = self.train(ranks, &["--set", &run_dir(run)]);
        command.args(args);
        command
    }
}

/// The setting that makes `run` the run directory.
pub fn run_dir(run: &Path) -> String {
    format!("run.dir={}", run.display())
}

/// Runs a command to its end, at most five minutes long, and returns what it printed.
pub fn finish(command: &mut Command) -> Output {
    let mut bounded = Command::new("timeout");
    bounded.args(["--kill-after=5", "300"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            bounded.env(name, value);
        }
    }
    if let Some(folder) = command.get_current_dir() {
        bounded.current_dir(folder);
    }
    bounded.output().expect("timeout and the program run")
}

/// Bytes that a program printed, as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that must succeed, and returns its standard output.
pub fn succeed(command: &mut Command) -> String {
    let output = finish(command);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{command:?}\n{}\n{stdout}\n{}", output.status, text(&output.stderr));
    stdout
}

/// Runs the command, which must fail with `code` and name each of `parts` in its only error line.
pub fn assert_rejected(command: &mut Command, code: i32, parts: &[&str]) {
    assert_problems(command, code, &[parts]);
}

/// Runs the command, which must fail with `code` and an error line for each problem, in this order, which names its parts.
pub fn assert_problems(command: &mut Command, code: i32, problems: &[&[&str]]) {
    let output = finish(command);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}\n{stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), problems.len(), "not an error line for each problem: {stderr}");
    for (error, parts) in errors.iter().zip(problems) {
        for part in *parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    }
    assert!(!stderr.contains("panicked") && !stderr.contains("stack backtrace"), "{stderr}");
}

/// Runs a line of shell that must succeed.
pub fn shell(line: &str) {
    assert!(Command::new("sh").args(["-c", line]).status().unwrap().success(), "{line}");
}

/// Sends a signal by its name without SIG. The shell's own `kill` does it: the program of that name may not be installed.
pub fn send_signal(signal: &str, pid: u32) {
    shell(&format!("kill -{signal} {pid}"));
}

/// Polls until `done`; fails with `describe()` after `limit` seconds.
pub fn wait_until(limit: u64, describe: impl Fn() -> String, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(limit), "after {limit} s: {}", describe());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A number below `limit`, another one each time.
pub fn random(limit: u64) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(()) % limit
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The records of one kind in a run's metrics.jsonl.
pub fn metrics(run: &Path, kind: &str) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["kind"] == kind).collect()
}

/// How many lines a file has that another process writes.
pub fn count_lines(path: &Path) -> usize {
    fs::read_to_string(path).map_or(0, |text| text.lines().count())
}

/// The folder of a run's latest checkpoint.
pub fn latest_checkpoint(run: &Path) -> PathBuf {
    let name = fs::read_to_string(run.join("checkpoints/latest")).unwrap();
    run.join("checkpoints").join(name.trim())
}

/// The step of a run's latest checkpoint.
pub fn latest_step(run: &Path) -> u64 {
    let checkpoint = latest_checkpoint(run);
    let name = checkpoint.file_name().unwrap().to_str().unwrap();
    name.trim_start_matches("step-").parse().unwrap()
}

/// The latest checkpoint's weights and momenta.
pub fn weights(run: &Path) -> [Vec<u8>; 2] {
    let checkpoint = latest_checkpoint(run);
    ["model.safetensors", "optimizer.safetensors"].map(|file| fs::read(checkpoint.join(file)).unwrap())
}
