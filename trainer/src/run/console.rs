//! What rank 0 shows a person: lines, which `log.txt` has too, and how far the run is: as a bar on a terminal, elsewhere as
//! lines.

use crate::config::progress::{CHARS, Progress, TEMPLATE};
use crate::env;
use crate::run_dir::LOG;
use crate::text::print_line;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Without a bar, the first status comes this soon after the start.
const FIRST_LINE: Duration = Duration::from_secs(10);
/// Without a bar, the longest time between two lines with a status.
const LINE_EVERY: Duration = Duration::from_secs(60);
/// The time between two updates of a bar.
const BAR_EVERY: Duration = Duration::from_millis(250);

/// The terminal and `log.txt` of rank 0; does nothing on other ranks.
#[derive(Debug, Default)]
pub struct Console {
    enabled: bool,
    log: Option<File>,
    progress: Option<ProgressView>,
}

/// How far the run is, as it is shown.
#[derive(Debug)]
struct ProgressView {
    kind: ViewKind,
    steps: u64,
    /// The time by which the next status is shown.
    due: Instant,
}

#[derive(Debug)]
enum ViewKind {
    /// A bar on this process's terminal.
    Bar(ProgressBar),
    /// A bar that codinet-launch draws.
    Launcher,
    /// Lines. The first step ends the thread that waits for it.
    Lines { first_step: Option<Sender<Infallible>> },
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
        match &self.progress {
            Some(ProgressView { kind: ViewKind::Bar(bar), .. }) => bar.suspend(|| print_line(text)),
            _ => print_line(text),
        }
        self.log_only(text);
    }

    /// Logs some lines without printing them.
    pub fn log_only(&mut self, text: &str) {
        if let Some(log) = &mut self.log {
            write_log(log, text);
        }
    }

    /// Shows from now on how far the run is, at `step` of `steps`.
    pub fn start_progress(&mut self, step: u64, steps: u64, status: &str) {
        if !self.enabled {
            return;
        }
        let terminal = std::io::stdout().is_terminal();
        let now = Instant::now();
        let (kind, due) = if env::is_set(env::CODINET_PROGRESS) {
            (ViewKind::Launcher, now)
        } else if terminal && !env::is_set(env::OMPI_COMM_WORLD_SIZE) {
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stdout_with_hz(5));
            let style = ProgressStyle::with_template(TEMPLATE).expect("a valid template");
            bar.set_style(style.progress_chars(CHARS));
            (ViewKind::Bar(bar), now)
        } else {
            let log = self.log.as_ref().and_then(|log| log.try_clone().ok());
            let line =
                format!("{} · no step is over after {} s", line(step, steps, status), FIRST_LINE.as_secs());
            (ViewKind::Lines { first_step: watch_first_step(line, log) }, now + FIRST_LINE)
        };
        let view = ProgressView { kind, steps, due };
        view.draw(step, status);
        self.progress = Some(view);
    }

    /// Whether how far the run is is shown as a bar.
    pub fn has_bar(&self) -> bool {
        let view = self.progress.as_ref();
        view.is_some_and(|view| !matches!(view.kind, ViewKind::Lines { .. }))
    }

    /// After each step: whether a status is due now or, without a bar, would be before another step, which takes about
    /// `step_time`, is over.
    pub fn status_is_due(&mut self, step_time: Duration) -> bool {
        let Some(view) = &mut self.progress else { return false };
        match &mut view.kind {
            ViewKind::Lines { first_step } => {
                *first_step = None;
                Instant::now() + step_time >= view.due
            }
            _ => Instant::now() >= view.due,
        }
    }

    /// Shows the status after `step`: moves the bar, or prints a line. `log.txt` has the line if it was printed or `logged`.
    pub fn show_status(&mut self, step: u64, status: &str, logged: bool) {
        let has_bar = self.has_bar();
        let Some(view) = &mut self.progress else { return };
        let line = line(step, view.steps, status);
        view.due = Instant::now() + if has_bar { BAR_EVERY } else { LINE_EVERY };
        view.draw(step, status);
        if !has_bar {
            self.say(&line);
        } else if logged {
            self.log_only(&line);
        }
    }

    /// Removes the bar.
    pub fn end_progress(&mut self) {
        if let Some(ProgressView { kind: ViewKind::Bar(bar), .. }) = self.progress.take() {
            bar.finish_and_clear();
        }
    }
}

impl ProgressView {
    /// Moves the bar, if there is one.
    fn draw(&self, step: u64, status: &str) {
        match &self.kind {
            ViewKind::Bar(bar) => {
                bar.set_message(status.to_owned());
                bar.set_position(step);
            }
            ViewKind::Launcher => print_line(&Progress { step, steps: self.steps, status }.to_string()),
            ViewKind::Lines { .. } => {}
        }
    }
}

fn line(step: u64, steps: u64, status: &str) -> String {
    format!("step {step}/{steps} · {status}")
}

/// Starts a thread that prints and logs `line` after [`FIRST_LINE`], unless the returned end of a channel is dropped sooner.
fn watch_first_step(line: String, log: Option<File>) -> Option<Sender<Infallible>> {
    let (tx, rx) = channel::<Infallible>();
    let watch = move || {
        if rx.recv_timeout(FIRST_LINE) == Err(RecvTimeoutError::Timeout) {
            print_line(&line);
            if let Some(mut log) = log {
                write_log(&mut log, &line);
            }
        }
    };
    // Without the thread only this line is missing.
    thread::Builder::new().name("first step".into()).spawn(watch).ok().map(|_| tx)
}

/// Appends lines with the time; a log that cannot be written ends nothing.
fn write_log(log: &mut File, text: &str) {
    let now = jiff::Zoned::now().strftime("%Y-%m-%d %H:%M:%S");
    for line in text.lines() {
        let _ = writeln!(log, "{now} {line}");
    }
}
