//! Whole images brought to another size, by the filter that makes views: bilinear, antialiased.

use fast_image_resize::images::{CroppedImage, Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};

use crate::decode::Channels;
use crate::error::BadImage;

/// The size of an image of `width` × `height` pixels whose longer side has been brought to `longest`; no side
/// is 0.
pub(crate) fn fitted(width: u32, height: u32, longest: u32) -> (u32, u32) {
    let longer = u64::from(width.max(height)).max(1);
    let side = |side: u32| ((u64::from(side) * u64::from(longest) + longer / 2) / longer).max(1) as u32;
    (side(width), side(height))
}

/// Resizes `pixels`, u8 [H, W, C] of size `from` (width, height), to size `to`.
///
/// # Errors
/// Sizes that don't fit the pixels.
pub(crate) fn resized(
    pixels: &[u8],
    from: (u32, u32),
    to: (u32, u32),
    channels: Channels,
) -> Result<Vec<u8>, BadImage> {
    let pixel_type = match channels {
        Channels::Grey => PixelType::U8,
        Channels::Rgb => PixelType::U8x3,
    };
    // Convolution stretches the filter when it shrinks an image: that is what antialiases.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    let mut resized = Image::new(to.0, to.1, pixel_type);
    let failed = |reason: String| BadImage(format!("can't be resized ({reason}); replace the image"));
    let image =
        ImageRef::new(from.0, from.1, pixels, pixel_type).map_err(|error| failed(error.to_string()))?;
    // Cut from nothing, so that the types are those of the transform: the resizer is compiled for each anew.
    let image = CroppedImage::new(&image, 0, 0, from.0, from.1).map_err(|error| failed(error.to_string()))?;
    Resizer::new().resize(&image, &mut resized, &options).map_err(|error| failed(error.to_string()))?;
    Ok(resized.into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_fitted_and_the_ratio_kept() {
        assert_eq!(fitted(500, 375, 256), (256, 192));
        assert_eq!(fitted(375, 500, 256), (192, 256));
        assert_eq!(fitted(100, 50, 256), (256, 128));
        assert_eq!(fitted(9000, 2, 100), (100, 1));
        assert_eq!(fitted(u32::MAX, u32::MAX, 7), (7, 7));
    }

    #[test]
    fn shrinking_averages() {
        // Columns of black and white, halved: an antialiased filter leaves grey, not stripes.
        let stripes: Vec<u8> = (0..16 * 16).map(|i| if i % 2 == 0 { 0 } else { 255 }).collect();
        let grey = resized(&stripes, (16, 16), (4, 4), Channels::Grey).unwrap();
        assert!(grey.len() == 16 && grey.iter().all(|value| value.abs_diff(128) < 16), "{grey:?}");
        assert!(resized(&stripes, (17, 16), (4, 4), Channels::Grey).is_err());
    }
}
