//! One job: mpirun started, its lines passed on, signals turned into what it and the ranks take, and its end seen to.

#![expect(unsafe_code, reason = "what is done between fork and exec")]

use crate::mpi::mpirun;
use crate::output::{Said, Stream};
use rustix::process::{Pid, Signal as Sent, kill_process, set_parent_process_death_signal};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{Instant, sleep_until, timeout_at};

/// What mpirun has to end its ranks in, once it is told to.
const END: Duration = Duration::from_secs(10);
/// What it has once a rank has failed.
const AFTER: Duration = Duration::from_secs(15);
/// How soon after a signal another is the same request: `timeout` and schedulers signal a program, and then its group.
const SAME: Duration = Duration::from_secs(1);
/// What lines have to come in that are under way when mpirun has ended; a process that outlives it may speak for ever.
const REST: Duration = Duration::from_secs(2);

/// The signals that ask for an end.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    checkpoint: Signal,
}

impl Signals {
    /// Watches from here on: none of them ends this program any more.
    pub fn watch() -> Result<Self, String> {
        let watch = |kind| signal(kind).map_err(|error| format!("cannot watch signals: {error}"));
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
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.checkpoint.recv() => {}
        }
    }
}

/// A job that is over.
#[derive(Debug)]
pub struct Ended {
    /// mpirun's exit code; none where a signal ended it.
    pub code: Option<i32>,
    /// Whether it was asked to end.
    pub asked: bool,
    /// What was said; nothing is known of that where ranks write to the terminal themselves.
    pub said: Said,
}

/// Runs `mpirun words…`. A first signal becomes the SIGUSR2 that mpirun forwards to the ranks, who have `grace` for a
/// checkpoint; another one a second or more later, or the end of that time, ends mpirun. With `raw` ranks write to this
/// program's own terminal.
pub async fn run(
    words: &[String],
    raw: bool,
    grace: Duration,
    signals: &mut Signals,
) -> Result<Ended, String> {
    let mut command = Command::new(mpirun());
    // A process group of its own: Ctrl-C reaches this program alone, which passes on what the ranks take.
    command.args(words).stdin(Stdio::null()).process_group(0);
    // Whatever ends this program, SIGKILL too, ends the job.
    // SAFETY: between fork and exec, one system call, which allocates nothing.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Sent::TERM))?)) };
    if !raw {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
    }
    let mut child = command.spawn().map_err(|error| format!("cannot run {}: {error}", mpirun().display()))?;
    let mut lines = read(&mut child);
    let mut said = Said::default();
    let (mut asked, mut told, mut deadline) = (0, false, None);
    let mut last = None::<Instant>;
    let status = loop {
        tokio::select! {
            Some((stream, line)) = lines.recv() => {
                said.line(stream, &line);
                // mpirun waits for ever to hear that ranks of a host have ended which it cannot reach any more.
                if said.ends() && deadline.is_none() {
                    deadline = Some(Instant::now() + AFTER);
                }
            }
            status = child.wait() => break status.map_err(|error| format!("lost mpirun: {error}"))?,
            () = signals.next() => {
                if last.replace(Instant::now()).is_some_and(|last| last.elapsed() < SAME) {
                    continue;
                }
                asked += 1;
                told |= asked > 1;
                deadline = Some(Instant::now() + if asked == 1 { grace } else { END });
                send(&child, if asked == 1 { Sent::USR2 } else { Sent::TERM });
            }
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                if told {
                    end(&child);
                } else {
                    match said.ends() {
                        true => eprintln!("codinet-launch: a rank has failed, and mpirun does not end; ending it"),
                        false => eprintln!("codinet-launch: no checkpoint within {} s (--grace); ending mpirun", grace.as_secs()),
                    }
                    send(&child, Sent::TERM);
                }
                told = true;
                deadline = Some(Instant::now() + END);
            }
        }
    };
    let rest = Instant::now() + REST;
    while let Ok(Some((stream, line))) = timeout_at(rest, lines.recv()).await {
        said.line(stream, &line);
    }
    let code = said.aborted_with().filter(|_| told && asked == 0).or(code(status));
    Ok(Ended { code, asked: asked > 0, said })
}

/// As a shell has it.
fn code(status: ExitStatus) -> Option<i32> {
    status.code().or_else(|| Some(128 + std::os::unix::process::ExitStatusExt::signal(&status)?))
}

/// The lines of both of a process's streams, as they come.
pub fn read(child: &mut Child) -> Receiver<(Stream, String)> {
    let (told, lines) = channel(1024);
    if let Some(out) = child.stdout.take() {
        tokio::spawn(pass(out, Stream::Out, told.clone()));
    }
    if let Some(err) = child.stderr.take() {
        tokio::spawn(pass(err, Stream::Err, told));
    }
    lines
}

async fn pass(from: impl AsyncRead + Unpin, stream: Stream, to: Sender<(Stream, String)>) {
    let mut from = BufReader::new(from);
    loop {
        let mut line = Vec::new();
        if !from.read_until(b'\n', &mut line).await.is_ok_and(|read| read > 0) {
            return;
        }
        let line = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
        if to.send((stream, line)).await.is_err() {
            return;
        }
    }
}

/// Signals mpirun; fails only where it has just ended, which is seen next.
pub fn send(child: &Child, signal: Sent) {
    if let Some(pid) = pid(child) {
        let _ = kill_process(pid, signal);
    }
}

/// Ends mpirun and all that descends from it on this machine, whatever state they are in.
pub fn end(child: &Child) {
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
