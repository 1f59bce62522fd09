//! Contact sheets: pictures of samples and of the views that training makes of them.

use std::sync::Arc;

use font8x8::legacy::BASIC_LEGACY;

use crate::dataset::Dataset;
use crate::decode::{Channels, DEFAULT_MAX_PIXELS, Decoder};
use crate::encode::{Encoder, Encoding};
use crate::error::{BadImage, Error, Result};
use crate::loader::{Batch, BatchPlan, Loader, LoaderSpec};
use crate::resize;

/// Pixels between images, and around them.
const GAP: usize = 8;
/// Height and width of a letter: the font's 8 pixels, doubled.
pub const LETTER: usize = 16;
/// Space for a few words where the images are tiny.
const MIN_WIDTH: usize = 400;

/// A picture: u8 [height, width, 3].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContactSheet {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// The pixels.
    pub pixels: Vec<u8>,
}

impl ContactSheet {
    /// Draws a row for each of `samples`: a line with its class and key, and below it the decoded image, scaled to
    /// fit, then the views that a [`Loader`] with this `spec` makes of it in epoch 0.
    ///
    /// # Errors
    /// A sample that can't be decoded, settings out of bounds, a sheet larger than an image may be.
    pub fn draw_samples(dataset: &Arc<Dataset>, spec: &LoaderSpec, samples: &[u32]) -> Result<ContactSheet> {
        let channels = Channels::new(spec.channels)?;
        let side = spec.image_size as usize;
        let row = LETTER + GAP / 2 + side + GAP;
        let column = side + GAP;
        let width = spec.views.saturating_add(1).saturating_mul(column).saturating_add(GAP).max(MIN_WIDTH);
        let mut sheet = ContactSheet::blank(width, samples.len().saturating_mul(row).saturating_add(GAP))?;
        let plan: Vec<_> = samples.iter().map(|&sample| BatchPlan::new(0, vec![sample])).collect();
        let mut decoder = Decoder::with_max_pixels(spec.max_pixels);
        for (number, batch) in Loader::new(dataset.clone(), spec.clone(), plan.into_iter())?.enumerate() {
            let batch = batch?;
            let top = GAP + number * row;
            let below = top + LETTER + GAP / 2;
            sheet.write_label(dataset, &batch, top);
            let (pixels, size) =
                decode_fitted(dataset, batch.samples[0], spec.image_size, channels, &mut decoder)?;
            sheet.copy_image(&pixels, size, channels, GAP, below);
            let views = batch.images.chunks_exact(side * side * channels.count());
            for (view, pixels) in views.enumerate() {
                sheet.copy_image(
                    pixels,
                    (spec.image_size, spec.image_size),
                    channels,
                    GAP + (view + 1) * column,
                    below,
                );
            }
        }
        Ok(sheet)
    }

    /// Draws rows of images, one view each, as a [`Loader`] with this `spec` makes them in epoch 0. A line of text
    /// stands above each row. Small images are enlarged by a whole factor to at least 56 pixels.
    ///
    /// # Errors
    /// A sample that can't be decoded, settings out of bounds, a sheet larger than an image may be.
    pub fn draw_rows(
        dataset: &Arc<Dataset>,
        spec: &LoaderSpec,
        rows: &[(String, Vec<u32>)],
    ) -> Result<ContactSheet> {
        let channels = Channels::new(spec.channels)?;
        let side = spec.image_size as usize;
        let factor = 56usize.div_ceil(side);
        let shown = side * factor;
        let gap = GAP / 2;
        let row = LETTER + gap + shown + GAP;
        let column = shown + gap;
        let longest = rows.iter().map(|(_, samples)| samples.len()).max().unwrap_or(0);
        let text = rows.iter().map(|(text, _)| text.chars().count() * LETTER).max().unwrap_or(0);
        let width = (longest * column).max(text) + 2 * GAP;
        let mut sheet = ContactSheet::blank(width, rows.len() * row + GAP)?;
        let plan: Vec<_> = rows.iter().map(|(_, samples)| BatchPlan::new(0, samples.clone())).collect();
        let spec = LoaderSpec { views: 1, normalization: None, ..spec.clone() };
        for (number, batch) in Loader::new(dataset.clone(), spec, plan.into_iter())?.enumerate() {
            let batch = batch?;
            let top = GAP + number * row;
            sheet.write_text(&rows[number].0, GAP, top);
            let images = batch.images.chunks_exact(side * side * channels.count());
            for (place, pixels) in images.enumerate() {
                let large = enlarge(pixels, side, channels.count(), factor);
                let size = (shown as u32, shown as u32);
                sheet.copy_image(&large, size, channels, GAP + place * column, top + LETTER + gap);
            }
        }
        Ok(sheet)
    }

