//! From an encoded image to pixels: interleaved u8, [H, W, C], C = 1 (grey) or 3 (RGB).
//!
//! JPEGs are decoded by libjpeg-turbo at its exact settings (integer DCT, smooth chroma upsampling), which gives
//! the same bytes as Pillow and torchvision, whole or in part. The first bytes decide the format, never the name:
//! ImageNet holds a PNG named `.JPEG`. EXIF orientation is ignored, as torchvision's default loader does.
//!
//! Every program decides by [`Decoder`] whether an image is sound. A whole decode sees all damage. The decode of a region
//! sees the damage in what it reads: the rows down to the region's last, or the tiles that it touches.

use std::fmt;
use std::io::Cursor;

use crate::buffer;
use crate::error::{BadImage, Error, Result};
use crate::jpeg::libjpeg::{self, Fault, Frame, Pixel};
use crate::jpeg::tile::{MARGIN, MIN_WIDTH, Tiles};
use crate::region::Region;

/// Default limit of an image's pixels, which is Pillow's. A broken header can ask for no more memory than that takes.
pub const DEFAULT_MAX_PIXELS: u64 = 178_956_970;

/// Colour channels of decoded pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channels {
    /// One: luma. Colour images become grey by ITU-R 601 (a JPEG's own luma plane is that already).
    Grey,
    /// Three. Grey images repeat their one value.
    Rgb,
}

impl Channels {
    /// Converts a number of channels.
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
    /// JPEG: baseline or progressive; grey, YCbCr, RGB or CMYK.
    Jpeg,
    /// PNG of any colour type and depth.
    Png,
}

impl Format {
    /// Finds the format by the first bytes.
    ///
    /// # Errors
    /// The bytes of neither format.
    pub fn detect(encoded: &[u8]) -> Result<Format, BadImage> {
        match encoded {
            [] => Err(BadImage("an empty file; replace the image".into())),
            [0xFF, 0xD8, ..] => Ok(Format::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => Ok(Format::Png),
            _ => {
                let start = &encoded[..encoded.len().min(4)];
                let what =
                    format!("neither a JPEG nor a PNG (it starts with {start:02x?}); replace the image");
                Err(BadImage(what))
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Format::Jpeg => "JPEG",
            Format::Png => "PNG",
        })
    }
}

/// The contents of an image's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The format, by the first bytes.
    pub format: Format,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    layout: Layout,
}

/// How a region can be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A JPEG in tiles: from those that the region touches.
    Tiled,
    /// Any other JPEG: row by row.
    Rows(Frame),
    /// The whole image is decoded.
    Whole,
}

impl Header {
    /// Whether a JPEG's restart markers cut it into tiles, see [`crate::jpeg::tile`].
    pub fn is_tiled(&self) -> bool {
        self.layout == Layout::Tiled
    }

    /// The whole image.
    pub fn whole(&self) -> Region {
        Region::whole(self.width, self.height)
    }
}

/// Decodes images one after another, reusing its buffers. Each worker thread has its own.
#[derive(Debug)]
pub struct Decoder {
    max_pixels: u64,
    tiles: Tiles,
    /// Pixels of a PNG or in CMYK, before their conversion.
    scratch: Vec<u8>,
}

impl Default for Decoder {
    fn default() -> Decoder {
        Decoder::new()
    }
}

impl Decoder {
    /// A decoder of images of at most [`DEFAULT_MAX_PIXELS`] pixels.
    pub fn new() -> Decoder {
        Decoder::with_max_pixels(DEFAULT_MAX_PIXELS)
    }

    /// A decoder of images of at most `max_pixels` pixels.
    ///
    /// A decode needs about 3 bytes of memory for each pixel that it returns; for each pixel of the whole image, a
    /// progressive JPEG needs up to 6 more, and a PNG 4.
    pub fn with_max_pixels(max_pixels: u64) -> Decoder {
        Decoder { max_pixels, tiles: Tiles::default(), scratch: Vec::new() }
    }

