//! Mixup and CutMix: batches whose samples are mixtures of two.
//!
//! Slots 2k and 2k + 1 of a global batch are partners: each of the two gets a share λ of itself and 1 - λ of the
//! other, in all of its views alike. λ, and which of the two ways of mixing, are drawn once a global batch, from
//! (seed, epoch, step). As a rank serves a contiguous part of a global batch, partners are on one rank wherever that
//! part is of even length, and the union over ranks is the same batch whatever the number of ranks.
//!
//! The laws are torchvision's (`MixUp`, `CutMix`, `RandomChoice` of the two); there each sample's partner is the one
//! before it in the batch of its rank.

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::loader::Batch;
use crate::random::{self, Domain, below, unit};
use crate::transform::Region;

/// How batches are mixed; the default is not at all. With both, a coin decides for each global batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// α of mixup (arXiv 1710.09412), which blends pixels: λ ~ Beta(α, α). 0: no mixup.
    pub mixup_alpha: f64,
    /// α of CutMix (arXiv 1905.04899), which exchanges a rectangle of 1 - λ of the area. 0: no CutMix.
    pub cutmix_alpha: f64,
}

/// What became of a batch of L samples. The loss of sample l is λ CE(z_l, y_l) + (1 - λ) CE(z_l, y'_l), with y its
/// own label and y' its partner's.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// y', `[L]`.
    pub labels: Vec<i64>,
    /// λ, the same for all; 1 where nothing was mixed.
    pub lambda: f64,
}

/// Largest α: λ is 1/2 in all but name.
const MOST_ALPHA: f64 = 1000.0;

impl Mix {
    /// Checks the settings.
    ///
    /// # Errors
    /// An α that can't be meant.
    pub fn check(&self) -> Result<()> {
        for (name, alpha) in [("mixup_alpha", self.mixup_alpha), ("cutmix_alpha", self.cutmix_alpha)] {
            if !(0.0..=MOST_ALPHA).contains(&alpha) {
                return Err(Error::InvalidArgument(format!("{name} must be 0 to {MOST_ALPHA}, not {alpha}")));
            }
        }
        Ok(())
    }

    /// Mixes the pixels of `batch`, the part of global batch `step` that a rank has, in views of `image_size`² pixels.
    /// `step` counts in the epoch or in the run, alike on every rank.
    ///
    /// Mixup rounds to the nearest u8: off by 1/510 at most, in pixels of 0 to 1. CutMix is exact.
    ///
    /// # Errors
    /// A batch of an odd number of samples, or of views of another size.
    pub fn apply(&self, batch: &mut Batch, image_size: u32, seed: u64, step: u64) -> Result<Mixed> {
        let mut labels = batch.labels.clone();
        let Some(drawn) = self.draw(image_size, seed, batch.epoch, step) else {
            return Ok(Mixed { labels, lambda: 1.0 });
        };
        let (samples, side) = (labels.len(), image_size as usize);
        if !samples.is_multiple_of(2) {
            return Err(Error::InvalidArgument(format!(
                "neighbours in a batch are mixed, so each rank's part must be of even length, not {samples}"
            )));
        }
        labels.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        let rows = samples * batch.views * side;
        if rows == 0 || !batch.images.len().is_multiple_of(rows) {
            return Err(Error::InvalidArgument(format!(
                "{samples} samples of {} views in {} bytes aren't of {side}x{side} pixels",
                batch.views,
                batch.images.len()
            )));
        }
        let pitch = batch.images.len() / rows;
        let sample_bytes = batch.views * side * pitch;
        for pair in batch.images.chunks_exact_mut(2 * sample_bytes) {
            let (first, second) = pair.split_at_mut(sample_bytes);
            match drawn.patch {
                None => blend(first, second, drawn.lambda as f32),
                Some(patch) => {
                    let views = first.chunks_exact_mut(side * pitch);
                    for (first, second) in views.zip(second.chunks_exact_mut(side * pitch)) {
                        exchange(first, second, pitch, pitch / side, patch);
                    }
                }
            }
        }
        Ok(Mixed { labels, lambda: drawn.lambda })
    }

    /// Which way is drawn first (where there is a choice), then λ, then the rectangle.
    fn draw(&self, image_size: u32, seed: u64, epoch: u64, step: u64) -> Option<Drawn> {
        let mut rng = random::stream(Domain::Mix, seed, epoch, step, 0);
        let cutmix = match (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0) {
            (false, false) => return None,
            (true, true) => below(&mut rng, 2) == 1,
            (_, cutmix) => cutmix,
        };
        Some(if cutmix {
            let patch = patch(image_size, beta(&mut rng, self.cutmix_alpha), &mut rng);
            let share = |length: u32| f64::from(length) / f64::from(image_size);
            Drawn { lambda: 1.0 - share(patch.width) * share(patch.height), patch: Some(patch) }
        } else {
            Drawn { lambda: beta(&mut rng, self.mixup_alpha), patch: None }
        })
    }
}

/// What happens to a global batch: a blend of pixels, or an exchange of `patch`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Drawn {
    lambda: f64,
    patch: Option<Region>,
}

/// torchvision's `CutMix.make_params`: a square of 1 - λ of the area about a random pixel, less what of it lies
/// outside. (Which leaves another λ.)
fn patch(image_size: u32, lambda: f64, rng: &mut impl Rng) -> Region {
    let half = (0.5 * (1.0 - lambda).sqrt() * f64::from(image_size)) as u32;
    let mut range = || {
        let middle = below(rng, image_size);
        let (start, end) = (middle.saturating_sub(half), (middle + half).min(image_size));
        (start, end - start)
    };
    let ((left, width), (top, height)) = (range(), range());
    Region { left, top, width, height }
}

/// A number with distribution Beta(α, α), by Student's t with 2α degrees of freedom in Bailey's polar form
/// (Devroye 1986, IX.5).
fn beta(rng: &mut impl Rng, alpha: f64) -> f64 {
    let radius = unit(rng).powf(-1.0 / alpha) - 1.0; // may be infinite
    let direction = (std::f64::consts::TAU * unit(rng)).cos();
    let distance = (1.0 / (1.0 + 1.0 / (radius * direction * direction))).sqrt();
    0.5 + 0.5 * distance.copysign(direction)
}

/// Each becomes λ of itself and 1 - λ of the other.
fn blend(first: &mut [u8], second: &mut [u8], lambda: f32) {
    for (a, b) in first.iter_mut().zip(second) {
        let (x, y) = (f32::from(*a), f32::from(*b));
        *a = (lambda * x + (1.0 - lambda) * y + 0.5) as u8;
        *b = (lambda * y + (1.0 - lambda) * x + 0.5) as u8;
    }
}

/// Exchanges `patch` between two views, of `pitch` bytes a row and `channels` a pixel.
fn exchange(first: &mut [u8], second: &mut [u8], pitch: usize, channels: usize, patch: Region) {
    let columns = patch.left as usize * channels..(patch.left + patch.width) as usize * channels;
    let rows = first.chunks_exact_mut(pitch).zip(second.chunks_exact_mut(pitch));
    for (first, second) in rows.skip(patch.top as usize).take(patch.height as usize) {
        first[columns.clone()].swap_with_slice(&mut second[columns.clone()]);
    }
}
