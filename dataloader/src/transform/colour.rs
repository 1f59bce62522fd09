//! Colour operations with Pillow's arithmetic: it decides when to round, and to which precision.

use crate::decode::{self, Channels};

pub(super) fn luma([red, green, blue]: [u8; 3]) -> u8 {
    decode::luma(red, green, blue)
}

/// Interpolates from `degenerate` (factor 0) to `value` (1) and beyond. Fractions are cut off, then clipped to a u8.
pub(super) fn blend(degenerate: u8, value: u8, factor: f32) -> u8 {
    let degenerate = f32::from(degenerate);
    let value = f32::from(value);
    (degenerate + factor * (value - degenerate)) as u8
}

/// Replaces every value by `change` of it, by a table.
pub(super) fn map_values(pixels: &mut [u8], change: impl Fn(u8) -> u8) {
    let table: [u8; 256] = std::array::from_fn(|value| change(value as u8));
    pixels.iter_mut().for_each(|value| *value = table[usize::from(*value)]);
}

/// The mean over all pixels, rounded.
pub(super) fn mean_luma(pixels: &[u8], channels: Channels) -> u8 {
    let sum: u64 = match channels {
        Channels::Grey => pixels.iter().map(|&value| u64::from(value)).sum(),
        Channels::Rgb => pixels.as_chunks().0.iter().map(|&pixel| u64::from(luma(pixel))).sum(),
    };
    let count = pixels.len() / channels.count();
    (sum as f64 / count as f64 + 0.5) as u8
}

pub(super) fn saturate(pixels: &mut [u8], channels: Channels, factor: f32) {
    if channels == Channels::Rgb {
        for pixel in pixels.as_chunks_mut().0 {
            let grey = luma(*pixel);
            *pixel = pixel.map(|value| blend(grey, value, factor));
        }
    }
}

/// Rotates the hue by `turn` of the circle. As in Pillow, 255 is once around, and sums wrap at 256.
pub(super) fn rotate_hue(pixels: &mut [u8], channels: Channels, turn: f64) {
    if channels == Channels::Grey {
        return;
    }
    let steps = (turn * 255.0) as i32 as u8; // cut to a whole number, then modulo 256
    let turned: [Hue; 256] = std::array::from_fn(|hue| Hue::new((hue as u8).wrapping_add(steps)));
    for pixel in pixels.as_chunks_mut().0 {
        let [hue, saturation, value] = rgb_to_hsv(*pixel);
        *pixel = turned[usize::from(hue)].to_rgb(saturation, value);
    }
}

fn rgb_to_hsv([red, green, blue]: [u8; 3]) -> [u8; 3] {
    let most = red.max(green).max(blue);
    let least = red.min(green).min(blue);
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let below_most = |value: u8| f32::from(most - value) / range;
    let sixths = if red == most {
        below_most(blue) - below_most(green)
    } else if green == most {
        (2.0 + f64::from(below_most(red)) - f64::from(below_most(blue))) as f32
    } else {
        (4.0 + f64::from(below_most(green)) - f64::from(below_most(red))) as f32
    };
    let turned = f64::from(sixths) / 6.0 + 1.0; // from 5/6 to below 2
    let hue = (if turned >= 1.0 { turned - 1.0 } else { turned }) as f32;
    let saturation = range / f32::from(most);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

/// A place on the circle of colours: which sixth, and how far into it, 0 to 1.
#[derive(Clone, Copy)]
struct Hue {
    sixth: u8,
    within: f32,
}

impl Hue {
    fn new(hue: u8) -> Hue {
        let sixths = f64::from(hue) * 6.0 / 255.0;
        let sixth = sixths as u8; // 6 at the end of the circle, which is 0
        Hue { sixth: sixth % 6, within: (sixths - f64::from(sixth)) as f32 }
    }

    fn to_rgb(self, saturation: u8, value: u8) -> [u8; 3] {
        let saturation = (f64::from(saturation) / 255.0) as f32;
        let scaled = |share: f64| (f64::from(value) * share + 0.5) as u8;
        let low = scaled(1.0 - f64::from(saturation));
        let falling = scaled(1.0 - f64::from(saturation * self.within));
        let rising = scaled(1.0 - f64::from(saturation) * (1.0 - f64::from(self.within)));
        match self.sixth {
            0 => [value, rising, low],
            1 => [falling, value, low],
            2 => [low, value, rising],
            3 => [low, falling, value],
            4 => [rising, low, value],
            _ => [value, low, falling],
        }
    }
}

/// Blends `before` with its mean over 3x3 pixels, the middle one weighing 5, into `out`. The border stays.
pub(super) fn sharpen(before: &[u8], out: &mut [u8], side: usize, channels: Channels, factor: f32) {
    let c = channels.count();
    let pitch = side * c;
    for y in 1..side.saturating_sub(1) {
        let rows = &before[(y - 1) * pitch..][..3 * pitch];
        let (above, rest) = rows.split_at(pitch);
        let (here, below) = rest.split_at(pitch);
        let out = &mut out[y * pitch..][..pitch];
        for i in c..pitch - c {
            let column = |i: usize| u32::from(above[i]) + u32::from(here[i]) + u32::from(below[i]);
            let sum = column(i - c) + column(i) + column(i + c) + 4 * u32::from(here[i]);
            out[i] = blend(((2 * sum + 13) / 26) as u8, here[i], factor); // sum / 13, rounded
        }
    }
}

/// Replaces the values of each channel by a table that `table` makes from that channel's histogram.
pub(super) fn map_by_histogram(pixels: &mut [u8], channels: Channels, table: fn(&[u32; 256]) -> [u8; 256]) {
    match channels {
        Channels::Grey => map_channels::<1>(pixels, table),
        Channels::Rgb => map_channels::<3>(pixels, table),
    }
}

fn map_channels<const C: usize>(pixels: &mut [u8], table: fn(&[u32; 256]) -> [u8; 256]) {
    let pixels = pixels.as_chunks_mut::<C>().0;
    let mut histograms = [[0; 256]; C];
    for pixel in pixels.iter() {
        for (histogram, &value) in histograms.iter_mut().zip(pixel) {
            histogram[usize::from(value)] += 1;
        }
    }
    let tables = histograms.map(|histogram| table(&histogram));
    for pixel in pixels {
        for (table, value) in tables.iter().zip(pixel) {
            *value = table[usize::from(*value)];
        }
    }
}

/// Maps the smallest to the largest value in the channel to 0 to 255; a flat channel stays.
pub(super) fn stretch_table(histogram: &[u32; 256]) -> [u8; 256] {
    let low = histogram.iter().position(|&count| count > 0).unwrap_or(0);
    let high = histogram.iter().rposition(|&count| count > 0).unwrap_or(0);
    if high <= low {
        return std::array::from_fn(|value| value as u8);
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    std::array::from_fn(|value| (value as f64 * scale + offset) as u8)
}

/// Maps a value to the share of pixels below it, in 255 steps; a channel with too few pixels below its largest value
/// stays.
pub(super) fn equalize_table(histogram: &[u32; 256]) -> [u8; 256] {
    let largest = histogram.iter().rfind(|&&count| count > 0).unwrap_or(&0);
    let step = (histogram.iter().sum::<u32>() - largest) / 255;
    if step == 0 {
        return std::array::from_fn(|value| value as u8);
    }
    let mut below = step / 2;
    histogram.map(|count| {
        let value = (below / step).min(255) as u8;
        below += count;
        value
    })
}
