//! Reads YAML, and says in plain words what is wrong with it.

use serde::de::DeserializeOwned;

/// Reads a document.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> std::result::Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
}

/// The line (from 1) of an error.
pub(crate) fn line(text: &str, error: &serde_saphyr::Error) -> usize {
    let reported = error.without_snippet().location().map_or(1, |location| location.line() as usize);
    let lines: Vec<&str> = text.lines().take(reported).collect();
    let second = lines.iter().rposition(|line| line.starts_with("---"));
    second.filter(|_| is_second_document(error)).map_or(reported, |index| index + 1)
}

fn is_second_document(error: &serde_saphyr::Error) -> bool {
    error.without_snippet().to_string().contains("multiple YAML documents")
}

/// What is wrong with a document, and how to fix it. The parser's own words are for programmers.
pub(crate) fn describe(error: &serde_saphyr::Error) -> String {
    let message = error.without_snippet().to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    let about = |part: &str| message.contains(part);
    if let Some((_, rest)) = message.split_once("duplicate mapping key: ") {
        let key = rest.split(',').next().unwrap_or(rest);
        format!("the key {key} is set twice in its section; keep one")
    } else if is_second_document(error) {
        "the line --- starts a second config in this file; remove it, or move what follows to a file of its own"
            .into()
    } else if about("non-finite") || about("NaN") {
        "the number is not finite".into()
    } else if about("alias") || about("anchor") {
        "a value that starts with * or & needs quotes around it".into()
    } else if about("flow mapping") {
        "a { is not closed by }, or a comma is missing between its keys".into()
    } else if about("flow sequence") {
        "a [ is not closed by ], or a comma is missing in its list".into()
    } else if about("quoted") || about("unexpected end") {
        "a quote or bracket is not closed".into()
    } else if about("tab") {
        "lines are indented by spaces, not by tabs".into()
    } else {
        "this is not YAML: check the indentation, the space after each colon, brackets and quotes".into()
    }
}
