//! Mixup and CutMix: batches whose samples are mixtures of two.
//!
//! Slots 2k and 2k + 1 of a global batch are partners. Each becomes λ of itself and 1 - λ of its partner, equally in
//! all views. λ, and the choice between the two methods, are drawn once for each global batch, from (seed, epoch,
//! step). A rank loads a contiguous part of a global batch, so partners are on one rank wherever that part has even
//! length. The union over ranks is the same batch for any number of ranks.
//!
//! The distributions are torchvision's (`MixUp`, `CutMix`, `RandomChoice` of the two). There a sample's partner is the
//! one before it in its rank's batch.

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use super::Batch;
use crate::decode::Channels;
use crate::error::{Error, Result};
use crate::random::{self, Domain, draw_below, draw_unit};
use crate::region::Region;

/// How batches are mixed; off by default. With both methods on, each global batch draws one of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Mix {
    /// α of mixup (arXiv 1710.09412), which blends pixels: λ ~ Beta(α, α). 0: no mixup.
    pub mixup_alpha: f64,
    /// α of CutMix (arXiv 1905.04899), which swaps a rectangle of 1 - λ of the area. 0: no CutMix.
    pub cutmix_alpha: f64,
}

/// The targets of a mixed batch of L samples. The loss of sample l is λ CE(z_l, y_l) + (1 - λ) CE(z_l, y'_l), with y
/// its own label and y' its partner's.
#[derive(Debug, Clone, PartialEq)]
pub struct MixTargets {
    /// y', `[L]`.
    pub labels: Vec<i64>,
    /// λ, the same for all samples; 1 where nothing was mixed.
    pub lambda: f64,
}

/// Largest α; λ is then 1/2 in practice.
const MAX_ALPHA: f64 = 1000.0;

impl Mix {
    /// Checks the settings.
    ///
    /// # Errors
    /// An α out of bounds.
    pub fn check(&self) -> Result<()> {
        for (name, alpha) in [("mixup_alpha", self.mixup_alpha), ("cutmix_alpha", self.cutmix_alpha)] {
            if !(0.0..=MAX_ALPHA).contains(&alpha) {
                return Err(Error::InvalidArgument(format!("{name} must be 0 to {MAX_ALPHA}, not {alpha}")));
            }
        }
        Ok(())
    }

    /// Mixes the pixels of `batch`, a rank's part of global batch `step`. `step` counts in the epoch or in the run, equally on
    /// every rank.
    ///
    /// Mixup rounds to the nearest u8: off by 1/510 at most, in pixels of 0 to 1. CutMix is exact.
    ///
    /// # Errors
    /// A batch of an odd number of samples, or of other bytes than its views have.
    pub fn apply(&self, batch: &mut Batch, seed: u64, step: u64) -> Result<MixTargets> {
        let mut labels = batch.labels.clone();
        let Some(draw) = self.draw(batch.image_size, seed, batch.epoch, step) else {
            return Ok(MixTargets { labels, lambda: 1.0 });
        };
        let samples = labels.len();
        let side = batch.image_size as usize;
        if !samples.is_multiple_of(2) {
            return Err(Error::InvalidArgument(format!(
                "neighbours in a batch are mixed, so each rank's part must be of even length, not {samples}"
            )));
        }
        let view_pixels = samples * batch.views * side * side;
        let channels = batch.images.len() / view_pixels.max(1);
        if Channels::new(channels).is_err() || batch.images.len() != view_pixels * channels {
            return Err(Error::InvalidArgument(format!(
                "{samples} samples of {} views in {} bytes aren't of {side}x{side} pixels",
                batch.views,
                batch.images.len()
            )));
        }
        labels.chunks_exact_mut(2).for_each(|pair| pair.swap(0, 1));
        let view_bytes = side * side * channels;
        let sample_bytes = batch.views * view_bytes;
        for pair in batch.images.chunks_exact_mut(2 * sample_bytes) {
            let (first, second) = pair.split_at_mut(sample_bytes);
            match draw.patch {
                None => blend(first, second, draw.lambda as f32),
                Some(patch) => {
                    let views = first.chunks_exact_mut(view_bytes);
                    for (first, second) in views.zip(second.chunks_exact_mut(view_bytes)) {
                        swap_patch(first, second, side * channels, channels, patch);
                    }
                }
            }
        }
        Ok(MixTargets { labels, lambda: draw.lambda })
    }

