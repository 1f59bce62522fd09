//! Text that several programs print.

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
