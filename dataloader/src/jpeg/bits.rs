//! Entropy decoding of a baseline JPEG: from a tile's bytes to coefficients of the cosine transform.
//!
//! A tile's bytes are complete, so stuffing is removed first and they are read eight at a time. A code and the bits of its
//! coefficient take one look-up, and the only branches are those that end a block. Tiles are read in pairs, because they
//! don't depend on each other: the processor works on one while it waits for the other's look-up. This is more than twice
//! as fast as libjpeg-turbo, whose fast path does not take JPEGs with restart markers.
//!
//! Source: ITU-T T.81, Annexes C and F.

use memchr::memchr;
use pulp::{Arch, Simd, WithSimd};

use super::segment::{self, Segment};

/// Coefficients of a block, in rows of 8, by frequency.
pub(crate) type Block = [i16; 64];

/// Codes of up to this many bits take one look-up.
const LOOKAHEAD_BITS: u32 = 10;

/// Limits of a coefficient's bits, for 8 bits a channel. Two codes with their coefficients have 53 bits at most.
const MAX_DC_BITS: u8 = 11;
const MAX_AC_BITS: u8 = 10;

/// The step of a code that ends a block; no other code's step reaches it from inside a block.
const END_OF_BLOCK: u8 = 128;
/// Added to the step of a code of 16 zeros, which stores no coefficient.
const ZEROS: u8 = 192;

/// The last coefficient of the zigzag, which has the last position, too.
const LAST: usize = 63;

