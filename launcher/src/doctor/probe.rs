//! What ranks tell of themselves: `codinet-train --probe` under the mpirun that training would use.

use crate::mpi::{Flavour, Job, mpirun};
use crate::output;
use crate::supervise::{self, read, send};
use crate::trainer;
use rustix::process::Signal;
use serde::Deserialize;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

/// The first line of a probe.
#[derive(Debug, Deserialize)]
pub struct Probe {
    /// What tensors travel by.
    pub met_by: String,
    /// Its library, version, and thread level.
    pub library: String,
    /// PMIx's version, where it is there.
    pub pmix: Option<String>,
    /// Ranks.
    pub world: usize,
    /// What the config asks for, where there is one.
    pub config: Option<Config>,
    /// Speed between ranks.
    pub all_reduce: AllReduce,
    /// Every rank.
    pub ranks: Vec<Rank>,
}

/// What a config asks for.
#[derive(Debug, Deserialize)]
pub struct Config {
    /// `run.device`.
    pub device: String,
    /// Bytes of a checkpoint.
    pub checkpoint_bytes: u64,
    /// Checkpoints that lie on the disk at once.
    pub checkpoints: u64,
}

/// Speed between ranks.
#[derive(Debug, Deserialize)]
pub struct AllReduce {
    /// Of one number.
    pub microseconds: f64,
    /// Of so many bytes.
    pub bytes: u64,
    /// So fast.
    pub bytes_per_second: f64,
}

/// A rank.
#[derive(Debug, Deserialize)]
pub struct Rank {
    /// Its number.
    pub rank: usize,
    /// Ranks of that host.
    pub locals: usize,
    /// The host's name.
    pub host: String,
    /// Hardware threads that it may run on.
    pub cpus: usize,
    /// The same as a list, such as `0-3,8`.
    pub cpu_list: String,
    /// Those that the host has.
    pub cpus_of_host: usize,
    /// Compute threads.
    pub threads: usize,
    /// Decode threads.
    pub decode_threads: usize,
    /// GPUs that libtorch sees.
    pub gpus: usize,
    /// GPUs that the driver lists.
    pub gpus_installed: usize,
    /// Where libtorch sees none: why, and what mends it.
    pub without_gpu: String,
    /// The driver's version.
    pub driver: Option<String>,
    /// NCCL's version, or why it cannot be used.
    pub nccl: Result<String, String>,
    /// Samples of each data set, or why they cannot be read.
    pub data: Option<std::collections::BTreeMap<String, Data>>,
    /// The run directory's disk.
    pub disk: Option<Disk>,
}

/// A data set.
#[derive(Debug, Deserialize)]
pub struct Data {
    /// So many.
    pub samples: Option<u64>,
    /// Why it cannot be read.
    pub error: Option<String>,
}

/// A disk.
#[derive(Debug, Deserialize)]
pub struct Disk {
    /// The folder that was written to.
    pub dir: String,
    /// Free bytes.
    pub free: Option<u64>,
    /// How fast a file is written.
    pub bytes_per_second: Option<f64>,
    /// Why none can be.
    pub error: Option<String>,
}

/// What became of a probe.
#[derive(Debug)]
pub struct Probed {
    /// What ranks told, where they met.
    pub probe: Option<Probe>,
    /// For every rank, whether it got mpirun's SIGUSR2; none where that was not told.
    pub signalled: Option<Vec<bool>>,
    /// The exit code; none where time was up.
    pub code: Option<i32>,
    /// What ranks and mpirun said beside that.
    pub lines: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Probe(Box<Probe>),
    Signalled(Vec<bool>),
}

/// Starts the probe on every rank, signals mpirun once it has told, and waits for the end.
pub async fn of_ranks(job: &Job, config: Option<&str>, set: &[String], limit: Duration) -> Probed {
    let mut words = job.words();
    words.extend([trainer().to_string_lossy().into_owned(), "--probe".into()]);
    words.extend(config.map(Into::into));
    words.extend(set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
    let mut probed = Probed { probe: None, signalled: None, code: None, lines: Vec::new() };
    let mut child = match piped(mpirun(), &words) {
        Ok(child) => child,
        Err(error) => {
            probed.lines.push(format!("cannot run mpirun: {error}"));
            return probed;
        }
    };
    let mut lines = read(&mut child);
    let deadline = Instant::now() + limit;
    loop {
        let Ok(Some((_, line))) = timeout_at(deadline, lines.recv()).await else { break };
        let text = output::text(&line);
        match serde_json::from_str(&text) {
            Ok(Line::Probe(probe)) => {
                probed.probe = Some(*probe);
                send(&child, Signal::USR2);
            }
            Ok(Line::Signalled(ranks)) => probed.signalled = Some(ranks),
            Err(_) if !text.trim().is_empty() => probed.lines.push(text),
            Err(_) => {}
        }
    }
    probed.code = end(child, deadline).await;
    probed
}

/// How long mpirun leaves a rank between SIGTERM and SIGKILL, tried with one that ignores the first; none where it was not to
/// be found out.
pub async fn grace(flavour: Flavour, root: bool) -> Option<Duration> {
    let job = Job { flavour, ranks: 1, hosts: Vec::new(), cores: None, crowded: false, root, labels: false };
    let mut words = job.words();
    words.extend(
        ["sh", "-c", "trap '' TERM; echo up; for i in 1 2 3 4 5 6 7 8; do sleep 1; done"].map(Into::into),
    );
    let mut child = piped(mpirun(), &words).ok()?;
    let mut lines = read(&mut child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !timeout_at(deadline, lines.recv()).await.ok()??.1.contains("up") {}
    let start = Instant::now();
    send(&child, Signal::TERM);
    end(child, deadline).await?;
    Some(start.elapsed())
}

fn piped(program: std::path::PathBuf, words: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true).spawn()
}

/// Waits for the end; at the deadline mpirun is told to end, and gets no more than 10 s for it.
async fn end(mut child: Child, deadline: Instant) -> Option<i32> {
    if let Ok(status) = timeout_at(deadline, child.wait()).await {
        return status.ok()?.code();
    }
    send(&child, Signal::TERM);
    if timeout(Duration::from_secs(10), child.wait()).await.is_err() {
        supervise::end(&child);
    }
    None
}
