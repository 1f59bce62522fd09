//! `codinet-data verify` and the contact sheets of `codinet-data inspect`, on shards with planted faults.

use std::fs;
use std::path::Path;

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, DatasetInfo, Decoder, ShardWriter};
use turbojpeg::{Compressor, Image, PixelFormat, Subsamp};

use crate::program::{codinet_data, data_error, stdout};

/// A JPEG with detail, `side` pixels wide and high; each number makes another one.
fn jpeg(number: usize, side: usize, adjust: impl Fn(&mut Compressor)) -> Vec<u8> {
    let pixels: Vec<u8> = (0..side * side * 3).map(|i| ((i * i) >> 3) as u8 ^ (number * 31) as u8).collect();
    let mut compressor = Compressor::new().unwrap();
    compressor.set_quality(90).unwrap();
    compressor.set_subsamp(Subsamp::Sub2x2).unwrap();
    adjust(&mut compressor);
    let image =
        Image { pixels: &pixels[..], width: side, pitch: side * 3, height: side, format: PixelFormat::RGB };
    compressor.compress_to_vec(image).unwrap()
}

/// The JPEG with a segment more at its start.
fn with_segment(jpeg: &[u8], marker: u8, contents: &[u8]) -> Vec<u8> {
    let length = (contents.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xFF, marker], &length, contents, &jpeg[2..]].concat()
}

/// Contents of an APP1 segment: EXIF data of nothing but an orientation.
fn exif(orientation: u8) -> Vec<u8> {
    let mut exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend_from_slice(&[orientation, 0, 0, 0, 0, 0, 0, 0]);
    exif
}

fn png(pixel: &[u8], width: u32, height: u32) -> Vec<u8> {
    let channels = Channels::new(pixel.len()).unwrap();
    let pixels = pixel.repeat((width * height) as usize);
    Encoder::new(Encoding::Png).unwrap().encode(&pixels, width, height, channels).unwrap()
}

fn write(folder: &Path, samples: &[(&str, &str, Vec<u8>, u32)], classes: usize) {
    let mut writer = ShardWriter::new(folder, "x", 8).unwrap();
    for (key, extension, image, label) in samples {
        writer.write(key, extension, image, *label).unwrap();
    }
    let (shards, samples) = writer.finish().unwrap();
    let info = DatasetInfo {
        version: 1,
        name: "planted".into(),
        classes,
        channels: 3,
        image_size: None,
        samples,
        shards: shards.into(),
        class_names: Some((0..classes).map(|class| format!("kind {class}")).collect()),
    };
    info.save(folder).unwrap();
}

fn sound() -> Vec<(&'static str, &'static str, Vec<u8>, u32)> {
    let plain = |number| jpeg(number, 24, |_| {});
    vec![
        ("a/0", "jpg", plain(0), 0),
        ("a/1", "jpg", plain(1), 0),
        ("a/2", "jpg", plain(2), 0),
        ("a/3", "jpg", plain(3), 0),
        ("b/0", "jpg", plain(4), 1),
        ("b/copy", "jpg", plain(0), 1),
        ("b/progressive", "jpg", jpeg(5, 24, |jpeg| jpeg.set_progressive(true).unwrap()), 1),
        ("b/grey", "jpg", jpeg(6, 24, |jpeg| jpeg.set_subsamp(Subsamp::Gray).unwrap()), 1),
        ("b/tiled", "jpg", codinet_dataloader::jpeg::tile::transcode(&plain(7)).unwrap(), 1),
        ("b/restarts", "jpg", with_segment(&plain(10), 0xDD, &[0xFF, 0xFF]), 1),
        ("b/turned", "jpg", with_segment(&plain(8), 0xE1, &exif(6)), 1),
        ("b/upright", "jpg", with_segment(&plain(9), 0xE1, &exif(1)), 1),
        ("c/small", "png", png(&[1, 2, 3], 5, 4), 2),
        ("b/large", "png", png(&[7], 300, 200), 1),
    ]
}