    /// Reads an image's header, and refuses a format or a size that [`decode`](Self::decode) doesn't decode.
    pub fn header(&mut self, encoded: &[u8]) -> Result<Header, BadImage> {
        let format = Format::detect(encoded)?;
        let (width, height, layout) = match format {
            Format::Jpeg if self.tiles.find_tiles(encoded) => {
                (self.tiles.width, self.tiles.height, Layout::Tiled)
            }
            Format::Jpeg => {
                let frame = read_jpeg_header(encoded)?;
                (frame.width, frame.height, Layout::Rows(frame))
            }
            Format::Png => {
                let mut decoder = png::Decoder::new(Cursor::new(encoded));
                let info = decoder.read_header_info().map_err(png_error)?;
                (info.width, info.height, Layout::Whole)
            }
        };
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(BadImage(format!(
                "{width}x{height} pixels are over the limit of {}; shrink the image, or raise the limit (max_pixels)",
                self.max_pixels
            )));
        }
        Ok(Header { format, width, height, layout })
    }

    /// Replaces the contents of `pixels` by the decoded image: u8, [H, W, C].
    ///
    /// [`header`](Self::header) has returned `header` for the same bytes.
    pub fn decode(
        &mut self,
        encoded: &[u8],
        header: &Header,
        channels: Channels,
        pixels: &mut Vec<u8>,
    ) -> Result<(), BadImage> {
        self.decode_region(encoded, header, channels, header.whole(), pixels).map(drop)
    }

    /// Decodes a region that contains `region`, and returns it. The contents of `pixels` become its pixels, u8 [H, W, C],
    /// which equal those of the whole image to the bit.
    ///
    /// [`header`](Self::header) has returned `header` last, for the same bytes.
    pub fn decode_region(
        &mut self,
        encoded: &[u8],
        header: &Header,
        channels: Channels,
        region: Region,
        pixels: &mut Vec<u8>,
    ) -> Result<Region, BadImage> {
        let pixel = match channels {
            Channels::Grey => Pixel::Grey,
            Channels::Rgb => Pixel::Rgb,
        };
        match header.layout {
            Layout::Whole => {
                self.decode_png(encoded, header, channels, pixels)?;
                Ok(header.whole())
            }
            Layout::Tiled => {
                let span = self.tiles.cover(region);
                self.tiles.decode(encoded, span, pixel, pixels).map_err(jpeg_error)
            }
            Layout::Rows(frame) => {
                let decoded = with_margin(region, &frame);
                if frame.colours.is_cmyk() {
                    libjpeg::decode(encoded, decoded, Pixel::Cmyk, &mut self.scratch).map_err(jpeg_error)?;
                    self.convert_cmyk(channels, pixels);
                } else {
                    libjpeg::decode(encoded, decoded, pixel, pixels).map_err(jpeg_error)?;
                }
                Ok(decoded)
            }
        }
    }

    /// Joins regions that cost less when they are decoded together. `groups` becomes the regions to decode, and `group_of`
    /// the number of the group that contains each of `regions`. The cost is the number of tiles; without tiles all regions
    /// become one group, since any of them takes the bits of most of the image.
    ///
    /// [`header`](Self::header) has returned `header` last.
    pub fn group_regions(
        &self,
        header: &Header,
        regions: &[Region],
        groups: &mut Vec<Region>,
        group_of: &mut Vec<usize>,
    ) {
        groups.clear();
        groups.extend_from_slice(regions);
        group_of.clear();
        group_of.extend(0..regions.len());
        let cost = |region: &Region| self.tiles.cover(*region).count_tiles();
        let saved = |a: &Region, b: &Region| match header.layout {
            Layout::Tiled => cost(a) as i64 + cost(b) as i64 - cost(&a.union(b)) as i64,
            _ => i64::MAX,
        };
        loop {
            let pairs = (1..groups.len()).flat_map(|b| (0..b).map(move |a| (a, b)));
            let Some((a, b)) = pairs.max_by_key(|&(a, b)| saved(&groups[a], &groups[b])) else { return };
            if saved(&groups[a], &groups[b]) <= 0 {
                return;
            }
            let joined = groups.remove(b);
            groups[a] = groups[a].union(&joined);
            for group in group_of.iter_mut() {
                if *group == b {
                    *group = a;
                } else if *group > b {
                    *group -= 1;
                }
            }
        }
    }

    /// Replaces the contents of `pixels` by those of `scratch`, which are CMYK.
    fn convert_cmyk(&mut self, channels: Channels, pixels: &mut Vec<u8>) {
        buffer::clear(pixels, self.scratch.len() / 4 * channels.count());
        let colours = self.scratch.as_chunks().0.iter().map(cmyk_to_rgb);
        match channels {
            Channels::Grey => pixels.extend(colours.map(|[red, green, blue]| luma(red, green, blue))),
            Channels::Rgb => pixels.extend(colours.flatten()),
        }
        buffer::release(&mut self.scratch);
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
        buffer::resize(&mut self.scratch, size);
        let frame = reader.next_frame(&mut self.scratch).map_err(png_error)?;
        if (frame.width, frame.height) != (header.width, header.height) {
            return Err(BadImage(
                "an animated PNG whose first frame is smaller than the image; replace it".into(),
            ));
        }
        let samples = frame.color_type.samples();
        let source = self.scratch[..frame.buffer_size()].chunks_exact(samples);
        buffer::clear(pixels, header.width as usize * header.height as usize * channels.count());
        match (samples, channels) {
            (1 | 2, Channels::Grey) => pixels.extend(source.map(|pixel| pixel[0])),
            (1 | 2, Channels::Rgb) => pixels.extend(source.flat_map(|pixel| [pixel[0]; 3])),
            (_, Channels::Grey) => pixels.extend(source.map(|pixel| luma(pixel[0], pixel[1], pixel[2]))),
            (_, Channels::Rgb) => pixels.extend(source.flat_map(|pixel| [pixel[0], pixel[1], pixel[2]])),
        }
        buffer::release(&mut self.scratch);
        Ok(())
    }
}

