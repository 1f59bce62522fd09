//! Tiled JPEGs: ordinary baseline JPEGs, which every program opens, whose restart markers cut each row of MCUs into tiles.
//! Decoding can start at any marker, so a crop takes only the tiles that it touches.
//!
//! To decode some tiles, libjpeg-turbo gets the header with their width and height, and the coefficients from [`Reader`].
//! Imports tile JPEGs by [`transcode`], which changes no pixel.
//!
//! Source: ITU-T T.81, Annexes B and E.

use memchr::memchr_iter;

use super::bits::{Block, Reader};
use super::libjpeg::{self, Fault, Frame, Pixel};
use super::segment;
use crate::region::Region;

/// Pixels around a crop that its own pixels depend on, because chroma is interpolated.
pub(crate) const MARGIN: u32 = 2;

/// Least width at which libjpeg-turbo interpolates chroma; in narrower images it repeats the one or two samples. A part of
/// a wider image must be as wide to give the same pixels.
pub(crate) const MIN_WIDTH: u32 = 5;

/// Widths of a tile in pixels that [`transcode`] chooses from, and the preferred one.
const WIDTHS: std::ops::RangeInclusive<u32> = 16..=192;
const PREFERRED_WIDTH: u32 = 32;

/// The positions of a JPEG's tiles, and their decoder. Reused from image to image.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    /// Width of the image in pixels.
    pub(crate) width: u32,
    /// Height of the image in pixels.
    pub(crate) height: u32,
    /// Width and height of a tile in pixels. Tiles at the right and bottom edges may be smaller.
    tile: (u32, u32),
    /// MCUs in a tile.
    mcus: u32,
    /// Tiles in a row.
    columns: u32,
    /// Position of the image's height in the header; the width follows.
    size_at: usize,
    /// Position of each tile's bytes, after its marker, and of the end of the last tile's marker.
    starts: Vec<usize>,
    reader: Reader,
    /// Coefficients of the tile after the one being read; the two are read together.
    ahead: Vec<Block>,
    /// The header of the picture that some tiles form.
    header: Vec<u8>,
}

/// A rectangle of tiles: columns and rows, each from the first to past the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    columns: (u32, u32),
    rows: (u32, u32),
}

impl Span {
    pub(crate) fn count_tiles(&self) -> u64 {
        u64::from(self.columns.1 - self.columns.0) * u64::from(self.rows.1 - self.rows.0)
    }
}

/// The parts of a header that tiling depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    width: u32,
    height: u32,
    /// Width and height of an MCU in pixels.
    mcu: (u32, u32),
    /// MCUs between restart markers; 0: none.
    interval: u32,
    /// Position of the height; the width follows.
    size_at: usize,
    /// Position of the compressed data.
    scan: usize,
}

impl Header {
    /// `None` for a JPEG other than one interleaved baseline scan of 8 bits with one component or three.
    fn read(encoded: &[u8]) -> Option<Header> {
        let u16_at = |body: &[u8], at: usize| {
            Some(u32::from(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?)))
        };
        let mut interval = 0;
        let mut frame = None;
        for segment in segment::read_segments(encoded) {
            let segment = segment?;
            let body = segment.body;
            match segment.marker {
                0xC0 | 0xC1 => {
                    let components = *body.get(5)?;
                    let sampling = body.get(6..6 + 3 * components as usize)?.chunks_exact(3);
                    let max = |shift: u8| sampling.clone().map(|c| (c[1] >> shift) & 15).max().unwrap_or(0);
                    let mcu =
                        if components == 1 { (8, 8) } else { (8 * u32::from(max(4)), 8 * u32::from(max(0))) };
                    let suits =
                        body[0] == 8 && (components == 1 || components == 3) && mcu.0 > 0 && mcu.1 > 0;
                    let size = (u16_at(body, 3)?, u16_at(body, 1)?);
                    frame = suits.then_some((size, mcu, segment.start + 1, components));
                    frame?;
                }
                // Other frames.
                0xC2..=0xC3 | 0xC5..=0xCB | 0xCD..=0xCF | 0xDC => return None,
                0xDD => interval = u16_at(body, 0)?,
                0xDA => {
                    let ((width, height), mcu, size_at, components) = frame?;
                    let whole = *body.first()? == components && width > 0 && height > 0;
                    let scan = segment.end();
                    return whole.then_some(Header { width, height, mcu, interval, size_at, scan });
                }
                _ => {}
            }
        }
        None
    }

    /// MCUs in a row.
    fn columns(&self) -> u32 {
        self.width.div_ceil(self.mcu.0)
    }
}