#[test]
fn verify_counts_oddities_of_sound_images() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), &sound(), 4);
    let text = stdout(&codinet_data(&["verify", folder.path().to_str().unwrap(), "--threads", "3"]));
    for part in [
        "samples     14 in 2 shards",
        "        1  JPEG grey\n",
        "       11  JPEG YCbCr\n",
        "        1  PNG RGB\n",
        "        1  PNG grey\n",
        "1 progressive, 1 tiled (8.3 %)",
        "smallest 5x4, median 24x24, largest 300x200",
        "classes     4 of 0 to 9 samples, the middle one of 4",
        "small: class 3 kind 3, 0 samples",
        "small: class 2 kind 2, 1 samples",
        "turned      1 by",
        "x-000001.tar: b/turned.jpg: orientation 6",
        "duplicates  1, 1 of them with another label",
        "x-000000.tar: b/copy.jpg is ",
        "bad         0",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
    assert!(!text.contains("kind 0") && !text.contains("kind 1"), "large classes aren't named:\n{text}");
}

#[test]
fn verify_names_every_bad_sample() {
    let folder = tempfile::tempdir().unwrap();
    let mut samples = sound();
    let whole = jpeg(20, 64, |_| {});
    samples.push(("bad/cut", "jpg", whole[..whole.len() * 2 / 3].to_vec(), 0));
    samples.push(("bad/empty", "jpg", Vec::new(), 0));
    samples.push(("bad/page", "jpg", b"<html>".to_vec(), 0));
    samples.push(("bad/label", "jpg", whole.clone(), 4));
    let mut png = png(&[1, 2, 3], 50, 50);
    let middle = png.len() / 2;
    png[middle] ^= 0x55;
    samples.push(("bad/flipped", "png", png, 0));
    write(folder.path(), &samples, 4);
    let path = folder.path().to_str().unwrap();

    let output = codinet_data(&["verify", path, "--json"]);
    assert_eq!(output.status.code(), Some(3));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bad: Vec<(&str, &str)> = report["bad"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fault| (fault["key"].as_str().unwrap(), fault["reason"].as_str().unwrap()))
        .collect();
    let expected = [
        ("bad/cut", "broken JPEG"),
        ("bad/empty", "an empty file"),
        ("bad/page", "neither a JPEG nor a PNG"),
        ("bad/label", "label 4 is outside the 4 classes"),
        ("bad/flipped", "broken PNG"),
    ];
    assert_eq!(bad.len(), expected.len(), "{bad:?}");
    for ((key, reason), (expected_key, part)) in bad.iter().zip(expected) {
        assert!(*key == expected_key && reason.contains(part), "{key}: {reason}");
    }
    assert!(report["bad"][0]["shard"].as_str().unwrap().ends_with("x-000001.tar"));
    assert_eq!(report["classes"][4]["samples"], 1, "the stray label is a class of its own");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("5 bad of 19 samples"), "{error}");

    // A shard cut short is refused as a whole.
    let shard = folder.path().join("x-000000.tar");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 2000]).unwrap();
    let error = data_error(&codinet_data(&["verify", path]));
    assert!(error.contains("x-000000.tar: ") && error.contains("the shard again"), "{error}");
}

