//! The bits of a baseline JPEG: from a tile's bytes to coefficients of the cosine transform.
//!
//! Nothing follows a tile's bytes but its end, so they are freed of stuffing beforehand and read eight at a time; a code and
//! the bits that belong to it take one look into a table, and no branch but those that end a block. It's about twice as
//! fast as libjpeg-turbo, whose fast path is closed to JPEGs with restart markers.
//!
//! Source: ITU-T T.81, Annexes C and F.

use memchr::memchr;
use pulp::{Arch, Simd, WithSimd};

use super::segment::{self, Segment};

/// Coefficients of a block, in rows of 8, by increasing frequency.
pub(crate) type Block = [i16; 64];

/// Codes of up to so many bits take one look.
const LOOK: u32 = 10;

/// Most bits of a coefficient, in pictures of 8 bits. Two codes with their coefficients have 53 at most.
const MOST_DC: u8 = 11;
const MOST_AC: u8 = 10;

/// A run that no code has: the block ends.
const END: u8 = 128;

/// Where the coefficients of T.81's zigzag are in a block.
const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6, 7,
    14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39,
    46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// A code, and what it stands for: `run` zeros, and a coefficient of `size` bits, which follow the code. In its bytes, from
/// the lowest: bits of the code and the coefficient, bits of the code, `size`, `run`. 0: no code.
///
/// A number, so that shifts by its lowest bits need nothing taken out first.
type Code = u32;

fn code(length: u8, size: u8, run: u8) -> Code {
    Code::from_le_bytes([length + size, length, size, run])
}

/// A table of codes.
#[derive(Debug, Clone)]
struct Table {
    /// What begins with these bits.
    look: Box<[Code; 1 << LOOK]>,
    /// Longer codes: where they begin and end, left-aligned in 16 bits.
    long: Vec<(u32, u32, Code)>,
}

impl Default for Table {
    fn default() -> Table {
        Table { look: Box::new([Code::default(); 1 << LOOK]), long: Vec::new() }
    }
}

impl Table {
    /// From a DHT segment's counts of codes by length, and their symbols (T.81, Annex C). `None` where they are no code.
    fn read(&mut self, counts: &[u8; 16], symbols: &[u8], dc: bool) -> Option<()> {
        self.look.fill(0);
        self.long.clear();
        let mut symbols = symbols.iter();
        let mut next = 0u32; // the next code, left-aligned in 16 bits
        for (length, &count) in (1u8..).zip(counts) {
            let step = 1 << (16 - length);
            for &symbol in symbols.by_ref().take(count.into()) {
                let (run, size) = if dc { (0, symbol) } else { (symbol >> 4, symbol & 15) };
                let run = if !dc && size == 0 && run < 15 { END } else { run };
                let (first, end) = (next, next + step);
                if size > if dc { MOST_DC } else { MOST_AC } || end > 1 << 16 {
                    return None;
                }
                if u32::from(length) <= LOOK {
                    let at = |code: u32| (code >> (16 - LOOK)) as usize;
                    self.look[at(first)..at(end)].fill(code(length, size, run));
                } else {
                    self.long.push((first, end, code(length, size, run)));
                }
                next = end;
            }
        }
        Some(())
    }

    /// The code that `bits`, left-aligned, begin with.
    #[inline(always)]
    fn find(&self, bits: u64) -> Option<Code> {
        let code = self.look[(bits >> (64 - LOOK)) as usize];
        if code > 0 { Some(code) } else { self.long(bits) }
    }

    #[cold]
    fn long(&self, bits: u64) -> Option<Code> {
        let bits = (bits >> 48) as u32;
        self.long.iter().find(|(first, end, _)| (*first..*end).contains(&bits)).map(|(_, _, code)| *code)
    }
}

/// Bits of a tile, taken from the front.
#[derive(Debug, Clone, Copy, Default)]
struct Bits {
    /// Those that come next, left-aligned, and how many there are.
    bits: u64,
    count: u32,
    /// The byte that follows them.
    at: usize,
}

impl Bits {
    /// There are 56 bits at least: zeros, past the end of `bytes`.
    #[inline(always)]
    fn fill(&mut self, bytes: &[u8]) {
        let next =
            bytes.get(self.at..).and_then(<[u8]>::first_chunk).map_or(0, |next| u64::from_be_bytes(*next));
        self.bits |= next >> self.count;
        self.at += ((63 - self.count) >> 3) as usize;
        self.count |= 56;
    }

    /// Takes a code and its coefficient.
    #[inline(always)]
    fn take(&mut self, code: Code) -> i32 {
        let size = code >> 16; // shifts count by the lowest bits
        let after = self.bits.wrapping_shl(code >> 8);
        self.bits = self.bits.wrapping_shl(code);
        self.count -= code & 63;
        // T.81, F.2.2.1, EXTEND: what begins with a 0 is negative, its bits inverted.
        let sign = !(after as i64 >> 63); // of all bits
        let magnitude = ((after as i64 ^ sign) as u64 >> 1).wrapping_shr(63 ^ size) as i64;
        ((magnitude ^ sign) - sign) as i32
    }
}

/// One component's part in a group of blocks (T.81: a minimum coded unit).
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
    /// The last block's, of each component.
    means: [i32; 3],
}

