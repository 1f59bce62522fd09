//! Tiled JPEGs: ordinary baseline JPEGs, which every reader opens, whose restart markers cut each row of blocks into tiles.
//! After a marker reading starts anew, so that a crop is decoded from the tiles that it touches and no others.
//!
//! To decode some tiles, libjpeg-turbo is given the header with their width and height, and their coefficients, which
//! [`Reader`] reads. Shards are tiled when they are written, by [`transcode`], which changes no pixel.
//!
//! Source: ITU-T T.81, Annexes B and E.

use memchr::memchr_iter;

use super::bits::Reader;
use super::libjpeg::{self, Fault, Frame, Pixel};
use super::segment;
use crate::region::Region;

/// Pixels around a crop that its own depend on: chroma is interpolated from neighbours.
pub(crate) const MARGIN: u32 = 2;

/// Pixels in a row from which on chroma is interpolated: libjpeg-turbo repeats one or two samples instead. A part of a
/// wider image has to be as wide.
pub(crate) const NARROWEST: u32 = 5;

/// Sides of a tile, in pixels, between which [`transcode`] chooses, and the one that it comes near to.
const WIDTHS: std::ops::RangeInclusive<u32> = 16..=192;
const BEST_WIDTH: u32 = 32;

/// Where a tiled JPEG's tiles are, and what decodes them. Reused from image to image.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    /// The image's, in pixels.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// A tile's; those at the right and bottom edges may be cut off.
    tile: (u32, u32),
    /// Groups of blocks in a tile.
    groups: u32,
    /// Tiles in a row.
    columns: u32,
    /// Where the header has the image's height; the width follows.
    size_at: usize,
    /// Where the tiles begin, and past the end of the last, each with the two bytes of its marker.
    starts: Vec<usize>,
    reader: Reader,
    /// The header of the picture that some tiles make.
    header: Vec<u8>,
}

/// Tiles in a rectangle: columns and rows, each from the first to past the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Span {
    columns: (u32, u32),
    rows: (u32, u32),
}

impl Span {
    pub(crate) fn tiles(&self) -> u64 {
        u64::from(self.columns.1 - self.columns.0) * u64::from(self.rows.1 - self.rows.0)
    }
}

/// What of a header tiling depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    width: u32,
    height: u32,
    /// A block of all components, in pixels.
    block: (u32, u32),
    /// Blocks between restart markers; 0: none.
    interval: u32,
    size_at: usize,
    /// Where the compressed data begin.
    scan: usize,
}

impl Header {
    /// `None` for what isn't one interleaved baseline scan of 8 bits in one component or three.
    fn read(encoded: &[u8]) -> Option<Header> {
        let u16_at = |body: &[u8], at: usize| {
            Some(u32::from(u16::from_be_bytes(body.get(at..at + 2)?.try_into().ok()?)))
        };
        let (mut interval, mut frame) = (0, None);
        for segment in segment::iterate(encoded) {
            let segment = segment?;
            let body = segment.body;
            match segment.marker {
                0xC0 | 0xC1 => {
                    let components = *body.get(5)?;
                    let sampling = body.get(6..6 + 3 * components as usize)?.chunks_exact(3);
                    let most = |shift: u8| sampling.clone().map(|c| (c[1] >> shift) & 15).max().unwrap_or(0);
                    let block = if components == 1 {
                        (8, 8)
                    } else {
                        (8 * u32::from(most(4)), 8 * u32::from(most(0)))
                    };
                    let suits =
                        body[0] == 8 && (components == 1 || components == 3) && block.0 > 0 && block.1 > 0;
                    let size = (u16_at(body, 3)?, u16_at(body, 1)?);
                    frame = suits.then_some((size, block, segment.start + 1, components));
                    frame?;
                }
                // Other frames.
                0xC2..=0xC3 | 0xC5..=0xCB | 0xCD..=0xCF | 0xDC => return None,
                0xDD => interval = u16_at(body, 0)?,
                0xDA => {
                    let ((width, height), block, size_at, components) = frame?;
                    let whole = *body.first()? == components && width > 0 && height > 0;
                    let scan = segment.end();
                    return whole.then_some(Header { width, height, block, interval, size_at, scan });
                }
                _ => {}
            }
        }
        None
    }

    /// Blocks in a row.
    fn columns(&self) -> u32 {
        self.width.div_ceil(self.block.0)
    }
}

impl Tiles {
    /// Finds the tiles of `encoded`. False where it isn't a whole JPEG whose rows restart markers cut evenly.
    pub(crate) fn find(&mut self, encoded: &[u8]) -> bool {
        self.try_find(encoded).is_some()
    }

    fn try_find(&mut self, encoded: &[u8]) -> Option<()> {
        let header = Header::read(encoded)?;
        let blocks = header.columns();
        if header.interval == 0 || !blocks.is_multiple_of(header.interval) {
            return None;
        }
        let Header { width, height, block, interval, size_at, scan } = header;
        let (columns, rows) = (blocks / interval, height.div_ceil(block.1));
        (self.width, self.height, self.tile) = (width, height, (interval * block.0, block.1));
        (self.columns, self.size_at) = (columns, size_at);
        self.groups = interval;
        self.reader.start(&encoded[..scan])?;
        self.starts.clear();
        self.starts.push(scan);
        for at in memchr_iter(0xFF, encoded.get(scan..)?).map(|at| scan + at) {
            match *encoded.get(at + 1)? {
                0x00 => {} // a byte of data
                marker @ 0xD0..=0xD7 => {
                    if usize::from(marker - 0xD0) != (self.starts.len() - 1) % 8 {
                        return None;
                    }
                    self.starts.push(at + 2);
                }
                0xD9 => {
                    self.starts.push(at + 2);
                    return (self.starts.len() - 1 == columns as usize * rows as usize).then_some(());
                }
                _ => return None,
            }
        }
        None // it has no end
    }

