//! How far a long command is, on stderr: a bar on a terminal; elsewhere, as in a batch job's log, a line now
//! and then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use codinet_dataloader::{Error, Result};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressState, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// Counts images and bytes; may be told from many threads.
pub struct Meter {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
    lines: Mutex<Lines>,
}

struct Lines {
    /// When work began, and how many images were done already.
    began: (Instant, u64),
    last: Instant,
}

impl Meter {
    pub fn new() -> Result<Meter> {
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = bytes.clone();
        let rate = move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = out.write_str(&rate(counted.load(Ordering::Relaxed), state.elapsed()));
        };
        let style = ProgressStyle::with_template("{bar:40} {human_pos}/{human_len} images{rate}, {eta} left")
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        let bar = ProgressBar::new(0).with_style(style.with_key("rate", rate));
        let now = Instant::now();
        Ok(Meter { bar, bytes, lines: Mutex::new(Lines { began: (now, 0), last: now }) })
    }

    /// `done` of `total` images are done; `bytes`, where they are counted, have been read. While these are 0,
    /// nothing has been done yet but what was found done.
    pub fn set(&self, done: u64, total: u64, bytes: Option<u64>) {
        self.bytes.store(bytes.unwrap_or(0), Ordering::Relaxed);
        self.bar.set_length(total);
        self.bar.set_position(done);
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes == Some(0) {
            self.bar.reset_eta();
            lines.began = (Instant::now(), done);
        } else if self.bar.is_hidden() && lines.last.elapsed() >= LINE_EVERY {
            lines.last = Instant::now();
            let (began, before) = (lines.began.0.elapsed(), lines.began.1);
            // Threads tell in any order, so that the last word need not be the highest.
            let since = done.saturating_sub(before).max(1);
            let left = began.as_secs_f64() / since as f64 * total.saturating_sub(done) as f64;
            let left = HumanDuration(Duration::from_secs_f64(left));
            eprintln!(
                "{} of {} images{}, {left} left",
                HumanCount(done),
                HumanCount(total),
                rate(bytes.unwrap_or(0), began)
            );
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn rate(bytes: u64, elapsed: Duration) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!(", {:.1} MB/s", bytes as f64 / 1e6 / elapsed.as_secs_f64().max(1e-3)),
    }
}
