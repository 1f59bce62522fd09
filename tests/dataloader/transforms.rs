//! Operations on pixels against torchvision's: `golden/transforms.py` wrote what it makes of PIL images. Every
//! operation gives the same bytes, so each bound on the difference is 0.

use codinet_dataloader::random::{Domain, stream};
use codinet_dataloader::transform::{Augmenter, Op, Policy};
use codinet_dataloader::{Augment, Channels, Crop, Transform};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
    colours: Vec<Colours>,
    hashed: Vec<Which>,
    policies: Vec<PolicyOp>,
}

#[derive(Deserialize)]
struct Case {
    ops: Vec<(String, f64)>,
    image: Which,
    pixels: String,
}

#[derive(Deserialize)]
struct Colours {
    ops: Vec<(String, f64)>,
    image: Which,
    sha256: String,
}

/// Kind, side, channels.
type Which = (String, u32, usize);

/// Policy, strength of 31, operation and its parameter, first digits of the SHA-256 over the results.
type PolicyOp = (String, u32, String, f64, String);

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/transforms.json")).unwrap()
}

/// The same formulas as in `transforms.py`.
fn image((kind, side, channels): &Which) -> Vec<u8> {
    let side = *side as usize;
    let channels = *channels;
    let value = |x: usize, y: usize, c: usize| match kind.as_str() {
        "texture" => x * x * 7 + y * y * 3 + x * y * (c + 2) * 5 + 31 * c,
        "soft" => 60 + (3 * x + 2 * y + 5 * c) % 110,
        "flat" => 200 - 60 * c,
        "colours" => 5 * ((y * side + x) / 52_usize.pow(2 - c as u32) % 52),
        other => panic!("no formula for {other}"),
    };
    let places = (0..side).flat_map(|y| (0..side).map(move |x| (x, y)));
    places.flat_map(|(x, y)| (0..channels).map(move |c| (value(x, y, c) % 256) as u8)).collect()
}

fn op(name: &str, parameter: f64) -> Op {
    match name {
        "flip_vertical" => Op::FlipVertical,
        "brightness" => Op::Brightness(parameter as f32),
        "contrast" => Op::Contrast(parameter as f32),
        "saturation" => Op::Saturation(parameter as f32),
        "hue" => Op::Hue(parameter),
        "sharpness" => Op::Sharpness(parameter as f32),
        "posterize" => Op::Posterize(parameter as u8),
        "solarize" => Op::Solarize(parameter),
        "auto_contrast" => Op::AutoContrast,
        "equalize" => Op::Equalize,
        "shear_x" => Op::ShearX(parameter),
        "shear_y" => Op::ShearY(parameter),
        "translate_x" => Op::TranslateX(parameter as i32),
        "translate_y" => Op::TranslateY(parameter as i32),
        "rotate" => Op::Rotate(parameter),
        other => panic!("no operation {other}"),
    }
}

/// The operation a policy makes of a parameter of [`op`], which for factors is their distance from 1.
fn policy_op(name: &str, magnitude: f64) -> Op {
    match name {
        "brightness" | "contrast" | "saturation" | "sharpness" => op(name, 1.0 + magnitude),
        _ => op(name, magnitude),
    }
}

fn apply(augmenter: &mut Augmenter, ops: &[Op], which: &Which) -> Vec<u8> {
    let mut pixels = image(which);
    augmenter.apply(ops, &mut pixels, which.1, Channels::new(which.2).unwrap());
    pixels
}

fn digest(pixels: &[u8]) -> String {
    Sha256::digest(pixels)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn operations_are_torchvisions_to_the_bit() {
    let mut augmenter = Augmenter::new(); // one for all, as in a worker
    let cases = golden().cases;
    assert_eq!(cases.len(), 74 * 5);
    for Case { ops, image, pixels } in cases {
        let expected: Vec<u8> = (0..pixels.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&pixels[i..i + 2], 16).unwrap())
            .collect();
        let list: Vec<Op> = ops.iter().map(|(name, parameter)| op(name, *parameter)).collect();
        assert_eq!(apply(&mut augmenter, &list, &image), expected, "{ops:?} of {image:?}");
    }
}

