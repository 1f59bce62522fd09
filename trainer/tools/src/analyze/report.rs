//! `report.html`: one self-contained file with the numbers, next to the paper's, and the pictures.

use super::files::Picture;
use base64::Engine;
use codinet_trainer::run::write_atomically;
use codinet_trainer::sys::error::Result;
use std::fmt::Write;
use std::path::Path;

/// A page in the making.
pub struct Report {
    body: String,
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111}\
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:left;\
vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}figure{display:inline-block;margin:1rem 1rem 1rem 0;\
vertical-align:top;max-width:100%}img{max-width:100%;height:auto}figcaption{font-size:.85rem;color:#333;max-width:34rem}\
@media print{figure{break-inside:avoid}h2{break-after:avoid}}";

impl Report {
    /// A page with a title and a paragraph of what it is about.
    pub fn new(title: &str, about: &str) -> Self {
        let title = escaped(title);
        let about = escaped(about);
        let body = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style>\n\
             <h1>{title}</h1>\n<p>{about}</p>\n"
        );
        Self { body }
    }

    /// A heading, and what is said below it.
    pub fn section(&mut self, heading: &str, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>\n<p>{}</p>", escaped(heading), escaped(text));
    }

    /// A table; columns whose entries are numbers are set to the right.
    pub fn table(&mut self, columns: &[String], rows: &[Vec<String>]) {
        let numeric = |column: usize| {
            let starts =
                |row: &Vec<String>| row[column].starts_with(|c: char| c.is_ascii_digit() || "−–".contains(c));
            column > 0 && rows.iter().filter(|row| !row[column].is_empty()).all(starts)
        };
        let class: Vec<&str> =
            (0..columns.len()).map(|column| if numeric(column) { " class=\"n\"" } else { "" }).collect();
        let cells = |tag: &str, row: &[String]| -> String {
            row.iter()
                .zip(&class)
                .map(|(text, class)| format!("<{tag}{class}>{}</{tag}>", escaped(text)))
                .collect()
        };
        let _ = writeln!(self.body, "<table><tr>{}</tr>", cells("th", columns));
        for row in rows {
            let _ = writeln!(self.body, "<tr>{}</tr>", cells("td", row));
        }
        self.body += "</table>\n";
    }

    /// A picture with its caption.
    pub fn figure(&mut self, picture: &Picture) {
        let data = base64::prelude::BASE64_STANDARD.encode(&picture.png);
        let caption = escaped(&picture.caption);
        let _ = writeln!(
            self.body,
            "<figure><img width=\"{}\" alt=\"{caption}\" src=\"data:image/png;base64,{data}\"><figcaption>{caption}</figcaption></figure>",
            picture.width
        );
    }

    /// Writes the page.
    pub fn save(self, path: &Path) -> Result<()> {
        write_atomically(path, (self.body + "</html>\n").as_bytes())
    }
}

/// Text as HTML has it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_needs_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut report = Report::new("Paths of <a>", "About & more");
        report.section("Numbers", "What was measured.");
        let rows = [vec!["top-1".to_owned(), "93.1 %".to_owned(), "a word".to_owned()]];
        report.table(&["what".into(), "here".into(), "note".into()], &rows);
        report.figure(&Picture { caption: "\"One\"".into(), png: vec![1, 2, 3], width: 7 });
        let path = folder.path().join("report.html");
        report.save(&path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("Paths of &lt;a&gt;") && text.contains("About &amp; more"));
        assert!(text.contains("<td class=\"n\">93.1 %</td><td>a word</td>"));
        assert!(text.contains("src=\"data:image/png;base64,AQID\"") && text.contains("&quot;One&quot;"));
        assert!(!text.contains("http"), "nothing is fetched");
    }
}