    /// The sheet as a PNG file.
    ///
    /// # Errors
    /// The pixels don't match the size.
    pub fn png(&self) -> Result<Vec<u8>> {
        Encoder::new(Encoding::Png)?.encode(&self.pixels, self.width, self.height, Channels::Rgb)
    }

    /// A white sheet.
    ///
    /// # Errors
    /// More pixels than an image may have.
    pub fn blank(width: usize, height: usize) -> Result<ContactSheet> {
        if width as u64 > DEFAULT_MAX_PIXELS
            || (width as u64).saturating_mul(height as u64) > DEFAULT_MAX_PIXELS
        {
            return Err(Error::InvalidArgument(format!(
                "a sheet of {width}x{height} pixels is too large; draw fewer or smaller images"
            )));
        }
        Ok(ContactSheet { width: width as u32, height: height as u32, pixels: vec![255; width * height * 3] })
    }

    /// Writes the class and the key of a batch of one sample.
    fn write_label(&mut self, dataset: &Dataset, batch: &Batch, top: usize) {
        let label = batch.labels[0];
        let names = dataset.info().and_then(|info| info.class_names.as_deref()).unwrap_or_default();
        let name = usize::try_from(label).ok().and_then(|label| names.get(label));
        let key = dataset.sample_info(batch.samples[0] as usize).map_or("", |info| info.key);
        let class = name.map_or_else(|| format!("class {label}"), |name| format!("{label} {name}"));
        self.write_text(&format!("{class}  {key}"), GAP, top);
    }

    /// Writes a line of letters of [`LETTER`] pixels, cut at the right border. Characters outside ASCII become question marks.
    pub fn write_text(&mut self, text: &str, left: usize, top: usize) {
        let columns = (self.width as usize - left) / LETTER;
        for (place, letter) in text.chars().take(columns).enumerate() {
            let printable = if letter.is_ascii() && !letter.is_ascii_control() { letter } else { '?' };
            let bitmap = BASIC_LEGACY[printable as usize];
            for (y, x) in (0..LETTER).flat_map(|y| (0..LETTER).map(move |x| (y, x))) {
                if bitmap[y / 2] >> (x / 2) & 1 == 1 {
                    let at = ((top + y) * self.width as usize + left + place * LETTER + x) * 3;
                    self.pixels[at..at + 3].fill(0);
                }
            }
        }
    }

    /// Copies an image to the sheet. It must fit.
    fn copy_image(&mut self, pixels: &[u8], size: (u32, u32), channels: Channels, left: usize, top: usize) {
        let row = size.0 as usize * channels.count();
        for (y, row) in pixels.chunks_exact(row).enumerate() {
            let start = ((top + y) * self.width as usize + left) * 3;
            let target = &mut self.pixels[start..start + size.0 as usize * 3];
            match channels {
                Channels::Rgb => target.copy_from_slice(row),
                Channels::Grey => {
                    target.chunks_exact_mut(3).zip(row).for_each(|(pixel, &grey)| pixel.fill(grey));
                }
            }
        }
    }
}

/// Enlarges a square image: each pixel becomes `factor` × `factor`.
fn enlarge(pixels: &[u8], side: usize, channels: usize, factor: usize) -> Vec<u8> {
    let mut large = Vec::with_capacity(pixels.len() * factor * factor);
    for y in 0..side * factor {
        for x in 0..side * factor {
            let at = (y / factor * side + x / factor) * channels;
            large.extend(&pixels[at..at + channels]);
        }
    }
    large
}

/// Decodes the image of a sample and scales its longer side to `side`; returns pixels and size.
fn decode_fitted(
    dataset: &Dataset,
    sample: u32,
    side: u32,
    channels: Channels,
    decoder: &mut Decoder,
) -> Result<(Vec<u8>, (u32, u32))> {
    let mut encoded = Vec::new();
    let mut pixels = Vec::new();
    let info = dataset.read(sample as usize, &mut encoded)?;
    let mut decode = || {
        let header = decoder.header(&encoded)?;
        decoder.decode(&encoded, &header, channels, &mut pixels)?;
        let size = resize::fit_size(header.width, header.height, side);
        Ok((resize::resize_image(&pixels, (header.width, header.height), size, channels)?, size))
    };
    decode().map_err(|bad: BadImage| bad.in_sample(info.shard, info.key))
}

#[cfg(test)]
mod tests {
    use super::enlarge;

    #[test]
    fn pixels_become_squares() {
        let large = enlarge(&[1, 2, 3, 4], 2, 1, 2);
        assert_eq!(large, [1, 1, 2, 2, 1, 1, 2, 2, 3, 3, 4, 4, 3, 3, 4, 4]);
    }
}
