//! Augmentation of a training view after its crop: the settings, and the random draws.
//!
//! Each setting is named after torchvision's transform and has its distribution. [`Augment::draw_ops`] turns them into
//! a list of [`Op`]s without randomness, in the order of torchvision's reference recipes: vertical flip, colour
//! jitter, policy, erasing. A setting that is off draws nothing.

use rand_chacha::rand_core::Rng;
use serde::{Deserialize, Serialize};

use super::Op;
use crate::error::{Error, Result};
use crate::random::{draw_below, draw_uniform, draw_unit, shuffle};
use crate::region::Region;

/// Changes to a view's pixels; the default is none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Probability, 0 to 1, that a view is mirrored top to bottom.
    pub vertical_flip: f64,
    /// Random brightness, contrast, saturation and hue.
    pub color_jitter: Option<ColorJitter>,
    /// Operations drawn at random from a fixed set.
    pub policy: Option<Policy>,
    /// A rectangle of one colour at a random place.
    pub erase: Option<Erase>,
}

/// torchvision's `ColorJitter`: four adjustments in random order, each by a random factor. On grey views saturation
/// and hue change nothing. Without one, or with 0, that adjustment is left out.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ColorJitter {
    /// b: brightness is multiplied by max(0, 1 - b) to 1 + b.
    pub brightness: f64,
    /// c: contrast, likewise.
    pub contrast: f64,
    /// s: saturation, likewise.
    pub saturation: f64,
    /// h, at most 0.5: hue is turned by -h to h of the circle.
    pub hue: f64,
}

/// Which operations, how many and how strong. Uncovered pixels become black; moved pixels are taken from the nearest
/// origin, as by torchvision's default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Policy {
    /// torchvision's `RandAugment` (arXiv 1909.13719): operations one after another, all of one strength.
    RandAugment {
        /// Number of operations.
        #[serde(default = "default_num_ops")]
        num_ops: u32,
        /// Strength, from 0 to below `num_magnitude_bins`.
        #[serde(default = "default_magnitude")]
        magnitude: u32,
        /// Number of strengths, from none to full.
        #[serde(default = "default_magnitude_bins")]
        num_magnitude_bins: u32,
    },
    /// torchvision's `TrivialAugmentWide` (arXiv 2103.10158): one operation of random strength.
    TrivialAugmentWide {
        /// Number of strengths, from none to full.
        #[serde(default = "default_magnitude_bins")]
        num_magnitude_bins: u32,
    },
}

/// torchvision's `RandomErasing` (arXiv 1708.04896): ten tries at a rectangle smaller than the view, or nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Erase {
    /// Probability, 0 to 1, that a view loses a rectangle.
    pub probability: f64,
    /// Smallest and largest area, as a share of the view's.
    #[serde(default = "default_erase_scale")]
    pub scale: (f64, f64),
    /// Smallest and largest ratio of height to width.
    #[serde(default = "default_erase_ratio")]
    pub ratio: (f64, f64),
    /// The rectangle's colour: red, green and blue, 0 to 1. A grey view gets its luma (ITU-R 601).
    ///
    /// torchvision erases after normalisation, by default to 0: here, the mean that pixels are normalised by. As
    /// views are u8, `round(255 * value)` is written, off by at most 1/510; once normalised, by 1/510 over the
    /// standard deviation: 0.009 for ImageNet's.
    pub value: [f64; 3],
}

fn default_num_ops() -> u32 {
    2
}

fn default_magnitude() -> u32 {
    9
}

fn default_magnitude_bins() -> u32 {
    31
}

fn default_erase_scale() -> (f64, f64) {
    (0.02, 0.33)
}

fn default_erase_ratio() -> (f64, f64) {
    (0.3, 3.3)
}

/// More operations than anyone applies to one image.
const MAX_OPS: u32 = 100;

impl Augment {
    /// No changes: the default, as a constant.
    pub const NONE: Augment = Augment { vertical_flip: 0.0, color_jitter: None, policy: None, erase: None };

