//! Tiles and regions have the pixels of the whole image, to the bit.

use std::collections::HashMap;

use rand_chacha::rand_core::Rng;
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use super::libjpeg::{self, Pixel};
use super::tile::{self, Tiles};
use crate::decode::{Channels, Decoder};
use crate::random::{Domain, draw_below, stream};
use crate::region::Region;

/// A picture with detail in every colour.
fn picture(width: usize, height: usize) -> Vec<u8> {
    let mut rng = stream(Domain::View, 7, width as u64, height as u64, 0);
    let noise: Vec<u8> = (0..width * height * 3).map(|_| (rng.next_u32() >> 26) as u8).collect();
    let wave = |i: usize| {
        let x = i / 3 % width;
        let y = i / 3 / width;
        let c = i % 3;
        (96.0 + 80.0 * ((x * (c + 2)) as f64 * 0.09 + y as f64 * 0.13).sin()) as u8
    };
    noise.iter().enumerate().map(|(i, noise)| wave(i) + noise).collect()
}

struct Source {
    width: usize,
    height: usize,
    sampling: Subsamp,
    progressive: bool,
    arithmetic: bool,
}

fn source(width: usize, height: usize, sampling: Subsamp) -> Source {
    Source { width, height, sampling, progressive: false, arithmetic: false }
}

impl Source {
    fn encode(&self) -> Vec<u8> {
        let Source { width, height, sampling, progressive, arithmetic } = *self;
        let mut jpeg = Compressor::new().unwrap();
        jpeg.set_quality(88).unwrap();
        jpeg.set_subsamp(sampling).unwrap();
        jpeg.set_progressive(progressive).unwrap();
        jpeg.set_arithmetic(arithmetic).unwrap();
        let pixels = &picture(width, height)[..];
        jpeg.compress_to_vec(Image { pixels, width, pitch: 3 * width, height, format: PixelFormat::RGB })
            .unwrap()
    }
}

/// Width, height and all pixels, by libjpeg-turbo without tiles.
fn whole(encoded: &[u8]) -> (usize, usize, Vec<u8>) {
    let frame = libjpeg::read_header(encoded).unwrap();
    let region = Region::whole(frame.width, frame.height);
    let mut pixels = Vec::new();
    libjpeg::decode(encoded, region, Pixel::Rgb, &mut pixels).unwrap();
    (frame.width as usize, frame.height as usize, pixels)
}

/// Rows of `region` in `pixels`, which are those of `shown`.
fn rows(pixels: &[u8], shown: Region, region: Region) -> impl Iterator<Item = &[u8]> {
    let Region { left, top, width, height } = region;
    let at = move |y: u32| 3 * ((y - shown.top) * shown.width + left - shown.left) as usize;
    (top..top + height).map(move |y| &pixels[at(y)..][..3 * width as usize])
}

fn all(width: usize, height: usize) -> Region {
    Region::whole(width as u32, height as u32)
}

fn same(a: &[u8], shown: Region, b: &[u8], whole: Region, region: Region) -> bool {
    rows(a, shown, region).eq(rows(b, whole, region))
}

const SAMPLINGS: [Subsamp; 6] =
    [Subsamp::None, Subsamp::Sub2x2, Subsamp::Sub2x1, Subsamp::Sub1x2, Subsamp::Sub4x1, Subsamp::Gray];