/// The position in a block of each coefficient of T.81's zigzag.
const ZIGZAG: [usize; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A Huffman code and its symbol: a coefficient of `size` bits follows the code, and lies `step` places after the last one.
/// The lower half's bytes, from the lowest: bits of the code and the coefficient together, bits of the code, 64 − `size`,
/// `step`. The upper half is added to the bits of a negative coefficient. 0: no code.
///
/// One number, because shifts use its lowest bits without unpacking.
type Code = u64;

fn pack_code(length: u8, size: u8, step: u8) -> Code {
    let low = u32::from_le_bytes([length + size, length, 64 - size, step]);
    let negative: i32 = 1 - (1 << size); // T.81, F.2.2.1, EXTEND
    Code::from(low) | (negative as Code) << 32
}

fn step(code: Code) -> usize {
    (code as u32 >> 24) as usize
}

/// A Huffman table.
#[derive(Debug, Clone)]
struct Table {
    /// Short codes, by the first bits of the data.
    short: Box<[Code; 1 << LOOKAHEAD_BITS]>,
    /// Longer codes: the first and past the last 16 bits that begin with the code.
    long: Vec<(u32, u32, Code)>,
}

impl Default for Table {
    fn default() -> Table {
        Table { short: Box::new([Code::default(); 1 << LOOKAHEAD_BITS]), long: Vec::new() }
    }
}

impl Table {
    /// Reads a DHT segment's counts of codes by length, and their symbols (T.81, Annex C). `None` if they are no Huffman code.
    fn read(&mut self, counts: &[u8; 16], symbols: &[u8], dc: bool) -> Option<()> {
        self.short.fill(0);
        self.long.clear();
        let mut symbols = symbols.iter();
        let mut next = 0u32; // the next code, left-aligned in 16 bits
        for (length, &count) in (1u8..).zip(counts) {
            let width = 1 << (16 - length);
            for &symbol in symbols.by_ref().take(count.into()) {
                let (run, size) = if dc { (0, symbol) } else { (symbol >> 4, symbol & 15) };
                let step = match (dc, run, size) {
                    (false, 15, 0) => ZEROS + 16,
                    (false, _, 0) => END_OF_BLOCK,
                    _ => run + 1,
                };
                let first = next;
                let end = next + width;
                if size > if dc { MAX_DC_BITS } else { MAX_AC_BITS } || end > 1 << 16 {
                    return None;
                }
                if u32::from(length) <= LOOKAHEAD_BITS {
                    let at = |code: u32| (code >> (16 - LOOKAHEAD_BITS)) as usize;
                    self.short[at(first)..at(end)].fill(pack_code(length, size, step));
                } else {
                    self.long.push((first, end, pack_code(length, size, step)));
                }
                next = end;
            }
        }
        Some(())
    }

    /// Finds the code at the start of `bits`, which are left-aligned.
    #[inline(always)]
    fn find(&self, bits: u64) -> Option<Code> {
        let code = self.short[(bits >> (64 - LOOKAHEAD_BITS)) as usize];
        if code > 0 { Some(code) } else { self.find_long(bits) }
    }

    #[cold]
    fn find_long(&self, bits: u64) -> Option<Code> {
        let bits = (bits >> 48) as u32;
        self.long.iter().find(|(first, end, _)| (*first..*end).contains(&bits)).map(|(_, _, code)| *code)
    }
}

/// A tile's bits, read from the front.
#[derive(Debug, Clone, Copy, Default)]
struct Bits {
    /// The next bits, left-aligned, and their number in its lowest six bits.
    bits: u64,
    count: u32,
    /// The position of the byte that follows them.
    at: u32,
}

impl Bits {
    /// Reads until there are at least 56 bits; they are zero past the end of `bytes`.
    #[inline(always)]
    fn fill(&mut self, bytes: &[u8]) {
        let at = self.at as usize;
        let next =
            bytes.get(at..at + 8).and_then(<[u8]>::first_chunk).map_or(0, |next| u64::from_be_bytes(*next));
        self.count &= 63;
        self.bits |= next >> self.count;
        self.at = self.at.wrapping_add((63 - self.count) >> 3);
        self.count |= 56;
    }

    /// Reads an AC code's coefficient, past both. Without a coefficient, the value has no meaning.
    #[inline(always)]
    fn read_ac(&mut self, code: Code) -> i32 {
        let after = self.bits.wrapping_shl((code >> 8) as u32);
        self.skip(code);
        extend(code, after, after.wrapping_shr((code >> 16) as u32))
    }

    /// Reads a DC code's coefficient, past both.
    #[inline(always)]
    fn read_dc(&mut self, code: Code) -> i32 {
        let after = self.bits.wrapping_shl((code >> 8) as u32);
        self.skip(code);
        extend(code, after, (after >> 1).wrapping_shr((code >> 16) as u32 - 1))
    }

    #[inline(always)]
    fn skip(&mut self, code: Code) {
        self.bits = self.bits.wrapping_shl(code as u32);
        self.count = self.count.wrapping_sub(code as u32); // only the lowest bits count
    }
}

/// A coefficient of the bits `value`, the first of `after` (T.81, F.2.2.1, EXTEND).
#[inline(always)]
fn extend(code: Code, after: u64, value: u64) -> i32 {
    let positive = (after as i64 >> 63) as i32; // in all bits
    value as i32 + ((code >> 32) as i32 & !positive)
}

/// One component's part of a minimum coded unit (MCU): some blocks and their tables.
#[derive(Debug, Clone, Copy)]
struct Component {
    blocks: usize,
    dc: usize,
    ac: usize,
}

/// A tile that is being read.
#[derive(Debug, Clone, Copy, Default)]
struct Tile {
    bits: Bits,
    /// Past the position of its last byte.
    end: usize,
    /// The DC coefficient of each component's last block.
    last_dc: [i32; 3],
}

/// Reads tiles, one or two at a time. Reused from image to image.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    arch: Arch,
    dc: [Table; 4],
    ac: [Table; 4],
    components: Vec<Component>,
    /// The tiles' bytes without stuffing, and eight zeros after each.
    bytes: Vec<u8>,
    tiles: [Tile; 2],
}