    /// Checks each setting.
    ///
    /// # Errors
    /// A probability, range or count out of bounds.
    pub fn check(&self) -> Result<()> {
        check_probability("vertical_flip", self.vertical_flip)?;
        if let Some(ColorJitter { brightness, contrast, saturation, hue }) = self.color_jitter {
            for (name, value) in
                [("brightness", brightness), ("contrast", contrast), ("saturation", saturation)]
            {
                require(value >= 0.0 && value.is_finite(), || {
                    format!("color_jitter.{name} must be 0 or more, not {value}")
                })?;
            }
            require((0.0..=0.5).contains(&hue), || format!("color_jitter.hue must be 0 to 0.5, not {hue}"))?;
        }
        match self.policy {
            None => {}
            Some(Policy::RandAugment { num_ops, magnitude, num_magnitude_bins: bins }) => {
                require(num_ops <= MAX_OPS, || {
                    format!("rand_augment.num_ops must be at most {MAX_OPS}, not {num_ops}")
                })?;
                check_bins("rand_augment", bins)?;
                require(magnitude < bins, || {
                    format!(
                        "rand_augment.magnitude must be below num_magnitude_bins ({bins}), not {magnitude}"
                    )
                })?;
            }
            Some(Policy::TrivialAugmentWide { num_magnitude_bins }) => {
                check_bins("trivial_augment_wide", num_magnitude_bins)?;
            }
        }
        if let Some(Erase { probability: p, scale, ratio, value }) = &self.erase {
            check_probability("erase.probability", *p)?;
            require(0.0 <= scale.0 && scale.0 <= scale.1 && scale.1 <= 1.0, || {
                format!("erase.scale must be two shares of the view, 0 <= low <= high <= 1, not {scale:?}")
            })?;
            require(0.0 < ratio.0 && ratio.0 <= ratio.1 && ratio.1.is_finite(), || {
                format!("erase.ratio must be two ratios, 0 < low <= high, not {ratio:?}")
            })?;
            require(value.iter().all(|value| (0.0..=1.0).contains(value)), || {
                format!("erase.value must be three numbers from 0 to 1, not {value:?}")
            })?;
        }
        Ok(())
    }

    /// Draws the operations on one view of `image_size`² pixels.
    pub(super) fn draw_ops(&self, image_size: u32, rng: &mut impl Rng) -> Vec<Op> {
        let mut ops = Vec::new(); // allocates nothing while it is empty
        if self.vertical_flip > 0.0 && draw_unit(rng) < self.vertical_flip {
            ops.push(Op::FlipVertical);
        }
        if let Some(jitter) = &self.color_jitter {
            jitter.draw_ops(rng, &mut ops);
        }
        if let Some(policy) = &self.policy {
            policy.draw_ops(image_size, rng, &mut ops);
        }
        if let Some(erase) = &self.erase {
            ops.extend(erase.draw_op(image_size, rng));
        }
        ops
    }
}

impl ColorJitter {
    /// Draws the order first, then the factors.
    fn draw_ops(&self, rng: &mut impl Rng, ops: &mut Vec<Op>) {
        let mut order = [0, 1, 2, 3];
        shuffle(rng, &mut order);
        let mut factor = |strength: f64| {
            (strength > 0.0).then(|| draw_uniform(rng, (1.0 - strength).max(0.0), 1.0 + strength) as f32)
        };
        let brightness = factor(self.brightness).map(Op::Brightness);
        let contrast = factor(self.contrast).map(Op::Contrast);
        let saturation = factor(self.saturation).map(Op::Saturation);
        let hue = (self.hue > 0.0).then(|| Op::Hue(draw_uniform(rng, -self.hue, self.hue)));
        let adjustments = [brightness, contrast, saturation, hue];
        ops.extend(order.into_iter().filter_map(|index| adjustments[index]));
    }
}

