//! Geometric operations: flips, shears, translations, rotations, filled rectangles.

use crate::decode::Channels;
use crate::region::Region;

pub(super) fn flip_vertical(pixels: &mut [u8], pitch: usize) {
    let rows = pixels.len() / pitch;
    let (top, bottom) = pixels.split_at_mut(rows / 2 * pitch);
    for (upper, lower) in top.chunks_exact_mut(pitch).zip(bottom.chunks_exact_mut(pitch).rev()) {
        upper.swap_with_slice(lower);
    }
}

pub(super) fn fill_region<const C: usize>(pixels: &mut [u8], side: usize, region: Region, colour: [u8; C]) {
    let Region { left, top, width, height } = region;
    let rows = &mut pixels.as_chunks_mut().0[top as usize * side..][..height as usize * side];
    for row in rows.chunks_exact_mut(side) {
        row[left as usize..][..width as usize].fill(colour);
    }
}

/// The origin of the pixel at (x, y): column ax + by + c, row dx + ey + f, for [a, b, c, d, e, f].
///
/// The functions below use the same trigonometry as torchvision, so that rounding is the same.
pub(super) type Origin = [f64; 6];

pub(super) fn shear_x(share: f64) -> Origin {
    [1.0, shear_angle(share).tan(), 0.0, 0.0, 1.0, 0.0]
}

pub(super) fn shear_y(share: f64) -> Origin {
    let (sine, cosine) = shear_angle(share).sin_cos();
    [1.0, 0.0, 0.0, sine / cosine, 1.0, 0.0]
}

fn shear_angle(share: f64) -> f64 {
    share.atan().to_degrees().to_radians()
}

pub(super) fn translate(right: i32, down: i32) -> Origin {
    [1.0, 0.0, -f64::from(right), 0.0, 1.0, -f64::from(down)]
}

pub(super) fn rotate(degrees: f64, side: usize) -> Origin {
    let (sine, cosine) = (-degrees.rem_euclid(360.0).to_radians()).sin_cos();
    let centre = side as f64 / 2.0;
    let offset = |a: f64, b: f64| a * -centre + b * -centre + centre; // so that the centre stays
    [cosine, sine, offset(cosine, sine), -sine, cosine, offset(-sine, cosine)]
}

/// Takes each pixel of `out` from its origin in `before`, in 16.16 fixed point as Pillow does; black where the
/// origin lies outside.
pub(super) fn warp(before: &[u8], out: &mut [u8], side: usize, channels: Channels, origin: Origin) {
    match channels {
        Channels::Grey => warp_pixels::<1>(before, out, side, origin),
        Channels::Rgb => warp_pixels::<3>(before, out, side, origin),
    }
}

fn warp_pixels<const C: usize>(before: &[u8], out: &mut [u8], side: usize, [a, b, c, d, e, f]: Origin) {
    let fixed = |number: f64| (number * 65536.0 + 0.5).floor() as i64;
    // The first pixel's middle, and the steps from column to column and from row to row.
    let mut start = (fixed(c + a * 0.5 + b * 0.5), fixed(f + d * 0.5 + e * 0.5));
    let right = (fixed(a), fixed(d));
    let down = (fixed(b), fixed(e));
    let before = before.as_chunks::<C>().0;
    for row in out.as_chunks_mut::<C>().0.chunks_exact_mut(side) {
        let (mut x, mut y) = start;
        for pixel in row {
            let column = (x >> 16) as usize; // huge where negative
            let row = (y >> 16) as usize;
            let inside = column < side && row < side;
            *pixel = if inside { before[row * side + column] } else { [0; C] };
            (x, y) = (x + right.0, y + right.1);
        }
        start = (start.0 + down.0, start.1 + down.1);
    }
}
