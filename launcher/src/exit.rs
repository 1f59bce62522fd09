//! How a job has ended, as a script sees it, and whether starting it again can help.

/// Every exit code with its meaning, for `--help`; docs/resume.md has the same.
pub const EXIT_CODES: &str = "\
Exit codes:                                                         restarted
  0    done                                                         -
  2    the config or the command line is wrong                      no
  3    samples cannot be found, read or decoded                     no
  4    a checkpoint is missing, broken, or of another network       no
  5    the loss or a gradient is no longer finite                   no
  6    a file or folder cannot be written                          no
  7    ranks cannot reach one another, or do not fit together       yes
  8    a rank did not come to a collective in time                  yes
  9    a rank, or the host that it ran on, was lost                 yes
  10   out of memory                                                no
  75   stopped on request, with a checkpoint to go on from          -
  101  a bug (panic), such as an error of the GPU's driver          yes
  127  mpirun, or a host that it was to use, could not be started   after a crash";

/// Done.
pub const DONE: u8 = 0;
/// The command line is wrong.
pub const CONFIG: u8 = 2;
/// A rank, or its host, is gone.
pub const LOST: u8 = 9;
/// Stopped on request.
pub const STOPPED: u8 = 75;
/// No rank was started.
pub const NOT_STARTED: u8 = 127;

/// What mpirun's exit code means: a code of codinet-train's is passed on; a signal (128 and more), and what mpirun ends with
/// where a host has gone, is a lost rank. `spoke` tells whether any rank has said a word.
pub fn meaning(code: Option<i32>, spoke: bool) -> u8 {
    match code {
        Some(code @ (0 | 2..=8 | 10 | 75 | 101)) => code as u8,
        Some(129..=192) | None => LOST,
        Some(_) if !spoke => NOT_STARTED,
        _ => LOST,
    }
}

/// Whether another start may end better. Where ranks have run before, a host that cannot be reached may come back.
pub fn mendable(code: u8, first: bool) -> bool {
    matches!(code, 7 | 8 | LOST | 101) || (code == NOT_STARTED && !first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_meaning() {
        for code in [0, 2, 3, 4, 5, 6, 7, 8, 10, 75, 101] {
            assert_eq!(meaning(Some(code), true), code as u8);
        }
        assert_eq!([Some(137), Some(1), Some(213), None].map(|code| meaning(code, true)), [LOST; 4]);
        assert_eq!([1, 137, 255].map(|code| meaning(Some(code), false)), [NOT_STARTED, LOST, NOT_STARTED]);
    }

    #[test]
    fn the_table_says_what_is_done() {
        for line in EXIT_CODES.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let code: u8 = words[0].parse().unwrap();
            assert_eq!(mendable(code, true), line.ends_with(" yes"), "{line}");
            assert_eq!(
                mendable(code, false),
                line.ends_with(" yes") || line.ends_with(" after a crash"),
                "{line}"
            );
        }
    }
}
