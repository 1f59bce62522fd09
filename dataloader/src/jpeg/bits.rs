//! Entropy decoding of a baseline JPEG: from a tile's bytes to coefficients of the cosine transform.
//!
//! A tile's bytes are complete, so stuffing is removed first and they are read eight at a time. A code and the bits of its
//! coefficient take one look-up, and the only branches are those that end a block. This is about twice as fast as
//! libjpeg-turbo, whose fast path does not take JPEGs with restart markers.
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

/// A run longer than any code's; it marks the end of a block.
const END_OF_BLOCK: u8 = 128;

/// The position in a block of each coefficient of T.81's zigzag.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A Huffman code and its symbol: `run` zeros, then a coefficient of `size` bits, which follow the code. The bytes, from the
/// lowest: bits of the code and the coefficient together, bits of the code, `size`, `run`. 0: no code.
///
/// One number, because shifts use its lowest bits without unpacking.
type Code = u32;

fn pack_code(length: u8, size: u8, run: u8) -> Code {
    Code::from_le_bytes([length + size, length, size, run])
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
            let step = 1 << (16 - length);
            for &symbol in symbols.by_ref().take(count.into()) {
                let (run, size) = if dc { (0, symbol) } else { (symbol >> 4, symbol & 15) };
                let run = if !dc && size == 0 && run < 15 { END_OF_BLOCK } else { run };
                let first = next;
                let end = next + step;
                if size > if dc { MAX_DC_BITS } else { MAX_AC_BITS } || end > 1 << 16 {
                    return None;
                }
                if u32::from(length) <= LOOKAHEAD_BITS {
                    let at = |code: u32| (code >> (16 - LOOKAHEAD_BITS)) as usize;
                    self.short[at(first)..at(end)].fill(pack_code(length, size, run));
                } else {
                    self.long.push((first, end, pack_code(length, size, run)));
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
    /// The next bits, left-aligned, and their number.
    bits: u64,
    count: u32,
    /// The position of the byte that follows them.
    at: usize,
}

impl Bits {
    /// Reads until there are at least 56 bits; they are zero past the end of `bytes`.
    #[inline(always)]
    fn fill(&mut self, bytes: &[u8]) {
        let next =
            bytes.get(self.at..).and_then(<[u8]>::first_chunk).map_or(0, |next| u64::from_be_bytes(*next));
        self.bits |= next >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// Reads a code's coefficient, past both.
    #[inline(always)]
    fn read_coefficient(&mut self, code: Code) -> i32 {
        let size = code >> 16; // shifts use only the lowest bits
        let after = self.bits.wrapping_shl(code >> 8);
        self.bits = self.bits.wrapping_shl(code);
        self.count -= code & 63;
        // T.81, F.2.2.1, EXTEND: bits that begin with a 0 are a negative value's, inverted.
        let sign = !(after as i64 >> 63); // in all bits
        let magnitude = ((after as i64 ^ sign) as u64 >> 1).wrapping_shr(63 ^ size) as i64;
        ((magnitude ^ sign) - sign) as i32
    }
}

/// One component's part of a minimum coded unit (MCU): some blocks and their tables.
#[derive(Debug, Clone, Copy)]
struct Component {
    blocks: usize,
    dc: usize,
    ac: usize,
}

/// Reads tiles. Reused from image to image.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    arch: Arch,
    dc: [Table; 4],
    ac: [Table; 4],
    components: Vec<Component>,
    /// The tile's bytes without stuffing, and eight more.
    bytes: Vec<u8>,
    bits: Bits,
    /// The DC coefficient of each component's last block.
    last_dc: [i32; 3],
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
                    return (self.components.len() == count && count <= self.last_dc.len()).then_some(());
                }
                _ => {}
            }
        }
        None
    }

    /// Starts a tile: the bytes between two markers.
    pub(crate) fn start_tile(&mut self, tile: &[u8]) {
        self.bytes.clear();
        let mut rest = tile;
        while let Some(at) = memchr(0xFF, rest) {
            self.bytes.extend_from_slice(&rest[..=at]);
            rest = rest.get(at + 2..).unwrap_or_default(); // past the stuffed zero
        }
        self.bytes.extend_from_slice(rest);
        self.bytes.extend_from_slice(&[0; 8]);
        self.bits = Bits::default();
        self.last_dc = [0; 3];
    }

    /// Reads the tile's next MCU: the blocks of all components, which are zero before. `None` if the data are broken.
    pub(crate) fn read_mcu(&mut self, blocks: &mut [Block]) -> Option<()> {
        let arch = self.arch;
        arch.dispatch(ReadMcu { reader: self, blocks })
    }

    /// Number of the tile's bits that have not been read; `None` if more have been read than it has.
    pub(crate) fn unread_bits(&self) -> Option<usize> {
        (8 * (self.bytes.len() - 8) + self.bits.count as usize).checked_sub(8 * self.bits.at)
    }
}

/// [`Reader::read_mcu`], compiled also for processors that shift by any register (BMI2), which makes it a tenth faster.
struct ReadMcu<'a> {
    reader: &'a mut Reader,
    blocks: &'a mut [Block],
}

impl WithSimd for ReadMcu<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<()> {
        let Reader { dc, ac, components, bytes, last_dc, .. } = self.reader;
        let mut bits = self.reader.bits; // in registers
        let mut blocks = self.blocks.iter_mut();
        for (component, last_dc) in components.iter().zip(last_dc) {
            let dc = &dc[component.dc];
            let ac = &ac[component.ac];
            for block in blocks.by_ref().take(component.blocks) {
                bits.fill(bytes);
                let code = dc.find(bits.bits)?;
                *last_dc = last_dc.wrapping_add(bits.read_coefficient(code));
                block[0] = *last_dc as i16;
                read_block(ac, bytes, &mut bits, block)?;
            }
        }
        self.reader.bits = bits;
        Some(())
    }
}

/// Reads a block's AC coefficients (T.81, F.2.2.2). `bits` has enough bits for the first.
#[inline(always)]
fn read_block(table: &Table, bytes: &[u8], bits: &mut Bits, block: &mut Block) -> Option<()> {
    let mut k = 1;
    loop {
        for fill in [false, true] {
            if fill {
                bits.fill(bytes);
            }
            let code = table.find(bits.bits)?;
            let value = bits.read_coefficient(code);
            k += (code >> 24) as usize;
            let Some(&place) = ZIGZAG.get(k) else {
                return (k > usize::from(END_OF_BLOCK)).then_some(());
            };
            block[usize::from(place)] = value as i16; // 0 in a run of 16 zeros
            k += 1;
            if k == 64 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
        reader.start_tile(&[0b1001_0110, 0b1110_0011]);
        let mut blocks = [[0; 64]];
        reader.read_mcu(&mut blocks).unwrap();
        assert_eq!(reader.unread_bits(), Some(2));
        let mut expected = [0; 64];
        (expected[0], expected[1], expected[9]) = (5, 1, -1); // the fifth of the zigzag is (1, 1)
        assert_eq!(blocks, [expected]);
        // The tile has no second block.
        assert!(reader.read_mcu(&mut [[0; 64]]).is_none() || reader.unread_bits().is_none());
        // 011 00: a DC of 2 bits, -3. Then 111, which is no code.
        reader.start_tile(&[0b0110_0111, 0xFF, 0x00, 0xFF, 0x00]);
        assert_eq!(reader.read_mcu(&mut [[0; 64]]), None);
        // A table with more codes than their lengths allow is refused.
        let mut broken = header();
        (broken[20], broken[22]) = (3, 2);
        assert!(reader.read_tables(&broken).is_none());
    }
}
