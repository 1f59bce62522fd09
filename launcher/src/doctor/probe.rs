//! The ranks' measurements: `codinet-train --probe` under the mpirun that training uses.

use crate::mpi::{Flavour, Job, mpirun};
use crate::output;
use crate::supervise::{kill_tree, read_lines, send};
use crate::trainer;
use codinet_config::probe::{Probe, ProbeLine};
use rustix::process::Signal;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

/// The result of a probe.
#[derive(Debug)]
pub struct ProbeResult {
    /// The measurements, if the ranks connected.
    pub probe: Option<Probe>,
    /// For every rank, whether it received mpirun's SIGUSR2; `None` if the ranks did not report it.
    pub signalled: Option<Vec<bool>>,
    /// The exit code; `None` at the time limit.
    pub code: Option<i32>,
    /// All other lines of the ranks and mpirun.
    pub lines: Vec<String>,
}

/// Starts the probe on every rank, signals mpirun after the measurements, and waits for the end.
pub async fn probe_ranks(job: &Job, config: Option<&str>, set: &[String], limit: Duration) -> ProbeResult {
    let mut words = job.mpirun_args();
    words.extend([trainer().to_string_lossy().into_owned(), "--probe".into()]);
    words.extend(config.map(Into::into));
    words.extend(set.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
    let mut result = ProbeResult { probe: None, signalled: None, code: None, lines: Vec::new() };
    let mut child = match spawn_piped(mpirun(), &words) {
        Ok(child) => child,
        Err(error) => {
            result.lines.push(format!("cannot run mpirun: {error}"));
            return result;
        }
    };
    let mut lines = read_lines(&mut child);
    let deadline = Instant::now() + limit;
    loop {
        let Ok(Some((_, line))) = timeout_at(deadline, lines.recv()).await else { break };
        let text = output::strip_tag(&line);
        match serde_json::from_str(&text) {
            Ok(ProbeLine::Probe(probe)) => {
                result.probe = Some(*probe);
                send(&child, Signal::USR2);
            }
            Ok(ProbeLine::Signalled(ranks)) => result.signalled = Some(ranks),
            Err(_) if !text.trim().is_empty() => result.lines.push(text),
            Err(_) => {}
        }
    }
    result.code = wait_or_kill(child, deadline).await;
    result
}

/// Measures the time that mpirun leaves a rank between SIGTERM and SIGKILL, with one that ignores SIGTERM; `None` if that
/// fails.
pub async fn measure_grace(flavour: Flavour, root: bool) -> Option<Duration> {
    let job =
        Job { flavour, ranks: 1, hosts: Vec::new(), cores: None, oversubscribed: false, root, labels: false };
    let mut words = job.mpirun_args();
    words.extend(
        ["sh", "-c", "trap '' TERM; echo up; for i in 1 2 3 4 5 6 7 8; do sleep 1; done"].map(Into::into),
    );
    let mut child = spawn_piped(mpirun(), &words).ok()?;
    let mut lines = read_lines(&mut child);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !timeout_at(deadline, lines.recv()).await.ok()??.1.contains("up") {}
    let start = Instant::now();
    send(&child, Signal::TERM);
    wait_or_kill(child, deadline).await?;
    Some(start.elapsed())
}

fn spawn_piped(program: std::path::PathBuf, words: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true).spawn()
}

/// Waits for the end. At the deadline mpirun receives SIGTERM, and 10 s later SIGKILL.
async fn wait_or_kill(mut child: Child, deadline: Instant) -> Option<i32> {
    if let Ok(status) = timeout_at(deadline, child.wait()).await {
        return status.ok()?.code();
    }
    send(&child, Signal::TERM);
    if timeout(Duration::from_secs(10), child.wait()).await.is_err() {
        kill_tree(&child);
    }
    None
}
