//! From an encoded image to pixels: interleaved u8, [H, W, C], C = 1 (grey) or 3 (RGB).
//!
//! JPEGs are decoded by libjpeg-turbo at its exact settings (integer DCT, smooth chroma upsampling), which gives
//! the same bytes as Pillow and torchvision. The format is told from the first bytes, never from the name:
//! ImageNet holds a PNG named `.JPEG`. EXIF orientation is ignored, as torchvision's default loader does.

use std::fmt;
use std::io::Cursor;

use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

use crate::error::{BadImage, Error, Result};

/// The most pixels an image may have: Pillow's limit, kept so that a broken header can't ask for all memory.
pub const MOST_PIXELS: u64 = 178_956_970;

/// Colour channels of decoded pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// One: luma. Colour images become grey by ITU-R 601 (a JPEG's own luma plane is that already).
    Grey,
    /// Three. Grey images repeat their one value.
    Rgb,
}

impl Channels {
    /// From a number of channels.
    ///
    /// # Errors
    /// Any number but 1 and 3.
    pub fn new(count: usize) -> Result<Channels> {
        match count {
            1 => Ok(Channels::Grey),
            3 => Ok(Channels::Rgb),
            other => {
                Err(Error::InvalidArgument(format!("channels must be 1 (grey) or 3 (RGB), not {other}")))
            }
        }
    }

    /// Bytes of a pixel.
    pub fn count(self) -> usize {
        match self {
            Channels::Grey => 1,
            Channels::Rgb => 3,
        }
    }
}

/// A format of encoded images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// JPEG: baseline or progressive; grey, YCbCr or RGB.
    Jpeg,
    /// PNG of any colour type and depth.
    Png,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
        })
    }
}

/// What an image's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format, by the first bytes.
    pub format: Format,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
}

/// Decodes images one after another, reusing its buffers. Each worker thread has its own.
pub struct Decoder {
    jpeg: Decompressor,
    png_pixels: Vec<u8>,
}

impl Decoder {
    /// # Errors
    /// Where libjpeg-turbo can't allocate its state.
    pub fn new() -> Result<Decoder> {
        let jpeg = Decompressor::new()
            .map_err(|error| Error::Exhausted(format!("cannot start a JPEG decoder: {error}")))?;
        Ok(Decoder { jpeg, png_pixels: Vec::new() })
    }

    /// Reads an image's header, and refuses what [`decode`](Self::decode) couldn't decode for its format or size.
    pub fn header(&mut self, encoded: &[u8]) -> Result<Header, BadImage> {
        let (format, width, height) = if encoded.starts_with(&[0xFF, 0xD8]) {
            let header = self.jpeg.read_header(encoded).map_err(jpeg_error)?;
            if matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK) {
                return Err(BadImage("a CMYK JPEG, which isn't supported yet; convert it to RGB".into()));
            }
            (Format::Jpeg, header.width as u64, header.height as u64)
        } else if encoded.starts_with(b"\x89PNG") {
            let mut decoder = png::Decoder::new(Cursor::new(encoded));
            let info = decoder.read_header_info().map_err(png_error)?;
            (Format::Png, info.width.into(), info.height.into())
        } else {
            let start = &encoded[..encoded.len().min(4)];
            return Err(BadImage(format!(
                "neither a JPEG nor a PNG (it starts with {start:02x?}); replace the image"
            )));
        };
        match width.checked_mul(height) {
            Some(1..=MOST_PIXELS) => Ok(Header { format, width: width as u32, height: height as u32 }),
            _ => Err(BadImage(format!(
                "{width}x{height} pixels, when 1 to {MOST_PIXELS} are allowed; replace the image"
            ))),
        }
    }

    /// Replaces the contents of `pixels` by the decoded image: u8, [H, W, C].
    ///
    /// `header` is what [`header`](Self::header) returned for the same bytes.
    pub fn decode(
        &mut self,
        encoded: &[u8],
        header: &Header,
        channels: Channels,
        pixels: &mut Vec<u8>,
    ) -> Result<(), BadImage> {
        match header.format {
            Format::Jpeg => self.decode_jpeg(encoded, header, channels, pixels),
            Format::Png => self.decode_png(encoded, header, channels, pixels),
        }
    }

    fn decode_jpeg(
        &mut self,
        encoded: &[u8],
        header: &Header,
        channels: Channels,
        pixels: &mut Vec<u8>,
    ) -> Result<(), BadImage> {
        let (width, height) = (header.width as usize, header.height as usize);
        let pitch = width * channels.count();
        pixels.resize(pitch * height, 0);
        let format = match channels {
            Channels::Grey => PixelFormat::GRAY,
            Channels::Rgb => PixelFormat::RGB,
        };
        let output = Image { pixels: pixels.as_mut_slice(), width, pitch, height, format };
        match self.jpeg.decompress(encoded, output) {
            Err(error) if !is_harmless(&error) => Err(jpeg_error(error)),
            _ => Ok(()),
        }
    }

    fn decode_png(
        &mut self,
        encoded: &[u8],
        header: &Header,
        channels: Channels,
        pixels: &mut Vec<u8>,
    ) -> Result<(), BadImage> {
        let mut decoder = png::Decoder::new(Cursor::new(encoded));
        decoder.set_transformations(png::Transformations::normalize_to_color8());
        decoder.set_ignore_text_chunk(true);
        decoder.set_ignore_iccp_chunk(true);
        let mut reader = decoder.read_info().map_err(png_error)?;
        let size = reader
            .output_buffer_size()
            .ok_or_else(|| BadImage("a PNG too large for memory; replace the image".into()))?;
        self.png_pixels.resize(size, 0);
        let frame = reader.next_frame(&mut self.png_pixels).map_err(png_error)?;
        if (frame.width, frame.height) != (header.width, header.height) {
            return Err(BadImage(
                "an animated PNG whose first frame is smaller than the image; replace it".into(),
            ));
        }
        let samples = frame.color_type.samples();
        let source = self.png_pixels[..frame.buffer_size()].chunks_exact(samples);
        pixels.clear();
        match (samples, channels) {
            (1 | 2, Channels::Grey) => pixels.extend(source.map(|pixel| pixel[0])),
            (1 | 2, Channels::Rgb) => pixels.extend(source.flat_map(|pixel| [pixel[0]; 3])),
            (_, Channels::Grey) => pixels.extend(source.map(|pixel| luma(pixel[0], pixel[1], pixel[2]))),
            (_, Channels::Rgb) => pixels.extend(source.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])),
        }
        Ok(())
    }
}

