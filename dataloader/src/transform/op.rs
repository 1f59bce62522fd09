//! Operations on a finished view, u8 [S, S, C], in place.
//!
//! Each equals torchvision's function of that name on a *PIL* image, which its reference recipes use, to the last bit
//! (`tests/dataloader/transforms.rs`). torchvision's tensor functions round differently: values differ by up to 1
//! after contrast, sharpness and auto-contrast, 3 after saturation and 15 after hue. A rotation there takes some pixels
//! from the neighbour of their origin. `tests/golden/transforms.py` measured this on its images.

use super::colour;
use super::geometry::{self, Origin};
use crate::decode::Channels;
use crate::region::Region;

/// One operation, with its random parameters already drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// Exchanges top and bottom.
    FlipVertical,
    /// Blends with black: 0 is black, 1 changes nothing. Like all factors, at least 0.
    Brightness(f32),
    /// Blends with the mean luma, rounded.
    Contrast(f32),
    /// Blends each pixel with its own luma. Changes nothing in a grey view.
    Saturation(f32),
    /// Rotates the hue, by -0.5 to 0.5 of the circle. Changes nothing in a grey view.
    Hue(f64),
    /// Blends with a smoothed copy; 0 is that copy, above 1 sharpens. The outermost pixels stay.
    Sharpness(f32),
    /// Keeps this many high bits of each value, 1 to 8.
    Posterize(u8),
    /// Inverts values from this threshold on.
    Solarize(f64),
    /// Stretches each channel to 0 to 255.
    AutoContrast,
    /// Makes each channel's histogram as even as it goes.
    Equalize,
    /// Moves each row to the left by this share of its distance from the top.
    ShearX(f64),
    /// Moves each column up by this share of its distance from the left.
    ShearY(f64),
    /// Moves everything to the right by so many pixels.
    TranslateX(i32),
    /// Moves everything down by so many pixels.
    TranslateY(i32),
    /// Rotates about the centre, counter-clockwise, by so many degrees.
    Rotate(f64),
    /// Fills a rectangle.
    Erase {
        /// Its place in the view.
        region: Region,
        /// Red, green and blue; a grey view gets their luma.
        colour: [u8; 3],
    },
}

/// Applies operations to views one after another, reusing its buffer. Each worker thread has its own.
#[derive(Debug, Default)]
pub struct Augmenter {
    /// The view before an operation that reads a pixel's neighbours.
    before: Vec<u8>,
}

impl Augmenter {
    /// An augmenter with an empty buffer.
    pub fn new() -> Augmenter {
        Augmenter::default()
    }

    /// Applies `ops` in order to `pixels` (u8 [S, S, C], S = `image_size`).
    ///
    /// # Panics
    /// Where `pixels` is not of that size, or an [`Op::Erase`] not inside it.
    pub fn apply(&mut self, ops: &[Op], pixels: &mut [u8], image_size: u32, channels: Channels) {
        let side = image_size as usize;
        assert_eq!(pixels.len(), side * side * channels.count(), "not a view of {side}x{side} pixels");
        for op in ops {
            self.apply_one(op, pixels, side, channels);
        }
    }

