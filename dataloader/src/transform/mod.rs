//! Views: random crops of an image, and how a crop becomes a square of `image_size` pixels.
//!
//! A view is made in two steps. [`Transform::draw_view`] needs only the image's size. It runs before the decode, so
//! that only the cropped part is decoded. [`Renderer::render`] then crops, resizes and mirrors the decoded pixels, and
//! [`Augmenter::apply`] applies the drawn operations: colours, policies, erasing. A [`Normalization`] makes floats of it.
//!
//! Distributions and rounding are torchvision's (`RandomCrop`, `RandomResizedCrop`, `Resize`, `CenterCrop`, antialiased
//! bilinear); the random *stream* is not.

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::decode::DEFAULT_MAX_PIXELS;
use crate::error::{BadImage, Error, Result};
use crate::random::{draw_below, draw_uniform, draw_unit};
use crate::region::Region;

mod augment;
mod colour;
mod geometry;
mod normalize;
mod op;
mod render;
#[cfg(test)]
mod tests;

pub use augment::{Augment, ColorJitter, Erase, Policy};
pub use normalize::Normalization;
pub(crate) use normalize::Normalizer;
pub use op::{Augmenter, Op};
pub use render::Renderer;

/// How images become network inputs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Transform {
    /// Augmented, for training: each view is drawn at random.
    Train {
        /// The part of the image that a view shows.
        crop: Crop,
        /// Probability, 0 to 1, that a view is mirrored left to right.
        flip: f64,
        /// Further augmentation; none by default.
        #[serde(default)]
        augment: Augment,
    },
    /// For evaluation, the same in every epoch and view: the centre square of `image_size` pixels.
    Eval {
        /// Pixels the image's shorter side is resized to beforehand (256 for ImageNet at 224); must be at least
        /// `image_size`. Without it, images are cut as they are.
        #[serde(default)]
        resize: Option<u32>,
    },
}

/// Random crops for training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Crop {
    /// No random crop: the centre square of `image_size` pixels (all of an image of just that size).
    None,
    /// A square of `image_size` pixels at a random place, after a black border has been added around the image.
    Pad {
        /// Width of the border on each side, in pixels; 4 for CIFAR.
        pixels: u32,
    },
    /// A rectangle of random area, shape and place, resized to `image_size`².
    RandomResized {
        /// Smallest and largest area, as a share of the image's; `[0.08, 1.0]` for ImageNet.
        scale: (f64, f64),
        /// Smallest and largest ratio of width to height; `[0.75, 1.3333333]` for ImageNet.
        ratio: (f64, f64),
    },
}

/// One view. `region` of the image is resized to `scaled`. The square of `image_size` pixels at `corner` is cut from
/// it (black where it lies outside) and mirrored if `flip`. Then `ops` are applied in order.
#[derive(Debug, Clone, PartialEq)]
pub struct View {
    /// The only pixels of the image that the view depends on.
    pub region: Region,
    /// Width and height the region is resized to; the region's own where it isn't resized.
    pub scaled: (u32, u32),
    /// Left and top of the square, from the scaled region's top left corner; may be negative.
    pub corner: (i64, i64),
    /// Whether left and right are exchanged.
    pub flip: bool,
    /// The operations that [`Augmenter::apply`] applies to the square.
    pub ops: Vec<Op>,
}

