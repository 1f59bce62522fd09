//! How far a run is: rank 0 prints it, and codinet-launch draws a bar of it on its terminal.

/// The bar's template, in indicatif's syntax.
pub const TEMPLATE: &str = "{bar:16} {pos}/{len} · {wide_msg}";
/// The bar's characters: full, partial, empty.
pub const CHARS: &str = "━╸ ";
/// The start of a line of progress.
const MARK: &str = "@progress ";

/// A run's progress, as a line that codinet-launch reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress<'a> {
    /// Completed steps.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// What to show next to the bar.
    pub status: &'a str,
}

impl<'a> Progress<'a> {
    /// Reads such a line; `None` for any other.
    pub fn parse(line: &'a str) -> Option<Self> {
        let (counts, status) = line.strip_prefix(MARK)?.split_once(' ')?;
        let (step, steps) = counts.split_once('/')?;
        Some(Self { step: step.parse().ok()?, steps: steps.parse().ok()?, status })
    }
}

impl std::fmt::Display for Progress<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(out, "{MARK}{}/{} {}", self.step, self.steps, self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_printed_line_is_read_back() {
        let progress = Progress { step: 12, steps: 340, status: "epoch 1/3 · loss 2.3" };
        assert_eq!(Progress::parse(&progress.to_string()), Some(progress));
        for other in ["step 12/340 · epoch 1/3", "@progress", "@progress 12 340", ""] {
            assert_eq!(Progress::parse(other), None, "{other}");
        }
    }
}
