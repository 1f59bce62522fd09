//! The gates' rates over a run, as a picture. Routers that collapse, to blocks that always run or never do, show as rows that
//! turn all light or all dark.

use super::cividis;
use codinet_dataloader::Channels;
use codinet_dataloader::encode::{Encoder, Encoding};
use serde_json::Value;

/// The most columns; beyond it, a column is the mean of several log lines.
const MAX_COLUMNS: usize = 640;

/// A PNG file and its width and height, from the text of `metrics.jsonl`: a row per block, the first at the top, and a column
/// per log line. The colour is the share of views that would run the block in inference: dark blue none, yellow all. None
/// without gates or lines.
pub(super) fn draw(metrics: &str) -> Option<(Vec<u8>, (u32, u32))> {
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
    let cell_width = (MAX_COLUMNS / columns.len()).clamp(1, 16);
    let cell_height = (192 / gates).max(8);
    let width = columns.len() * cell_width;
    let height = gates * cell_height;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            pixels.extend(cividis(columns[x / cell_width][y / cell_height]));
        }
    }
    let size = (width as u32, height as u32);
    let png = Encoder::new(Encoding::Png).ok()?.encode(&pixels, size.0, size.1, Channels::Rgb).ok()?;
    Some((png, size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use codinet_dataloader::Decoder;

    #[test]
    fn rows_are_blocks_and_columns_are_log_lines() {
        let line = |rates: &str| format!("{{\"kind\":\"train\",\"step\":1,\"rates\":{rates}}}\n");
        let text = line("[0.0,1.0]") + "{\"kind\":\"eval\",\"rates\":[9,9]}\n" + &line("[1.0,1.0]") + "{\"ki";
        let (png, size) = draw(&text).unwrap();
        assert_eq!(size, (2 * 16, 2 * 96));
        let mut decoder = Decoder::new();
        let mut pixels = Vec::new();
        let header = decoder.header(&png).unwrap();
        decoder.decode(&png, &header, Channels::Rgb, &mut pixels).unwrap();
        let pixel = |x: usize, y: usize| &pixels[(y * 32 + x) * 3..][..3];
        assert_eq!((pixel(0, 0), pixel(31, 0)), (&cividis(0.0)[..], &cividis(1.0)[..]));
        assert_eq!((pixel(15, 95), pixel(16, 96)), (&cividis(0.0)[..], &cividis(1.0)[..]));
        assert!(draw("").is_none() && draw(&line("[]")).is_none());
    }
}