    fn apply_one(&mut self, op: &Op, pixels: &mut [u8], side: usize, channels: Channels) {
        let pitch = side * channels.count();
        match *op {
            Op::FlipVertical => geometry::flip_vertical(pixels, pitch),
            Op::Brightness(factor) => colour::map_values(pixels, |value| colour::blend(0, value, factor)),
            Op::Contrast(factor) => {
                let mean = colour::mean_luma(pixels, channels);
                colour::map_values(pixels, |value| colour::blend(mean, value, factor));
            }
            Op::Saturation(factor) => colour::saturate(pixels, channels, factor),
            Op::Hue(turn) => colour::rotate_hue(pixels, channels, turn),
            Op::Sharpness(factor) => colour::sharpen(self.copy(pixels), pixels, side, channels, factor),
            Op::Posterize(bits) => colour::map_values(pixels, |value| value & !(0xFF_u32 >> bits) as u8),
            Op::Solarize(threshold) => {
                colour::map_values(
                    pixels,
                    |value| if f64::from(value) < threshold { value } else { 255 - value },
                );
            }
            Op::AutoContrast => colour::map_by_histogram(pixels, channels, colour::stretch_table),
            Op::Equalize => colour::map_by_histogram(pixels, channels, colour::equalize_table),
            Op::ShearX(share) => self.warp(pixels, side, channels, geometry::shear_x(share)),
            Op::ShearY(share) => self.warp(pixels, side, channels, geometry::shear_y(share)),
            Op::TranslateX(right) => self.warp(pixels, side, channels, geometry::translate(right, 0)),
            Op::TranslateY(down) => self.warp(pixels, side, channels, geometry::translate(0, down)),
            Op::Rotate(degrees) => self.warp(pixels, side, channels, geometry::rotate(degrees, side)),
            Op::Erase { region, colour } => match channels {
                Channels::Grey => geometry::fill_region(pixels, side, region, [colour::luma(colour)]),
                Channels::Rgb => geometry::fill_region(pixels, side, region, colour),
            },
        }
    }

    fn warp(&mut self, pixels: &mut [u8], side: usize, channels: Channels, origin: Origin) {
        geometry::warp(self.copy(pixels), pixels, side, channels, origin);
    }

    fn copy(&mut self, pixels: &[u8]) -> &[u8] {
        self.before.clear();
        self.before.extend_from_slice(pixels);
        &self.before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(op: Op, pixels: &[u8], image_size: u32, channels: Channels) -> Vec<u8> {
        let mut pixels = pixels.to_vec();
        Augmenter::new().apply(&[op], &mut pixels, image_size, channels);
        pixels
    }

    #[test]
    fn rectangles_are_filled() {
        let region = Region { left: 1, top: 0, width: 2, height: 2 };
        let op = Op::Erase { region, colour: [255, 0, 10] };
        let luma = 77; // 0.299 * 255 + 0.114 * 10 = 77.4
        let grey = apply(op, &[1, 2, 3, 4, 5, 6, 7, 8, 9], 3, Channels::Grey);
        assert_eq!(grey, [1, luma, luma, 4, luma, luma, 7, 8, 9]);
        let rgb = apply(op, &[9; 27], 3, Channels::Rgb);
        let old = [9, 9, 9];
        let new = [255, 0, 10];
        assert_eq!(rgb.as_chunks().0, [old, new, new, old, new, new, old, old, old]);
        let nothing = Op::Erase { region: Region { width: 0, ..region }, colour: [1; 3] };
        assert_eq!(apply(nothing, &[9; 27], 3, Channels::Rgb), [9; 27]);
    }

    #[test]
    fn columns_and_rows_are_not_confused() {
        let pixels = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let grey = |op| apply(op, &pixels, 3, Channels::Grey);
        assert_eq!(grey(Op::FlipVertical), [7, 8, 9, 4, 5, 6, 1, 2, 3]);
        assert_eq!(grey(Op::TranslateX(1)), [0, 1, 2, 0, 4, 5, 0, 7, 8]);
        assert_eq!(grey(Op::TranslateY(1)), [0, 0, 0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(grey(Op::Rotate(90.0)), [3, 6, 9, 2, 5, 8, 1, 4, 7]);
    }

    #[test]
    fn nothing_to_do_changes_nothing() {
        let pixels: Vec<u8> = (0..75).collect();
        let mut view = pixels.clone();
        Augmenter::new().apply(&[], &mut view, 5, Channels::Rgb);
        assert_eq!(view, pixels);
        for op in [Op::Saturation(0.2), Op::Hue(0.3)] {
            assert_eq!(apply(op, &pixels[..25], 5, Channels::Grey), pixels[..25], "{op:?} of a grey view");
        }
    }

    #[test]
    #[should_panic(expected = "not a view of 4x4 pixels")]
    fn another_size_is_refused() {
        Augmenter::new().apply(&[Op::Equalize], &mut [0; 75], 4, Channels::Rgb);
    }
}
