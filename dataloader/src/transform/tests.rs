//! Crops follow their distribution; pixels are checked by hand.

use super::*;
use crate::decode::Channels;
use crate::random::{Domain, stream};

const SCALE: (f64, f64) = (0.08, 1.0);
const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

fn train(crop: Crop, flip: f64) -> Transform {
    Transform::Train { crop, flip, augment: Augment::NONE }
}

fn draws(transform: &Transform, size: (u32, u32), image_size: u32, count: u64) -> Vec<View> {
    let rng = |view| stream(Domain::View, 1, 2, 3, view);
    (0..count).map(|view| transform.draw_view(size.0, size.1, image_size, &mut rng(view)).unwrap()).collect()
}

fn render(pixels: &[u8], width: u32, channels: Channels, view: &View, image_size: u32) -> Vec<u8> {
    let mut out = vec![77; (image_size * image_size) as usize * channels.count()];
    let height = pixels.len() as u32 / width / channels.count() as u32;
    let shown = Region::whole(width, height);
    Renderer::new().render(pixels, shown, channels, view, image_size, &mut out).unwrap();
    out
}

#[test]
fn settings_read_as_documented() {
    let parse = |text: &str| serde_json::from_str::<Transform>(text);
    let pad = parse(r#"{"train": {"crop": {"pad": {"pixels": 4}}, "flip": 0.5}}"#).unwrap();
    assert_eq!(pad, train(Crop::Pad { pixels: 4 }, 0.5));
    assert_eq!(parse(r#"{"train": {"crop": "none", "flip": 0}}"#).unwrap(), train(Crop::None, 0.0));
    assert_eq!(parse(r#"{"eval": {}}"#).unwrap(), Transform::Eval { resize: None });
    let text = r#"{"train": {"crop": {"random_resized": {"scale": [0.1, 1], "ratio": [1, 2]}}, "flip": 0}}"#;
    let crop = Crop::RandomResized { scale: (0.1, 1.0), ratio: (1.0, 2.0) };
    assert_eq!(parse(text).unwrap(), train(crop, 0.0));
    for unknown in [
        r#"{"eval": {"resize": 256, "size": 3}}"#,
        r#"{"train": {"crop": {"pad": {"pixels": 4, "fill": 0}}, "flip": 0.5}}"#,
        r#"{"train": {"crop": "none", "flip": 0, "jitter": 1}}"#,
    ] {
        assert!(parse(unknown).unwrap_err().to_string().contains("unknown field"), "{unknown}");
    }
}

#[test]
fn settings_that_cannot_be_meant_are_refused() {
    let resized = |scale, ratio| train(Crop::RandomResized { scale, ratio }, 0.5);
    assert!(resized(SCALE, RATIO).check(224).is_ok());
    for bad in [
        train(Crop::None, 1.5),
        train(Crop::None, f64::NAN),
        resized((0.0, 1.0), RATIO),
        resized((0.5, 0.1), RATIO),
        resized((0.5, 1.1), RATIO),
        resized(SCALE, (2.0, 1.0)),
        resized(SCALE, (1.0, f64::INFINITY)),
        train(Crop::Pad { pixels: u32::MAX }, 0.5),
        Transform::Eval { resize: Some(223) },
    ] {
        assert!(matches!(bad.check(224), Err(Error::InvalidArgument(_))), "{bad:?}");
    }
    assert!(Transform::Eval { resize: None }.check(0).is_err());
}

#[test]
fn pad_crops_cover_all_offsets_and_no_others() {
    let views = draws(&train(Crop::Pad { pixels: 2 }, 0.0), (8, 10), 8, 2000);
    let mut counts = std::collections::BTreeMap::new();
    for view in &views {
        assert_eq!((view.region, view.scaled), (Region::whole(8, 10), (8, 10)));
        *counts.entry(view.corner).or_insert(0) += 1;
    }
    let expected: Vec<(i64, i64)> = (-2..=2).flat_map(|left| (-2..=4).map(move |top| (left, top))).collect();
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), expected);
    assert!(counts.values().all(|&count| (30..90).contains(&count)), "57 of each expected: {counts:?}");
}

#[test]
fn random_resized_crops_obey_their_law() {
    let width = 500;
    let height = 375;
    let views =
        draws(&train(Crop::RandomResized { scale: SCALE, ratio: RATIO }, 0.5), (width, height), 224, 4000);
    let area = f64::from(width * height);
    let mut flips = 0;
    let mut small = 0;
    let mut mean = 0.0;
    let mut lefts = Vec::new();
    let mut tops = Vec::new(); // as shares of the room there is
    for View { region, scaled, corner, flip, .. } in views {
        assert!(region.left + region.width <= width && region.top + region.height <= height);
        assert_eq!((scaled, corner), ((224, 224), (0, 0)));
        let share = f64::from(region.width * region.height) / area;
        let ratio = f64::from(region.width) / f64::from(region.height);
        assert!((0.078..=1.0).contains(&share), "{share}");
        assert!((0.73..=1.36).contains(&ratio), "{ratio}");
        flips += u32::from(flip);
        small += u32::from(share < 0.3);
        mean += share / 4000.0;
        if region.width < width && region.height < height {
            lefts.push(f64::from(region.left) / f64::from(width - region.width));
            tops.push(f64::from(region.top) / f64::from(height - region.height));
        }
    }
    assert!((1900..2100).contains(&flips), "{flips}");
    // 200,000 draws of a transcription of torchvision's get_params to Python: mean share 0.433, 32.3 % below 0.3.
    assert!((0.421..0.445).contains(&mean), "{mean}");
    assert!((1200..1380).contains(&small), "{small}");
    for places in [lefts, tops] {
        let mean = places.iter().sum::<f64>() / places.len() as f64;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        assert!(places.contains(&0.0) && places.contains(&1.0), "the borders are never reached");
    }
}

#[test]
fn random_resized_falls_back_to_the_centre() {
    // No rectangle of these shapes and areas fits, so all ten tries fail.
    let tall = draws(&train(Crop::RandomResized { scale: (1.0, 1.0), ratio: RATIO }, 0.0), (30, 100), 8, 5);
    assert!(tall.iter().all(|view| view.region == Region { left: 0, top: 30, width: 30, height: 40 }));
    let wide = draws(&train(Crop::RandomResized { scale: (1.0, 1.0), ratio: RATIO }, 0.0), (101, 30), 8, 5);
    assert!(wide.iter().all(|view| view.region == Region { left: 30, top: 0, width: 40, height: 30 }));
}

#[test]
fn evaluation_rounds_as_torchvision() {
    let view = |resize, width, height, size| {
        Transform::Eval { resize }
            .draw_view(width, height, size, &mut stream(Domain::View, 0, 0, 0, 0))
            .unwrap()
    };
    // Resize(256) of 500x375: int(256 * 500 / 375) = 341. CenterCrop(224): round(58.5) = 58 (to even), 16.
    let photo = view(Some(256), 500, 375, 224);
    assert_eq!((photo.scaled, photo.corner), ((341, 256), (58, 16)));
    let portrait = view(Some(256), 375, 500, 224);
    assert_eq!((portrait.scaled, portrait.corner), ((256, 341), (16, 58)));
    // round(0.5) = 0, round(1.5) = 2.
    assert_eq!(view(None, 29, 31, 28).corner, (0, 2));
    assert!(!photo.flip);
}

#[test]
fn images_too_small_or_too_narrow_are_refused() {
    let rng = &mut stream(Domain::View, 0, 0, 0, 0);
    for transform in
        [Transform::Eval { resize: None }, train(Crop::None, 0.0), train(Crop::Pad { pixels: 1 }, 0.0)]
    {
        let error = transform.draw_view(28, 25, 28, rng).unwrap_err();
        assert!(error.0.contains("28x25 pixels are too few to cut 28x28"), "{error:?}");
    }
    assert!(train(Crop::Pad { pixels: 2 }, 0.0).draw_view(28, 25, 28, rng).is_ok());
    assert!(Transform::Eval { resize: Some(256) }.draw_view(1, 1_000_000, 224, rng).is_err());
}

#[test]
fn copies_pad_with_black_and_mirror() {
    let pixels: Vec<u8> = (1..=9).collect(); // 3x3
    let region = Region::whole(3, 3);
    let view = |corner, flip| View { region, scaled: (3, 3), corner, flip, ops: vec![] };
    let grey = |view| render(&pixels, 3, Channels::Grey, &view, 3);
    assert_eq!(grey(view((0, 0), false)), pixels);
    assert_eq!(grey(view((0, 0), true)), [3, 2, 1, 6, 5, 4, 9, 8, 7]);
    assert_eq!(grey(view((-1, -1), false)), [0, 0, 0, 0, 1, 2, 0, 4, 5]);
    assert_eq!(grey(view((-1, -1), true)), [0, 0, 0, 2, 1, 0, 5, 4, 0]);
    assert_eq!(grey(view((2, 1), false)), [6, 0, 0, 9, 0, 0, 0, 0, 0]);
    assert_eq!(grey(view((5, -9), true)), [0; 9]);

    let rgb: Vec<u8> = (1..=12).collect(); // 2x2
    let region = Region::whole(2, 2);
    let mirrored = View { region, scaled: (2, 2), corner: (0, 0), flip: true, ops: vec![] };
    assert_eq!(render(&rgb, 2, Channels::Rgb, &mirrored, 2), [4, 5, 6, 1, 2, 3, 10, 11, 12, 7, 8, 9]);
}

#[test]
fn a_flat_image_stays_flat_at_any_size() {
    let pixels = [200, 100, 50].repeat(37 * 23);
    for image_size in [5, 16, 64] {
        let region = Region { left: 3, top: 2, width: 30, height: 17 };
        let view = View { region, scaled: (image_size, image_size), corner: (0, 0), flip: true, ops: vec![] };
        let out = render(&pixels, 37, Channels::Rgb, &view, image_size);
        assert!(out.chunks_exact(3).all(|pixel| pixel == [200, 100, 50]));
    }
}

/// Halving with an antialiased triangle filter weighs the sources of output x by 1 - |distance| / 2, where the
/// distance is from the centre 2x + 0.5: 1/8, 3/8, 3/8, 1/8, normalised again where the image ends.
#[test]
fn halving_is_the_triangle_filter() {
    let side = 14_usize;
    let value = |x: usize, y: usize| (x * x + 3 * y) as u8; // at most 208
    let pixels: Vec<u8> = (0..side).flat_map(|y| (0..side).map(move |x| value(x, y))).collect();
    let half = side / 2;
    let region = Region::whole(side as u32, side as u32);
    let view = View { region, scaled: (half as u32, half as u32), corner: (0, 0), flip: false, ops: vec![] };
    let out = render(&pixels, side as u32, Channels::Grey, &view, half as u32);
    let weights = |position: usize| -> Vec<(usize, f64)> {
        let centre = 2.0 * position as f64 + 0.5;
        let all: Vec<(usize, f64)> =
            (0..side).map(|i| (i, (1.0 - (i as f64 - centre).abs() / 2.0).max(0.0))).collect();
        let sum: f64 = all.iter().map(|(_, weight)| weight).sum();
        all.into_iter().map(|(i, weight)| (i, weight / sum)).collect()
    };
    for y in 0..half {
        for x in 0..half {
            let mut expected = 0.0;
            for (j, row_weight) in weights(y) {
                for (i, weight) in weights(x) {
                    expected += row_weight * weight * f64::from(value(i, j));
                }
            }
            let found = f64::from(out[y * half + x]);
            assert!((found - expected).abs() <= 1.0, "({x}, {y}): {found}, expected {expected}");
        }
    }
}

/// Pixels outside the region have no part in a view: what lets a decoder leave them out.
#[test]
fn a_view_sees_its_region_only() {
    let region = Region { left: 4, top: 5, width: 10, height: 9 };
    let view = View { region, scaled: (6, 6), corner: (0, 0), flip: false, ops: vec![] };
    let inside = |x: u32, y: u32| (4..14).contains(&x) && (5..14).contains(&y);
    let image = |outside: u8| -> Vec<u8> {
        (0..20 * 20).map(|i| if inside(i % 20, i / 20) { (i % 251) as u8 } else { outside }).collect()
    };
    assert_eq!(
        render(&image(0), 20, Channels::Grey, &view, 6),
        render(&image(255), 20, Channels::Grey, &view, 6)
    );
}