/// ITU-R 601 luma in 16-bit fixed point, to the bit as Pillow's `convert("L")`.
pub(crate) fn luma(red: u8, green: u8, blue: u8) -> u8 {
    ((u32::from(red) * 19595 + u32::from(green) * 38470 + u32::from(blue) * 7471 + 0x8000) >> 16) as u8
}

/// `region` with the pixels that its edges are interpolated from, beginning where a decoder can begin.
fn with_margin(region: Region, frame: &Frame) -> Region {
    let margin = if frame.progressive { MARGIN + 2 * frame.mcu_width } else { MARGIN };
    let first_mcu = region.left.saturating_sub(margin) / frame.mcu_width;
    let right = (region.left + region.width + margin).min(frame.width);
    let is_narrow = first_mcu > 0 && right - first_mcu * frame.mcu_width < MIN_WIDTH;
    let left = (first_mcu - u32::from(is_narrow)) * frame.mcu_width;
    let right = right.max(left + MIN_WIDTH).min(frame.width);
    let top = region.top.saturating_sub(MARGIN);
    let bottom = (region.top + region.height + MARGIN).min(frame.height);
    Region { left, top, width: right - left, height: bottom - top }
}

/// Converts CMYK as Adobe's programs store it, 255 − ink, to RGB: to the bit as Pillow does.
fn cmyk_to_rgb(stored: &[u8; 4]) -> [u8; 3] {
    let [inks @ .., black] = stored.map(u32::from);
    inks.map(|ink| {
        let product = (255 - ink) * black + 128;
        (black - (((product >> 8) + product) >> 8)) as u8
    })
}

/// Reads a JPEG's header.
pub(crate) fn read_jpeg_header(encoded: &[u8]) -> Result<Frame, BadImage> {
    libjpeg::read_header(encoded).map_err(jpeg_error)
}

fn jpeg_error(fault: Fault) -> BadImage {
    BadImage(match fault {
        Fault::Broken(message) => format!("broken JPEG ({message}); replace the image"),
        Fault::Unsupported(kind) => {
            format!("a JPEG with {kind}, which is not supported; save it as a PNG or a baseline JPEG")
        }
    })
}

