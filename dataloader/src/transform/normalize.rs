//! Normalised floats of a finished view.

use std::array;

use pulp::{Arch, Simd, WithSimd};

use crate::decode::Channels;

/// Values converted together; whole pixels of either kind.
const CHUNK: usize = 24;

/// f32, in the processor's order of bytes.
type FloatBytes = [u8; 4];

/// The mean and standard deviation of each channel, for values from 0 to 1; grey images take the first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalization {
    /// Means of red, green and blue.
    pub mean: [f32; 3],
    /// Standard deviations of red, green and blue.
    pub std: [f32; 3],
}

impl Normalization {
    /// ImageNet's.
    pub const IMAGENET: Normalization =
        Normalization { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
}

/// Converts views one after another. Each worker thread has its own.
#[derive(Debug)]
pub(crate) struct Normalizer {
    arch: Arch,
    channels: Channels,
    /// A value becomes value · scale + shift. The first factors belong to a pixel's channels, and they repeat.
    scale: [f32; CHUNK],
    shift: [f32; CHUNK],
}

impl Normalizer {
    pub(crate) fn new(normalization: &Normalization, channels: Channels) -> Normalizer {
        let Normalization { mean, std } = normalization;
        let count = channels.count();
        Normalizer {
            arch: Arch::new(),
            channels,
            scale: array::from_fn(|i| 1.0 / (255.0 * std[i % count])),
            shift: array::from_fn(|i| -mean[i % count] / std[i % count]),
        }
    }

    /// Fills `out`, f32 [H, W, C], with the values of `pixels`, u8 [H, W, C]. `mirrored` exchanges left and right.
    pub(crate) fn normalize(&self, pixels: &[u8], width: usize, mirrored: bool, out: &mut [u8]) {
        let row_len = width * self.channels.count();
        let out_rows = out.as_chunks_mut().0.chunks_exact_mut(row_len);
        for (row, out) in pixels.chunks_exact(row_len).zip(out_rows) {
            self.arch.dispatch(NormalizeRow { normalizer: self, row, mirrored, out });
        }
    }
}

struct NormalizeRow<'a> {
    normalizer: &'a Normalizer,
    row: &'a [u8],
    mirrored: bool,
    out: &'a mut [FloatBytes],
}

impl WithSimd for NormalizeRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        match self.normalizer.channels {
            Channels::Grey => self.convert::<1>(),
            Channels::Rgb => self.convert::<3>(),
        }
    }
}

impl NormalizeRow<'_> {
    #[inline(always)]
    fn convert<const CHANNELS: usize>(self) {
        let NormalizeRow { normalizer, row, mirrored, out } = self;
        let (out_chunks, out_rest) = out.as_chunks_mut();
        let mut rest = [0; CHUNK];
        if mirrored {
            let (first, chunks) = row.as_rchunks::<CHUNK>();
            for (chunk, out) in chunks.iter().rev().zip(out_chunks) {
                let value = |i: usize| chunk[CHUNK - CHANNELS - i / CHANNELS * CHANNELS + i % CHANNELS];
                normalizer.convert_chunk(&array::from_fn(value), out);
            }
            for (to, pixel) in rest.chunks_exact_mut(CHANNELS).zip(first.chunks_exact(CHANNELS).rev()) {
                to.copy_from_slice(pixel);
            }
        } else {
            let (chunks, last) = row.as_chunks();
            for (chunk, out) in chunks.iter().zip(out_chunks) {
                normalizer.convert_chunk(chunk, out);
            }
            rest[..last.len()].copy_from_slice(last);
        }
        let mut floats = [[0; 4]; CHUNK];
        normalizer.convert_chunk(&rest, &mut floats);
        out_rest.copy_from_slice(&floats[..out_rest.len()]);
    }
}

impl Normalizer {
    /// A loop, not `array::from_fn`: compilers make half as many instructions of it.
    #[inline(always)]
    fn convert_chunk(&self, values: &[u8; CHUNK], out: &mut [FloatBytes; CHUNK]) {
        for i in 0..CHUNK {
            out[i] = (f32::from(values[i]) * self.scale[i] + self.shift[i]).to_ne_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_scaled_by_channel_and_mirrored_by_pixel() {
        let Normalization { mean, std } = Normalization::IMAGENET;
        for (channels, width, mirrored) in [Channels::Grey, Channels::Rgb]
            .into_iter()
            .flat_map(|channels| (1..60).map(move |width| (channels, width)))
            .flat_map(|(channels, width)| [false, true].map(|mirrored| (channels, width, mirrored)))
        {
            let count = channels.count();
            let pixels: Vec<u8> = (0..3 * width * count).map(|i| (i * 89 % 256) as u8).collect();
            let mut expected = Vec::new();
            for row in pixels.chunks_exact(width * count) {
                let mut pixels: Vec<&[u8]> = row.chunks_exact(count).collect();
                if mirrored {
                    pixels.reverse();
                }
                for (i, &value) in pixels.concat().iter().enumerate() {
                    let scale = 1.0 / (255.0 * std[i % count]);
                    let shift = -mean[i % count] / std[i % count];
                    expected.extend((f32::from(value) * scale + shift).to_ne_bytes());
                }
            }
            let mut out = vec![1; expected.len()];
            Normalizer::new(&Normalization::IMAGENET, channels).normalize(&pixels, width, mirrored, &mut out);
            assert!(out == expected, "{channels:?}, {width} pixels wide, mirrored: {mirrored}");
        }
    }
}