impl Transform {
    /// Checks the settings against each other and against `image_size`.
    ///
    /// # Errors
    /// A probability, range or size out of bounds.
    pub fn check(&self, image_size: u32) -> Result<()> {
        let invalid = |what: String| Err(Error::InvalidArgument(what));
        if image_size == 0 || image_size > MAX_SIDE {
            return invalid(format!("image_size must be 1 to {MAX_SIDE} pixels, not {image_size}"));
        }
        if let Transform::Train { augment, .. } = self {
            augment.check()?;
        }
        match self {
            Transform::Eval { resize: Some(resize) } if !(image_size..=MAX_SIDE).contains(resize) => invalid(
                format!("resize must be {image_size} (image_size) to {MAX_SIDE} pixels, not {resize}"),
            ),
            Transform::Train { flip, .. } if !(0.0..=1.0).contains(flip) => {
                invalid(format!("flip is a probability, 0 to 1, not {flip}"))
            }
            Transform::Train { crop: Crop::Pad { pixels }, .. } if *pixels > MAX_SIDE => {
                invalid(format!("pad.pixels must be at most {MAX_SIDE}, not {pixels}"))
            }
            Transform::Train { crop: Crop::RandomResized { scale, ratio }, .. } => {
                let ordered = |(low, high): (f64, f64)| 0.0 < low && low <= high && high.is_finite();
                if !ordered(*scale) || scale.1 > 1.0 {
                    return invalid(format!(
                        "scale must be two shares of the image, 0 < low <= high <= 1, not {scale:?}"
                    ));
                }
                if !ordered(*ratio) {
                    return invalid(format!("ratio must be two ratios, 0 < low <= high, not {ratio:?}"));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Draws one view of an image of `width` × `height` pixels: the crop, then the flip, then the augmentation. In
    /// this order no setting of the augmentation changes crops and flips.
    ///
    /// # Errors
    /// An image too small to cut `image_size` pixels from.
    pub fn draw_view(
        &self,
        width: u32,
        height: u32,
        image_size: u32,
        rng: &mut impl Rng,
    ) -> Result<View, BadImage> {
        let whole = Region::whole(width, height);
        let (region, scaled, corner) = match self {
            Transform::Eval { resize: None } | Transform::Train { crop: Crop::None, .. } => {
                (whole, (width, height), centre_corner(width, height, image_size)?)
            }
            Transform::Eval { resize: Some(shorter) } => {
                let scaled = scale_shorter_side(width, height, *shorter)?;
                (whole, scaled, centre_corner(scaled.0, scaled.1, image_size)?)
            }
            Transform::Train { crop: Crop::Pad { pixels }, .. } => {
                let top = draw_padded_offset(height, *pixels, image_size, rng);
                let left = draw_padded_offset(width, *pixels, image_size, rng);
                let corner = left.zip(top).ok_or_else(|| too_small(width, height, image_size))?;
                (whole, (width, height), corner)
            }
            Transform::Train { crop: Crop::RandomResized { scale, ratio }, .. } => {
                (draw_resized_crop(width, height, *scale, *ratio, rng), (image_size, image_size), (0, 0))
            }
        };
        let (flip, ops) = match self {
            Transform::Train { flip, augment, .. } => {
                (draw_unit(rng) < *flip, augment.draw_ops(image_size, rng))
            }
            Transform::Eval { .. } => (false, Vec::new()),
        };
        Ok(View { region, scaled, corner, flip, ops })
    }
}

/// More than any image side in use; keeps sizes in bytes far from overflow.
const MAX_SIDE: u32 = 16_384;

/// torchvision's `center_crop`, which rounds halves to even. torchvision pads an image that is too small; here it is
/// an error.
fn centre_corner(width: u32, height: u32, image_size: u32) -> Result<(i64, i64), BadImage> {
    if width < image_size || height < image_size {
        return Err(too_small(width, height, image_size));
    }
    let middle = |side: u32| (f64::from(side - image_size) / 2.0).round_ties_even() as i64;
    Ok((middle(width), middle(height)))
}

fn too_small(width: u32, height: u32, image_size: u32) -> BadImage {
    BadImage(format!(
        "{width}x{height} pixels are too few to cut {image_size}x{image_size} from; resize, or lower image_size"
    ))
}

/// torchvision's `Resize`: the shorter side becomes `shorter`, the longer one keeps the ratio, rounded down.
fn scale_shorter_side(width: u32, height: u32, shorter: u32) -> Result<(u32, u32), BadImage> {
    let short = width.min(height);
    let long = width.max(height);
    let longer = u64::from(shorter) * u64::from(long) / u64::from(short).max(1);
    if longer * u64::from(shorter) > DEFAULT_MAX_PIXELS {
        return Err(BadImage(format!(
            "{width}x{height} pixels are too narrow to resize to {shorter}; replace the image"
        )));
    }
    let longer = longer as u32; // no larger than DEFAULT_MAX_PIXELS
    Ok(if width <= height { (shorter, longer) } else { (longer, shorter) })
}

/// Draws where, along one side, the square begins relative to the image: -pad to side + pad - image_size, each
/// equally likely. `None` where the padded side is shorter than the square.
fn draw_padded_offset(side: u32, pad: u32, image_size: u32, rng: &mut impl Rng) -> Option<i64> {
    let room = (u64::from(side) + 2 * u64::from(pad)).checked_sub(image_size.into())?;
    Some(i64::from(draw_below(rng, room as u32 + 1)) - i64::from(pad))
}

/// torchvision's `RandomResizedCrop.get_params`: ten tries at a rectangle that fits, then the largest one in
/// the centre whose ratio is allowed.
fn draw_resized_crop(
    width: u32,
    height: u32,
    scale: (f64, f64),
    ratio: (f64, f64),
    rng: &mut impl Rng,
) -> Region {
    let area = f64::from(width) * f64::from(height);
    for _ in 0..10 {
        let target = area * draw_uniform(rng, scale.0, scale.1);
        let aspect = draw_uniform(rng, ratio.0.ln(), ratio.1.ln()).exp();
        let w = (target * aspect).sqrt().round_ties_even() as u32;
        let h = (target / aspect).sqrt().round_ties_even() as u32;
        if (1..=width).contains(&w) && (1..=height).contains(&h) {
            let top = draw_below(rng, height - h + 1);
            let left = draw_below(rng, width - w + 1);
            return Region { left, top, width: w, height: h };
        }
    }
    let aspect = f64::from(width) / f64::from(height);
    let mut w = width;
    let mut h = height;
    if aspect < ratio.0 {
        h = ((f64::from(width) / ratio.0).round_ties_even() as u32).clamp(1, height);
    } else if aspect > ratio.1 {
        w = ((f64::from(height) * ratio.1).round_ties_even() as u32).clamp(1, width);
    }
    Region { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}
