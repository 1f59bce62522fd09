//! What a person sees: plain lines, kept in `log.txt` too, and a progress bar where there is a terminal.

use crate::env;
use crate::run_dir::LOG;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// Rank 0's terminal and log; silent on the other ranks.
#[derive(Debug, Default)]
pub struct Console {
    speaks: bool,
    log: Option<File>,
    bar: Option<ProgressBar>,
}

impl Console {
    /// A console that speaks on rank 0 alone.
    pub fn new(rank: usize) -> Self {
        Self { speaks: rank == 0, ..Self::default() }
    }

    /// From here on every line is kept in `log.txt` too; a log that cannot be opened is done without.
    pub fn keep_log(&mut self, dir: &Path) {
        if self.speaks {
            self.log = OpenOptions::new().create(true).append(true).open(dir.join(LOG)).ok();
        }
    }

    /// Prints a line, and logs it with the time.
    pub fn say(&mut self, text: &str) {
        if !self.speaks {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| say(text)),
            None => say(text),
        }
        self.note(text);
    }

    /// Logs a line without printing it.
    pub fn note(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S");
            for line in text.lines() {
                let _ = writeln!(log, "{now} {line}");
            }
        }
    }

    /// Shows a bar of `steps` steps, `done` of them done, where there is a terminal.
    pub fn start_bar(&mut self, steps: u64, done: u64) {
        if self.speaks && on_terminal() {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stdout_with_hz(5));
            let style = ProgressStyle::with_template("{bar:16} {pos}/{len}  {eta} left  {wide_msg}");
            bar.set_style(style.expect("a valid template").progress_chars("━╸ "));
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    /// Moves the bar to `done` steps; `status` is a step of the run, and what changed since the last line.
    pub fn step(&mut self, done: u64, status: Option<(u64, &str)>) {
        match (&self.bar, status) {
            (Some(bar), Some((step, status))) => {
                bar.set_message(status.to_owned());
                bar.set_position(done);
                self.note(&format!("step {step}  {status}"));
            }
            (Some(bar), None) => bar.set_position(done),
            (None, Some((step, status))) => self.say(&format!("step {step}  {status}")),
            (None, None) => {}
        }
    }

    /// Takes the bar away.
    pub fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Prints a line; a reader that has gone away (`| head`) ends nothing.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Whether a person watches. Open MPI gives ranks a terminal of its own making, so what counts under it is where
/// mpirun, the parent, writes to.
fn on_terminal() -> bool {
    let mpirun = || std::fs::read_link(format!("/proc/{}/fd/1", std::os::unix::process::parent_id()));
    let launched = env::is_set(env::OMPI_COMM_WORLD_SIZE);
    std::io::stdout().is_terminal() && (!launched || mpirun().is_ok_and(|to| to.starts_with("/dev/pts")))
}