/// All crops of small images, with the smallest tiles.
#[test]
fn every_crop_of_small_images_equals_whole() {
    for (i, sampling) in SAMPLINGS.into_iter().enumerate() {
        for (width, height) in [[(48, 48), (33, 17)], [(48, 41), (47, 33)], [(41, 47), (31, 32)]][i % 3] {
            let encoded = source(width, height, sampling).encode();
            let (_, _, expected) = whole(&encoded);
            let tiled = libjpeg::transcode(&encoded, 1).unwrap();
            assert_eq!(whole(&tiled).2, expected, "the transcoded file");
            let mut tiles = Tiles::default();
            assert!(tiles.find_tiles(&tiled));
            let mut decoded = HashMap::new();
            let mut crops = 0;
            for (left, top) in (0..width as u32).flat_map(|x| (0..height as u32).map(move |y| (x, y))) {
                for (right, bottom) in
                    (left + 1..=width as u32).flat_map(|x| (top + 1..=height as u32).map(move |y| (x, y)))
                {
                    let region = Region { left, top, width: right - left, height: bottom - top };
                    let span = tiles.cover(region);
                    let (shown, pixels) = decoded.entry(span).or_insert_with(|| {
                        let mut pixels = Vec::new();
                        let shown = tiles.decode(&tiled, span, Pixel::Rgb, &mut pixels).unwrap();
                        (shown, pixels)
                    });
                    assert!(
                        same(pixels, *shown, &expected, all(width, height), region),
                        "{sampling:?} {region:?}"
                    );
                    crops += 1;
                }
            }
            assert_eq!(crops, width * (width + 1) / 2 * (height * (height + 1) / 2));
        }
    }
}

/// Random crops of images as large as photographs, from tiles and from rows; also of progressive and arithmetic-coded
/// images. Some crops lie at the right and bottom edges.
#[test]
fn crops_of_large_images_equal_whole() {
    let kinds = [(false, false), (true, false), (false, true)];
    let sizes =
        [(500, 375), (375, 500), (490, 366), (333, 500), (640, 427), (257, 129), (64, 64), (300, 225)];
    let mut decoder = Decoder::new();
    let mut pixels = Vec::new();
    let mut crops = 0;
    let mut tiled_columns = std::collections::BTreeSet::new();
    for (i, (width, height)) in sizes.into_iter().enumerate() {
        for sampling in [SAMPLINGS[i % 6], Subsamp::Sub2x2] {
            let (progressive, arithmetic) = kinds[i % 3];
            let encoded = Source { progressive, arithmetic, ..source(width, height, sampling) }.encode();
            let (_, _, expected) = whole(&encoded);
            let tiled = tile::transcode(&encoded).expect("it tiles");
            let mut tiles = Tiles::default();
            assert!(tiles.find_tiles(&tiled) && !tiles.find_tiles(&encoded));
            let ordinary = !progressive && !arithmetic; // most images in shards, which tiles don't enlarge
            assert!(
                !ordinary || tiled.len() < encoded.len() * 102 / 100,
                "{} of {}",
                tiled.len(),
                encoded.len()
            );
            let mut rng = stream(Domain::View, 3, i as u64, width as u64, 1);
            for file in [&tiled, &encoded] {
                let header = decoder.header(file).unwrap();
                assert_eq!(header.is_tiled(), std::ptr::eq(file, &tiled));
                for k in 0..400 {
                    let mut part = |side: usize, at_edge: bool| {
                        let size = 1 + draw_below(&mut rng, side as u32);
                        let from = draw_below(&mut rng, side as u32 - size + 1);
                        if at_edge { (side as u32 - size, size) } else { (from, size) }
                    };
                    let ((left, width_), (top, height_)) =
                        (part(width, k % 4 == 0), part(height, k % 5 == 0));
                    let region = Region { left, top, width: width_, height: height_ };
                    let shown =
                        decoder.decode_region(file, &header, Channels::Rgb, region, &mut pixels).unwrap();
                    assert!(
                        same(&pixels, shown, &expected, all(width, height), region),
                        "{width}x{height} {sampling:?} {region:?} of {shown:?}"
                    );
                    crops += 1;
                    if header.is_tiled() {
                        tiled_columns.insert(shown.width);
                    }
                }
            }
        }
    }
    assert!(crops >= 10_000 && tiled_columns.len() > 20, "{crops}, {tiled_columns:?}");
}