#[test]
fn colours_are_torchvisions_over_the_whole_cube() {
    let mut augmenter = Augmenter::new();
    for Colours { ops, image, sha256 } in golden().colours {
        let list: Vec<Op> = ops.iter().map(|(name, parameter)| op(name, *parameter)).collect();
        assert_eq!(digest(&apply(&mut augmenter, &list, &image)), sha256, "{ops:?}");
    }
}

#[test]
fn policies_are_torchvisions_at_every_strength() {
    let mut augmenter = Augmenter::new();
    let Golden { hashed, policies, .. } = golden();
    assert_eq!(policies.len(), 2 * ((9 * 2 + 2) * 31 + 2));
    for (policy, bin, name, magnitude, sha256) in policies {
        let op = policy_op(&name, magnitude);
        let results: Vec<u8> = hashed.iter().flat_map(|which| apply(&mut augmenter, &[op], which)).collect();
        assert_eq!(digest(&results), sha256, "{policy} {bin}: {name} {magnitude}");
    }
}

/// What a policy draws are torchvision's operations, each of them, and no others.
#[test]
fn policies_draw_torchvisions_operations() {
    let expected = |name: &str, wanted: &dyn Fn(&PolicyOp) -> bool| -> Vec<Op> {
        let all = golden().policies.into_iter().filter(|case| case.0 == name && wanted(case));
        all.map(|(_, _, name, magnitude, _)| policy_op(&name, magnitude)).collect()
    };
    for magnitude in 0..31 {
        let policy = Policy::RandAugment { num_ops: 1, magnitude, num_magnitude_bins: 31 };
        let without_strength = ["auto_contrast", "equalize"];
        let expected = expected("rand_augment", &|(_, bin, name, ..)| {
            *bin == magnitude || without_strength.contains(&name.as_str())
        });
        assert_same_operations(&drawn(policy, 600), &expected);
    }
    let policy = Policy::TrivialAugmentWide { num_magnitude_bins: 31 };
    assert_same_operations(&drawn(policy, 20_000), &expected("trivial_augment_wide", &|_| true));
}

/// What `policy` draws for `count` views of 224x224 pixels.
fn drawn(policy: Policy, count: u64) -> Vec<Op> {
    let augment = Augment { policy: Some(policy), ..Augment::NONE };
    let transform = Transform::Train { crop: Crop::None, flip: 0.0, augment };
    let ops = |n| transform.draw_view(224, 224, 224, &mut stream(Domain::View, 0, 0, n, 0)).unwrap().ops;
    (0..count).flat_map(ops).collect()
}

fn assert_same_operations(drawn: &[Op], expected: &[Op]) {
    let stray = drawn.iter().find(|drawn| !expected.iter().any(|expected| near(drawn, expected)));
    assert_eq!(stray, None, "drawn, but not torchvision's");
    let missing = expected.iter().find(|expected| !drawn.iter().any(|drawn| near(drawn, expected)));
    assert_eq!(missing, None, "torchvision's, but never drawn");
}

/// Equal, but for torch's single precision: in it, half of 32 pixels may fall short of 16 and become 15.
fn near(drawn: &Op, expected: &Op) -> bool {
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs().max(1.0);
    match (*drawn, *expected) {
        (Op::Brightness(a), Op::Brightness(b))
        | (Op::Saturation(a), Op::Saturation(b))
        | (Op::Contrast(a), Op::Contrast(b))
        | (Op::Sharpness(a), Op::Sharpness(b)) => close(a.into(), b.into()),
        (Op::ShearX(a), Op::ShearX(b))
        | (Op::ShearY(a), Op::ShearY(b))
        | (Op::Rotate(a), Op::Rotate(b))
        | (Op::Solarize(a), Op::Solarize(b)) => close(a, b),
        (Op::TranslateX(a), Op::TranslateX(b)) | (Op::TranslateY(a), Op::TranslateY(b)) => {
            a == b || (a.abs(), b.abs()) == (16, 15)
        }
        (a, b) => a == b,
    }
}