/// ITU-R 601 luma in 16-bit fixed point, to the bit as Pillow's `convert("L")`.
pub(crate) fn luma(red: u8, green: u8, blue: u8) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// libjpeg's warnings arrive as errors after the whole image has been decoded. These two are about bytes beside
/// the image, are met in photographs people train on, and every common loader accepts them. All others (above
/// all, data that ends early) mean that part of the picture is made up.
fn is_harmless(error: &turbojpeg::Error) -> bool {
    let text = error.to_string();
    text.contains("extraneous bytes before marker")
        || text.contains("Invalid SOS parameters for sequential JPEG")
}

fn jpeg_error(error: turbojpeg::Error) -> BadImage {
    BadImage(format!("broken JPEG ({error}); replace the image"))
}

fn png_error(error: png::DecodingError) -> BadImage {
    BadImage(format!("broken PNG ({error}); replace the image"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Encoder, Encoding};

    fn decode(encoded: &[u8], channels: Channels) -> Result<(Header, Vec<u8>), BadImage> {
        let mut decoder = Decoder::new().unwrap();
        let header = decoder.header(encoded)?;
        let mut pixels = vec![9; 5]; // stale contents and size, as in a worker
        decoder.decode(encoded, &header, channels, &mut pixels)?;
        Ok((header, pixels))
    }

    fn encode(encoding: Encoding, pixels: &[u8], width: u32, height: u32, channels: Channels) -> Vec<u8> {
        Encoder::new(encoding).unwrap().encode(pixels, width, height, channels).unwrap()
    }

    /// A PNG of any colour type and depth, written by the png crate from raw rows.
    fn raw_png(color: png::ColorType, depth: png::BitDepth, palette: Option<&[u8]>, data: &[u8]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 1);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if let Some(palette) = palette {
            encoder.set_palette(palette.to_vec());
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        file
    }

    #[test]
    fn png_is_lossless_and_converts_as_pillow() {
        let rgb = [255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30];
        let encoded = encode(Encoding::Png, &rgb, 2, 2, Channels::Rgb);
        let (header, pixels) = decode(&encoded, Channels::Rgb).unwrap();
        assert_eq!((header.format, header.width, header.height), (Format::Png, 2, 2));
        assert_eq!(pixels, rgb);
        // Pillow: Image.convert("L") of the same pixels.
        assert_eq!(decode(&encoded, Channels::Grey).unwrap().1, [76, 150, 29, 18]);
        let grey = encode(Encoding::Png, &[7, 8, 9, 10], 2, 2, Channels::Grey);
        assert_eq!(decode(&grey, Channels::Grey).unwrap().1, [7, 8, 9, 10]);
        assert_eq!(decode(&grey, Channels::Rgb).unwrap().1, [7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10]);
    }

    #[test]
    fn every_png_kind_becomes_eight_bit() {
        use png::{BitDepth, ColorType};
        let palette = [1, 2, 3, 200, 100, 50];
        let indexed = raw_png(ColorType::Indexed, BitDepth::One, Some(&palette), &[0b0100_0000]);
        assert_eq!(decode(&indexed, Channels::Rgb).unwrap().1, palette);
        let deep = raw_png(ColorType::Grayscale, BitDepth::Sixteen, None, &[0x12, 0xFF, 0xAB, 0x00]);
        assert_eq!(decode(&deep, Channels::Grey).unwrap().1, [0x12, 0xAB]);
        let alpha = raw_png(ColorType::Rgba, BitDepth::Eight, None, &[1, 2, 3, 0, 4, 5, 6, 128]);
        assert_eq!(decode(&alpha, Channels::Rgb).unwrap().1, [1, 2, 3, 4, 5, 6]);
        let grey_alpha = raw_png(ColorType::GrayscaleAlpha, BitDepth::Eight, None, &[40, 0, 50, 9]);
        assert_eq!(decode(&grey_alpha, Channels::Rgb).unwrap().1, [40, 40, 40, 50, 50, 50]);
        let two_bit = raw_png(ColorType::Grayscale, BitDepth::Two, None, &[0b0111_0000]);
        assert_eq!(decode(&two_bit, Channels::Grey).unwrap().1, [85, 255]);
    }

    #[test]
    fn jpeg_keeps_flat_colours() {
        let rgb: Vec<u8> = [180, 90, 40].repeat(16 * 16);
        let encoded = encode(Encoding::Jpeg { quality: 98 }, &rgb, 16, 16, Channels::Rgb);
        let (_, pixels) = decode(&encoded, Channels::Rgb).unwrap();
        assert!(pixels.iter().zip(&rgb).all(|(a, b)| a.abs_diff(*b) <= 2));
        let (_, grey) = decode(&encoded, Channels::Grey).unwrap();
        assert!(grey.iter().all(|&value| value.abs_diff(luma(180, 90, 40)) <= 2), "{}", grey[0]);
    }

    /// Something with detail, so that cutting the file cuts the picture.
    fn textured_jpeg() -> Vec<u8> {
        let pixels: Vec<u8> = (0..64 * 64_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        encode(Encoding::Jpeg { quality: 90 }, &pixels, 64, 64, Channels::Grey)
    }

    #[test]
    fn a_jpeg_cut_anywhere_is_an_error() {
        let whole = textured_jpeg();
        assert!(decode(&whole, Channels::Grey).is_ok());
        for keep in [3, 100, whole.len() / 2, whole.len() - 10] {
            assert!(decode(&whole[..keep], Channels::Grey).is_err(), "{keep} of {} bytes", whole.len());
        }
    }

    #[test]
    fn stray_bytes_before_the_end_marker_are_accepted() {
        let whole = textured_jpeg();
        let (body, end) = whole.split_at(whole.len() - 2);
        let padded = [body, &[0; 5], end].concat();
        assert!(Decompressor::new().is_ok_and(|mut jpeg| {
            let mut pixels = vec![0; 64 * 64];
            let image = Image {
                pixels: &mut pixels[..],
                width: 64,
                pitch: 64,
                height: 64,
                format: PixelFormat::GRAY,
            };
            jpeg.decompress(&padded, image).is_err() // libjpeg-turbo warns, or this test tests nothing
        }));
        assert_eq!(decode(&padded, Channels::Grey).unwrap().1, decode(&whole, Channels::Grey).unwrap().1);
    }

    #[test]
    fn other_bytes_cmyk_and_giants_are_refused() {
        assert!(decode(b"", Channels::Grey).unwrap_err().0.contains("neither a JPEG nor a PNG"));
        assert!(decode(b"GIF89a...", Channels::Grey).unwrap_err().0.contains("[47, 49, 46, 38]"));

        let image =
            Image { pixels: &[99; 4 * 64][..], width: 8, pitch: 32, height: 8, format: PixelFormat::CMYK };
        let cmyk = turbojpeg::compress(image, 90, turbojpeg::Subsamp::None).unwrap();
        assert!(decode(&cmyk, Channels::Rgb).unwrap_err().0.contains("CMYK"));

        let mut giant = encode(Encoding::Jpeg { quality: 90 }, &[0; 64], 8, 8, Channels::Grey);
        let frame = giant.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        giant[frame + 5..frame + 9].copy_from_slice(&[0xFD, 0xE8, 0xFD, 0xE8]); // 65000 x 65000
        assert!(decode(&giant, Channels::Grey).unwrap_err().0.contains("65000x65000"));
    }
}