impl Policy {
    /// Draws each operation's kind first, then its strength where that is random, then its sign.
    fn draw_ops(&self, image_size: u32, rng: &mut impl Rng, ops: &mut Vec<Op>) {
        match *self {
            Policy::RandAugment { num_ops, magnitude, num_magnitude_bins } => {
                let full = Strengths {
                    shear: 0.3,
                    translate: 150.0 / 331.0 * f64::from(image_size),
                    rotate: 30.0,
                    adjust: 0.9,
                    posterize: 4.0,
                };
                for _ in 0..num_ops {
                    let kind = draw_below(rng, KINDS);
                    ops.extend(full.op(kind, magnitude, num_magnitude_bins, rng));
                }
            }
            Policy::TrivialAugmentWide { num_magnitude_bins } => {
                let full =
                    Strengths { shear: 0.99, translate: 32.0, rotate: 135.0, adjust: 0.99, posterize: 6.0 };
                let kind = draw_below(rng, KINDS);
                let magnitude = draw_below(rng, num_magnitude_bins);
                ops.extend(full.op(kind, magnitude, num_magnitude_bins, rng));
            }
        }
    }
}

/// Operations a policy chooses from, each equally likely.
const KINDS: u32 = 14;

/// A policy's operations at full strength.
struct Strengths {
    /// Columns a row, or rows a column.
    shear: f64,
    /// Pixels.
    translate: f64,
    /// Degrees.
    rotate: f64,
    /// Brightness, colour, contrast and sharpness: how far the factor is from 1.
    adjust: f64,
    /// Bits taken away.
    posterize: f64,
}

impl Strengths {
    /// Operation `kind` at step `magnitude` of `bins` evenly spaced ones; `None` is the identity.
    ///
    /// torch spaces them in single precision, with a rounding that depends on the processor; a whole number of
    /// pixels may come out as the next smaller one there.
    fn op(&self, kind: u32, magnitude: u32, bins: u32, rng: &mut impl Rng) -> Option<Op> {
        let share = f64::from(magnitude) / f64::from(bins - 1);
        let sign = if draw_below(rng, 2) == 1 { -1.0 } else { 1.0 };
        let factor = (1.0 + sign * self.adjust * share) as f32;
        Some(match kind {
            0 => return None,
            1 => Op::ShearX(sign * self.shear * share),
            2 => Op::ShearY(sign * self.shear * share),
            3 => Op::TranslateX((sign * self.translate * share) as i32),
            4 => Op::TranslateY((sign * self.translate * share) as i32),
            5 => Op::Rotate(sign * self.rotate * share),
            6 => Op::Brightness(factor),
            7 => Op::Saturation(factor),
            8 => Op::Contrast(factor),
            9 => Op::Sharpness(factor),
            10 => Op::Posterize(8 - (self.posterize * share).round_ties_even() as u8),
            11 => Op::Solarize(255.0 * (1.0 - share)),
            12 => Op::AutoContrast,
            _ => Op::Equalize,
        })
    }
}

impl Erase {
    /// torchvision's `RandomErasing.get_params`.
    fn draw_op(&self, image_size: u32, rng: &mut impl Rng) -> Option<Op> {
        if draw_unit(rng) >= self.probability {
            return None;
        }
        let area = f64::from(image_size) * f64::from(image_size);
        for _ in 0..10 {
            let target = area * draw_uniform(rng, self.scale.0, self.scale.1);
            let aspect = draw_uniform(rng, self.ratio.0.ln(), self.ratio.1.ln()).exp();
            let height = (target * aspect).sqrt().round_ties_even() as u32;
            let width = (target / aspect).sqrt().round_ties_even() as u32;
            if height < image_size && width < image_size {
                let top = draw_below(rng, image_size - height + 1);
                let left = draw_below(rng, image_size - width + 1);
                let region = Region { left, top, width, height };
                return Some(Op::Erase {
                    region,
                    colour: self.value.map(|value| (255.0 * value).round() as u8),
                });
            }
        }
        None
    }
}

fn require(met: bool, what: impl FnOnce() -> String) -> Result<()> {
    if met { Ok(()) } else { Err(Error::InvalidArgument(what())) }
}

fn check_probability(name: &str, value: f64) -> Result<()> {
    require((0.0..=1.0).contains(&value), || format!("{name} is a probability, 0 to 1, not {value}"))
}

