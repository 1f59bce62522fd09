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

use super::Batch;
use crate::decode::Channels;
use crate::error::{Error, Result};
use crate::random::{self, Domain, draw_below, draw_unit};
use crate::region::Region;

/// How batches are mixed; the default is not at all. With both, a coin decides for each global batch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
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
pub struct MixTargets {
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
    pub fn apply(&self, batch: &mut Batch, image_size: u32, seed: u64, step: u64) -> Result<MixTargets> {
        let mut labels = batch.labels.clone();
        let Some(drawn) = self.draw(image_size, seed, batch.epoch, step) else {
            return Ok(MixTargets { labels, lambda: 1.0 });
        };
        let (samples, side) = (labels.len(), image_size as usize);
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
            match drawn.patch {
                None => blend(first, second, drawn.lambda as f32),
                Some(patch) => {
                    let views = first.chunks_exact_mut(view_bytes);
                    for (first, second) in views.zip(second.chunks_exact_mut(view_bytes)) {
                        exchange(first, second, side * channels, channels, patch);
                    }
                }
            }
        }
        Ok(MixTargets { labels, lambda: drawn.lambda })
    }

    /// Which way is drawn first (where there is a choice), then λ, then the rectangle.
    fn draw(&self, image_size: u32, seed: u64, epoch: u64, step: u64) -> Option<Drawn> {
        let mut rng = random::stream(Domain::Mix, seed, epoch, step, 0);
        let cutmix = match (self.mixup_alpha > 0.0, self.cutmix_alpha > 0.0) {
            (false, false) => return None,
            (true, true) => draw_below(&mut rng, 2) == 1,
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
        let middle = draw_below(rng, image_size);
        let (start, end) = (middle.saturating_sub(half), (middle + half).min(image_size));
        (start, end - start)
    };
    let ((left, width), (top, height)) = (range(), range());
    Region { left, top, width, height }
}