#[test]
fn images_of_a_folder_are_named_by_file_and_bad_ones_leave_the_benchmark() {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("class");
    fs::create_dir(&class).unwrap();
    fs::write(class.join("x.jpg"), jpeg(1, 300, |_| {})).unwrap();
    fs::write(class.join("x.png"), &png(&[1, 2, 3], 5, 4)[..40]).unwrap();
    let path = folder.path().to_str().unwrap();
    let output = codinet_data(&["verify", path]);
    let text = String::from_utf8(output.stdout).unwrap();
    let bad = format!("bad         1\n  {}: broken PNG", class.join("x.png").display());
    assert!(output.status.code() == Some(3) && text.contains(&bad), "{text}");

    for arguments in [&["bench", path][..], &["bench", path, "--brief"]] {
        let output = codinet_data(&[arguments, &["--epochs", "1", "--image-size", "32"]].concat());
        let note = String::from_utf8(output.stderr.clone()).unwrap();
        assert!(stdout(&output).len() > 3 && note.starts_with("1 of 2 samples are bad"), "{note}");
    }
    let error = data_error(&codinet_data(&["verify", path, "--max-pixels", "89999"]));
    assert!(error.contains("2 bad of 2 samples"), "{error}");
    for arguments in [&["bench", path][..], &["bench", path, "--brief"]] {
        let error = data_error(&codinet_data(&[arguments, &["--max-pixels", "89999"]].concat()));
        assert!(error.contains("all 2 samples are bad") && error.contains("limit of 89999"), "{error}");
    }
    let output = tempfile::tempdir().unwrap();
    let import = |more: &[&str]| {
        let output = output.path().to_str().unwrap();
        codinet_data(&[&["import", "imagefolder", "--src", path, "--output", output], more].concat())
    };
    let error = data_error(&import(&[]));
    assert!(
        error.contains("x.png") && error.contains("broken PNG") && error.contains("--skip-bad"),
        "{error}"
    );
    let text = stdout(&import(&["--skip-bad"]));
    assert!(text.contains("left out 1 bad images"), "{text}");
}

/// Pixel (x, y) of a PNG file.
fn pixels(path: &Path) -> (u32, u32, impl Fn(usize, usize) -> [u8; 3]) {
    let encoded = fs::read(path).unwrap();
    let mut decoder = Decoder::new();
    let header = decoder.header(&encoded).unwrap();
    let mut pixels = Vec::new();
    decoder.decode(&encoded, &header, Channels::Rgb, &mut pixels).unwrap();
    let width = header.width as usize;
    (header.width, header.height, move |x, y| pixels[(y * width + x) * 3..][..3].try_into().unwrap())
}

#[test]
fn contact_sheet_shows_samples_and_views() {
    const RED: [u8; 3] = [200, 10, 20];
    const BLUE: [u8; 3] = [0, 30, 220];
    const WHITE: [u8; 3] = [255; 3];
    let folder = tempfile::tempdir().unwrap();
    let samples = [("a", "png", png(&RED, 80, 40), 0), ("b", "png", png(&BLUE, 30, 60), 1)];
    write(folder.path(), &samples, 2);
    let sheet = folder.path().join("sheet.png");
    let draw = |more: &[&str]| {
        let paths = ["inspect", folder.path().to_str().unwrap(), "--sheet", sheet.to_str().unwrap()];
        codinet_data(&[&paths[..], more].concat())
    };
    let settings = ["--views", "9", "--image-size", "40", "--seed", "3", "--samples", "5"];
    let text = stdout(&draw(&settings));
    assert!(text.contains("drew 2 samples"), "{text}");
    // 10 columns of 40 and 11 gaps of 8; 2 rows of 8, 16 for the text, 4 and 40, and a gap.
    let (width, height, pixel) = pixels(&sheet);
    assert_eq!((width, height), (488, 144));
    let row_of =
        |colour: [u8; 3]| (0..2).find(|row| pixel(8 + 50, 8 + row * 68 + 20 + 20) == colour).unwrap();
    for (colour, inside, outside) in [(RED, (39, 19), (39, 20)), (BLUE, (19, 39), (20, 39))] {
        let top = 8 + row_of(colour) * 68 + 20;
        assert_eq!(pixel(8, top), colour, "the image as it is, fitted");
        assert_eq!(pixel(8 + inside.0, top + inside.1), colour);
        assert_eq!(pixel(8 + outside.0, top + outside.1), WHITE);
        for view in 1..=9 {
            let left = 8 + view * 48;
            assert_eq!([pixel(left, top), pixel(left + 39, top + 39)], [colour; 2], "view {view}");
            assert_eq!(pixel(left - 1, top), WHITE);
        }
        let text = (0..16 * 16).filter(|i| pixel(8 + i % 16, top - 20 + i / 16) == [0; 3]).count();
        assert!(text > 20 && text < 200, "a letter of {text} black pixels");
    }

    // The same seed draws the same sheet. Only a padded crop has a black border.
    let first = fs::read(&sheet).unwrap();
    stdout(&draw(&settings));
    assert_eq!(fs::read(&sheet).unwrap(), first);
    let pad = r#"{"train":{"crop":{"pad":{"pixels":20}},"flip":0.0}}"#;
    stdout(&draw(&["--transform", pad, "--image-size", "30", "--views", "30"]));
    let (_, _, pixel) = pixels(&sheet);
    let corners = (1..=30).filter(|view| pixel(8 + view * 38, 28) == [0; 3]).count();
    assert!((1..30).contains(&corners), "{corners} of 30 corners are black");

    for (option, value, what) in
        [("--transform", "{}", "--transform"), ("--image-size", "16000", "too large")]
    {
        let refused = draw(&[option, value]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains(what), "{refused:?}");
    }
    assert_eq!(codinet_data(&["inspect", "x", "--views", "3"]).status.code(), Some(2));
}