impl Reader {
    /// Reads the tables of a header, which reaches from SOI to the end of SOS. `None` if they are not those of a baseline scan.
    pub(crate) fn read_tables(&mut self, header: &[u8]) -> Option<()> {
        self.components.clear();
        let mut found = [[false; 4]; 2];
        let mut frame: &[u8] = &[];
        for segment in segment::read_segments(header) {
            let Segment { marker, body, .. } = segment?;
            match marker {
                0xC0 | 0xC1 => frame = body.get(6..)?,
                0xC4 => {
                    let mut rest = body;
                    while let Some((&[kind, ref counts @ ..], after)) = rest.split_first_chunk::<17>() {
                        let symbols = after.get(..counts.iter().map(|count| usize::from(*count)).sum())?;
                        let class = usize::from(kind >> 4);
                        let number = usize::from(kind & 15);
                        let table = match class {
                            0 => self.dc.get_mut(number)?,
                            1 => self.ac.get_mut(number)?,
                            _ => return None,
                        };
                        table.read(counts, symbols, class == 0)?;
                        found[class][number] = true;
                        rest = &after[symbols.len()..];
                    }
                }
                0xDA => {
                    let count = usize::from(*body.first()?);
                    let scan = body.get(1..1 + 2 * count)?;
                    for (in_frame, in_scan) in frame.chunks_exact(3).zip(scan.chunks_exact(2)) {
                        let blocks = if count == 1 { 1 } else { (in_frame[1] >> 4) * (in_frame[1] & 15) };
                        let dc = usize::from(in_scan[1] >> 4);
                        let ac = usize::from(in_scan[1] & 15);
                        if in_frame[0] != in_scan[0] || !*found[0].get(dc)? || !*found[1].get(ac)? {
                            return None;
                        }
                        self.components.push(Component { blocks: blocks.into(), dc, ac });
                    }
                    return (self.components.len() == count && count <= self.tiles[0].last_dc.len())
                        .then_some(());
                }
                _ => {}
            }
        }
        None
    }

    /// Starts one tile or two: the bytes between two markers.
    pub(crate) fn start_tiles(&mut self, first: &[u8], second: Option<&[u8]>) {
        self.bytes.clear();
        for (tile, data) in self.tiles.iter_mut().zip([Some(first), second]) {
            let start = self.bytes.len();
            let mut rest = data.unwrap_or_default();
            while let Some(at) = memchr(0xFF, rest) {
                self.bytes.extend_from_slice(&rest[..=at]);
                rest = rest.get(at + 2..).unwrap_or_default(); // past the stuffed zero
            }
            self.bytes.extend_from_slice(rest);
            let bits = Bits { at: start as u32, ..Bits::default() };
            *tile = Tile { bits, end: self.bytes.len(), last_dc: [0; 3] };
            self.bytes.extend_from_slice(&[0; 8]);
        }
    }

    /// Reads the next MCU of the first tile, and of the second into `second`: the blocks of all components, which are zero
    /// before. `None` if the data are broken.
    pub(crate) fn read_mcus(&mut self, first: &mut [Block], second: Option<&mut [Block]>) -> Option<()> {
        let arch = self.arch;
        arch.dispatch(ReadMcus { reader: self, first, second })
    }

    /// Number of bits of the first tile (0) or the second (1) that have not been read. `None` if more have been read than
    /// it has.
    pub(crate) fn unread_bits(&self, tile: usize) -> Option<usize> {
        let Tile { bits, end, .. } = self.tiles[tile];
        (8 * end + (bits.count & 63) as usize).checked_sub(8 * bits.at as usize)
    }
}

/// [`Reader::read_mcus`], compiled also for processors that shift by any register (BMI2), which makes it a tenth faster.
struct ReadMcus<'a> {
    reader: &'a mut Reader,
    first: &'a mut [Block],
    second: Option<&'a mut [Block]>,
}

