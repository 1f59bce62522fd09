//! How often each gated block would run in inference, over the run so far, as one picture: blocks that always run or never do, which is how
//! routers collapse, are rows that turn all light or all dark.

use crate::run::colour;
use codinet_dataloader::Channels;
use codinet_dataloader::encode::{Encoder, Encoding};
use serde_json::Value;

/// Most columns, each a log line or the mean of some.
const COLUMNS: usize = 640;

/// From the text of `metrics.jsonl`: a row a block, the first on top, a column a log line; dark blue where none of the views
/// would run the block, yellow where all did. A PNG file with its width and height; nothing where there are no gates or no lines.
pub fn picture(metrics: &str) -> Option<(Vec<u8>, (u32, u32))> {
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
    let together = rates.len().div_ceil(COLUMNS);
    let columns: Vec<Vec<f64>> = rates
        .chunks(together)
        .map(|lines| {
            (0..gates).map(|k| lines.iter().map(|line| line[k]).sum::<f64>() / lines.len() as f64).collect()
        })
        .collect();
    let (wide, high) = ((COLUMNS / columns.len()).clamp(1, 16), (192 / gates).max(8));
    let (width, height) = (columns.len() * wide, gates * high);
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            pixels.extend(colour::scale(columns[x / wide][y / high]));
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
    fn a_row_a_block_a_column_a_line() {
        let line = |rates: &str| format!("{{\"kind\":\"train\",\"step\":1,\"rates\":{rates}}}\n");
        let text = line("[0.0,1.0]") + "{\"kind\":\"eval\",\"rates\":[9,9]}\n" + &line("[1.0,1.0]") + "{\"ki";
        let (png, size) = picture(&text).unwrap();
        assert_eq!(size, (2 * 16, 2 * 96));
        let (mut decoder, mut pixels) = (Decoder::new(), Vec::new());
        let header = decoder.header(&png).unwrap();
        decoder.decode(&png, &header, Channels::Rgb, &mut pixels).unwrap();
        let pixel = |x: usize, y: usize| &pixels[(y * 32 + x) * 3..][..3];
        assert_eq!((pixel(0, 0), pixel(31, 0)), (&colour::scale(0.0)[..], &colour::scale(1.0)[..]));
        assert_eq!((pixel(15, 95), pixel(16, 96)), (&colour::scale(0.0)[..], &colour::scale(1.0)[..]));
        assert!(picture("").is_none() && picture(&line("[]")).is_none());
    }
}