    /// Draws the method (where both are on), then λ, then the rectangle.
    fn draw(&self, image_size: u32, seed: u64, epoch: u64, step: u64) -> Option<MixDraw> {
        let mut rng = random::stream(Domain::Mix, seed, epoch, step, 0);
        let cutmix = match (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0) {
            (false, false) => return None,
            (true, true) => draw_below(&mut rng, 2) == 1,
            (_, cutmix) => cutmix,
        };
        Some(if cutmix {
            let lambda = draw_beta(&mut rng, self.cutmix_alpha);
            let patch = draw_patch(image_size, lambda, &mut rng);
            let share = |length: u32| f64::from(length) / f64::from(image_size);
            MixDraw { lambda: 1.0 - share(patch.width) * share(patch.height), patch: Some(patch) }
        } else {
            MixDraw { lambda: draw_beta(&mut rng, self.mixup_alpha), patch: None }
        })
    }
}

/// How a global batch is mixed: by blending pixels, or by swapping `patch`.
#[derive(Debug, Clone, Copy, PartialEq)]
struct MixDraw {
    lambda: f64,
    patch: Option<Region>,
}

/// torchvision's `CutMix.make_params`: a square of 1 - λ of the area around a random pixel, clipped to the image. The
/// clipping changes λ.
fn draw_patch(image_size: u32, lambda: f64, rng: &mut impl Rng) -> Region {
    let half = (0.5 * (1.0 - lambda).sqrt() * f64::from(image_size)) as u32;
    let mut range = || {
        let middle = draw_below(rng, image_size);
        let start = middle.saturating_sub(half);
        let end = (middle + half).min(image_size);
        (start, end - start)
    };
    let (left, width) = range();
    let (top, height) = range();
    Region { left, top, width, height }
}

/// Draws from Beta(α, α), by Student's t with 2α degrees of freedom from polar coordinates (Bailey 1994).
///
/// `rand_distr` isn't used: its algorithm draws other numbers, so the mixtures of a seed would change.
fn draw_beta(rng: &mut impl Rng, alpha: f64) -> f64 {
    let radius = draw_unit(rng).powf(-1.0 / alpha) - 1.0; // may be infinite
    let direction = (std::f64::consts::TAU * draw_unit(rng)).cos();
    let distance = (1.0 / (1.0 + 1.0 / (radius * direction * direction))).sqrt();
    0.5 + 0.5 * distance.copysign(direction)
}

/// Replaces each value by λ of itself and 1 - λ of the other.
fn blend(first: &mut [u8], second: &mut [u8], lambda: f32) {
    for (a, b) in first.iter_mut().zip(second) {
        let x = f32::from(*a);
        let y = f32::from(*b);
        *a = (lambda * x + (1.0 - lambda) * y + 0.5) as u8;
        *b = (lambda * y + (1.0 - lambda) * x + 0.5) as u8;
    }
}

