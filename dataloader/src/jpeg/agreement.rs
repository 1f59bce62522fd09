//! All ways to read a JPEG agree on whether it is sound, and on its pixels: header, whole image, regions, tiles, the eighth
//! that `bench` times, imports with and without tiles and smaller, and `verify`.

use std::fs;

use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use super::synthetic::Synthetic;
use super::{entropy_decode, tile};
use crate::dataset::Dataset;
use crate::decode::{Channels, DEFAULT_MAX_PIXELS, Decoder};
use crate::error::BadImage;
use crate::import::prepare::Preparer;
use crate::random::{Domain, draw_below, stream};
use crate::region::Region;
use crate::verify::verify;

/// A file of the corpus.
struct File {
    name: String,
    bytes: Vec<u8>,
    /// Whether it is sound, where its kind decides that.
    sound: Option<bool>,
}

fn file(name: impl Into<String>, bytes: Vec<u8>, sound: Option<bool>) -> File {
    File { name: name.into(), bytes, sound }
}

const Y420: [(u8, u8); 3] = [(2, 2), (1, 1), (1, 1)];

/// Sound JPEGs of many kinds.
fn sound() -> Vec<File> {
    let samplings: [(&str, &[(u8, u8)]); 14] = [
        ("grey", &[(1, 1)]),
        ("grey as 2x2", &[(2, 2)]),
        ("444", &[(1, 1); 3]),
        ("444 as 2x1", &[(2, 1); 3]),
        ("444 as 1x2", &[(1, 2); 3]),
        ("422", &[(2, 1), (1, 1), (1, 1)]),
        ("440", &[(1, 2), (1, 1), (1, 1)]),
        ("420", &Y420),
        ("411", &[(4, 1), (1, 1), (1, 1)]),
        ("2x2 with 2x1", &[(2, 2), (2, 1), (2, 1)]),
        ("2x2 with 2x1 and 1x1", &[(2, 2), (2, 1), (1, 1)]),
        ("3x1", &[(3, 1), (1, 1), (1, 1)]),
        ("4x1 with 2x1", &[(4, 1), (2, 1), (2, 1)]),
        ("chroma finer than luma", &[(1, 1), (2, 1), (2, 1)]),
    ];
    let mut files = Vec::new();
    // Widths that leave 1 to 5 columns for the last block or tile.
    for (i, &(name, sampling)) in samplings.iter().enumerate() {
        for width in [97, 98, 99, 100, 101, 64, 50 + i as u32] {
            let plain = Synthetic::new(width, 35 + i as u32, sampling);
            files.push(file(format!("{name}, {width}"), plain.encode(), Some(true)));
        }
        let plain = Synthetic::new(75, 50, sampling);
        for interval in [1, 3] {
            let restarts = Synthetic { interval, ..plain.clone() };
            files.push(file(format!("{name}, restarts {interval}"), restarts.encode(), Some(true)));
        }
        let separate = Synthetic { separate_scans: true, ..plain };
        files.push(file(format!("{name}, separate scans"), separate.encode(), Some(true)));
    }
    let plain = Synthetic::new(99, 60, &Y420);
    for transform in [0, 1, 2, 3, 200] {
        let adobe = Synthetic { adobe: Some(transform), ..plain.clone() };
        files.push(file(format!("Adobe {transform}"), adobe.encode(), Some(true)));
    }
    files.push(file("JFIF 9", Synthetic { jfif: 9, ..plain.clone() }.encode(), Some(true)));
    files.push(file("SOS 0 to 0", Synthetic { last_coefficient: 0, ..plain }.encode(), Some(true)));
    for kind in ["progressive", "arithmetic", "progressive arithmetic"] {
        for sampling in [Subsamp::Sub2x2, Subsamp::None, Subsamp::Gray] {
            let encoded = compressed(sampling, |jpeg| {
                jpeg.set_progressive(kind.contains("progressive")).unwrap();
                jpeg.set_arithmetic(kind.contains("arithmetic")).unwrap();
            });
            files.push(file(format!("{kind}, {sampling:?}"), encoded, Some(true)));
        }
    }
    let inks: Vec<u8> = (0..90 * 41 * 4).map(|i| (i * 7 / 3 % 251) as u8).collect();
    let cmyk = Image { pixels: &inks[..], width: 90, pitch: 4 * 90, height: 41, format: PixelFormat::CMYK };
    for sampling in [Subsamp::None, Subsamp::Sub2x2] {
        let encoded = turbojpeg::compress(cmyk, 90, sampling).unwrap().to_vec();
        files.push(file(format!("CMYK, {sampling:?}"), encoded, Some(true)));
    }
    files
}

fn compressed(sampling: Subsamp, set: impl Fn(&mut Compressor)) -> Vec<u8> {
    let pixels: Vec<u8> = (0..99 * 45 * 3).map(|i| (i * 7 / 3 % 251) as u8).collect();
    let image = Image { pixels: &pixels[..], width: 99, pitch: 3 * 99, height: 45, format: PixelFormat::RGB };
    let mut jpeg = Compressor::new().unwrap();
    jpeg.set_quality(88).unwrap();
    jpeg.set_subsamp(sampling).unwrap();
    set(&mut jpeg);
    jpeg.compress_to_vec(image).unwrap()
}

