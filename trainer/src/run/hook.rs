//! `run.on_record`: a command that gets each record on its standard input, for other trackers than TensorBoard.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// The most records that wait for the command; while so many wait, others are dropped.
const CAPACITY: usize = 4096;
/// The wait before the command is started again; it doubles each time, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// The time that the command has, at the end of the run, to read what is left and end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// The command in progress. Training never waits for it, and its failure is a warning.
#[derive(Debug)]
pub(super) struct RecordHook {
    lines: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
    dropped: u64,
}

impl RecordHook {
    /// Starts `command`, a line for the shell.
    pub fn start(command: &str) -> Self {
        let (tx, rx) = sync_channel(CAPACITY);
        let command = command.to_owned();
        let thread = thread::Builder::new().name("on_record".into()).spawn(move || feed(&command, &rx)).ok();
        Self { lines: Some(tx), thread, dropped: 0 }
    }

    /// Sends a record, a line of JSON. Does not wait.
    pub fn send(&mut self, line: String) {
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            self.dropped += 1;
        }
    }
}

impl Drop for RecordHook {
    fn drop(&mut self) {
        self.lines = None; // the feeder ends once it has sent what is left
        let start = Instant::now();
        let is_feeding = || self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
        while is_feeding() && start.elapsed() < END_TIMEOUT {
            thread::sleep(Duration::from_millis(20));
        }
        if is_feeding() {
            crate::eprint_line!(
                "warning: run.on_record: the command did not end within {} s",
                END_TIMEOUT.as_secs()
            );
        }
        if self.dropped > 0 {
            crate::eprint_line!(
                "warning: run.on_record: the command did not read {} records in time",
                self.dropped
            );
        }
    }
}

/// Sends each of `lines` to the standard input of `command`, which is started again if it ends.
fn feed(command: &str, lines: &Receiver<String>) {
    let mut wait = FIRST_WAIT;
    let mut child = spawn(command);
    for line in lines {
        loop {
            let error = match &mut child {
                Ok(child) => match child.stdin.as_mut().expect("a pipe").write_all(line.as_bytes()) {
                    Ok(()) => break,
                    Err(_) => end(child),
                },
                Err(error) => error.to_string(),
            };
            crate::eprint_line!("warning: run.on_record: {error}; starting it again in {} s", wait.as_secs());
            thread::sleep(wait);
            wait = (2 * wait).min(LONGEST_WAIT);
            child = spawn(command);
        }
        wait = FIRST_WAIT;
    }
    if let Ok(mut child) = child {
        let _ = child.wait(); // which closes its input first
    }
}

/// In a process group of its own: Ctrl-C must not end it before the last record.
fn spawn(command: &str) -> io::Result<Child> {
    Command::new("sh").args(["-c", command]).stdin(Stdio::piped()).process_group(0).spawn()
}

/// Ends a command that reads no more; says how it ended.
fn end(child: &mut Child) -> String {
    let _ = child.kill(); // most often it has ended
    child.wait().map_or_else(|error| error.to_string(), |status| format!("the command ended ({status})"))
}
