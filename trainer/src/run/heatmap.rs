//! Pictures for TensorBoard whose cells have the colours of shares: the gates' rates over a run, and the confusion matrix.

use super::cividis;
use crate::metrics::classes::{Confusion, MATRIX_ROWS};
use codinet_dataloader::contact_sheet::{ContactSheet, LETTER};
use serde_json::Value;

/// The most columns of the gates' rates; beyond it, a column is the mean of several log lines.
const MAX_COLUMNS: usize = 640;
/// The side of the confusion matrix at most, in pixels.
const MATRIX_SIDE: usize = 512;
/// Letters of a class's name next to the matrix.
const NAME_LETTERS: usize = 16;

/// A row per block, the first at the top, and a column per log line, from the text of `metrics.jsonl`. Routers that collapse,
/// to blocks that always run or never do, show as rows that turn all light or all dark. The colour is the share of views that
/// would run the block in inference: dark blue none, yellow all. None without gates or lines.
pub(super) fn gate_rates(metrics: &str) -> Option<ContactSheet> {
    let lines = metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let rates: Vec<Vec<f64>> = lines
        .filter(|line| line["kind"] == "train")
        .filter_map(|line| line["rates"].as_array()?.iter().map(Value::as_f64).collect())
        .collect();
    let gates = rates.last()?.len();
    let rates: Vec<Vec<f64>> = rates.into_iter().filter(|line| line.len() == gates).collect();
    if gates == 0 {
        return None;
    }
    let lines_per_column = rates.len().div_ceil(MAX_COLUMNS);
    let mean = |lines: &[Vec<f64>]| -> Vec<f64> {
        (0..gates).map(|k| lines.iter().map(|line| line[k]).sum::<f64>() / lines.len() as f64).collect()
    };
    let columns: Vec<Vec<f64>> = rates.chunks(lines_per_column).map(mean).collect();
    let cell = ((MAX_COLUMNS / columns.len()).clamp(1, 16), (192 / gates).max(8));
    let mut picture = ContactSheet::blank(columns.len() * cell.0, gates * cell.1).ok()?;
    for (x, column) in columns.iter().enumerate() {
        for (y, &rate) in column.iter().enumerate() {
            fill(&mut picture, (x * cell.0, y * cell.1), cell, rate);
        }
    }
    Some(picture)
}

/// A row per class, the first at the top, and a column per predicted class in the same order; up to 32 classes with their
/// names. Beyond [`MATRIX_ROWS`] classes a row is a group of neighbouring ones. The colour is the square root of the share of the row's
/// images, so that rare mistakes show: dark blue none, yellow all.
pub(super) fn confusion(confusion: &Confusion, names: &[String]) -> Option<ContactSheet> {
    let shares = confusion.shares(MATRIX_ROWS);
    let side = (MATRIX_SIDE / shares.rows).min(40);
    let named = side >= LETTER;
    let left = if named { NAME_LETTERS * LETTER } else { 0 };
    let top = if named { 2 * LETTER } else { 0 };
    let size = shares.rows * side;
    let mut picture =
        ContactSheet::blank(left + size.max(if named { 16 * LETTER } else { 0 }), top + size).ok()?;
    let cell = (side, side);
    fill(&mut picture, (left, top), (size, size), 0.0);
    for (row, column, share) in shares.cells {
        fill(&mut picture, (left + column * side, top + row * side), cell, share.sqrt());
    }
    if named {
        picture.write_text("class", 0, LETTER / 2);
        picture.write_text("predicted class", left, LETTER / 2);
        for (class, name) in names.iter().enumerate() {
            let name: String = name.chars().take(NAME_LETTERS - 1).collect();
            picture.write_text(&name, 0, top + class * side + (side - LETTER) / 2);
        }
    }
    Some(picture)
}

/// Paints the rectangle of a `size` at a place with the colour of a share.
fn fill(picture: &mut ContactSheet, (left, top): (usize, usize), size: (usize, usize), share: f64) {
    let colour = cividis(share);
    for y in top..top + size.1 {
        let start = (y * picture.width as usize + left) * 3;
        picture.pixels[start..start + size.0 * 3].as_chunks_mut().0.fill(colour);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::classes::Prediction;

    fn pixel(picture: &ContactSheet, x: usize, y: usize) -> &[u8] {
        &picture.pixels[(y * picture.width as usize + x) * 3..][..3]
    }

    #[test]
    fn rows_are_blocks_and_columns_are_log_lines() {
        let line = |rates: &str| format!("{{\"kind\":\"train\",\"step\":1,\"rates\":{rates}}}\n");
        let text = line("[0.0,1.0]") + "{\"kind\":\"eval\",\"rates\":[9,9]}\n" + &line("[1.0,1.0]") + "{\"ki";
        let picture = gate_rates(&text).unwrap();
        assert_eq!((picture.width, picture.height), (2 * 16, 2 * 96));
        let pixel = |x: usize, y: usize| pixel(&picture, x, y);
        assert_eq!((pixel(0, 0), pixel(31, 0)), (&cividis(0.0)[..], &cividis(1.0)[..]));
        assert_eq!((pixel(15, 95), pixel(16, 96)), (&cividis(0.0)[..], &cividis(1.0)[..]));
        assert!(gate_rates("").is_none() && gate_rates(&line("[]")).is_none());
    }

    #[test]
    fn confusion_has_a_row_per_class_and_a_column_per_predicted_class() {
        // Of four images of class 0, one is predicted as class 1.
        let prediction = |sample: u32, label: usize, predicted: usize| Prediction {
            sample,
            label,
            predicted,
            probability: 1.0,
            blocks_run: 0,
        };
        let predictions = [(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 1), (4, 1, 1)];
        let predictions = predictions.map(|(sample, label, predicted)| prediction(sample, label, predicted));
        let few = confusion(&Confusion::new(&predictions, 2), &["cat", "dog"].map(str::to_owned)).unwrap();
        let left = NAME_LETTERS * LETTER;
        let top = 2 * LETTER;
        let centre =
            |class: usize, predicted: usize| pixel(&few, left + predicted * 40 + 20, top + class * 40 + 20);
        assert_eq!(centre(0, 1), cividis(0.5), "√¼");
        assert_eq!((centre(1, 1), centre(1, 0)), (&cividis(1.0)[..], &cividis(0.0)[..]));
        let names = few.pixels.chunks(few.width as usize * 3).flat_map(|row| &row[..left * 3]);
        assert!(names.filter(|&&byte| byte == 0).count() > 100, "names are written");
        // 100 rows of ten classes, each five pixels wide: of six images of the first ten classes one is predicted as class 900.
        let predictions = [predictions.as_slice(), &[prediction(5, 3, 900)]].concat();
        let many = vec![String::new(); 1000];
        let many = confusion(&Confusion::new(&predictions, 1000), &many).unwrap();
        assert_eq!((many.width, many.height), (500, 500));
        let share = |share: f64| cividis(share.sqrt());
        assert_eq!(pixel(&many, 4, 4), share(5.0 / 6.0));
        assert_eq!(pixel(&many, 5 * (900 / 10), 0), share(1.0 / 6.0));
    }
}
