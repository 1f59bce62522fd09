//! Cuts, resizes and mirrors decoded pixels.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::View;
use crate::decode::Channels;
use crate::error::BadImage;

/// Renders views one after another, reusing its buffers. Each worker thread has its own.
pub struct Renderer {
    resizer: Resizer,
    options: ResizeOptions,
    scaled: Vec<u8>,
}

impl Default for Renderer {
    fn default() -> Renderer {
        Renderer::new()
    }
}

impl Renderer {
    /// A renderer with empty buffers.
    pub fn new() -> Renderer {
        // Convolution stretches the filter when it shrinks an image: that is what antialiases.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        Renderer { resizer: Resizer::new(), options, scaled: Vec::new() }
    }

    /// Renders `view` of `pixels` (u8 [H, W, C], `width` pixels wide) into `out` (u8 [S, S, C], S = `image_size`).
    ///
    /// # Errors
    /// Where the view doesn't lie in the image, or the sizes don't fit the slices: a view of another image.
    pub fn render(
        &mut self,
        pixels: &[u8],
        width: u32,
        channels: Channels,
        view: &View,
        image_size: u32,
        out: &mut [u8],
    ) -> Result<(), BadImage> {
        let c = channels.count();
        let height = pixels.len() / (width as usize * c).max(1);
        let region = view.region;
        let inside = region.left as u64 + region.width as u64 <= width as u64
            && region.top as u64 + region.height as u64 <= height as u64;
        if !inside || out.len() != image_size as usize * image_size as usize * c {
            return Err(BadImage(format!(
                "a view of another image was asked for: {view:?} of {width}x{height}"
            )));
        }

        // The resized region, or the region in place: its first byte, and the bytes from row to row.
        let (source, pitch) = if view.scaled == (region.width, region.height) {
            let start = (region.top as usize * width as usize + region.left as usize) * c;
            (&pixels[start..], width as usize * c)
        } else {
            self.resize(pixels, width, height as u32, channels, view)?;
            (&self.scaled[..], view.scaled.0 as usize * c)
        };

        let row_bytes = view.scaled.0 as usize * c;
        for (y, out_row) in out.chunks_exact_mut(image_size as usize * c).enumerate() {
            let y = view.corner.1 + y as i64;
            if (0..i64::from(view.scaled.1)).contains(&y) {
                copy_row(&source[y as usize * pitch..][..row_bytes], view.corner.0, c, view.flip, out_row);
            } else {
                out_row.fill(0);
            }
        }
        Ok(())
    }

    fn resize(
        &mut self,
        pixels: &[u8],
        width: u32,
        height: u32,
        channels: Channels,
        view: &View,
    ) -> Result<(), BadImage> {
        let pixel_type = match channels {
            Channels::Grey => PixelType::U8,
            Channels::Rgb => PixelType::U8x3,
        };
        let (scaled_width, scaled_height) = view.scaled;
        let failed = |reason: &dyn std::fmt::Display| {
            BadImage(format!("can't be resized ({reason}); replace the image"))
        };
        self.scaled.resize(scaled_width as usize * scaled_height as usize * channels.count(), 0);
        let image = ImageRef::new(width, height, pixels, pixel_type).map_err(|error| failed(&error))?;
        // A cropped view, not `ResizeOptions::crop`: that one reads pixels outside the crop, at its borders.
        let region = view.region;
        let cropped = CroppedImage::new(&image, region.left, region.top, region.width, region.height)
            .map_err(|error| failed(&error))?;
        let mut scaled = Image::from_slice_u8(scaled_width, scaled_height, &mut self.scaled, pixel_type)
            .map_err(|error| failed(&error))?;
        self.resizer.resize(&cropped, &mut scaled, &self.options).map_err(|error| failed(&error))
    }
}

/// Copies the pixels of `row` from column `left` on into `out`, mirrored if `flip`; black where `row` has none.
fn copy_row(row: &[u8], left: i64, channels: usize, flip: bool, out: &mut [u8]) {
    let (width, size) = ((row.len() / channels) as i64, (out.len() / channels) as i64);
    // Columns of the output, before mirroring, that fall on the row.
    let first = (-left).clamp(0, size);
    let last = (width - left).clamp(first, size);
    let byte = |column: i64| column as usize * channels;
    let source = if first < last { &row[byte(left + first)..byte(left + last)] } else { &[] };
    let (black_left, black_right) = if flip { (size - last, first) } else { (first, size - last) };
    let (start, end) = (byte(black_left), byte(size - black_right));
    out[..start].fill(0);
    out[end..].fill(0);
    let target = &mut out[start..end];
    if !flip {
        target.copy_from_slice(source);
    } else if channels == 1 {
        target.iter_mut().zip(source.iter().rev()).for_each(|(to, &from)| *to = from);
    } else {
        for (to, from) in target.chunks_exact_mut(channels).zip(source.chunks_exact(channels).rev()) {
            to.copy_from_slice(from);
        }
    }
}
