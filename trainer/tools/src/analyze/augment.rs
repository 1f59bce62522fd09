//! The four augmentations of the paper's Section 4.4.1, on tensors. The random crop is the loader's, as in training; other
//! random numbers come from a stream of their own, keyed by the image's number in the set.

use codinet_dataloader::Augment;
use codinet_dataloader::random::{self, Domain};
use codinet_dataloader::transform::{Crop, Transform};
use codinet_trainer::config::Data;
use tch::{Kind, Tensor};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augmentation {
    /// The random crop of training; for a run without, a crop of the image with a border of an eighth.
    Crop,
    /// Left and right exchanged.
    Flip,
    /// Top and bottom exchanged.
    VerticalFlip,
    /// Rotated about the centre by a random angle; the corners become black.
    Rotation,
}

impl Augmentation {
    /// All, in the order of the results.
    pub const ALL: [Self; 4] = [Self::Crop, Self::Flip, Self::VerticalFlip, Self::Rotation];

    /// The name in tables and charts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Crop => "random crop",
            Self::Flip => "horizontal flip",
            Self::VerticalFlip => "vertical flip",
            Self::Rotation => "rotation",
        }
    }
}

/// The random crop without training's other augmentations.
pub fn crop(data: &Data) -> Transform {
    let crop = match &data.crop {
        Crop::None => Crop::Pad { pixels: data.eval_size() / 8 },
        crop => crop.clone(),
    };
    Transform::Train { crop, flip: 0.0, augment: Augment::default() }
}

/// Rotates each image of `[N, C, H, W]` by its angle in degrees, counter-clockwise; bilinear, computed in fp32. `black` is a
/// normalised black pixel, `[1, C, 1, 1]`.
pub fn rotate(images: &Tensor, black: &Tensor, degrees: &[f64]) -> Tensor {
    let mut rows = Vec::with_capacity(degrees.len() * 6);
    for angle in degrees {
        let (sin, cos) = angle.to_radians().sin_cos();
        rows.extend([cos, -sin, 0.0, sin, cos, 0.0].map(|value| value as f32));
    }
    let rotations = Tensor::from_slice(&rows).view([-1, 2, 3]).to_device(images.device());
    let grid = Tensor::affine_grid_generator(&rotations, images.size(), false);
    let above_black = images.to_kind(Kind::Float) - black;
    const BILINEAR: i64 = 0;
    const ZEROS: i64 = 0;
    (above_black.grid_sampler(&grid, BILINEAR, ZEROS, false) + black).to_kind(images.kind())
}

/// Draws the angle of an image's `view`-th augmentation: uniform in −`max` to `max` degrees.
pub fn draw_angle(seed: u64, sample: u32, view: u64, max: f64) -> f64 {
    let mut rng = random::stream(Domain::Analysis, seed, 0, sample.into(), view);
    random::draw_uniform(&mut rng, -max, max)
}

/// Draws whether an image's `view`-th augmentation is flipped horizontally and vertically: each with probability ½.
pub fn draw_flips(seed: u64, sample: u32, view: u64) -> (bool, bool) {
    let mut rng = random::stream(Domain::Analysis, seed, 1, sample.into(), view);
    (random::draw_unit(&mut rng) < 0.5, random::draw_unit(&mut rng) < 0.5)
}

/// Black after normalisation, `[1, C, 1, 1]`, fp32.
pub fn black(data: &Data) -> Tensor {
    let channel = |values: &[f64], c: usize| values[c % values.len()];
    let values: Vec<f32> = (0..data.channels as usize)
        .map(|c| (-channel(&data.mean, c) / channel(&data.std, c)) as f32)
        .collect();
    Tensor::from_slice(&values).view([1, -1, 1, 1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn quarter_turn_is_exact_and_corners_become_black() {
        let image = Tensor::arange(9, (Kind::Float, Device::Cpu)).view([1, 1, 3, 3]);
        let black = Tensor::from_slice(&[-2.0f32]).view([1, 1, 1, 1]);
        let turned = rotate(&image, &black, &[90.0]);
        // Counter-clockwise: the right column, read downwards, becomes the top row.
        let expected = image.rot90(1, [2, 3]);
        assert!(turned.allclose(&expected, 1e-5, 1e-5, false), "{turned:?}");
        assert!(rotate(&image, &black, &[0.0]).allclose(&image, 1e-5, 1e-5, false));
        // At 45° the corner shows what lies √2 pixels above the middle: the pixel 1 with weight 2 − √2, else black.
        let corner = rotate(&image, &black, &[45.0]).double_value(&[0, 0, 0, 0]);
        let expected = -2.0 + (2.0 - 2.0f64.sqrt()) * (1.0 + 2.0);
        assert!((corner - expected).abs() < 1e-5, "{corner}, {expected}");
    }

    #[test]
    fn draws_depend_on_the_image_only() {
        let angles: Vec<f64> = (0..1000).map(|sample| draw_angle(1, sample, 0, 15.0)).collect();
        assert!(angles.iter().all(|angle| angle.abs() <= 15.0));
        assert!((angles.iter().sum::<f64>() / 1000.0).abs() < 1.0);
        assert_eq!(draw_angle(1, 7, 0, 15.0), angles[7]);
        let both = (0..1000).filter(|&sample| draw_flips(1, sample, 0) == (true, true)).count();
        assert!((200..300).contains(&both), "{both}");
    }
}
