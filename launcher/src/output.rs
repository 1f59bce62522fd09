//! What ranks and mpirun say, passed on line by line, each line with its rank.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;

/// Lines of a rank that are kept for the end.
const KEPT: usize = 20;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// A rank's line as mpirun hands it over: `[1,3]<stdout>:text` (Open MPI 4), `[job@1,3]<stdout>: text` (5) or `[3] text`
/// (Hydra). None for what mpirun says itself.
fn of_rank(line: &str) -> Option<(usize, String)> {
    let (tag, rest) = line.strip_prefix('[')?.split_once(']')?;
    let Some(mark) = ["<stdout>:", "<stderr>:"].into_iter().find(|mark| rest.starts_with(mark)) else {
        return Some((tag.parse().ok()?, rest.strip_prefix(' ')?.to_owned()));
    };
    // Open MPI 5 is known by its `@`, and sets a space.
    let whole = format!("[{tag}]{mark}{}", if tag.contains('@') { " " } else { "" });
    // What comes in pieces, such as every 4096 bytes, has a tag before each.
    Some((tag.rsplit(',').next()?.parse().ok()?, line.replace(&whole, "")))
}

/// A line without what mpirun has put before it.
pub fn text(line: &str) -> String {
    let line = line.trim_end_matches('\r');
    of_rank(line).map_or_else(|| line.to_owned(), |(_, text)| text)
}

/// The rank that mpirun, in one of its own lines, says has failed.
fn blamed(line: &str) -> Option<usize> {
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

/// What has been said so far in a job.
#[derive(Debug, Default)]
pub struct Said {
    last: BTreeMap<usize, VecDeque<String>>,
    /// The rank that mpirun blames.
    blamed: Option<usize>,
    /// What it called MPI_Abort with, as mpirun says.
    aborted_with: Option<i32>,
    /// The first rank that spoke of an error.
    complained: Option<usize>,
}

impl Said {
    /// Takes a line in and passes it on.
    pub fn line(&mut self, stream: Stream, line: &str) {
        let shown = self.take(line) + "\n";
        match stream {
            Stream::Out => crate::print(&shown),
            Stream::Err => _ = std::io::stderr().write_all(shown.as_bytes()),
        }
    }

    fn take(&mut self, line: &str) -> String {
        // A terminal that mpirun made for a rank ends lines by two characters.
        let line = line.trim_end_matches('\r');
        let Some((rank, text)) = of_rank(line) else {
            self.blamed = self.blamed.or_else(|| blamed(line));
            let code = || line.strip_prefix("with errorcode ")?.trim_end_matches('.').parse().ok();
            self.aborted_with = self.aborted_with.or_else(code);
            return line.to_owned();
        };
        if text.starts_with("error: ") {
            self.complained.get_or_insert(rank);
        }
        let last = self.last.entry(rank).or_default();
        let shown = format!("[{rank}] {text}");
        last.push_back(text);
        if last.len() > KEPT {
            last.pop_front();
        }
        shown
    }

    /// Whether any rank has spoken.
    pub fn any(&self) -> bool {
        !self.last.is_empty()
    }

    /// Whether a rank has failed, upon which mpirun ends the job: it says so itself, or the rank has. A host that has gone may
    /// take mpirun's own words with it.
    pub fn ends(&self) -> bool {
        self.first_failed().is_some()
    }

    /// The code that a rank has aborted the job with, where mpirun says so.
    pub fn aborted_with(&self) -> Option<i32> {
        self.aborted_with
    }

    /// The rank that failed first, as far as that can be told.
    pub fn first_failed(&self) -> Option<usize> {
        self.complained.or(self.blamed)
    }

    /// The last lines of the rank that failed first, to be read at the end.
    pub fn epitaph(&self) -> Option<String> {
        let rank = self.first_failed()?;
        let mut text = match self.last.get(&rank) {
            Some(_) => format!("rank {rank} failed first; its last lines:"),
            None => format!("rank {rank} failed first; it had said nothing"),
        };
        for line in self.last.get(&rank).into_iter().flatten() {
            text += &format!("\n[{rank}] {line}");
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mpirun_tells_the_rank_its_way() {
        for (line, rank, text) in [
            ("[1,3]<stdout>:step 5", 3, "step 5"),
            ("[1,12]<stderr>:  table", 12, "  table"),
            ("[prterun-host-77@1,0]<stderr>: error: x", 0, "error: x"),
            ("[4] step 5", 4, "step 5"),
            ("[1,3]<stdout>:a long [1,3]<stdout>:line", 3, "a long line"),
        ] {
            assert_eq!(of_rank(line), Some((rank, text.to_owned())), "{line}");
        }
        for line in ["mpirun noticed that …", "[host:08734] mca: base", "[proxy:0:1@host] x", ""] {
            assert_eq!(of_rank(line), None, "{line}");
        }
    }

    #[test]
    fn the_first_to_fail_is_told_with_its_last_lines() {
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
            assert_eq!(blamed(line), rank, "{line}");
        }
        let mut said = Said::default();
        assert_eq!((said.any(), said.ends(), said.epitaph()), (false, false, None));
        for step in 0..30 {
            assert_eq!(said.take(&format!("[1,1]<stdout>:step {step}\r")), format!("[1] step {step}"));
        }
        said.take("[1,0]<stdout>:going on");
        said.take("mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 (Killed).");
        let told = said.epitaph().unwrap();
        assert!(told.starts_with("rank 1 failed first; its last lines:\n[1] step 10\n"), "{told}");
        assert!(told.ends_with("[1] step 29"), "{told}");
        // What a rank says of itself counts for more: mpirun blames the one that ended first.
        said.take("[1,0]<stderr>:error: the loss is not finite");
        assert_eq!(said.first_failed(), Some(0));
        let mut alone = Said::default();
        alone.take("[1,0]<stderr>:error: rank 0 has waited 4 s");
        assert!(alone.ends(), "a rank's own word is enough");
    }
}
