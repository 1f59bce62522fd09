//! Resizes images or regions of them: bilinear, antialiased.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::decode::Channels;
use crate::error::BadImage;
use crate::region::Region;

/// The size of an image of `width` × `height` pixels whose longer side becomes `longest`; no side becomes 0.
pub(crate) fn fit_size(width: u32, height: u32, longest: u32) -> (u32, u32) {
    let longer = u64::from(width.max(height)).max(1);
    let side = |side: u32| ((u64::from(side) * u64::from(longest) + longer / 2) / longer).max(1) as u32;
    (side(width), side(height))
}

/// The input of a resize: `region` of `pixels`, u8 [H, W, C] of `size` (width, height).
pub(crate) struct ResizeInput<'a> {
    pub(crate) pixels: &'a [u8],
    pub(crate) size: (u32, u32),
    pub(crate) region: Region,
    pub(crate) channels: Channels,
}

/// Resizes images one after another, reusing its buffers.
pub(crate) struct ImageResizer {
    resizer: Resizer,
    options: ResizeOptions,
}

impl ImageResizer {
    pub(crate) fn new() -> ImageResizer {
        // Convolution stretches the filter when it shrinks an image, which antialiases.
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
        ImageResizer { resizer: Resizer::new(), options }
    }

    /// Fills `out`, u8 of size `to`.
    ///
    /// # Errors
    /// Sizes that don't fit the pixels.
    pub(crate) fn resize(
        &mut self,
        from: ResizeInput,
        to: (u32, u32),
        out: &mut [u8],
    ) -> Result<(), BadImage> {
        let pixel_type = match from.channels {
            Channels::Grey => PixelType::U8,
            Channels::Rgb => PixelType::U8x3,
        };
        let Region { left, top, width, height } = from.region;
        let mut resize = || -> Result<(), Box<dyn std::error::Error>> {
            let image = ImageRef::new(from.size.0, from.size.1, from.pixels, pixel_type)?;
            // A cropped view, not `ResizeOptions::crop`: that one reads pixels outside the crop, at its borders.
            let cropped = CroppedImage::new(&image, left, top, width, height)?;
            let mut scaled = Image::from_slice_u8(to.0, to.1, out, pixel_type)?;
            Ok(self.resizer.resize(&cropped, &mut scaled, &self.options)?)
        };
        resize().map_err(|reason| BadImage(format!("can't be resized ({reason}); replace the image")))
    }
}

/// Resizes a whole image, `pixels` u8 [H, W, C] of size `from` (width, height), to size `to`.
///
/// # Errors
/// Sizes that don't fit the pixels.
pub(crate) fn resize_image(
    pixels: &[u8],
    from: (u32, u32),
    to: (u32, u32),
    channels: Channels,
) -> Result<Vec<u8>, BadImage> {
    let region = Region::whole(from.0, from.1);
    let mut out = vec![0; to.0 as usize * to.1 as usize * channels.count()];
    ImageResizer::new().resize(ResizeInput { pixels, size: from, region, channels }, to, &mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_side_is_fitted_and_ratio_kept() {
        assert_eq!(fit_size(500, 375, 256), (256, 192));
        assert_eq!(fit_size(375, 500, 256), (192, 256));
        assert_eq!(fit_size(100, 50, 256), (256, 128));
        assert_eq!(fit_size(9000, 2, 100), (100, 1));
        assert_eq!(fit_size(u32::MAX, u32::MAX, 7), (7, 7));
    }

    #[test]
    fn shrinking_averages_pixels() {
        // Columns of black and white, halved: an antialiased filter leaves grey, not stripes.
        let stripes: Vec<u8> = (0..16 * 16).map(|i| if i % 2 == 0 { 0 } else { 255 }).collect();
        let grey = resize_image(&stripes, (16, 16), (4, 4), Channels::Grey).unwrap();
        assert!(grey.len() == 16 && grey.iter().all(|value| value.abs_diff(128) < 16), "{grey:?}");
        assert!(resize_image(&stripes, (17, 16), (4, 4), Channels::Grey).is_err());
    }
}
