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

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;margin:2rem;color:#111}p{max-width:60rem}\
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:left;\
vertical-align:top}td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
.figures,.gallery{display:grid;gap:1.5rem;margin:1rem 0;align-items:start}\
.figures :is(td,th){padding:.2rem .5rem}.figures{grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr))}\
.gallery{grid-template-columns:repeat(auto-fill,minmax(10rem,1fr))}\
figure{margin:0}img{max-width:100%;height:auto}figcaption{font-size:.85rem;color:#333;max-width:34rem;overflow-wrap:anywhere}\
.gallery img{width:10rem}.gallery img.small{width:6rem;image-rendering:pixelated}\
@media print{figure{break-inside:avoid}h2{break-after:avoid}}";
/// The side of an image that the gallery enlarges to squares, at most, in pixels.
const SMALL: u32 = 96;

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
    pub fn table(&mut self, columns: &[impl AsRef<str>], rows: &[Vec<String>]) {
        let numeric = |column: usize| {
            let starts =
                |row: &Vec<String>| row[column].starts_with(|c: char| c.is_ascii_digit() || "−–".contains(c));
            column > 0 && rows.iter().filter(|row| !row[column].is_empty()).all(starts)
        };
        let class: Vec<&str> =
            (0..columns.len()).map(|column| if numeric(column) { " class=\"n\"" } else { "" }).collect();
        // A long name such as n01440764_tench may be broken after each underscore.
        let cell = |tag: &str, text: &str, class: &str| {
            format!("<{tag}{class}>{}</{tag}>", escape(text).replace('_', "_<wbr>"))
        };
        let heads = columns.iter().zip(&class).map(|(text, class)| cell("th", text.as_ref(), class));
        let _ = writeln!(self.body, "<table><tr>{}</tr>", heads.collect::<String>());
        for row in rows {
            let cells = row.iter().zip(&class).map(|(text, class)| cell("td", text, class));
            let _ = writeln!(self.body, "<tr>{}</tr>", cells.collect::<String>());
        }
        self.body += "</table>\n";
    }

    /// Adds figures with their captions, next to each other where the page is wide enough.
    pub fn figures(&mut self, figures: &[Figure]) {
        self.body += "<div class=\"figures\">\n";
        figures.iter().for_each(|figure| self.figure(figure, &format!("width=\"{}\"", figure.width)));
        self.body += "</div>\n";
    }

    /// Adds a figure and a table, next to each other where the page is wide enough.
    pub fn figure_and_table(&mut self, figure: &Figure, columns: &[impl AsRef<str>], rows: &[Vec<String>]) {
        self.body += "<div class=\"figures\">\n";
        self.figure(figure, &format!("width=\"{}\"", figure.width));
        self.table(columns, rows);
        self.body += "</div>\n";
    }

    /// Adds small images with their captions, as many in a row as the page has room for.
    pub fn gallery(&mut self, images: &[Figure]) {
        self.body += "<div class=\"gallery\">\n";
        let class = |image: &Figure| if image.width <= SMALL { "class=\"small\"" } else { "" };
        images.iter().for_each(|image| self.figure(image, class(image)));
        self.body += "</div>\n";
    }

    fn figure(&mut self, figure: &Figure, attribute: &str) {
        let data = base64::prelude::BASE64_STANDARD.encode(&figure.png);
        let alt = escape(&figure.caption);
        let caption = alt.replace('\n', "<br>");
        let _ = writeln!(
            self.body,
            "<figure><img {attribute} alt=\"{alt}\" src=\"data:image/png;base64,{data}\"><figcaption>{caption}</figcaption></figure>",
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
        let rows = [vec!["top-1".to_owned(), "93.1 %".to_owned(), "a_word".to_owned()]];
        page.table(&["what", "here", "note"], &rows);
        let figure = Figure { caption: "\"One\"\nline".into(), png: vec![1, 2, 3], width: 7 };
        page.figures(std::slice::from_ref(&figure));
        page.gallery(&[figure]);
        let path = folder.path().join("report.html");
        page.save(&path).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.contains("Paths of &lt;a&gt;") && text.contains("Text &amp; more"));
        assert!(text.contains("<td class=\"n\">93.1 %</td><td>a_<wbr>word</td>"));
        assert!(
            text.contains("src=\"data:image/png;base64,AQID\"") && text.contains("&quot;One&quot;<br>line")
        );
        assert_eq!(text.matches("<img").count(), 2);
        assert!(text.contains("<img width=\"7\"") && text.contains("<img class=\"small\""));
        assert!(!text.contains("http"), "nothing is fetched");
    }
}
