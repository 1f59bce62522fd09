//! The progress of a long command on stderr: a bar on a terminal, elsewhere (as in a batch job's log) a line every half
//! minute.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use codinet_dataloader::{Error, Result};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// Time between two lines without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Shows the number of finished images and their bytes. Many threads may update it.
pub struct ProgressMeter {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
    lines: Mutex<Lines>,
}

struct Lines {
    /// The start of the work.
    start: Instant,
    /// Images that were finished at the start.
    resumed_from: u64,
    last: Instant,
}

impl ProgressMeter {
    pub fn new() -> Result<ProgressMeter> {
        let bytes = Arc::new(AtomicU64::new(0));
        let shown = bytes.clone();
        let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&format_rate(shown.load(Ordering::Relaxed), state.elapsed()));
        };
        let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} images{rate}, {eta} left")
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let bar = ProgressBar::new(0).with_style(style.with_key("rate", rate));
        let now = Instant::now();
        let lines = Lines { start: now, resumed_from: 0, last: now };
        Ok(ProgressMeter { bar, bytes, lines: Mutex::new(lines) })
    }

    /// Shows that `done` of `total` images are finished, and that `bytes` have been read. While `bytes` is 0, the finished
    /// images are those of an earlier run.
    pub fn update(&self, done: u64, total: u64, bytes: Option<u64>) {
        self.bytes.store(bytes.unwrap_or(0), Ordering::Relaxed);
        self.bar.set_length(total);
        self.bar.set_position(done);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes == Some(0) {
            self.bar.reset_eta();
            lines.start = Instant::now();
            lines.resumed_from = done;
        } else if self.bar.is_hidden() && lines.last.elapsed() >= LINE_EVERY {
            lines.last = Instant::now();
            let elapsed = lines.start.elapsed();
            // Threads report in any order, so `done` may be smaller than before.
            let since = done.saturating_sub(lines.resumed_from).max(1);
            let left = elapsed.as_secs_f64() / since as f64 * total.saturating_sub(done) as f64;
            let left = HumanDuration(Duration::from_secs_f64(left));
            codinet_config::eprint_line!(
                "{} of {} images{}, {left} left",
                HumanCount(done),
                HumanCount(total),
                format_rate(bytes.unwrap_or(0), elapsed)
            );
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn format_rate(bytes: u64, elapsed: Duration) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(", {:.1} MB/s", bytes as f64 / 1e6 / elapsed.as_secs_f64().max(1e-3)),
    }
}