/// The corner of view 1 of a sheet's first row, which is black where the image is padded.
#[test]
fn contact_sheet_by_config_shows_training_views() {
    let folder = tempfile::tempdir().unwrap();
    let train = folder.path().join("train");
    write(&train, &[("a", "png", png(&[200, 10, 20], 40, 40), 0)], 2);
    let config = folder.path().join("my.yaml");
    let text = |crop: &str| {
        format!(
            "stages: [{{epochs: 1}}]\ndata:\n  train: {}\n  val: {}\n  classes: 2\n  views: 3\n  image_size: 40\n  flip: 0\n  crop: {crop}\n",
            train.display(),
            train.display()
        )
    };
    let sheet = folder.path().join("sheet.png");
    let draw = |more: &[&str]| {
        let arguments = ["inspect", "--config", config.to_str().unwrap()];
        codinet_data(&[&arguments[..], more].concat())
    };
    let corners = || {
        let (width, height, pixel) = pixels(&sheet);
        assert_eq!((width, height), (400, 76)); // 3 views of 40 pixels and the image, at least 400
        [1, 2, 3].map(|view| pixel(8 + view * 48, 28) == [0; 3])
    };
    fs::write(&config, text("none")).unwrap();
    stdout(&draw(&["--sheet", sheet.to_str().unwrap()]));
    assert_eq!(corners(), [false; 3]);
    fs::write(&config, text("{pad: {pixels: 39}}")).unwrap();
    stdout(&draw(&["--sheet", sheet.to_str().unwrap()]));
    assert!(corners().contains(&true), "a crop of a padded image shows its border");

    // Views that are far smaller than the images are named; those that fit are not.
    fs::write(&config, text("none").replace("image_size: 40", "image_size: 8")).unwrap();
    let output = draw(&[]);
    let warning = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(stdout(&output).contains("samples  1"));
    let part =
        "warning: views of 8x8 pixels show 4.0 % of a typical image (40x40); set data.crop to random_resized";
    assert!(warning.starts_with(part) && warning.trim_end().lines().count() == 1, "{warning}");
    fs::write(&config, text("none")).unwrap();
    assert!(draw(&[]).stderr.is_empty());

    fs::write(&config, text("none").replace("classes: 2", "classes: 3")).unwrap();
    let refused = draw(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("names 2 classes, not 3"), "{refused:?}");
    fs::write(&config, "data: {nothing: 1}\n").unwrap();
    let refused = draw(&[]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("my.yaml"), "{refused:?}");
    assert_eq!(draw(&["--seed", "3", "--sheet", "x.png"]).status.code(), Some(2), "the config has a seed");
}