/// Progressive files without their last scans, whose blocks libjpeg smooths by their neighbours.
#[test]
fn crops_of_incomplete_images_equal_whole() {
    for sampling in SAMPLINGS {
        let encoded = Source { progressive: true, ..source(161, 117, sampling) }.encode();
        let scans: Vec<usize> =
            (0..encoded.len() - 1).filter(|&at| encoded[at..].starts_with(&[0xFF, 0xDA])).collect();
        let incomplete = [&encoded[..scans[2]], &[0xFF, 0xD9]].concat();
        let (_, _, expected) = whole(&incomplete);
        assert_ne!(expected, whole(&encoded).2);
        assert!(tile::transcode(&encoded).is_some() && tile::transcode(&incomplete).is_none());
        let mut decoder = Decoder::new();
        let mut pixels = Vec::new();
        let header = decoder.header(&incomplete).unwrap();
        for k in 0..500u32 {
            let left = k * 37 % 150;
            let top = k * 53 % 110;
            let region = Region { left, top, width: 1 + k % (161 - left), height: 1 + k % (117 - top) };
            let shown =
                decoder.decode_region(&incomplete, &header, Channels::Rgb, region, &mut pixels).unwrap();
            assert!(
                same(&pixels, shown, &expected, all(161, 117), region),
                "{sampling:?} {region:?} of {shown:?}"
            );
        }
    }
}

#[test]
fn jpeg_with_missing_or_wrong_markers_is_not_tiled() {
    let encoded = source(200, 100, Subsamp::Sub2x2).encode();
    let tiled = tile::transcode(&encoded).unwrap();
    let found = |bytes: &[u8]| Tiles::default().find_tiles(bytes);
    assert!(found(&tiled) && found(&[&tiled[..], b"after the end"].concat()));
    assert!((0..tiled.len()).all(|length| !found(&tiled[..length])), "cut short");
    let marker =
        tiled.windows(2).rposition(|pair| pair[0] == 0xFF && (0xD0..=0xD7).contains(&pair[1])).unwrap();
    let mut renumbered = tiled.clone();
    renumbered[marker + 1] ^= 1;
    assert!(!found(&renumbered));
    let mut without = tiled.clone();
    without.drain(marker..marker + 2);
    assert!(!found(&without));
    assert!(!found(b"") && !found(b"\xFF\xD8") && !found(b"\x89PNG"));
}

/// Random changes of bytes give errors or other pixels, never a panic or an access out of bounds.
#[test]
fn random_changes_give_errors_or_other_pixels() {
    let tiled = tile::transcode(&source(130, 70, Subsamp::Sub2x2).encode()).unwrap();
    let mut rng = stream(Domain::View, 9, 0, 0, 0);
    let mut decoder = Decoder::new();
    let mut pixels = Vec::new();
    let mut decoded_files = 0;
    for _ in 0..5_000 {
        let mut bytes = tiled.clone();
        for _ in 0..1 + draw_below(&mut rng, 3) {
            // Mostly in the header.
            let most = if draw_below(&mut rng, 4) > 0 { 640.min(bytes.len()) } else { bytes.len() };
            let at = draw_below(&mut rng, most as u32) as usize;
            match draw_below(&mut rng, 4) {
                0 => drop(bytes.drain(at..(at + 1 + draw_below(&mut rng, 8) as usize).min(bytes.len()))),
                1 => bytes.insert(at, rng.next_u32() as u8),
                _ => bytes[at] = rng.next_u32() as u8,
            }
        }
        let Ok(header) = decoder.header(&bytes) else { continue };
        if u64::from(header.width) * u64::from(header.height) > 1 << 20 {
            continue;
        }
        let part = |side: u32| (side / 3, (side / 2).max(1));
        let ((left, width), (top, height)) = (part(header.width), part(header.height));
        let region = Region { left, top, width, height };
        let decoded = decoder.decode_region(&bytes, &header, Channels::Rgb, region, &mut pixels);
        decoded_files += u32::from(decoded.is_ok());
        let _ = tile::transcode(&bytes);
        // A broken image leaves nothing behind that breaks the next.
        let sound = decoder.header(&tiled).unwrap();
        decoder.decode(&tiled, &sound, Channels::Rgb, &mut pixels).unwrap();
    }
    assert!(decoded_files > 100, "{decoded_files}");
}
