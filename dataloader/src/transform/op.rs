//! Operations on a finished view, u8 [S, S, C], in place.
//!
//! Each is torchvision's function of that name on a *PIL* image, which is what its reference recipes use, to the
//! last bit (`tests/dataloader_transforms.rs`). Its versions for tensors blend with a mean that isn't rounded, weigh
//! colours otherwise and rotate about another grid; pixels differ.

use super::geometry::{self, Origin};
use super::{Region, colour};
use crate::decode::Channels;

/// One operation, with all that was random in it decided.
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
    /// Turns the hue, by -0.5 to 0.5 of the circle. Changes nothing in a grey view.
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
            Op::Brightness(factor) => colour::map(pixels, |value| colour::blend(0, value, factor)),
            Op::Contrast(factor) => {
                let mean = colour::mean_luma(pixels, channels);
                colour::map(pixels, |value| colour::blend(mean, value, factor));
            }
            Op::Saturation(factor) => colour::saturate(pixels, channels, factor),
            Op::Hue(turn) => colour::turn_hue(pixels, channels, turn),
            Op::Sharpness(factor) => colour::sharpen(self.copy(pixels), pixels, side, channels, factor),
            Op::Posterize(bits) => colour::map(pixels, |value| value & !(0xFF_u32 >> bits) as u8),
            Op::Solarize(threshold) => {
                colour::map(pixels, |value| if f64::from(value) < threshold { value } else { 255 - value });
            }
            Op::AutoContrast => colour::map_by_histogram(pixels, channels, colour::stretching),
            Op::Equalize => colour::map_by_histogram(pixels, channels, colour::equalizing),
            Op::ShearX(share) => self.warp(pixels, side, channels, geometry::shear_x(share)),
            Op::ShearY(share) => self.warp(pixels, side, channels, geometry::shear_y(share)),
            Op::TranslateX(right) => self.warp(pixels, side, channels, geometry::translate(right, 0)),
            Op::TranslateY(down) => self.warp(pixels, side, channels, geometry::translate(0, down)),
            Op::Rotate(degrees) => self.warp(pixels, side, channels, geometry::rotate(degrees, side)),
            Op::Erase { region, colour } => match channels {
                Channels::Grey => geometry::fill(pixels, side, region, [colour::luma(colour)]),
                Channels::Rgb => geometry::fill(pixels, side, region, colour),
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