impl WithSimd for ReadMcus<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<()> {
        let ReadMcus { reader, first, mut second } = self;
        let Reader { dc, ac, components, bytes, tiles: [tile, second_tile], .. } = reader;
        let mut bits = tile.bits; // in registers
        let mut second_bits = second_tile.bits;
        let mut blocks = first.iter_mut();
        let mut position = 0;
        for (number, component) in components.iter().enumerate() {
            let dc = &dc[component.dc];
            let ac = &ac[component.ac];
            for block in blocks.by_ref().take(component.blocks) {
                read_dc(dc, bytes, &mut bits, &mut tile.last_dc[number], block)?;
                if let Some(second) = &mut second {
                    let second_block = second.get_mut(position)?;
                    read_dc(dc, bytes, &mut second_bits, &mut second_tile.last_dc[number], second_block)?;
                    read_two_blocks(ac, bytes, &mut bits, block, &mut second_bits, second_block)?;
                } else {
                    read_block(ac, bytes, &mut bits, block, 0)?;
                }
                position += 1;
            }
        }
        tile.bits = bits;
        second_tile.bits = second_bits;
        Some(())
    }
}

/// Reads a block's DC coefficient (T.81, F.2.2.1). Afterwards, `bits` has enough bits for one AC coefficient.
#[inline(always)]
fn read_dc(table: &Table, bytes: &[u8], bits: &mut Bits, last_dc: &mut i32, block: &mut Block) -> Option<()> {
    bits.fill(bytes);
    let code = table.find(bits.bits)?;
    *last_dc = last_dc.wrapping_add(bits.read_dc(code));
    block[0] = *last_dc as i16;
    Some(())
}

/// Reads a block's AC coefficients after the `k`th of the zigzag (T.81, F.2.2.2).
#[inline(always)]
fn read_block(table: &Table, bytes: &[u8], bits: &mut Bits, block: &mut Block, mut k: usize) -> Option<()> {
    while k < LAST {
        bits.fill(bytes); // enough for two codes
        for _ in 0..2 {
            let code = table.find(bits.bits)?;
            let value = bits.read_ac(code);
            k += step(code);
            if k < LAST {
                block[ZIGZAG[k]] = value as i16;
                continue;
            }
            k = read_special(block, k, value)?;
            if k == LAST {
                return Some(());
            }
        }
    }
    Some(())
}

/// Reads the AC coefficients of two blocks. `bits` and `second_bits` have enough bits for the first ones.
#[inline(always)]
fn read_two_blocks(
    table: &Table,
    bytes: &[u8],
    bits: &mut Bits,
    block: &mut Block,
    second_bits: &mut Bits,
    second_block: &mut Block,
) -> Option<()> {
    let mut k = 0;
    let mut second_k = 0;
    loop {
        for fill in [false, true] {
            if fill {
                bits.fill(bytes);
                second_bits.fill(bytes);
            }
            let code = table.find(bits.bits)?;
            let second_code = table.find(second_bits.bits)?;
            let value = bits.read_ac(code);
            let second_value = second_bits.read_ac(second_code);
            k += step(code);
            second_k += step(second_code);
            if k.max(second_k) < LAST {
                block[ZIGZAG[k]] = value as i16;
                second_block[ZIGZAG[second_k]] = second_value as i16;
                continue;
            }
            k = store(block, k, value)?;
            second_k = store(second_block, second_k, second_value)?;
            read_block(table, bytes, bits, block, k)?;
            return read_block(table, bytes, second_bits, second_block, second_k);
        }
    }
}

/// Stores the `k`th coefficient of the zigzag, or what a code without one means. Returns the place of the last coefficient:
/// [`LAST`] at the end of the block. `None` if there are more coefficients than a block has.
#[inline(always)]
fn store(block: &mut Block, k: usize, value: i32) -> Option<usize> {
    if k >= LAST {
        return read_special(block, k, value);
    }
    block[ZIGZAG[k]] = value as i16;
    Some(k)
}

