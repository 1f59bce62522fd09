//! Prepares an encoded image for a shard. Most images stay as they are.

use std::borrow::Cow;

use turbojpeg::Subsamp;

use crate::decode::{Channels, Decoder, Format, Header, read_jpeg_header};
use crate::encode::{Encoder, Encoding};
use crate::error::{BadImage, Result};
use crate::jpeg::libjpeg::{Colours, Frame};
use crate::shard::MAX_IMAGE_BYTES;
use crate::{jpeg::tile, resize};

/// The quality of JPEGs that were made smaller.
const QUALITY: u8 = 95;

/// Prepares images one after another. Each thread has its own.
pub(crate) struct Preparer {
    tile: bool,
    max_side: Option<u32>,
    decoder: Decoder,
    jpeg: Encoder,
    png: Encoder,
    pixels: Vec<u8>,
}

impl Preparer {
    pub(crate) fn new(tile: bool, max_side: Option<u32>, max_pixels: u64) -> Result<Preparer> {
        let jpeg = Encoder::new(Encoding::Jpeg { quality: QUALITY })?;
        let png = Encoder::new(Encoding::Png)?;
        Ok(Preparer {
            tile,
            max_side,
            decoder: Decoder::with_max_pixels(max_pixels),
            jpeg,
            png,
            pixels: Vec::new(),
        })
    }

    /// The extension and the bytes to store for `encoded`. The extension follows the first bytes, not the name: ImageNet
    /// has a PNG named `.JPEG`.
    ///
    /// # Errors
    /// An image that training could not decode.
    pub(crate) fn prepare<'a>(
        &mut self,
        encoded: &'a [u8],
    ) -> Result<(&'static str, Cow<'a, [u8]>), BadImage> {
        let format = Format::detect(encoded)?;
        if encoded.len() as u64 > MAX_IMAGE_BYTES {
            return Err(BadImage(format!("over {MAX_IMAGE_BYTES} bytes; replace the image")));
        }
        let header = self.decoder.header(encoded)?;
        let mut image = Cow::Borrowed(encoded);
        let mut decoded = false;
        if let Some(smaller) = self.shrink(encoded, &header)? {
            image = Cow::Owned(smaller);
            decoded = true;
        }
        if self.tile
            && format == Format::Jpeg
            && let Some(tiled) = tile::transcode(&image)
        {
            image = Cow::Owned(tiled);
            // It has read all coefficients, by libjpeg-turbo; tiles are decoded by another reader.
            decoded |= !header.is_tiled();
        }
        if !decoded {
            self.decoder.decode(encoded, &header, Channels::Rgb, &mut self.pixels)?;
        }
        Ok((if format == Format::Jpeg { "jpg" } else { "png" }, image))
    }

    /// Shrinks the image's longer side to `max_side`, in its own format and chroma sampling. `None` if the image is small
    /// enough, or without `max_side`.
    fn shrink(&mut self, encoded: &[u8], header: &Header) -> Result<Option<Vec<u8>>, BadImage> {
        let longer_side = header.width.max(header.height);
        let Some(max_side) = self.max_side.filter(|&max_side| longer_side > max_side) else {
            return Ok(None);
        };
        let size = resize::fit_size(header.width, header.height, max_side);
        let sampling = match header.format {
            Format::Jpeg => Some(sampling(&read_jpeg_header(encoded)?)),
            Format::Png => None,
        };
        let grey = sampling.map_or_else(|| is_grey_png(encoded), |sampling| sampling == Subsamp::Gray);
        let channels = if grey { Channels::Grey } else { Channels::Rgb };
        self.decoder.decode(encoded, header, channels, &mut self.pixels)?;
        let pixels = resize::resize_image(&self.pixels, (header.width, header.height), size, channels)?;
        let smaller = match sampling {
            Some(sampling) => self.jpeg.encode_jpeg(&pixels, size, channels, sampling),
            None => self.png.encode(&pixels, size.0, size.1, channels),
        };
        let smaller = smaller.map_err(|error| BadImage(format!("{error}; replace the image")));
        smaller.map(Some)
    }
}