/// Kinds of JPEGs that are not decoded.
fn unsupported() -> Vec<File> {
    let lossless = |sampling| compressed(sampling, |jpeg| jpeg.set_lossless(true).unwrap());
    let mut deep = Synthetic::new(40, 40, &Y420).encode();
    let frame = marker(&deep, 0xC0);
    deep[frame + 4] = 12;
    let no_end = Synthetic::new(40, 40, &Y420).encode();
    let thirds = Synthetic::new(80, 60, &[(3, 1), (2, 1), (2, 1)]).encode();
    let crowded = Synthetic::new(80, 60, &[(4, 4), (1, 1), (1, 1)]).encode();
    vec![
        file("lossless", lossless(Subsamp::None), Some(false)),
        file("lossless grey", lossless(Subsamp::Gray), Some(false)),
        file("12 bits", deep, Some(false)),
        file("two components", Synthetic::new(40, 40, &[(1, 1); 2]).encode(), Some(false)),
        file("thirds", thirds, Some(false)),
        file("18 blocks in a group", crowded, Some(false)),
        file("no end", no_end[..no_end.len() - 2].to_vec(), Some(false)),
        file("no image", b"\xFF\xD8\xFF\xD9".to_vec(), Some(false)),
    ]
}

/// Where a marker is.
fn marker(encoded: &[u8], marker: u8) -> usize {
    encoded.windows(2).position(|pair| pair == [0xFF, marker]).unwrap()
}

/// Damaged files: cut, with bits flipped, with bytes lost or added at random, and with stray bytes before each marker.
fn damaged() -> Vec<File> {
    let tiled = |width| Synthetic { interval: 2, ..Synthetic::new(width, 70, &Y420) }.encode();
    let progressive = compressed(Subsamp::Sub2x2, |jpeg| jpeg.set_progressive(true).unwrap());
    let arithmetic = compressed(Subsamp::Sub2x2, |jpeg| jpeg.set_arithmetic(true).unwrap());
    let seeds = [
        ("baseline", Synthetic::new(130, 70, &Y420).encode()),
        ("optimised", compressed(Subsamp::Sub2x1, |jpeg| jpeg.set_optimize(true).unwrap())),
        ("tiled", tiled(128)),
        ("uneven restarts", tiled(130)),
        ("transcoded", tile::transcode(&progressive).unwrap()),
        ("progressive", progressive),
        ("arithmetic", arithmetic),
    ];
    let mut files = Vec::new();
    for (i, (name, seed)) in seeds.iter().enumerate() {
        for quarter in 1..4 {
            let keep = seed.len() * quarter / 4;
            files.push(file(format!("{name}, cut at {keep}"), seed[..keep].to_vec(), Some(false)));
        }
        // Stray bytes in the header hide none of the damage after it.
        let scan = marker(seed, 0xDA);
        let stray = [&seed[..scan], b"stray", &seed[scan..]].concat();
        files.push(file(format!("{name}, stray"), stray.clone(), Some(true)));
        files.push(file(format!("{name}, stray, cut"), stray[..stray.len() / 2].to_vec(), Some(false)));
        let mut at = 2;
        while let Some(next) = (at..seed.len() - 1).find(|&at| seed[at] == 0xFF && seed[at + 1] > 0) {
            let kind = seed[next + 1];
            for stray in [&[7][..], &[0, 0, 7, 1, 2], &[3; 40]] {
                let bytes = [&seed[..next], stray, &seed[next..]].concat();
                let is_restart = (0xD0..=0xD7).contains(&kind);
                let name = format!("{name}, {} before {kind:02x} at {next}", stray.len());
                files.push(file(name, bytes, Some(!is_restart)));
            }
            let is_segment = !(0xD0..=0xD9).contains(&kind);
            at = next + 2;
            if is_segment {
                at += usize::from(u16::from_be_bytes([seed[at], seed[at + 1]]));
            }
        }
        let mut rng = stream(Domain::View, 5, i as u64, 0, 0);
        for round in 0..150 {
            let mut bytes = seed.clone();
            let at = draw_below(&mut rng, bytes.len() as u32 - 2) as usize + 2;
            match round % 5 {
                0 => drop(bytes.drain(at..(at + 1 + draw_below(&mut rng, 4) as usize).min(seed.len()))),
                1 => bytes.insert(at, draw_below(&mut rng, 256) as u8),
                _ => bytes[at] ^= 1 << draw_below(&mut rng, 8),
            }
            files.push(file(format!("{name}, round {round} at {at}"), bytes, None));
        }
    }
    files
}