    /// The tiles that `region`, with the margin that it depends on, touches.
    pub(crate) fn span(&self, region: Region) -> Span {
        let touched = |from: u32, size: u32, tile: u32, whole: u32| {
            let to = (from + size + MARGIN).min(whole);
            (from.saturating_sub(MARGIN) / tile, to.div_ceil(tile))
        };
        let mut columns = touched(region.left, region.width, self.tile.0, self.width);
        // The last tile may be narrower than any other.
        if columns.0 > 0 && self.width - columns.0 * self.tile.0 < NARROWEST {
            columns.0 -= 1;
        }
        Span { columns, rows: touched(region.top, region.height, self.tile.1, self.height) }
    }

    /// Replaces the contents of `pixels` by the pixels of these tiles, which are the region that is returned.
    ///
    /// [`find`](Self::find) has returned true for the same `encoded`.
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
        let ((left, width), (top, height)) =
            (side(columns, self.tile.0, self.width), side(rows, self.tile.1, self.height));
        self.header.clear();
        self.header.extend_from_slice(&encoded[..self.starts[0]]);
        for (at, size) in [(self.size_at, height), (self.size_at + 2, width)] {
            self.header[at..at + 2].copy_from_slice(&(size as u16).to_be_bytes()); // at most the image's own
        }
        self.header.extend_from_slice(&[0xFF, 0xD9]);

        let Tiles { columns: in_row, groups, ref starts, ref mut reader, .. } = *self;
        let mut tiles = (rows.0..rows.1)
            .flat_map(|row| (columns.0..columns.1).map(move |column| (row * in_row + column) as usize));
        let last = starts.len() - 2;
        let mut tile = 0;
        let mut groups_left = 0;
        let read_group = |blocks: &mut [_]| {
            if groups_left == 0 {
                let Some(next) = tiles.next() else { return false };
                tile = next;
                reader.begin(&encoded[starts[tile]..starts[tile + 1] - 2]);
                groups_left = groups;
            }
            groups_left -= 1;
            // Bytes that are left before a restart marker belong to blocks that were lost, those before the end do no harm.
            let ends_well = |unread: usize| unread < 8 || tile == last;
            reader.group(blocks).is_some() && (groups_left > 0 || reader.unread_bits().is_some_and(ends_well))
        };
        libjpeg::decode_blocks(&self.header, (width, height), pixel, read_group, pixels)?;
        Ok(Region { left, top, width, height })
    }
}

/// How many blocks a tile has: the divisor of the blocks in a row that makes tiles of about [`BEST_WIDTH`] pixels, or the
/// whole row where none does.
fn interval(header: &Header) -> u32 {
    let columns = header.columns();
    let divisors = (1..=columns).filter(|blocks| columns.is_multiple_of(*blocks));
    let near = divisors.filter(|blocks| WIDTHS.contains(&(blocks * header.block.0)));
    near.min_by_key(|blocks| (blocks * header.block.0).abs_diff(BEST_WIDTH)).unwrap_or(columns)
}

/// The same picture, tiled: pixels, sizes and colours stay as they are to the last bit, whoever decodes it; EXIF, ICC
/// profiles and thumbnails are left out. `None` where it stays as it is: CMYK, 12 bits, a progressive file without its last
/// scans (decoders smooth it, but not the transcoded file), or one that is broken.
pub fn transcode(encoded: &[u8]) -> Option<Vec<u8>> {
    // Progressive files tell their sizes by another header; a first transcoding makes them baseline.
    let header = Header::read(encoded).or_else(|| Header::read(&libjpeg::transcode(encoded, 0).ok()?));
    let header = header?;
    let tiled = libjpeg::transcode(encoded, interval(&header) as u16).ok()?;
    // Samplings change where they had no effect (a grey image's blocks become 8x8): then the tiles are cut for those.
    let tiled = match Header::read(&tiled) {
        Some(made) if made.block == header.block => Some(tiled),
        Some(made) => libjpeg::transcode(encoded, interval(&made) as u16).ok(),
        None => None,
    };
    let tiled = tiled.filter(|tiled| Tiles::default().find(tiled))?;
    let progressive = libjpeg::read_header(encoded).ok()?.progressive;
    (!progressive || whole(encoded).ok()? == whole(&tiled).ok()?).then_some(tiled)
}

/// All pixels.
fn whole(encoded: &[u8]) -> Result<Vec<u8>, Fault> {
    let Frame { width, height, .. } = libjpeg::read_header(encoded)?;
    let mut pixels = Vec::new();
    libjpeg::decode(encoded, Region::whole(width, height), Pixel::Rgb, &mut pixels)?;
    Ok(pixels)
}
