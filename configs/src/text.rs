//! Text that several programs print.

use std::io::Write;

/// A number and its noun: "1 rank", "2 ranks".
pub fn counted(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// A word of a command line, quoted if a shell needs it.
pub fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// The name among `known` that `typed` comes nearest to, if one is near.
pub(crate) fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|name| (strsim::normalized_damerau_levenshtein(typed, name), *name));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.5).map(|(_, name)| name)
}

/// A message of several errors, a line each, as a program prints it.
pub fn error_lines(message: &str) -> String {
    message.lines().map(|line| format!("error: {line}")).collect::<Vec<_>>().join("\n")
}

/// A time as a person says it, to two units: "45 s", "12 min", "3 h 10 min", "2 d 4 h".
pub fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match minutes {
        0 => format!("{seconds:.0} s"),
        1..60 => format!("{minutes} min"),
        60..1440 => format!("{} h {} min", minutes / 60, minutes % 60),
        _ => {
            let hours = (seconds / 3600.0).round() as u64;
            format!("{} d {} h", hours / 24, hours % 24)
        }
    }
}

/// Prints to stdout. A closed pipe (`| head`) is not an error.
pub fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Prints a line to stdout. A closed pipe is not an error.
pub fn print_line(text: &str) {
    print(&format!("{text}\n"));
}

/// Prints a line to stderr, in one write, so that lines of several ranks do not mix. A closed pipe (`2>&1 | head`) is not an
/// error: the program goes on.
pub fn print_error_line(text: &str) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// [`print_error_line`](crate::text::print_error_line) of a format, as `eprintln`.
#[macro_export]
macro_rules! eprint_line {
    ($($text:tt)*) => { $crate::text::print_error_line(&format!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn a_duration_has_the_two_largest_units() {
        for (seconds, text) in [
            (0.4, "0 s"),
            (29.0, "29 s"),
            (59.0, "1 min"),
            (725.0, "12 min"),
            (11_400.0, "3 h 10 min"),
            (86_340.0, "23 h 59 min"),
            (187_000.0, "2 d 4 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
