//! How far a long command is: on a terminal's stderr, and nowhere else.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar of `total` parts; hidden unless `shown`.
pub fn bar(shown: bool, what: &'static str, total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:32} {human_pos}/{human_len}, {eta} left");
    visible(shown, Some(total as u64), style, what)
}

/// A sign of life for work whose length is not known; hidden unless `shown`.
pub fn spinner(shown: bool, what: &'static str) -> ProgressBar {
    let bar = visible(shown, None, ProgressStyle::with_template("{spinner} {msg}, {elapsed}"), what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn visible(
    shown: bool,
    total: Option<u64>,
    style: Result<ProgressStyle, indicatif::style::TemplateError>,
    what: &'static str,
) -> ProgressBar {
    if !shown {
        return ProgressBar::hidden();
    }
    // indicatif draws on stderr, if that is a terminal.
    let bar = total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    bar.with_style(style.expect("a valid template")).with_message(what)
}
