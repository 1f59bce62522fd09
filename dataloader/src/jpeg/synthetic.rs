//! JPEGs with any sampling, restart interval and order of scans, written for tests: noise with sound structure.

use rand_chacha::ChaCha8Rng;

use crate::random::{Domain, draw_below, stream};

/// A baseline JPEG to write.
#[derive(Debug, Clone)]
pub(super) struct Synthetic {
    pub width: u32,
    pub height: u32,
    /// Each component's sampling factors, horizontal and vertical.
    pub sampling: Vec<(u8, u8)>,
    /// Blocks of all components between restart markers; 0: none.
    pub interval: u16,
    /// A scan for each component.
    pub separate_scans: bool,
    /// The colour transform in an Adobe marker, or no such marker.
    pub adobe: Option<u8>,
    /// JFIF's major revision.
    pub jfif: u8,
    /// The last coefficient that the scan claims to hold: 63 in a sound file.
    pub last_coefficient: u8,
}

impl Synthetic {
    pub(super) fn new(width: u32, height: u32, sampling: &[(u8, u8)]) -> Synthetic {
        Synthetic {
            width,
            height,
            sampling: sampling.to_vec(),
            interval: 0,
            separate_scans: false,
            adobe: None,
            jfif: 1,
            last_coefficient: 63,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut file = vec![0xFF, 0xD8];
        segment(&mut file, 0xE0, &[&b"JFIF\0"[..], &[self.jfif, 2, 0, 0, 1, 0, 1, 0, 0]].concat());
        if let Some(transform) = self.adobe {
            segment(&mut file, 0xEE, &[&b"Adobe"[..], &[0, 100, 0, 0, 0, 0, transform]].concat());
        }
        segment(&mut file, 0xDB, &[&[0][..], &[6; 64]].concat());
        let side = |side: u32| (side as u16).to_be_bytes();
        let mut frame = [&[8][..], &side(self.height), &side(self.width)].concat();
        frame.push(self.sampling.len() as u8);
        for (id, &(h, v)) in (1..).zip(&self.sampling) {
            frame.extend([id, h << 4 | v, 0]);
        }
        segment(&mut file, 0xC0, &frame);
        segment(&mut file, 0xC4, &dc_table());
        segment(&mut file, 0xC4, &ac_table());
        if self.interval > 0 {
            segment(&mut file, 0xDD, &self.interval.to_be_bytes());
        }
        let all: Vec<usize> = (0..self.sampling.len()).collect();
        let scans = if self.separate_scans { all.iter().map(|&i| vec![i]).collect() } else { vec![all] };
        let mut rng = stream(Domain::View, 11, self.width.into(), self.height.into(), 0);
        for scan in scans {
            self.scan(&mut file, &scan, &mut rng);
        }
        file.extend([0xFF, 0xD9]);
        file
    }

    fn scan(&self, file: &mut Vec<u8>, components: &[usize], rng: &mut ChaCha8Rng) {
        let mut header = vec![components.len() as u8];
        for &component in components {
            header.extend([component as u8 + 1, 0]);
        }
        header.extend([0, self.last_coefficient, 0]);
        segment(file, 0xDA, &header);
        let most_h = self.sampling.iter().map(|&(h, _)| u32::from(h)).max().unwrap();
        let most_v = self.sampling.iter().map(|&(_, v)| u32::from(v)).max().unwrap();
        let groups = if let [only] = *components {
            let (h, v) = self.sampling[only];
            (self.width * u32::from(h)).div_ceil(8 * most_h)
                * (self.height * u32::from(v)).div_ceil(8 * most_v)
        } else {
            self.width.div_ceil(8 * most_h) * self.height.div_ceil(8 * most_v)
        };
        let mut bits = Bits::default();
        let mut means = [0; 4];
        for group in 0..groups {
            if self.interval > 0 && group > 0 && group % u32::from(self.interval) == 0 {
                bits.flush(file);
                file.extend([0xFF, 0xD0 + ((group / u32::from(self.interval) - 1) % 8) as u8]);
                means = [0; 4];
            }
            for &component in components {
                let (h, v) = self.sampling[component];
                let blocks = if components.len() == 1 { 1 } else { h * v };
                for _ in 0..blocks {
                    let mean = draw_below(rng, 240) as i32 - 120;
                    bits.difference(file, mean - means[component]);
                    means[component] = mean;
                    let mut place = 1 + draw_below(rng, 6);
                    while place < 40 {
                        let run = draw_below(rng, 5);
                        let value = 1 + draw_below(rng, 14) as i32;
                        bits.coefficient(file, run, if draw_below(rng, 2) == 0 { value } else { -value });
                        place += run + 1 + draw_below(rng, 12);
                    }
                    bits.put(file, 0, 8); // the block ends
                }
            }
        }
        bits.flush(file);
    }
}

fn segment(file: &mut Vec<u8>, marker: u8, body: &[u8]) {
    file.extend([0xFF, marker]);
    file.extend((body.len() as u16 + 2).to_be_bytes());
    file.extend(body);
}

/// Twelve sizes, with codes of four bits.
fn dc_table() -> Vec<u8> {
    let mut table = vec![0; 17];
    table[4] = 12;
    table.extend(0..12);
    table
}

/// The end of a block, and runs of 0 to 15 with sizes of 1 to 10: codes of eight bits.
fn ac_table() -> Vec<u8> {
    let mut table = vec![0; 17];
    (table[0], table[8]) = (0x10, 161);
    table.push(0);
    table.extend((0..16_u8).flat_map(|run| (1..=10).map(move |size| run << 4 | size)));
    table
}

/// Bits on their way into a file.
#[derive(Default)]
struct Bits {
    bits: u32,
    count: u32,
}

impl Bits {
    fn put(&mut self, file: &mut Vec<u8>, value: u32, count: u32) {
        for bit in (0..count).rev() {
            self.bits = self.bits << 1 | (value >> bit & 1);
            self.count += 1;
            if self.count == 8 {
                let byte = self.bits as u8;
                file.push(byte);
                if byte == 0xFF {
                    file.push(0);
                }
                *self = Bits::default();
            }
        }
    }

    /// Fills the last byte with ones.
    fn flush(&mut self, file: &mut Vec<u8>) {
        while self.count > 0 {
            self.put(file, 1, 1);
        }
    }

    fn difference(&mut self, file: &mut Vec<u8>, value: i32) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        self.put(file, size, 4);
        self.magnitude(file, value, size);
    }

    fn coefficient(&mut self, file: &mut Vec<u8>, run: u32, value: i32) {
        let size = 32 - value.unsigned_abs().leading_zeros();
        self.put(file, 1 + run * 10 + size - 1, 8);
        self.magnitude(file, value, size);
    }

    fn magnitude(&mut self, file: &mut Vec<u8>, value: i32, size: u32) {
        let negative = i32::from(value < 0);
        self.put(file, (value - negative) as u32 & ((1 << size) - 1), size);
    }
}