/// Regions that cover an image, with narrow ones at its edges.
fn regions(width: u32, height: u32) -> Vec<Region> {
    let mut regions = Vec::new();
    for row in 0..3 {
        let top = height * row / 3;
        let bottom = height * (row + 1) / 3;
        for column in 0..4 {
            let left = width * column / 4;
            let right = width * (column + 1) / 4;
            if right > left && bottom > top {
                regions.push(Region { left, top, width: right - left, height: bottom - top });
            }
        }
    }
    for size in 1..=6.min(width).min(height) {
        let left = width - size;
        let top = height - size;
        regions.push(Region { left, top: 0, width: size, height });
        regions.push(Region { left: 0, top, width, height: size });
        regions.push(Region { left, top, width: size, height: size });
        regions.push(Region { left: 0, top: 0, width: size, height: size });
    }
    regions
}

/// `region` of `pixels`, which show `shown`.
fn cut(pixels: &[u8], shown: Region, region: Region, channels: usize) -> Vec<u8> {
    let row = |y: u32| {
        let at = (y - shown.top) as usize * shown.width as usize + (region.left - shown.left) as usize;
        &pixels[channels * at..][..channels * region.width as usize]
    };
    (region.top..region.top + region.height).flat_map(row).copied().collect()
}

fn decode_whole(bytes: &[u8], channels: Channels) -> Result<Vec<u8>, BadImage> {
    let mut decoder = Decoder::new();
    let header = decoder.header(bytes)?;
    let mut pixels = Vec::new();
    decoder.decode(bytes, &header, channels, &mut pixels)?;
    Ok(pixels)
}

/// Asserts that all ways agree on `file`; returns whether it is sound.
fn agree(file: &File) -> bool {
    let File { name, bytes, sound } = file;
    let whole = decode_whole(bytes, Channels::Rgb);
    let is_sound = whole.is_ok();
    if let Some(sound) = *sound {
        assert_eq!(is_sound, sound, "{name}: {:?}", whole.err());
    }
    assert_eq!(decode_whole(bytes, Channels::Grey).is_ok(), is_sound, "{name}, grey");
    for (tile, max_side) in [(false, None), (true, None), (false, Some(16)), (true, Some(16))] {
        let mut preparer = Preparer::new(tile, max_side, DEFAULT_MAX_PIXELS).unwrap();
        let prepared = preparer.prepare(bytes);
        assert_eq!(prepared.is_ok(), is_sound, "{name}, import, tiles {tile}, {max_side:?}");
        if let (Ok((_, stored)), None, Ok(whole)) = (prepared, max_side, &whole) {
            let pixels = decode_whole(&stored, Channels::Rgb).unwrap();
            assert!(pixels == *whole, "{name}, imported, tiles {tile}");
        }
    }
    let mut decoder = Decoder::new();
    let Ok(header) = decoder.header(bytes) else {
        assert!(!entropy_decode(bytes, &mut Vec::new()), "{name}, an eighth of what the header refuses");
        return false;
    };
    if is_sound || !header.is_tiled() {
        assert_eq!(entropy_decode(bytes, &mut Vec::new()), is_sound, "{name}, an eighth");
    }
    for channels in [Channels::Rgb, Channels::Grey] {
        let expected = decode_whole(bytes, channels);
        let mut refused = 0;
        for region in regions(header.width, header.height) {
            let mut pixels = Vec::new();
            match (decoder.decode_region(bytes, &header, channels, region, &mut pixels), &expected) {
                (Ok(shown), Ok(expected)) => {
                    let part = cut(&pixels, shown, region, channels.count());
                    let same = cut(expected, header.whole(), region, channels.count());
                    assert!(part == same, "{name}, {region:?} of {shown:?}");
                }
                (Ok(_), Err(_)) => {}
                (Err(BadImage(reason)), Ok(_)) => panic!("{name}, {region:?}: {reason}"),
                (Err(_), Err(_)) => refused += 1,
            }
        }
        assert!(is_sound || refused > 0, "{name}: every region is decoded of a file that is not sound");
    }
    is_sound
}

#[test]
fn all_decoders_agree_on_every_file() {
    let corpus: Vec<File> = sound().into_iter().chain(unsupported()).chain(damaged()).collect();
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("class");
    fs::create_dir(&class).unwrap();
    let mut bad = Vec::new();
    for (i, file) in corpus.iter().enumerate() {
        fs::write(class.join(format!("{i:05}.jpg")), &file.bytes).unwrap();
        if !agree(file) {
            bad.push(i);
        }
    }
    let unknown = corpus.iter().filter(|file| file.sound.is_none()).count();
    let survived = corpus.len() - bad.len() - corpus.iter().filter(|file| file.sound == Some(true)).count();
    assert!(
        survived > unknown / 20 && survived < unknown * 4 / 5,
        "{survived} of {unknown} files with random damage pass as sound"
    );

    let dataset = Dataset::open(folder.path().to_str().unwrap()).unwrap();
    let report = verify(&dataset, 2, DEFAULT_MAX_PIXELS, &|_, _| {}).unwrap();
    let reported: Vec<usize> = report
        .bad
        .iter()
        .map(|bad| bad.location.name["class/".len()..].trim_end_matches(".jpg").parse().unwrap())
        .collect();
    assert_eq!(reported, bad, "verify");
}