fn check_bins(policy: &str, bins: u32) -> Result<()> {
    require(bins >= 2, || format!("{policy}.num_magnitude_bins must be at least 2, not {bins}"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::mem::discriminant;

    use super::*;
    use crate::random::{Domain, stream};
    use crate::transform::{Crop, Transform};

    const JITTER: ColorJitter = ColorJitter { brightness: 0.4, contrast: 1.5, saturation: 0.2, hue: 0.1 };
    const ERASE: Erase =
        Erase { probability: 1.0, scale: (0.02, 0.33), ratio: (0.3, 3.3), value: [0.485, 0.456, 0.406] };
    const WIDE: Policy = Policy::TrivialAugmentWide { num_magnitude_bins: 31 };

    fn draws(augment: &Augment, image_size: u32, count: u64) -> Vec<Vec<Op>> {
        (0..count).map(|n| augment.draw_ops(image_size, &mut stream(Domain::View, 1, 2, n, 0))).collect()
    }

    #[test]
    fn settings_read_as_documented() {
        let parse = |text: &str| serde_json::from_str::<Augment>(text);
        assert_eq!(parse("{}").unwrap(), Augment::NONE);
        let all = r#"{"vertical_flip": 0.5, "color_jitter": {"brightness": 0.4, "hue": 0.1},
            "policy": {"rand_augment": {}}, "erase": {"probability": 0.1, "value": [0, 0.5, 1]}}"#;
        let expected = Augment {
            vertical_flip: 0.5,
            color_jitter: Some(ColorJitter { brightness: 0.4, hue: 0.1, ..ColorJitter::default() }),
            policy: Some(Policy::RandAugment { num_ops: 2, magnitude: 9, num_magnitude_bins: 31 }),
            erase: Some(Erase { probability: 0.1, value: [0.0, 0.5, 1.0], ..ERASE }),
        };
        assert_eq!(parse(all).unwrap(), expected);
        assert_eq!(parse(r#"{"policy": {"trivial_augment_wide": {}}}"#).unwrap().policy, Some(WIDE));
        let view = r#"{"train": {"crop": "none", "flip": 0, "augment": {"vertical_flip": 1}}}"#;
        let augment = Augment { vertical_flip: 1.0, ..Augment::NONE };
        let transform = Transform::Train { crop: Crop::None, flip: 0.0, augment };
        assert_eq!(serde_json::from_str::<Transform>(view).unwrap(), transform);
        for unknown in [
            r#"{"vertical_flips": 1}"#,
            r#"{"color_jitter": {"gamma": 1}}"#,
            r#"{"policy": {"rand_augment": {"bins": 3}}}"#,
            r#"{"erase": {"probability": 1, "value": [0, 0, 0], "fill": 0}}"#,
        ] {
            assert!(parse(unknown).unwrap_err().to_string().contains("unknown field"), "{unknown}");
        }
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused() {
        let jitter = |jitter| Augment { color_jitter: Some(jitter), ..Augment::NONE };
        let policy = |policy| Augment { policy: Some(policy), ..Augment::NONE };
        let erase = |erase| Augment { erase: Some(erase), ..Augment::NONE };
        let good = Augment {
            vertical_flip: 0.5,
            color_jitter: Some(JITTER),
            policy: Some(Policy::RandAugment { num_ops: 2, magnitude: 30, num_magnitude_bins: 31 }),
            erase: Some(ERASE),
        };
        assert!(good.check().is_ok());
        let bad = [
            (Augment { vertical_flip: 1.1, ..Augment::NONE }, "vertical_flip"),
            (jitter(ColorJitter { contrast: -0.1, ..JITTER }), "color_jitter.contrast"),
            (jitter(ColorJitter { brightness: f64::NAN, ..JITTER }), "color_jitter.brightness"),
            (jitter(ColorJitter { hue: 0.6, ..JITTER }), "color_jitter.hue"),
            (
                policy(Policy::TrivialAugmentWide { num_magnitude_bins: 1 }),
                "trivial_augment_wide.num_magnitude",
            ),
            (
                policy(Policy::RandAugment { num_ops: 2, magnitude: 31, num_magnitude_bins: 31 }),
                "rand_augment.magnitude",
            ),
            (
                policy(Policy::RandAugment { num_ops: 101, magnitude: 9, num_magnitude_bins: 31 }),
                "rand_augment.num_ops",
            ),
            (erase(Erase { probability: -0.1, ..ERASE }), "erase.probability"),
            (erase(Erase { scale: (0.3, 0.2), ..ERASE }), "erase.scale"),
            (erase(Erase { ratio: (0.0, 1.0), ..ERASE }), "erase.ratio"),
            (erase(Erase { value: [0.0, 0.0, 124.0], ..ERASE }), "erase.value"),
        ];
        for (augment, name) in bad {
            let transform = Transform::Train { crop: Crop::None, flip: 0.0, augment };
            let error = transform.check(32).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
    }

    #[test]
    fn crops_and_flips_are_drawn_as_without() {
        let all = Augment {
            vertical_flip: 0.5,
            color_jitter: Some(JITTER),
            policy: Some(WIDE),
            erase: Some(ERASE),
        };
        let crop = Crop::RandomResized { scale: (0.1, 1.0), ratio: (0.7, 1.4) };
        let train = |augment| Transform::Train { crop: crop.clone(), flip: 0.5, augment };
        for n in 0..100 {
            let view = |transform: Transform| {
                transform.draw_view(90, 70, 32, &mut stream(Domain::View, 3, 0, n, 1)).unwrap()
            };
            let plain = view(train(Augment::NONE));
            let augmented = view(train(all.clone()));
            assert_eq!((plain.region, plain.flip), (augmented.region, augmented.flip));
            assert!(plain.ops.is_empty());
            // In the order of torchvision's recipes: the erased rectangle last, the flip before the jitter.
            assert!(matches!(augmented.ops.last(), Some(Op::Erase { .. })));
            let flip = augmented.ops.iter().position(|op| *op == Op::FlipVertical);
            assert!(matches!(flip, None | Some(0)), "{:?}", augmented.ops);
            let jitter = usize::from(flip.is_some());
            assert!(augmented.ops[jitter..jitter + 4].iter().any(|op| matches!(op, Op::Hue(_))));
        }
    }

    #[test]
    fn vertical_flips_come_as_often_as_set() {
        let flips = draws(&Augment { vertical_flip: 0.3, ..Augment::NONE }, 32, 4000);
        let count = flips.iter().filter(|ops| ops[..] == [Op::FlipVertical]).count();
        assert!((1110..1290).contains(&count), "{count}");
        assert!(flips.iter().all(|ops| ops.len() <= 1));
    }

    #[test]
    fn jitter_obeys_its_law() {
        let mut orders = BTreeMap::new();
        let mut sums = [0.0; 4];
        for ops in draws(&Augment { color_jitter: Some(JITTER), ..Augment::NONE }, 32, 4800) {
            let mut order = Vec::new();
            for op in ops {
                let (which, value, low, high) = match op {
                    Op::Brightness(factor) => (0, f64::from(factor), 0.6, 1.4),
                    Op::Contrast(factor) => (1, f64::from(factor), 0.0, 2.5), // not from -0.5
                    Op::Saturation(factor) => (2, f64::from(factor), 0.8, 1.2),
                    Op::Hue(turn) => (3, turn, -0.1, 0.1),
                    other => panic!("{other:?}"),
                };
                assert!((low..=high + 1e-6).contains(&(value + 1e-7)), "{op:?}");
                sums[which] += (value - low) / (high - low) / 4800.0;
                order.push(which);
            }
            *orders.entry(order).or_insert(0) += 1;
        }
        assert_eq!(orders.len(), 24);
        assert!(orders.values().all(|count| (140..260).contains(count)), "200 of each expected: {orders:?}");
        assert!(sums.iter().all(|mean| (0.485..0.515).contains(mean)), "{sums:?}");

        let contrast = ColorJitter { contrast: 0.5, ..ColorJitter::default() };
        let ops = draws(&Augment { color_jitter: Some(contrast), ..Augment::NONE }, 32, 50);
        assert!(ops.iter().all(|ops| matches!(ops[..], [Op::Contrast(_)])));
    }

    #[test]
    fn policies_draw_each_operation_alike() {
        let mut counts = BTreeMap::new();
        let mut negative = 0;
        let mut positive = 0;
        let key = |op: &Op| format!("{:?}", discriminant(op));
        let drawn = draws(&Augment { policy: Some(WIDE), ..Augment::NONE }, 224, 14_000);
        for op in drawn.iter().flatten() {
            *counts.entry(key(op)).or_insert(0) += 1;
            if let Op::Rotate(degrees) = op {
                negative += u32::from(*degrees < 0.0);
                positive += u32::from(*degrees > 0.0);
            }
        }
        assert_eq!(counts.len(), 13); // the fourteenth is the identity
        assert!(
            counts.values().all(|count| (880..1120).contains(count)),
            "1000 of each expected: {counts:?}"
        );
        let none = drawn.iter().filter(|ops| ops.is_empty()).count();
        assert!((880..1120).contains(&none), "{none}");
        assert!((420..560).contains(&negative) && (420..560).contains(&positive), "{negative}, {positive}");

        let policy = Policy::RandAugment { num_ops: 3, magnitude: 15, num_magnitude_bins: 31 };
        let drawn = draws(&Augment { policy: Some(policy), ..Augment::NONE }, 224, 1000);
        assert!(drawn.iter().all(|ops| ops.len() <= 3));
        let ops: Vec<&Op> = drawn.iter().flatten().collect();
        assert!((2740..2830).contains(&ops.len()), "13/14 of 3000 expected, not {}", ops.len());
        assert!(ops.contains(&&Op::Rotate(15.0)) && ops.contains(&&Op::Rotate(-15.0)));
    }

    /// The numbers are from 100,000 calls of torchvision's `RandomErasing.get_params`.
    #[test]
    fn erasing_obeys_its_law() {
        let areas = |erase: Erase, image_size: u32| -> Vec<Option<(f64, f64)>> {
            let side = f64::from(image_size);
            let mut areas = Vec::new();
            for ops in draws(&Augment { erase: Some(erase), ..Augment::NONE }, image_size, 10_000) {
                areas.push(ops.first().map(|op| {
                    let Op::Erase { region, colour } = *op else { panic!("{op:?}") };
                    assert!(
                        region.left + region.width <= image_size && region.top + region.height <= image_size
                    );
                    assert_eq!(colour, [124, 116, 104]); // of 123.7, 116.3, 103.5
                    let width = f64::from(region.width);
                    let height = f64::from(region.height);
                    (width * height / (side * side), height / width)
                }));
            }
            areas
        };
        let share = |of: &[Option<(f64, f64)>], which: fn((f64, f64)) -> bool| {
            of.iter().flatten().filter(|&&found| which(found)).count() as f64 / of.len() as f64
        };
        let usual = areas(ERASE, 32);
        let mean = usual.iter().flatten().map(|found| found.0).sum::<f64>() / 10_000.0;
        assert!((0.171..0.178).contains(&mean), "mean area {mean}, 0.1742 expected");
        let small = share(&usual, |found| found.0 < 0.1);
        assert!((0.246..0.273).contains(&small), "{small} of the areas below 0.1, 0.2595 expected");
        let tall = share(&usual, |found| found.1 > 1.0);
        assert!((0.465..0.495).contains(&tall), "{tall} are tall, 0.480 expected");
        let taller = share(&usual, |found| found.1 > 2.0);
        assert!((0.182..0.206).contains(&taller), "{taller} are twice as tall as wide, 0.194 expected");

        let large = areas(Erase { scale: (0.5, 1.0), ..ERASE }, 8);
        let none = large.iter().filter(|found| found.is_none()).count();
        assert!((1600..1840).contains(&none), "nothing fits in {none} of 10000, 1717 expected");

        let rare = areas(Erase { probability: 0.1, ..ERASE }, 32);
        let erased = rare.iter().flatten().count();
        assert!((910..1090).contains(&erased), "{erased}");
    }
}