/// Swaps `patch` between two views of `pitch` bytes a row and `channels` a pixel.
fn swap_patch(first: &mut [u8], second: &mut [u8], pitch: usize, channels: usize, patch: Region) {
    let columns = patch.left as usize * channels..(patch.left + patch.width) as usize * channels;
    let rows = first.chunks_exact_mut(pitch).zip(second.chunks_exact_mut(pitch));
    for (first, second) in rows.skip(patch.top as usize).take(patch.height as usize) {
        first[columns.clone()].swap_with_slice(&mut second[columns.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXUP: Mix = Mix { mixup_alpha: 0.2, cutmix_alpha: 0.0 };
    const CUTMIX: Mix = Mix { mixup_alpha: 0.0, cutmix_alpha: 1.0 };
    const BOTH: Mix = Mix { mixup_alpha: 0.2, cutmix_alpha: 1.0 };

    const SIDE: u32 = 6;
    const VIEWS: usize = 2;
    const CHANNELS: usize = 3;

    fn batch(samples: &[u32], images: &[u8]) -> Batch {
        let labels = samples.iter().map(|&sample| i64::from(sample) + 100).collect();
        Batch {
            epoch: 4,
            samples: samples.to_vec(),
            labels,
            bad: vec![],
            views: VIEWS,
            image_size: SIDE,
            images: images.into(),
        }
    }

    fn sample_bytes() -> usize {
        VIEWS * (SIDE * SIDE) as usize * CHANNELS
    }

    /// Every value differs from that of the sample before, at the same place.
    fn textured(samples: usize) -> Vec<u8> {
        (0..samples * sample_bytes()).map(|i| (i * 7 + i / sample_bytes() * 31) as u8).collect()
    }

    #[test]
    fn settings_read_as_documented() {
        let parse = |text: &str| serde_json::from_str::<Mix>(text);
        assert_eq!(parse(r#"{"mixup_alpha": 0.2, "cutmix_alpha": 1}"#).unwrap(), BOTH);
        assert_eq!(parse("{}").unwrap(), Mix { mixup_alpha: 0.0, cutmix_alpha: 0.0 });
        assert!(parse(r#"{"alpha": 1}"#).unwrap_err().to_string().contains("unknown field"));
        assert!(BOTH.check().is_ok());
        for bad in [-0.1, f64::NAN, f64::INFINITY] {
            let error = Mix { cutmix_alpha: bad, ..MIXUP }.check().unwrap_err().to_string();
            assert!(error.starts_with("cutmix_alpha must be 0 to 1000"), "{error}");
        }
    }

    #[test]
    fn blended_pixels_are_rounded() {
        let mut first = [0, 100, 255, 7];
        let mut second = [255, 200, 1, 7];
        blend(&mut first, &mut second, 0.25);
        assert_eq!(first, [191, 175, 65, 7]); // of 191.25, 175, 64.5, 7
        assert_eq!(second, [64, 125, 192, 7]); // of 63.75, 125, 191.5, 7
    }

    #[test]
    fn patches_are_swapped() {
        let mut first = vec![1; 3 * 3 * 2]; // two channels, a number that images don't have
        let mut second = vec![2; 3 * 3 * 2];
        swap_patch(&mut first, &mut second, 6, 2, Region { left: 1, top: 1, width: 1, height: 2 });
        assert_eq!(first, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2, 1, 1]);
        assert_eq!(second, [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2]);
    }

    /// A black and a white sample show how much of the white one was mixed in.
    #[test]
    fn lambda_is_the_share_of_the_own_sample() {
        let black_and_white = [vec![0; sample_bytes()], vec![255; sample_bytes()]].concat();
        for step in 0..200 {
            let mut batch = batch(&[5, 9], &black_and_white);
            let MixTargets { labels, lambda } = MIXUP.apply(&mut batch, 1, step).unwrap();
            assert_eq!((labels, &batch.labels[..]), (vec![109, 105], &[105, 109][..]));
            let mixed_in = (255.0 * (1.0 - lambda)).round() as u8;
            let kept = (255.0 * lambda).round() as u8;
            assert!(batch.images[..sample_bytes()].iter().all(|&value| value == mixed_in), "{lambda}");
            assert!(
                batch.images[sample_bytes()..].iter().all(|&value| value.abs_diff(kept) <= 1),
                "{lambda}"
            );
        }
        for step in 0..200 {
            let mut batch = batch(&[5, 9], &black_and_white);
            let lambda = CUTMIX.apply(&mut batch, 1, step).unwrap().lambda;
            for view in batch.images[..sample_bytes()].chunks(sample_bytes() / VIEWS) {
                let white = view.iter().filter(|&&value| value == 255).count();
                assert!(
                    (white as f64 - (1.0 - lambda) * view.len() as f64).abs() < 1e-6,
                    "{white}, {lambda}"
                );
                assert!(view.iter().all(|&value| value == 0 || value == 255));
            }
            let views: Vec<&[u8]> = batch.images.chunks(sample_bytes() / VIEWS).collect();
            assert_eq!(views[0], views[1], "views of a sample are mixed equally");
        }
    }

    #[test]
    fn partners_swap_the_same_views() {
        let images = textured(4);
        let mut mixed = batch(&[0, 1, 2, 3], &images);
        let step = (0..).find(|&step| CUTMIX.draw(SIDE, 1, 4, step).unwrap().lambda < 0.7).unwrap();
        CUTMIX.apply(&mut mixed, 1, step).unwrap();
        let own = images.chunks(sample_bytes());
        let found = mixed.images.chunks(sample_bytes());
        let mut exchanged = 0;
        for (sample, found) in found.enumerate() {
            let partner = &images[(sample ^ 1) * sample_bytes()..][..sample_bytes()];
            for ((&found, &own), &partner) in found.iter().zip(own.clone().nth(sample).unwrap()).zip(partner)
            {
                assert!(found == own || found == partner); // at the same place of the same view
                exchanged += usize::from(found == partner);
            }
        }
        assert!(exchanged > 0);
    }

    #[test]
    fn mixed_batch_does_not_depend_on_ranks() {
        let samples: Vec<u32> = (0..8).collect();
        let images = textured(8);
        let mut changed = [0, 0]; // by mixup, by CutMix
        for step in 0..40 {
            let mut whole = batch(&samples, &images);
            let expected = BOTH.apply(&mut whole, 3, step).unwrap();
            for local in [2, 4] {
                let mut union = (Vec::new(), Vec::new());
                for (samples, images) in samples.chunks(local).zip(images.chunks(local * sample_bytes())) {
                    let mut part = batch(samples, images);
                    let MixTargets { labels, lambda } = BOTH.apply(&mut part, 3, step).unwrap();
                    assert_eq!(lambda, expected.lambda);
                    union.0.extend(part.images);
                    union.1.extend(labels);
                }
                assert!(union.0 == whole.images, "pixels of step {step}, {local} samples per rank");
                assert_eq!(union.1, expected.labels);
            }
            let patch = BOTH.draw(SIDE, 3, 4, step).unwrap().patch;
            changed[usize::from(patch.is_some())] += u32::from(whole.images != images);
        }
        assert!(changed.iter().all(|&count| count > 0), "a method was never drawn: {changed:?}");
    }

    #[test]
    fn draws_depend_on_seed_epoch_and_step() {
        let draw = |seed, epoch, step| BOTH.draw(64, seed, epoch, step).unwrap();
        assert_eq!(draw(1, 2, 3), draw(1, 2, 3));
        for other in [draw(0, 2, 3), draw(1, 0, 3), draw(1, 2, 0)] {
            assert_ne!(draw(1, 2, 3), other);
        }
    }

    #[test]
    fn odd_batches_and_other_sizes_are_refused() {
        let error = MIXUP.apply(&mut batch(&[1, 2, 3], &textured(3)), 0, 0).unwrap_err().to_string();
        assert!(error.contains("even length, not 3"), "{error}");
        for other in [SIDE + 1, SIDE / 2] {
            let mut batch = Batch { image_size: other, ..batch(&[1, 2], &textured(2)) };
            let error = MIXUP.apply(&mut batch, 0, 0).unwrap_err().to_string();
            assert!(error.contains(&format!("aren't of {other}x{other} pixels")), "{error}");
        }
        let mut plain = batch(&[1, 2, 3], &textured(3));
        let mixed = Mix::default().apply(&mut plain, 0, 0).unwrap();
        assert_eq!((mixed.lambda, &mixed.labels), (1.0, &plain.labels));
        assert_eq!(plain.images, textured(3));
    }

    /// Quantiles and moments of Beta(α, α), by its closed forms.
    #[test]
    fn lambda_follows_the_beta_distribution() {
        let count = 20_000;
        for (alpha, below_quarter) in [(0.5, 1.0 / 3.0), (1.0, 0.25), (2.0, 0.15625)] {
            let mut rng = random::stream(Domain::Mix, 0, 0, 0, 0);
            let draws: Vec<f64> = (0..count).map(|_| draw_beta(&mut rng, alpha)).collect();
            assert!(draws.iter().all(|draw| (0.0..=1.0).contains(draw)));
            let share = |which: fn(f64) -> bool| {
                draws.iter().filter(|&&draw| which(draw)).count() as f64 / f64::from(count)
            };
            let low = share(|draw| draw < 0.25);
            let high = share(|draw| draw > 0.75);
            assert!((low - below_quarter).abs() < 0.012, "{alpha}: {low} below 1/4, not {below_quarter}");
            assert!((high - below_quarter).abs() < 0.012, "{alpha}: {high} above 3/4, not {below_quarter}");
            let variance = draws.iter().map(|draw| (draw - 0.5).powi(2)).sum::<f64>() / f64::from(count);
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((variance / expected - 1.0).abs() < 0.04, "{alpha}: variance {variance}, not {expected}");
        }
        let mut rng = random::stream(Domain::Mix, 0, 0, 0, 0);
        assert!((0..1000).all(|_| (0.0..=1.0).contains(&draw_beta(&mut rng, 1e-6))), "not a number");
    }

    /// The numbers are from 50,000 calls of torchvision's `CutMix.make_params` with α = 1.
    #[test]
    fn cutmix_follows_its_distribution() {
        let draws: Vec<MixDraw> = (0..10_000).map(|step| CUTMIX.draw(32, 0, 0, step).unwrap()).collect();
        let mean = draws.iter().map(|draw| draw.lambda).sum::<f64>() / 10_000.0;
        assert!((0.695..0.707).contains(&mean), "mean λ {mean}, 0.7009 expected");
        let small = draws.iter().filter(|draw| draw.lambda < 0.5).count();
        assert!((1350..1570).contains(&small), "{small} λ below 0.5, 1458 expected");
        for Region { left, top, width, height } in draws.iter().filter_map(|draw| draw.patch) {
            assert!(left + width <= 32 && top + height <= 32);
        }

        let both = (0..4000).filter(|&step| BOTH.draw(32, 0, 0, step).unwrap().patch.is_some()).count();
        assert!((1880..2120).contains(&both), "{both} of 4000 are CutMix");
    }
}