fn png_error(error: png::DecodingError) -> BadImage {
    BadImage(format!("broken PNG ({error}); replace the image"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::{Encoder, Encoding};

    fn decode(encoded: &[u8], channels: Channels) -> Result<(Header, Vec<u8>), BadImage> {
        let mut decoder = Decoder::new();
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

    /// A JPEG with detail down to its last rows, so that a cut file lacks some of it.
    fn textured_jpeg() -> Vec<u8> {
        let pixels: Vec<u8> = (0..64 * 64_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        encode(Encoding::Jpeg { quality: 90 }, &pixels, 64, 64, Channels::Grey)
    }

    #[test]
    fn jpeg_cut_anywhere_is_an_error() {
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
        let padded = [body, &[0; 50], end].concat();
        assert_eq!(decode(&padded, Channels::Grey).unwrap().1, decode(&whole, Channels::Grey).unwrap().1);
    }

    #[test]
    fn other_bytes_and_giants_are_refused() {
        assert!(decode(b"", Channels::Grey).unwrap_err().0.contains("an empty file"));
        assert!(decode(b"GIF89a...", Channels::Grey).unwrap_err().0.contains("[47, 49, 46, 38]"));

        let mut giant = encode(Encoding::Jpeg { quality: 90 }, &[0; 64], 8, 8, Channels::Grey);
        let frame = giant.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        giant[frame + 5..frame + 9].copy_from_slice(&[0xFD, 0xE8, 0xFD, 0xE8]); // 65000 x 65000
        assert!(decode(&giant, Channels::Grey).unwrap_err().0.contains("65000x65000"));
        let square = encode(Encoding::Png, &[0; 64], 8, 8, Channels::Grey);
        assert!(Decoder::with_max_pixels(64).header(&square).is_ok());
        assert!(Decoder::with_max_pixels(63).header(&square).unwrap_err().0.contains("the limit of 63"));
    }

    /// JPEGs that our encoder doesn't write, and Pillow's pixels of them: tests/golden/jpegs.py wrote both.
    #[test]
    fn odd_jpegs_decode_as_pillows() {
        macro_rules! golden {
            ($name:literal) => {
                (
                    $name,
                    &include_bytes!(concat!("../../tests/golden/jpeg/", $name, ".jpg"))[..],
                    &include_bytes!(concat!("../../tests/golden/jpeg/", $name, ".rgb"))[..],
                )
            };
        }
        for (name, encoded, expected) in [
            golden!("progressive"),
            golden!("progressive_444"),
            golden!("rgb"),
            golden!("grey"),
            golden!("oriented"),
            golden!("cmyk"),
            golden!("restarts"),
        ] {
            let (header, pixels) = decode(encoded, Channels::Rgb).unwrap();
            assert!(pixels == expected, "{name}");
            assert_eq!(header.is_tiled(), name == "restarts", "{name}");
            let tiled = crate::jpeg::tile::transcode(encoded);
            assert_eq!(tiled.is_some(), name != "cmyk", "{name}");
            if let Some(tiled) = tiled {
                let (header, pixels) = decode(&tiled, Channels::Rgb).unwrap();
                assert!(header.is_tiled() && pixels == expected, "{name}, tiled");
            }
        }
    }

    /// Tiled: distant views are decoded separately, overlapping views together. Without tiles: all together.
    #[test]
    fn regions_are_grouped_where_that_costs_less() {
        let pixels = vec![128; 512 * 512];
        let whole = encode(Encoding::Jpeg { quality: 90 }, &pixels, 512, 512, Channels::Grey);
        let tiled = crate::jpeg::tile::transcode(&whole).unwrap();
        let square = |left, top, side| Region { left, top, width: side, height: side };
        let regions = [square(8, 8, 40), square(400, 400, 40), square(16, 16, 80), square(410, 390, 60)];
        let mut decoder = Decoder::new();
        let mut groups = Vec::new();
        let mut group_of = Vec::new();
        let header = decoder.header(&tiled).unwrap();
        decoder.group_regions(&header, &regions, &mut groups, &mut group_of);
        let [low, high] = [regions[0].union(&regions[2]), regions[1].union(&regions[3])];
        assert_eq!((&groups[..], &group_of[..]), (&[low, high][..], &[0, 1, 0, 1][..]));
        let header = decoder.header(&whole).unwrap();
        decoder.group_regions(&header, &regions, &mut groups, &mut group_of);
        assert_eq!((&groups[..], &group_of[..]), (&[low.union(&high)][..], &[0; 4][..]));
    }
}
