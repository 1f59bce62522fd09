//! A self-contained HTML page with tables and figures.

use super::files::Figure;
use base64::Engine;
use codinet_trainer::run::write_atomically;
use codinet_trainer::sys::error::Result;
use std::fmt::Write;
use std::path::Path;

/// The page so far.
pub struct Page {
    body: String,
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111}\
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:left;\
vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}figure{display:inline-block;margin:1rem 1rem 1rem 0;\
vertical-align:top;max-width:100%}img{max-width:100%;height:auto}figcaption{font-size:.85rem;color:#333;max-width:34rem}\
@media print{figure{break-inside:avoid}h2{break-after:avoid}}";

impl Page {
    /// A page with a title and a first paragraph.
    pub fn new(title: &str, text: &str) -> Self {
        let title = escape(title);
        let text = escape(text);
        let body = format!(
            "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title>\n<style>{STYLE}</style>\n\
             <h1>{title}</h1>\n<p>{text}</p>\n"
        );
        Self { body }
    }

    /// Adds a heading and a paragraph.
    pub fn section(&mut self, heading: &str, text: &str) {
        let _ = writeln!(self.body, "<h2>{}</h2>\n<p>{}</p>", escape(heading), escape(text));
    }

    /// Adds a table; columns of numbers are aligned to the right.
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
                .map(|(text, class)| format!("<{tag}{class}>{}</{tag}>", escape(text)))
                .collect()
        };
        let _ = writeln!(self.body, "<table><tr>{}</tr>", cells("th", columns));
        for row in rows {
            let _ = writeln!(self.body, "<tr>{}</tr>", cells("td", row));
        }
        self.body += "</table>\n";
    }

    /// Adds a figure with its caption.
    pub fn figure(&mut self, figure: &Figure) {
        let data = base64::prelude::BASE64_STANDARD.encode(&figure.png);
        let caption = escape(&figure.caption);
        let _ = writeln!(
            self.body,
            "<figure><img width=\"{}\" alt=\"{caption}\" src=\"data:image/png;base64,{data}\"><figcaption>{caption}</figcaption></figure>",
            figure.width
        );
    }

    pub fn save(self, path: &Path) -> Result<()> {
        write_atomically(path, (self.body + "</html>\n").as_bytes())
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_is_self_contained() {
        let folder = tempfile::tempdir().unwrap();
        let mut page = Page::new("Paths of <a>", "Text & more");
        page.section("Numbers", "What was measured.");
        let rows = [vec!["top-1".to_owned(), "93.1 %".to_owned(), "a word".to_owned()]];
        page.table(&["what".into(), "here".into(), "note".into()], &rows);
        page.figure(&Figure { caption: "\"One\"".into(), png: vec![1, 2, 3], width: 7 });
        let path = folder.path().join("report.html");
        page.save(&path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("Paths of &lt;a&gt;") && text.contains("Text &amp; more"));
        assert!(text.contains("<td class=\"n\">93.1 %</td><td>a word</td>"));
        assert!(text.contains("src=\"data:image/png;base64,AQID\"") && text.contains("&quot;One&quot;"));
        assert!(!text.contains("http"), "nothing is fetched");
    }
}