/// [`store`] for the last coefficient and codes without one.
#[inline(always)]
fn read_special(block: &mut Block, k: usize, value: i32) -> Option<usize> {
    if k == LAST {
        block[LAST] = value as i16;
        return Some(LAST);
    }
    if k >= usize::from(ZEROS) {
        return Some(k - usize::from(ZEROS)).filter(|&k| k <= LAST);
    }
    (k >= usize::from(END_OF_BLOCK)).then_some(LAST)
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    /// The header of a grey image of one block, with T.81's Table K.3 for DC and a code of three words for AC: 0 ends the
    /// block, 10 is a coefficient of 1 bit, 110 one after two zeros.
    fn header() -> Vec<u8> {
        let dc = [
            &[0xFF, 0xC4, 0, 31, 0x00, 0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0][..],
            &[0, 1, 2, 3, 4, 5],
        ];
        let ac = [0xFF, 0xC4, 0, 22, 0x10, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x01, 0x21];
        [
            &[0xFF, 0xD8, 0xFF, 0xC0, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0][..],
            &dc.concat(),
            &[6, 7, 8, 9, 10, 11],
            &ac,
            &[0xFF, 0xDA, 0, 8, 1, 1, 0x00, 0, 63, 0],
        ]
        .concat()
    }

    #[test]
    fn block_encoded_by_hand_is_read() {
        let mut reader = Reader::default();
        reader.read_tables(&header()).unwrap();
        // 100 101: a DC of 3 bits, 5. 10 1: 1. 110 0: two zeros and -1. 0: the end; and two bits fill the byte.
        reader.start_tiles(&[0b1001_0110, 0b1110_0011], None);
        let mut blocks = [[0; 64]];
        reader.read_mcus(&mut blocks, None).unwrap();
        assert_eq!(reader.unread_bits(0), Some(2));
        let mut expected = [0; 64];
        (expected[0], expected[1], expected[9]) = (5, 1, -1); // the fifth of the zigzag is (1, 1)
        assert_eq!(blocks, [expected]);
        // The tile has no second block.
        assert!(reader.read_mcus(&mut [[0; 64]], None).is_none() || reader.unread_bits(0).is_none());
        // 011 00: a DC of 2 bits, -3. Then 111, which is no code.
        let broken_tile = [0b0110_0111, 0xFF, 0x00, 0xFF, 0x00];
        reader.start_tiles(&broken_tile, None);
        assert_eq!(reader.read_mcus(&mut [[0; 64]], None), None);
        // Two tiles at a time, the block of either ending first, give the same blocks.
        let short_tile = [0b0100_0111]; // 010 0: a DC of 1 bit, -1. 0: the end; and three bits.
        let long_tile = [0b1001_0110, 0b1110_0011];
        for (tiles, unread) in [([&long_tile[..], &short_tile], [2, 3]), ([&short_tile, &long_tile], [3, 2])]
        {
            let mut pair = [[0; 64]; 2];
            let [first, second] = &mut pair;
            reader.start_tiles(tiles[0], Some(tiles[1]));
            reader.read_mcus(slice::from_mut(first), Some(slice::from_mut(second))).unwrap();
            assert_eq!([0, 1].map(|tile| reader.unread_bits(tile)), unread.map(Some));
            for (tile, block) in tiles.into_iter().zip(pair) {
                let mut single = [[0; 64]];
                reader.start_tiles(tile, None);
                reader.read_mcus(&mut single, None).unwrap();
                assert_eq!(single, [block]);
            }
        }
        reader.start_tiles(&long_tile, Some(&broken_tile));
        assert_eq!(reader.read_mcus(&mut [[0; 64]], Some(&mut [[0; 64]])), None);
        // A table with more codes than their lengths allow is refused.
        let mut broken = header();
        (broken[20], broken[22]) = (3, 2);
        assert!(reader.read_tables(&broken).is_none());
    }
}
