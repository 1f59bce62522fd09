//! What rank 0 shows a person: lines, which `log.txt` has too, and a progress bar on a terminal.

use crate::env;
use crate::run_dir::LOG;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// The terminal and `log.txt` of rank 0; does nothing on other ranks.
#[derive(Debug, Default)]
pub struct Console {
    enabled: bool,
    log: Option<File>,
    bar: Option<ProgressBar>,
}

impl Console {
    /// For a rank: enabled on rank 0.
    pub fn new(rank: usize) -> Self {
        Self { enabled: rank == 0, ..Self::default() }
    }

    /// From now on, lines are appended to `log.txt` in `dir` as well, unless it cannot be opened.
    pub fn open_log(&mut self, dir: &Path) {
        if self.enabled {
            self.log = OpenOptions::new().create(true).append(true).open(dir.join(LOG)).ok();
        }
    }

    /// Prints some lines, and logs them with the time.
    pub fn say(&mut self, text: &str) {
        if !self.enabled {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| print_line(text)),
            None => print_line(text),
        }
        self.log_only(text);
    }

    /// Logs some lines without printing them.
    pub fn log_only(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S");
            for line in text.lines() {
                let _ = writeln!(log, "{now} {line}");
            }
        }
    }

    /// Shows a bar at `done` of `steps` steps, if a person watches.
    pub fn start_bar(&mut self, steps: u64, done: u64) {
        if self.enabled && is_watched() {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stdout_with_hz(5));
            let style = ProgressStyle::with_template("{bar:16} {pos}/{len}  {eta} left  {wide_msg}");
            bar.set_style(style.expect("a valid template").progress_chars("━╸ "));
            bar.set_position(done);
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    /// Moves the bar to `done` steps. `status`, a step of the run and its figures, is shown on the bar or printed, and
    /// logged.
    pub fn update_bar(&mut self, done: u64, status: Option<(u64, &str)>) {
        match (&self.bar, status) {
            (Some(bar), Some((step, status))) => {
                bar.set_message(status.to_owned());
                bar.set_position(done);
                self.log_only(&format!("step {step}  {status}"));
            }
            (Some(bar), None) => bar.set_position(done),
            (None, Some((step, status))) => self.say(&format!("step {step}  {status}")),
            (None, None) => {}
        }
    }

    /// Removes the bar.
    pub fn end_bar(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// Prints a line. A closed pipe (`| head`) is not an error.
pub fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Whether standard output is a person's terminal. Under Open MPI it is a terminal that mpirun made, so mpirun's own standard
/// output decides.
fn is_watched() -> bool {
    let mpirun = || std::fs::read_link(format!("/proc/{}/fd/1", std::os::unix::process::parent_id()));
    let launched = env::is_set(env::OMPI_COMM_WORLD_SIZE);
    std::io::stdout().is_terminal() && (!launched || mpirun().is_ok_and(|to| to.starts_with("/dev/pts")))
}
