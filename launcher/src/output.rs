//! The output of ranks and mpirun, forwarded line by line, each line with its rank. Of mpirun's own lines about the end of a
//! job, only those remain that say what codinet-launch does not.

use codinet_config::progress::{CHARS, Progress, TEMPLATE};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
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

/// Parts of mpirun's lines and framed blocks that only say that a rank has failed or the job was signalled: Open MPI's, then
/// Hydra's.
const BOILERPLATE: [&str; 10] = [
    "Primary job  terminated normally, but",
    "detected that one or more processes exited with non-zero status",
    "MPI_ABORT was invoked on rank",
    "has sent help message help-mpi-api.txt / mpi-abort",
    "have sent help message help-mpi-api.txt / mpi-abort",
    "to 0 to see all help / error messages",
    ": Forwarding signal ",
    "BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES",
    "YOUR APPLICATION TERMINATED WITH THE EXIT STRING",
    "Please see the FAQ page for debugging suggestions",
];
/// In the block of a rank that a signal has ended: the line with the signal and the host.
const KILLED: &str = "noticed that process rank ";

/// Leaves out mpirun's boilerplate.
#[derive(Debug, Default)]
struct MpirunLines {
    /// The lines since a block's first frame.
    block: Vec<String>,
}

impl MpirunLines {
    /// The lines to print once `line` has arrived.
    fn push(&mut self, line: &str) -> Vec<String> {
        let is_frame =
            line.len() >= 20 && (line.bytes().all(|c| c == b'-') || line.bytes().all(|c| c == b'='));
        if self.block.is_empty() && !is_frame {
            return if is_boilerplate(line) { Vec::new() } else { vec![line.to_owned()] };
        }
        self.block.push(line.to_owned());
        if is_frame && self.block.len() > 1 { self.take_block() } else { Vec::new() }
    }

    /// The lines to print of a block that is over.
    fn take_block(&mut self) -> Vec<String> {
        let mut block = std::mem::take(&mut self.block);
        if block.iter().any(|line| line.contains(KILLED)) {
            block.retain(|line| line.contains(KILLED));
        } else if block.iter().any(|line| is_boilerplate(line)) {
            block.clear();
        }
        block
    }
}

fn is_boilerplate(line: &str) -> bool {
    BOILERPLATE.iter().any(|part| line.contains(part))
}

/// The output of a job so far.
#[derive(Debug, Default)]
pub struct JobOutput {
    mpirun_lines: MpirunLines,
    bar: Option<ProgressBar>,
    last_lines: BTreeMap<usize, VecDeque<String>>,
    /// The failed rank that mpirun names.
    named_by_mpirun: Option<usize>,
    /// The code of its MPI_Abort, as mpirun reports it.
    abort_code: Option<i32>,
    /// The first rank that printed an error.
    first_error: Option<usize>,
}

impl JobOutput {
    /// Forwards a line to this program's stream and records it. A line of progress moves the bar.
    pub fn forward(&mut self, stream: Stream, line: &str) {
        let rank_line = parse_rank_line(line.trim_end_matches('\r'));
        if let Some(progress) = rank_line.as_ref().and_then(|(_, text)| Progress::parse(text)) {
            self.show_progress(progress);
            return;
        }
        let text = self.record(line);
        let lines = if rank_line.is_some() { vec![text] } else { self.mpirun_lines.push(&text) };
        self.print(stream, &lines);
    }

    /// The job has ended: prints what was held back, and removes the bar.
    pub fn end(&mut self) {
        let lines = self.mpirun_lines.take_block();
        self.print(Stream::Err, &lines);
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// Prints a line of the launcher itself, above the bar.
    pub fn say(&self, line: &str) {
        self.print(Stream::Err, &[line.to_owned()]);
    }

    fn print(&self, stream: Stream, lines: &[String]) {
        if lines.is_empty() {
            return;
        }
        let text = lines.join("\n") + "\n";
        let write = || match stream {
            Stream::Out => codinet_config::text::print(&text),
            Stream::Err => _ = std::io::stderr().write_all(text.as_bytes()),
        };
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn show_progress(&mut self, Progress { step, steps, status }: Progress) {
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(TEMPLATE).expect("a valid template");
            let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stdout());
            bar.with_style(style.progress_chars(CHARS))
        });
        bar.set_message(status.to_owned());
        bar.set_position(step);
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

    /// What Open MPI 4.1 printed of three ends of a job.
    #[test]
    fn mpiruns_boilerplate_is_left_out() {
        let frame = "-".repeat(74);
        let printed = |lines: &[&str]| {
            let mut mpirun = MpirunLines::default();
            let mut printed: Vec<String> = lines.iter().flat_map(|line| mpirun.push(line)).collect();
            printed.extend(mpirun.take_block());
            printed
        };
        let stopped = [
            "mpirun: Forwarding signal 12 to job",
            &frame,
            "Primary job  terminated normally, but 1 process returned",
            "a non-zero exit code. Per user-direction, the job has been aborted.",
            &frame,
            &frame,
            "mpirun detected that one or more processes exited with non-zero status, thus causing",
            "the job to be terminated. The first process to do so was:",
            "",
            "  Process name: [[4002,1],1]",
            "  Exit code:    75",
            &frame,
        ];
        assert!(printed(&stopped).is_empty(), "{:?}", printed(&stopped));
        let killed = "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).";
        assert_eq!(printed(&[&frame, killed, &frame]), [killed]);
        // What codinet-launch does not say stays, also if its block never ends.
        let slots = [&frame, "There are not enough slots available in the system", &frame];
        assert_eq!(printed(&slots), slots);
        assert_eq!(printed(&slots[..2]), slots[..2]);
        assert_eq!(printed(&["[host:08734] mca: base"]), ["[host:08734] mca: base"]);
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
