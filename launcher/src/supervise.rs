//! One job: starts mpirun, forwards its output and signals, and makes sure that it ends.

#![expect(unsafe_code, reason = "a system call between fork and exec")]

use crate::mpi::mpirun;
use crate::output::{JobOutput, Stream};
use codinet_config::{env, host};
use rustix::process::{Pid, Signal as Sent, kill_process, set_parent_process_death_signal};
use std::future::pending;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout_at};

/// The time for mpirun to end its ranks after SIGTERM.
const TERMINATE_TIMEOUT: Duration = Duration::from_secs(10);
/// The time for mpirun to end after a rank has failed.
const FAILURE_TIMEOUT: Duration = Duration::from_secs(3);
/// A second signal within this time is the same request: `timeout` and schedulers signal a program, then its group.
const REPEAT_WINDOW: Duration = Duration::from_secs(1);
/// The time for the last lines after mpirun has ended; a process that outlives it may write for ever.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// The signals that request a stop. One that was ignored when the program started, such as SIGHUP under nohup, stays ignored.
pub struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
    checkpoint: Option<Signal>,
}

impl Signals {
    /// Watches the signals; from now on none of them ends this program.
    pub fn watch() -> Result<Self, String> {
        let watch = |kind: SignalKind| {
            if host::ignores_signal(kind.as_raw_value()) {
                return Ok(None);
            }
            signal(kind).map(Some).map_err(|error| format!("cannot watch signals: {error}"))
        };
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
            checkpoint: watch(SignalKind::user_defined2())?,
        })
    }

    /// Waits for any of them.
    pub async fn next(&mut self) {
        tokio::select! {
            () = receive(&mut self.interrupt) => {}
            () = receive(&mut self.terminate) => {}
            () = receive(&mut self.hangup) => {}
            () = receive(&mut self.checkpoint) => {}
        }
    }
}

/// Waits for a signal; for ever if it is ignored.
async fn receive(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => pending().await,
    }
}

/// The end of a job.
#[derive(Debug)]
pub struct JobExit {
    /// mpirun's exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Whether a signal had requested a stop.
    pub stop_requested: bool,
    /// The ranks' output; empty if ranks write to the terminal themselves.
    pub output: JobOutput,
}

/// What becomes of the ranks' output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputMode {
    /// Ranks write to this program's terminal.
    Raw,
    /// Lines with their rank.
    Lines,
    /// The same, and a bar of the run's progress below them.
    Bar,
}

/// Runs mpirun with `args`. The first signal becomes the SIGUSR2 that mpirun forwards to the ranks, which have `grace` for a
/// checkpoint. Another signal a second or more later, or the end of that time, ends mpirun.
pub async fn run(
    args: &[String],
    mode: OutputMode,
    grace: Duration,
    signals: &mut Signals,
) -> Result<JobExit, String> {
    let mut command = Command::new(mpirun());
    // A process group of its own: Ctrl-C reaches only this program, which forwards SIGUSR2.
    command.args(args).stdin(Stdio::null()).process_group(0);
    // The end of this program, by SIGKILL too, ends the job.
    // SAFETY: between fork and exec, one system call, which allocates nothing.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Sent::TERM))?)) };
    if mode == OutputMode::Bar {
        command.env(env::CODINET_PROGRESS.name, "1");
    }
    if mode != OutputMode::Raw {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = command.spawn().map_err(|error| format!("cannot run {}: {error}", mpirun().display()))?;
    let mut lines = read_lines(&mut child);
    let mut output = JobOutput::default();
    let mut requests = 0;
    let mut terminated = false;
    let mut deadline = None;
    let mut last_signal = None::<Instant>;
    let status = loop {
        tokio::select! {
            Some((stream, line)) = lines.recv() => {
                output.forward(stream, &line);
                // mpirun waits for ever for ranks on a host that it can no longer reach.
                if output.has_failure() && deadline.is_none() {
                    deadline = Some(Instant::now() + FAILURE_TIMEOUT);
                }
            }
            status = child.wait() => break status.map_err(|error| format!("lost mpirun: {error}"))?,
            () = signals.next() => {
                if last_signal.replace(Instant::now()).is_some_and(|last| last.elapsed() < REPEAT_WINDOW) {
                    continue;
                }
                requests += 1;
                if requests == 1 {
                    output.say("codinet-launch: stopping with a checkpoint; another signal ends the ranks at once");
                    deadline = Some(Instant::now() + grace);
                    send(&child, Sent::USR2);
                } else {
                    terminated = true;
                    deadline = Some(Instant::now() + TERMINATE_TIMEOUT);
                    send(&child, Sent::TERM);
                }
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                if terminated {
                    kill_tree(&child);
                } else if output.has_failure() {
                    output.say("codinet-launch: a rank has failed and mpirun does not end; ending it");
                    send(&child, Sent::TERM);
                } else {
                    let grace = grace.as_secs();
                    output.say(&format!("codinet-launch: no checkpoint within {grace} s (--grace); ending mpirun"));
                    send(&child, Sent::TERM);
                }
                terminated = true;
                deadline = Some(Instant::now() + TERMINATE_TIMEOUT);
            }
        }
    };
    let drained = Instant::now() + DRAIN_TIMEOUT;
    while let Ok(Some((stream, line))) = timeout_at(drained, lines.recv()).await {
        output.forward(stream, &line);
    }
    output.end();
    let stop_requested = requests > 0;
    let code = output.abort_code().filter(|_| terminated && !stop_requested).or(exit_code(status));
    Ok(JobExit { code, stop_requested, output })
}

/// The exit code as a shell reports it: 128 + n for signal n.
fn exit_code(status: ExitStatus) -> Option<i32> {
    status.code().or_else(|| Some(128 + std::os::unix::process::ExitStatusExt::signal(&status)?))
}

/// The lines of a process's two streams, in order of arrival.
pub fn read_lines(child: &mut Child) -> Receiver<(Stream, String)> {
    let (tx, rx) = channel(1024);
    if let Some(out) = child.stdout.take() {
        tokio::spawn(forward_lines(out, Stream::Out, tx.clone()));
    }
    if let Some(err) = child.stderr.take() {
        tokio::spawn(forward_lines(err, Stream::Err, tx));
    }
    rx
}

async fn forward_lines(source: impl AsyncRead + Unpin, stream: Stream, tx: Sender<(Stream, String)>) {
    let mut source = BufReader::new(source);
    loop {
        let mut line = Vec::new();
        if !source.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
            return;
        }
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
        if tx.send((stream, line)).await.is_err() {
            return;
        }
    }
}

/// Signals mpirun. A failure means that it has just ended, which the caller sees next.
pub fn send(child: &Child, signal: Sent) {
    if let Some(pid) = pid(child) {
        let _ = kill_process(pid, signal);
    }
}

/// Kills mpirun and all its descendants on this machine.
pub fn kill_tree(child: &Child) {
    let Some(mpirun) = pid(child) else { return };
    let mut family = vec![mpirun];
    let mut next = 0;
    while next < family.len() {
        family.extend(children(family[next]));
        next += 1;
    }
    for pid in family {
        let _ = kill_process(pid, Sent::KILL);
    }
}

fn pid(child: &Child) -> Option<Pid> {
    child.id().and_then(|pid| Pid::from_raw(pid as i32))
}

fn children(of: Pid) -> Vec<Pid> {
    let parent = |pid: &i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse::<i32>().ok()
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent(pid) == Some(of.as_raw_nonzero().get())).filter_map(Pid::from_raw).collect()
}
