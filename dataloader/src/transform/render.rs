//! Cuts, resizes and mirrors decoded pixels.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use super::{Region, View};
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

    /// Renders `view` of an image into `out` (u8 [S, S, C], S = `image_size`). Of the image `pixels` (u8 [H, W, C]) has the
    /// region `shown`.
    ///
    /// # Errors
    /// Where the view's region isn't in that one, or the sizes don't fit the slices: a view of another image.
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
            return Err(BadImage(format!("a view of another image was asked for: {view:?} of {shown:?}")));
        }
        let within = Region { left: region.left - shown.left, top: region.top - shown.top, ..region };
        if scaled == (region.width, region.height) {
            let start = within.top as usize * pitch + within.left as usize * c;
            cut(&pixels[start..], pitch, view, image_size, c, out);
            return Ok(());
        }
        let image = Source { pixels, size: (shown.width, shown.height), region: within, channels };
        if (scaled, corner) == ((image_size, image_size), (0, 0)) {
            self.resize(image, scaled, out)?;
            if flip {
                mirror(out, image_size as usize, c);
            }
            return Ok(());
        }
        let mut whole = std::mem::take(&mut self.scaled);
        whole.resize(scaled.0 as usize * scaled.1 as usize * c, 0);
        self.resize(image, scaled, &mut whole)?;
        cut(&whole, scaled.0 as usize * c, view, image_size, c, out);
        self.scaled = whole;
        Ok(())
    }

    fn resize(&mut self, from: Source, scaled: (u32, u32), out: &mut [u8]) -> Result<(), BadImage> {
        let pixel_type = match from.channels {
            Channels::Grey => PixelType::U8,
            Channels::Rgb => PixelType::U8x3,
        };
        let Region { left, top, width, height } = from.region;
        let mut resize = || -> Result<(), Box<dyn std::error::Error>> {
            let image = ImageRef::new(from.size.0, from.size.1, from.pixels, pixel_type)?;
            // A cropped view, not `ResizeOptions::crop`: that one reads pixels outside the crop, at its borders.
            let cropped = CroppedImage::new(&image, left, top, width, height)?;
            let mut scaled = Image::from_slice_u8(scaled.0, scaled.1, out, pixel_type)?;
            Ok(self.resizer.resize(&cropped, &mut scaled, &self.options)?)
        };
        resize().map_err(|reason| BadImage(format!("can't be resized ({reason}); replace the image")))
    }
}

/// What is resized: `region` of `pixels`, which are `size` pixels wide and high.
struct Source<'a> {
    pixels: &'a [u8],
    size: (u32, u32),
    region: Region,
    channels: Channels,
}

/// Exchanges left and right.
fn mirror(pixels: &mut [u8], width: usize, channels: usize) {
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
fn cut(source: &[u8], pitch: usize, view: &View, image_size: u32, channels: usize, out: &mut [u8]) {
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
