//! The output of ranks and mpirun, forwarded line by line, each line with its rank.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;

/// Lines of each rank that are kept for the summary at the end.
const KEPT_LINES: usize = 20;

/// The stream of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Parses a rank's line as mpirun tags it: `[1,3]<stdout>:text` (Open MPI 4), `[job@1,3]<stdout>: text` (5) or `[3] text`
/// (Hydra). `None` for mpirun's own lines.
fn parse_rank_line(line: &str) -> Option<(usize, String)> {
    let (tag, rest) = line.strip_prefix('[')?.split_once(']')?;
    let Some(mark) = ["<stdout>:", "<stderr>:"].into_iter().find(|mark| rest.starts_with(mark)) else {
        return Some((tag.parse().ok()?, rest.strip_prefix(' ')?.to_owned()));
    };
    // Open MPI 5 has an `@` in its tag, and a space after it.
    let whole = format!("[{tag}]{mark}{}", if tag.contains('@') { " " } else { "" });
    // A line that arrives in pieces, such as every 4096 bytes, has a tag before each.
    Some((tag.rsplit(',').next()?.parse().ok()?, line.replace(&whole, "")))
}

/// A line without mpirun's tag.
pub fn strip_tag(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    parse_rank_line(line).map_or_else(|| line.to_owned(), |(_, text)| text)
}

/// The failed rank that one of mpirun's own lines names.
fn parse_failed_rank(line: &str) -> Option<usize> {
    let number = |text: &str| {
        let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let after = |mark: &str| line.split_once(mark).and_then(|(_, rest)| number(rest));
    // Open MPI: killed; aborted; ended with another code than 0. MPICH: aborted.
    let process =
        || line.trim().strip_prefix("Process name: ")?.trim_end_matches(']').rsplit(',').next()?.parse().ok();
    after("noticed that process rank ")
        .or_else(|| after("MPI_ABORT was invoked on rank "))
        .or_else(|| after("(rank ").filter(|_| line.starts_with("Abort(")))
        .or_else(|| after(" - process ").filter(|_| line.contains("called MPI_Abort(")))
        .or_else(process)
}

/// The output of a job so far.
#[derive(Debug, Default)]
pub struct JobOutput {
    last_lines: BTreeMap<usize, VecDeque<String>>,
    /// The failed rank that mpirun names.
    named_by_mpirun: Option<usize>,
    /// The code of its MPI_Abort, as mpirun reports it.
    abort_code: Option<i32>,
    /// The first rank that printed an error.
    first_error: Option<usize>,
}

impl JobOutput {
    /// Forwards a line to this program's stream and records it.
    pub fn forward(&mut self, stream: Stream, line: &str) {
        let text = self.record(line) + "\n";
        match stream {
            Stream::Out => crate::print(&text),
            Stream::Err => _ = std::io::stderr().write_all(text.as_bytes()),
        }
    }

    fn record(&mut self, line: &str) -> String {
        // mpirun's pseudo-terminals end lines with two characters.
        let line = line.trim_end_matches('\r');
        let Some((rank, text)) = parse_rank_line(line) else {
            self.named_by_mpirun = self.named_by_mpirun.or_else(|| parse_failed_rank(line));
            let code = || line.strip_prefix("with errorcode ")?.trim_end_matches('.').parse().ok();
            self.abort_code = self.abort_code.or_else(code);
            return line.to_owned();
        };
        if text.starts_with("error: ") {
            self.first_error.get_or_insert(rank);
        }
        let tagged = format!("[{rank}] {text}");
        let lines = self.last_lines.entry(rank).or_default();
        lines.push_back(text);
        if lines.len() > KEPT_LINES {
            lines.pop_front();
        }
        tagged
    }

    /// Whether any rank has printed a line.
    pub fn any(&self) -> bool {
        !self.last_lines.is_empty()
    }

    /// Whether a rank has failed, so that mpirun should end the job: by mpirun's lines or the rank's own. mpirun's may be
    /// missing if a host was lost.
    pub fn has_failure(&self) -> bool {
        self.first_failed().is_some()
    }

    /// The code of a rank's MPI_Abort, if mpirun reported it.
    pub fn abort_code(&self) -> Option<i32> {
        self.abort_code
    }

    /// The rank that failed first: the first one that printed an error, else the one that mpirun names.
    pub fn first_failed(&self) -> Option<usize> {
        self.first_error.or(self.named_by_mpirun)
    }

    /// The last lines of the rank that failed first, for the summary at the end.
    pub fn last_lines(&self) -> Option<String> {
        let rank = self.first_failed()?;
        let lines = self.last_lines.get(&rank);
        let mut text = if lines.is_some() {
            format!("rank {rank} failed first; its last lines:")
        } else {
            format!("rank {rank} failed first (no output)")
        };
        for line in lines.into_iter().flatten() {
            text += &format!("\n[{rank}] {line}");
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_every_mpirun_are_parsed() {
        for (line, rank, text) in [
            ("[1,3]<stdout>:step 5", 3, "step 5"),
            ("[1,12]<stderr>:  table", 12, "  table"),
            ("[prterun-host-77@1,0]<stderr>: error: x", 0, "error: x"),
            ("[4] step 5", 4, "step 5"),
            ("[1,3]<stdout>:a long [1,3]<stdout>:line", 3, "a long line"),
        ] {
            assert_eq!(parse_rank_line(line), Some((rank, text.to_owned())), "{line}");
        }
        for line in ["mpirun noticed that …", "[host:08734] mca: base", "[proxy:0:1@host] x", ""] {
            assert_eq!(parse_rank_line(line), None, "{line}");
        }
    }

    #[test]
    fn first_failed_rank_is_reported_with_its_last_lines() {
        for (line, rank) in [
            (
                "mpirun noticed that process rank 12 with PID 0 on node vm exited on signal 9 (Killed).",
                Some(12),
            ),
            ("MPI_ABORT was invoked on rank 3 in communicator MPI_COMM_WORLD", Some(3)),
            ("  Process name: [[20192,1],1]", Some(1)),
            ("  Process name: [prterun-vm-77@1,2]", Some(2)),
            ("Abort(8) on node 1 (rank 5 in comm 0): application called MPI_Abort", Some(5)),
            ("application called MPI_Abort(MPI_COMM_WORLD, 8) - process 4", Some(4)),
            ("=   EXIT CODE: 9", None),
        ] {
            assert_eq!(parse_failed_rank(line), rank, "{line}");
        }
        let mut output = JobOutput::default();
        assert!(!output.any() && !output.has_failure() && output.last_lines().is_none());
        for step in 0..30 {
            assert_eq!(output.record(&format!("[1,1]<stdout>:step {step}\r")), format!("[1] step {step}"));
        }
        output.record("[1,0]<stdout>:step 30");
        output
            .record("mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).");
        let lines = output.last_lines().unwrap();
        assert!(lines.starts_with("rank 1 failed first; its last lines:\n[1] step 10\n"), "{lines}");
        assert!(lines.ends_with("[1] step 29"), "{lines}");
        // A rank's own error counts for more: mpirun names the rank that ended first.
        output.record("[1,0]<stderr>:error: the loss is not finite");
        assert_eq!(output.first_failed(), Some(0));
        let mut output = JobOutput::default();
        output.record("[1,0]<stderr>:error: rank 0 has waited 4 s");
        assert!(output.has_failure(), "a rank's own error suffices");
    }
}
