//! Crops, resizes and mirrors decoded pixels.

use super::View;
use crate::decode::Channels;
use crate::error::BadImage;
use crate::region::Region;
use crate::resize::{ImageResizer, ResizeInput};

/// Renders views one after another, reusing its buffers. Each worker thread has its own.
pub struct Renderer {
    resizer: ImageResizer,
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
        Renderer { resizer: ImageResizer::new(), scaled: Vec::new() }
    }

    /// Renders `view` of an image into `out` (u8 [S, S, C], S = `image_size`). `pixels` (u8 [H, W, C]) holds the region
    /// `shown` of the image.
    ///
    /// # Errors
    /// The view's region isn't in `shown`, or the sizes don't fit the slices: it is a view of another image.
    pub fn render(
        &mut self,
        pixels: &[u8],
        shown: Region,
        channels: Channels,
        view: &View,
        image_size: u32,
        out: &mut [u8],
    ) -> Result<(), BadImage> {
        let c = channels.count();
        let View { region, scaled, corner, flip, .. } = *view;
        let pitch = shown.width as usize * c;
        if shown.union(&region) != shown
            || pixels.len() != pitch * shown.height as usize
            || out.len() != image_size as usize * image_size as usize * c
        {
            return Err(BadImage(format!(
                "the view {view:?} isn't of this image, {shown:?}; please report this as a bug"
            )));
        }
        let within = Region { left: region.left - shown.left, top: region.top - shown.top, ..region };
        if scaled == (region.width, region.height) {
            let start = within.top as usize * pitch + within.left as usize * c;
            crop_square(&pixels[start..], pitch, view, image_size, c, out);
            return Ok(());
        }
        let image = ResizeInput { pixels, size: (shown.width, shown.height), region: within, channels };
        if (scaled, corner) == ((image_size, image_size), (0, 0)) {
            self.resizer.resize(image, scaled, out)?;
            if flip {
                flip_horizontal(out, image_size as usize, c);
            }
            return Ok(());
        }
        self.scaled.resize(scaled.0 as usize * scaled.1 as usize * c, 0);
        self.resizer.resize(image, scaled, &mut self.scaled)?;
        crop_square(&self.scaled, scaled.0 as usize * c, view, image_size, c, out);
        Ok(())
    }
}

/// Exchanges left and right.
fn flip_horizontal(pixels: &mut [u8], width: usize, channels: usize) {
    for row in pixels.chunks_exact_mut(width * channels) {
        if channels == 1 {
            row.reverse();
        } else {
            let row = row.as_chunks_mut::<3>().0;
            row.reverse();
        }
    }
}

/// Copies the square at the view's corner from `source`, the scaled region, whose rows are `pitch` bytes apart.
fn crop_square(source: &[u8], pitch: usize, view: &View, image_size: u32, channels: usize, out: &mut [u8]) {
    let row_bytes = view.scaled.0 as usize * channels;
    for (y, out_row) in out.chunks_exact_mut(image_size as usize * channels).enumerate() {
        let y = view.corner.1 + y as i64;
        if (0..i64::from(view.scaled.1)).contains(&y) {
            copy_row(&source[y as usize * pitch..][..row_bytes], view.corner.0, channels, view.flip, out_row);
        } else {
            out_row.fill(0);
        }
    }
}

/// Copies the pixels of `row` from column `left` on into `out`, mirrored if `flip`; black where `row` has none.
fn copy_row(row: &[u8], left: i64, channels: usize, flip: bool, out: &mut [u8]) {
    let width = (row.len() / channels) as i64;
    let size = (out.len() / channels) as i64;
    // Columns of the output, before mirroring, that fall on the row.
    let first = (-left).clamp(0, size);
    let last = (width - left).clamp(first, size);
    let byte = |column: i64| column as usize * channels;
    let source = if first < last { &row[byte(left + first)..byte(left + last)] } else { &[] };
    let (black_left, black_right) = if flip { (size - last, first) } else { (first, size - last) };
    let start = byte(black_left);
    let end = byte(size - black_right);
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