/// A number with distribution Beta(α, α), by Student's t with 2α degrees of freedom, which polar
/// coordinates give (Bailey 1994).
fn beta(rng: &mut impl Rng, alpha: f64) -> f64 {
    let radius = draw_unit(rng).powf(-1.0 / alpha) - 1.0; // may be infinite
    let direction = (std::f64::consts::TAU * draw_unit(rng)).cos();
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
    fn blends_by_hand() {
        let (mut first, mut second) = ([0, 100, 255, 7], [255, 200, 1, 7]);
        blend(&mut first, &mut second, 0.25);
        assert_eq!(first, [191, 175, 65, 7]); // of 191.25, 175, 64.5, 7
        assert_eq!(second, [64, 125, 192, 7]); // of 63.75, 125, 191.5, 7
    }

    #[test]
    fn patches_by_hand() {
        let (mut first, mut second) = (vec![1; 3 * 3 * 2], vec![2; 3 * 3 * 2]); // two channels, to be odd
        exchange(&mut first, &mut second, 6, 2, Region { left: 1, top: 1, width: 1, height: 2 });
        assert_eq!(first, [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 2, 2, 1, 1]);
        assert_eq!(second, [2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 2, 2, 2, 2, 1, 1, 2, 2]);
    }

    /// Of a black and a white sample one can read off how much of the white one came over.
    #[test]
    fn lambda_is_the_share_that_stayed() {
        let black_and_white = [vec![0; sample_bytes()], vec![255; sample_bytes()]].concat();
        for step in 0..200 {
            let mut batch = batch(&[5, 9], &black_and_white);
            let MixTargets { labels, lambda } = MIXUP.apply(&mut batch, SIDE, 1, step).unwrap();
            assert_eq!((labels, &batch.labels[..]), (vec![109, 105], &[105, 109][..]));
            let came = (255.0 * (1.0 - lambda)).round() as u8;
            let stayed = (255.0 * lambda).round() as u8;
            assert!(batch.images[..sample_bytes()].iter().all(|&value| value == came), "{lambda}");
            assert!(
                batch.images[sample_bytes()..].iter().all(|&value| value.abs_diff(stayed) <= 1),
                "{lambda}"
            );
        }
        for step in 0..200 {
            let mut batch = batch(&[5, 9], &black_and_white);
            let lambda = CUTMIX.apply(&mut batch, SIDE, 1, step).unwrap().lambda;
            for view in batch.images[..sample_bytes()].chunks(sample_bytes() / VIEWS) {
                let white = view.iter().filter(|&&value| value == 255).count();
                assert!(
                    (white as f64 - (1.0 - lambda) * view.len() as f64).abs() < 1e-6,
                    "{white}, {lambda}"
                );
                assert!(view.iter().all(|&value| value == 0 || value == 255));
            }
            let views: Vec<&[u8]> = batch.images.chunks(sample_bytes() / VIEWS).collect();
            assert_eq!(views[0], views[1], "views of a sample are mixed alike");
        }
    }

    #[test]
    fn partners_give_each_other_their_own_views() {
        let images = textured(4);
        let mut mixed = batch(&[0, 1, 2, 3], &images);
        let step = (0..).find(|&step| CUTMIX.draw(SIDE, 1, 4, step).unwrap().lambda < 0.7).unwrap();
        CUTMIX.apply(&mut mixed, SIDE, 1, step).unwrap();
        let (own, found) = (images.chunks(sample_bytes()), mixed.images.chunks(sample_bytes()));
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
    fn ranks_change_nothing() {
        let (samples, images) = ((0..8).collect::<Vec<u32>>(), textured(8));
        let mut changed = [0, 0]; // by mixup, by CutMix
        for step in 0..40 {
            let mut whole = batch(&samples, &images);
            let expected = BOTH.apply(&mut whole, SIDE, 3, step).unwrap();
            for local in [2, 4] {
                let mut union = (Vec::new(), Vec::new());
                for (samples, images) in samples.chunks(local).zip(images.chunks(local * sample_bytes())) {
                    let mut part = batch(samples, images);
                    let MixTargets { labels, lambda } = BOTH.apply(&mut part, SIDE, 3, step).unwrap();
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
        assert!(changed.iter().all(|&count| count > 0), "a way of mixing was never seen: {changed:?}");
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
    fn what_cannot_be_mixed_is_refused() {
        let error = MIXUP.apply(&mut batch(&[1, 2, 3], &textured(3)), SIDE, 0, 0).unwrap_err().to_string();
        assert!(error.contains("even length, not 3"), "{error}");
        for other in [SIDE + 1, SIDE / 2] {
            let error = MIXUP.apply(&mut batch(&[1, 2], &textured(2)), other, 0, 0).unwrap_err().to_string();
            assert!(error.contains(&format!("aren't of {other}x{other} pixels")), "{error}");
        }
        let mut plain = batch(&[1, 2, 3], &textured(3));
        let mixed = Mix::default().apply(&mut plain, SIDE, 0, 0).unwrap();
        assert_eq!((mixed.lambda, &mixed.labels), (1.0, &plain.labels));
        assert_eq!(plain.images, textured(3));
    }

    /// Quantiles and moments of Beta(α, α), by its closed forms.
    #[test]
    fn shares_obey_the_beta_law() {
        let count = 20_000;
        for (alpha, below_quarter) in [(0.5, 1.0 / 3.0), (1.0, 0.25), (2.0, 0.15625)] {
            let mut rng = random::stream(Domain::Mix, 0, 0, 0, 0);
            let draws: Vec<f64> = (0..count).map(|_| beta(&mut rng, alpha)).collect();
            assert!(draws.iter().all(|draw| (0.0..=1.0).contains(draw)));
            let share = |which: fn(f64) -> bool| {
                draws.iter().filter(|&&draw| which(draw)).count() as f64 / f64::from(count)
            };
            let (low, high) = (share(|draw| draw < 0.25), share(|draw| draw > 0.75));
            assert!((low - below_quarter).abs() < 0.012, "{alpha}: {low} below 1/4, not {below_quarter}");
            assert!((high - below_quarter).abs() < 0.012, "{alpha}: {high} above 3/4, not {below_quarter}");
            let variance = draws.iter().map(|draw| (draw - 0.5).powi(2)).sum::<f64>() / f64::from(count);
            let expected = 1.0 / (4.0 * (2.0 * alpha + 1.0));
            assert!((variance / expected - 1.0).abs() < 0.04, "{alpha}: variance {variance}, not {expected}");
        }
        let mut rng = random::stream(Domain::Mix, 0, 0, 0, 0);
        assert!((0..1000).all(|_| (0.0..=1.0).contains(&beta(&mut rng, 1e-6))), "not a number");
    }

    /// The numbers are from 50,000 calls of torchvision's `CutMix.make_params` with α = 1.
    #[test]
    fn cutmix_obeys_its_law() {
        let draws: Vec<Drawn> = (0..10_000).map(|step| CUTMIX.draw(32, 0, 0, step).unwrap()).collect();
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