impl Reader {
    /// Takes the tables from a header, from SOI to the end of SOS. `None` where they are not those of a baseline scan.
    pub(crate) fn start(&mut self, header: &[u8]) -> Option<()> {
        self.components.clear();
        let mut found = [[false; 4]; 2];
        let mut frame: &[u8] = &[];
        for segment in segment::iterate(header) {
            let Segment { marker, body, .. } = segment?;
            match marker {
                0xC0 | 0xC1 => frame = body.get(6..)?,
                0xC4 => {
                    let mut rest = body;
                    while let Some((&[kind, ref counts @ ..], after)) = rest.split_first_chunk::<17>() {
                        let symbols = after.get(..counts.iter().map(|count| usize::from(*count)).sum())?;
                        let (class, number) = (usize::from(kind >> 4), usize::from(kind & 15));
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
                    let (of_frame, of_scan) =
                        (frame.chunks_exact(3), body.get(1..1 + 2 * count)?.chunks_exact(2));
                    for (of_frame, of_scan) in of_frame.zip(of_scan) {
                        let blocks = if count == 1 { 1 } else { (of_frame[1] >> 4) * (of_frame[1] & 15) };
                        let (dc, ac) = (usize::from(of_scan[1] >> 4), usize::from(of_scan[1] & 15));
                        if of_frame[0] != of_scan[0] || !*found[0].get(dc)? || !*found[1].get(ac)? {
                            return None;
                        }
                        self.components.push(Component { blocks: blocks.into(), dc, ac });
                    }
                    return (self.components.len() == count && count <= self.means.len()).then_some(());
                }
                _ => {}
            }
        }
        None
    }

    /// Begins a tile: the bytes between two markers.
    pub(crate) fn begin(&mut self, tile: &[u8]) {
        self.bytes.clear();
        let mut rest = tile;
        while let Some(at) = memchr(0xFF, rest) {
            self.bytes.extend_from_slice(&rest[..=at]);
            rest = rest.get(at + 2..).unwrap_or_default(); // past the stuffed zero
        }
        self.bytes.extend_from_slice(rest);
        self.bytes.extend_from_slice(&[0; 8]);
        self.bits = Bits::default();
        self.means = [0; 3];
    }

    /// Reads the tile's next group: the blocks of all components, zeros beforehand. `None` where the data are broken.
    pub(crate) fn group(&mut self, blocks: &mut [Block]) -> Option<()> {
        let arch = self.arch;
        arch.dispatch(Group { reader: self, blocks })
    }

    /// How many of the tile's bits have not been read; `None` where more have been read than it has.
    pub(crate) fn unread_bits(&self) -> Option<usize> {
        (8 * (self.bytes.len() - 8) + self.bits.count as usize).checked_sub(8 * self.bits.at)
    }
}

/// [`Reader::group`], compiled also for processors that shift by any register (BMI2), which are a tenth faster at it.
struct Group<'a> {
    reader: &'a mut Reader,
    blocks: &'a mut [Block],
}

impl WithSimd for Group<'_> {
    type Output = Option<()>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Option<()> {
        let Reader { dc, ac, components, bytes, means, .. } = self.reader;
        let mut bits = self.reader.bits; // in registers
        let mut blocks = self.blocks.iter_mut();
        for (component, mean) in components.iter().zip(means) {
            let (dc, ac) = (&dc[component.dc], &ac[component.ac]);
            for block in blocks.by_ref().take(component.blocks) {
                bits.fill(bytes);
                let code = dc.find(bits.bits)?;
                *mean = mean.wrapping_add(bits.take(code));
                block[0] = *mean as i16;
                read_block(ac, bytes, &mut bits, block)?;
            }
        }
        self.reader.bits = bits;
        Some(())
    }
}

/// A block's other coefficients (T.81, F.2.2.2). There are bits for one of them beforehand.
#[inline(always)]
fn read_block(table: &Table, bytes: &[u8], bits: &mut Bits, block: &mut Block) -> Option<()> {
    let mut k = 1;
    loop {
        for fill in [false, true] {
            if fill {
                bits.fill(bytes);
            }
            let code = table.find(bits.bits)?;
            let value = bits.take(code);
            k += (code >> 24) as usize;
            let Some(&place) = ZIGZAG.get(k) else {
                return (k > usize::from(END)).then_some(());
            };
            block[usize::from(place)] = value as i16; // 15 zeros and one more: the value is 0
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

    /// A grey image of one block, the luminance code of T.81's Table K.3, and a code of three words for the rest:
    /// 0 ends the block, 10 is a coefficient of 1 bit, 110 one after two zeros.
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
    fn a_block_by_hand() {
        let mut reader = Reader::default();
        reader.start(&header()).unwrap();
        // 100 101: a mean of 3 bits, 5. 10 1: 1. 110 0: two zeros and -1. 0: the end; and two bits to fill the byte.
        reader.begin(&[0b1001_0110, 0b1110_0011]);
        let mut blocks = [[0; 64]];
        reader.group(&mut blocks).unwrap();
        assert_eq!(reader.unread_bits(), Some(2));
        let mut expected = [0; 64];
        (expected[0], expected[1], expected[9]) = (5, 1, -1); // the fifth of the zigzag is (1, 1)
        assert_eq!(blocks, [expected]);
        // There is no second one.
        assert!(reader.group(&mut [[0; 64]]).is_none() || reader.unread_bits().is_none());
        // 011 00: a mean of 2 bits, -3. Then a word that there is not.
        reader.begin(&[0b0110_0111, 0xFF, 0x00, 0xFF, 0x00]);
        assert_eq!(reader.group(&mut [[0; 64]]), None);
        // A table that has more words than fit is none.
        let mut broken = header();
        (broken[20], broken[22]) = (3, 2);
        assert!(reader.start(&broken).is_none());
    }
}