/// The chroma sampling for encoding a JPEG again: its own, or 4:2:0 where its own isn't a standard one.
fn sampling(frame: &Frame) -> Subsamp {
    match frame.subsampling {
        _ if frame.colours == Colours::Grey => Subsamp::Gray,
        Some((1, 1)) => Subsamp::None,
        Some((2, 1)) => Subsamp::Sub2x1,
        Some((1, 2)) => Subsamp::Sub1x2,
        Some((4, 1)) => Subsamp::Sub4x1,
        Some((1, 4)) => Subsamp::Sub1x4,
        _ => Subsamp::Sub2x2,
    }
}

fn is_grey_png(encoded: &[u8]) -> bool {
    // The colour type: grey is 0, grey with alpha 4. The header has been read, so it is there.
    matches!(encoded.get(25), Some(0 | 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::DEFAULT_MAX_PIXELS;
    use turbojpeg::{Image, PixelFormat};

    fn jpeg(width: usize, height: usize, sampling: Subsamp) -> Vec<u8> {
        let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i * 7 / 3 % 251) as u8).collect();
        let image = Image { pixels: &pixels[..], width, pitch: width * 3, height, format: PixelFormat::RGB };
        turbojpeg::compress(image, 90, sampling).unwrap().to_vec()
    }

    #[test]
    fn images_stay_as_they_are_under_their_true_extension() {
        let mut preparer = Preparer::new(false, None, DEFAULT_MAX_PIXELS).unwrap();
        let odd = [&jpeg(9, 7, Subsamp::Sub2x2)[..], b"trailing"].concat();
        assert_eq!(preparer.prepare(&odd).unwrap(), ("jpg", Cow::Borrowed(&odd[..])));
        let cmyk = Image { pixels: &[9; 256][..], width: 8, pitch: 32, height: 8, format: PixelFormat::CMYK };
        let cmyk = turbojpeg::compress(cmyk, 90, Subsamp::None).unwrap();
        assert_eq!(preparer.prepare(&cmyk).unwrap(), ("jpg", Cow::Borrowed(&cmyk[..])));
        let png = Encoder::new(Encoding::Png).unwrap().encode(&[5; 12], 2, 2, Channels::Rgb).unwrap();
        assert_eq!(preparer.prepare(&png).unwrap(), ("png", Cow::Borrowed(&png[..])));
        for (bad, reason) in [(&b""[..], "an empty file"), (b"GIF89a", "[47, 49, 46, 38]"), (b"\xFF", "[ff]")]
        {
            let error = preparer.prepare(bad).unwrap_err().0;
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn larger_images_are_shrunk_in_their_own_format_and_sampling() {
        let mut preparer = Preparer::new(false, Some(20), DEFAULT_MAX_PIXELS).unwrap();
        for sampling in [Subsamp::None, Subsamp::Sub2x1, Subsamp::Sub2x2, Subsamp::Gray] {
            let large = jpeg(60, 40, sampling);
            let (extension, small) = preparer.prepare(&large).unwrap();
            let header = turbojpeg::read_header(&small).unwrap();
            assert_eq!((extension, header.width, header.height, header.subsamp), ("jpg", 20, 13, sampling));
        }
        let mut encoder = Encoder::new(Encoding::Png).unwrap();
        let grey = encoder.encode(&[77; 40 * 50], 40, 50, Channels::Grey).unwrap();
        let (extension, small) = preparer.prepare(&grey).unwrap();
        let mut decoder = Decoder::new();
        let header = decoder.header(&small).unwrap();
        assert_eq!((extension, header.width, header.height), ("png", 16, 20));
        assert!(is_grey_png(&small));
        let fitting = jpeg(20, 13, Subsamp::None);
        assert_eq!(preparer.prepare(&fitting).unwrap().1, fitting);
        let cut = &jpeg(60, 40, Subsamp::None)[..700];
        assert!(preparer.prepare(cut).is_err());
    }
}