impl Tiles {
    /// Finds the tiles of `encoded`. Returns false if it isn't a complete JPEG whose rows restart markers cut evenly.
    pub(crate) fn find_tiles(&mut self, encoded: &[u8]) -> bool {
        self.try_find_tiles(encoded).is_some()
    }

    fn try_find_tiles(&mut self, encoded: &[u8]) -> Option<()> {
        let header = Header::read(encoded)?;
        let Header { width, height, mcu, interval, size_at, scan } = header;
        if interval == 0 || !header.columns().is_multiple_of(interval) {
            return None;
        }
        let rows = height.div_ceil(mcu.1);
        self.width = width;
        self.height = height;
        self.tile = (interval * mcu.0, mcu.1);
        self.mcus = interval;
        self.columns = header.columns() / interval;
        self.size_at = size_at;
        self.reader.read_tables(&encoded[..scan])?;
        self.starts.clear();
        self.starts.push(scan);
        let mut at = scan;
        loop {
            at = find_marker(encoded, at)?; // none: the end is missing
            match encoded[at + 1] {
                marker @ 0xD0..=0xD7 => {
                    if usize::from(marker - 0xD0) != (self.starts.len() - 1) % 8 {
                        return None;
                    }
                }
                0xD9 => {}
                _ => return None,
            }
            at += 2;
            self.starts.push(at);
            if encoded[at - 1] == 0xD9 {
                return (self.starts.len() - 1 == self.columns as usize * rows as usize).then_some(());
            }
        }
    }

    /// The tiles that `region` touches, with the margin that it depends on.
    pub(crate) fn cover(&self, region: Region) -> Span {
        let touched = |from: u32, size: u32, tile: u32, whole: u32| {
            let to = (from + size + MARGIN).min(whole);
            (from.saturating_sub(MARGIN) / tile, to.div_ceil(tile))
        };
        let mut columns = touched(region.left, region.width, self.tile.0, self.width);
        // Only the last tile can be so narrow.
        if columns.0 > 0 && self.width - columns.0 * self.tile.0 < MIN_WIDTH {
            columns.0 -= 1;
        }
        Span { columns, rows: touched(region.top, region.height, self.tile.1, self.height) }
    }

    /// Replaces the contents of `pixels` by the pixels of these tiles, which are the region that is returned.
    ///
    /// [`find_tiles`](Self::find_tiles) has returned true for the same `encoded`.
    pub(crate) fn decode(
        &mut self,
        encoded: &[u8],
        span: Span,
        pixel: Pixel,
        pixels: &mut Vec<u8>,
    ) -> Result<Region, Fault> {
        let Span { columns, rows } = span;
        let side = |(from, to): (u32, u32), tile: u32, whole: u32| {
            (from * tile, (to * tile).min(whole) - from * tile)
        };
        let (left, width) = side(columns, self.tile.0, self.width);
        let (top, height) = side(rows, self.tile.1, self.height);
        self.header.clear();
        self.header.extend_from_slice(&encoded[..self.starts[0]]);
        for (at, size) in [(self.size_at, height), (self.size_at + 2, width)] {
            self.header[at..at + 2].copy_from_slice(&(size as u16).to_be_bytes()); // at most the image's size
        }
        self.header.extend_from_slice(&[0xFF, 0xD9]);

        let Tiles { columns: in_row, mcus, ref starts, ref mut reader, ref mut ahead, .. } = *self;
        let data = |tile: usize| &encoded[starts[tile]..starts[tile + 1] - 2];
        let mut tiles = (rows.0..rows.1)
            .flat_map(|row| (columns.0..columns.1).map(move |column| (row * in_row + column) as usize));
        // Bytes left before a restart marker are those of lost MCUs; bytes left before the end are harmless.
        let last = starts.len() - 2;
        let ends_well =
            |tile: usize, unread: Option<usize>| unread.is_some_and(|unread| unread < 8 || tile == last);
        // The tile being read, the one that is read at the same time, and MCUs left of each.
        let mut tile = 0;
        let mut next_tile = None;
        let mut mcus_left = 0;
        let mut mcus_ahead = 0;
        let read_mcu = |blocks: &mut [Block]| {
            if mcus_ahead > 0 {
                let from = (mcus - mcus_ahead) as usize * blocks.len();
                blocks.copy_from_slice(&ahead[from..from + blocks.len()]);
                mcus_ahead -= 1;
                return true;
            }
            if mcus_left == 0 {
                let Some(next) = tiles.next() else { return false };
                tile = next;
                next_tile = tiles.next();
                reader.start_tiles(data(tile), next_tile.map(data));
                mcus_left = mcus;
                ahead.clear();
                ahead.resize(if next_tile.is_some() { mcus as usize * blocks.len() } else { 0 }, [0; 64]);
            }
            let from = (mcus - mcus_left) as usize * blocks.len();
            let blocks_ahead = next_tile.map(|_| &mut ahead[from..from + blocks.len()]);
            mcus_left -= 1;
            if reader.read_mcus(blocks, blocks_ahead).is_none() {
                return false;
            }
            if mcus_left > 0 {
                return true;
            }
            mcus_ahead = if next_tile.is_some() { mcus } else { 0 };
            ends_well(tile, reader.unread_bits(0))
                && next_tile.is_none_or(|tile| ends_well(tile, reader.unread_bits(1)))
        };
        libjpeg::decode_blocks(&self.header, (width, height), pixel, read_mcu, pixels)?;
        Ok(Region { left, top, width, height })
    }
}

/// Finds the next marker from `from` on: the position of a byte 0xFF that no zero follows.
fn find_marker(encoded: &[u8], from: usize) -> Option<usize> {
    /// Bytes looked at together, by instructions for many.
    const CHUNK: usize = 64;
    let is_marker = |first: u8, second: u8| (first == 0xFF) & (second != 0);
    let mut at = from;
    while let Some(chunk) = encoded.get(at..).and_then(<[u8]>::first_chunk::<{ CHUNK + 1 }>) {
        let pairs = chunk[..CHUNK].iter().zip(&chunk[1..]);
        if pairs.fold(false, |any, (&first, &second)| any | is_marker(first, second)) {
            break;
        }
        at += CHUNK;
    }
    memchr_iter(0xFF, encoded.get(at..)?)
        .map(|found| at + found)
        .find(|&at| encoded.get(at + 1).is_some_and(|&second| second != 0))
}

/// Chooses the number of MCUs in a tile: the divisor of the MCUs in a row that comes nearest to [`PREFERRED_WIDTH`] pixels,
/// or the whole row if none gives one of [`WIDTHS`].
fn choose_interval(header: &Header) -> u32 {
    let columns = header.columns();
    let divisors = (1..=columns).filter(|mcus| columns.is_multiple_of(*mcus));
    let suitable = divisors.filter(|mcus| WIDTHS.contains(&(mcus * header.mcu.0)));
    suitable.min_by_key(|mcus| (mcus * header.mcu.0).abs_diff(PREFERRED_WIDTH)).unwrap_or(columns)
}

/// The same picture, tiled. Its size and pixels stay the same to the bit in every decoder; EXIF, ICC profiles and
/// thumbnails are dropped. `None` for an image that can't be tiled: CMYK, a progressive file without its last scans (which
/// decoders smooth, unlike the transcoded file), or a broken one.
pub fn transcode(encoded: &[u8]) -> Option<Vec<u8>> {
    // A progressive file's header doesn't suit; the first transcoding makes it baseline.
    let header = Header::read(encoded).or_else(|| Header::read(&libjpeg::transcode(encoded, 0).ok()?))?;
    let mut tiled = libjpeg::transcode(encoded, choose_interval(&header) as u16).ok()?;
    // A grey image's sampling factors become 1, and with them its MCUs change.
    let written = Header::read(&tiled)?;
    if written.mcu != header.mcu {
        tiled = libjpeg::transcode(encoded, choose_interval(&written) as u16).ok()?;
    }
    if !Tiles::default().find_tiles(&tiled) {
        return None;
    }
    let progressive = libjpeg::read_header(encoded).ok()?.progressive;
    (!progressive || decode_whole(encoded).ok()? == decode_whole(&tiled).ok()?).then_some(tiled)
}

fn decode_whole(encoded: &[u8]) -> Result<Vec<u8>, Fault> {
    let Frame { width, height, .. } = libjpeg::read_header(encoded)?;
    let mut pixels = Vec::new();
    libjpeg::decode(encoded, Region::whole(width, height), Pixel::Rgb, &mut pixels)?;
    Ok(pixels)
}
