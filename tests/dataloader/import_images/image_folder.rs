//! Folders of images, a class each; and what all imports of encoded images have in common: going on, tiles, sizes.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use codinet_dataloader::jpeg;

use super::*;

/// Five classes of `each` images, in folders with plain names.
fn write_classes(folder: &Path, each: usize) {
    for (label, class) in ["ant", "bee", "cat", "dog", "eel"].iter().enumerate() {
        let class = folder.join(class);
        fs::create_dir_all(&class).unwrap();
        for i in 0..each {
            fs::write(class.join(format!("{i:04}.jpg")), photograph(label * each + i)).unwrap();
        }
    }
}

#[test]
fn killed_import_resumes_to_the_same_bytes() {
    let source = tempfile::tempdir().unwrap();
    write_classes(source.path(), 240);
    let outs = tempfile::tempdir().unwrap();
    let whole = outs.path().join("a/set");
    let killed = outs.path().join("b/set");
    stdout(&import("imagefolder", source.path(), &whole, &["--shard-size", "4", "--threads", "2"]));

    let mut child = Command::new(env!("CARGO_BIN_EXE_codinet-data"))
        .args(["import", "imagefolder", "--shard-size", "4", "--threads", "1", "--src"])
        .args([source.path(), "--output".as_ref(), &killed])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !killed.join("set-000003.tar").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is written");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap(); // SIGKILL
    child.wait().unwrap();
    assert!(
        !killed.join("dataset.json").exists() && !killed.join("set-000299.tar").exists(),
        "killed too late"
    );
    // What a disk may do on top of it: a shard with its name is not whole.
    let cut = fs::read(killed.join("set-000001.tar")).unwrap();
    fs::write(killed.join("set-000001.tar"), &cut[..cut.len() / 2]).unwrap();

    let written =
        |number: u32| fs::metadata(killed.join(format!("set-{number:06}.tar"))).unwrap().modified().unwrap();
    let before = [written(0), written(2)];
    let text =
        stdout(&import("imagefolder", source.path(), &killed, &["--shard-size", "4", "--threads", "2"]));
    assert!(text.contains("wrote") && text.contains("(samples: 1200, shards: 300)"), "{text}");
    assert_eq!([written(0), written(2)], before, "whole shards were written again");
    let expected = files(&whole);
    let found = files(&killed);
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected);
    let text = stdout(&import("imagefolder", source.path(), &killed, &["--shard-size", "4"]));
    assert!(text.contains("already complete"), "{text}");
}

#[test]
fn other_settings_are_refused() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    write_classes(source.path(), 3);
    let out = outs.path().join("set");
    stdout(&import("imagefolder", source.path(), &out, &["--shard-size", "4"]));
    let before = files(&out);
    for (settings, reason) in [
        (vec!["--shard-size", "5"], "begun with shard_size 4, now 5"),
        (vec!["--shard-size", "4", "--seed", "1"], "begun with seed 0, now 1"),
        (vec!["--shard-size", "4", "--no-tile"], "begun with tile true, now false"),
        (vec!["--shard-size", "4", "--max-side", "8"], "begun with max_side null, now 8"),
    ] {
        let error = data_error(&import("imagefolder", source.path(), &out, &settings));
        assert!(error.contains("import.json") && error.contains(reason), "no {reason} in: {error}");
    }
    fs::write(source.path().join("ant/new.jpg"), photograph(77)).unwrap();
    let error = data_error(&import("imagefolder", source.path(), &out, &["--shard-size", "4"]));
    assert!(error.contains("begun with other samples or labels"), "{error}");
    assert!(files(&out) == before);
    fs::remove_file(out.join("import.json")).unwrap();
    let error = data_error(&import("imagefolder", source.path(), &out, &["--shard-size", "4"]));
    assert!(error.contains("holds shards but no import.json"), "{error}");

    let lock = File::open(outs.path()).unwrap();
    lock.lock().unwrap();
    let error = data_error(&import("imagefolder", source.path(), outs.path(), &[]));
    assert!(error.contains("another import or fetch is writing here"), "{error}");
}

#[test]
fn odd_images_are_kept_and_bad_ones_named() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    write_classes(source.path(), 2);
    let cat = source.path().join("cat");
    let mut encoder = Encoder::new(Encoding::Png).unwrap();
    let png = encoder.encode(&[9; 5 * 4 * 3], 5, 4, Channels::Rgb).unwrap();
    let cmyk = turbojpeg::Image {
        pixels: &[99; 4 * 64][..],
        width: 8,
        pitch: 32,
        height: 8,
        format: turbojpeg::PixelFormat::CMYK,
    };
    let cmyk = turbojpeg::compress(cmyk, 90, turbojpeg::Subsamp::None).unwrap().to_vec();
    let trailing = [photograph(500), b"trailing".to_vec()].concat();
    fs::create_dir(cat.join("deeper")).unwrap();
    fs::write(cat.join("a.png.v2.JPEG"), &png).unwrap();
    fs::write(cat.join("cmyk.jpeg"), &cmyk).unwrap();
    fs::write(cat.join("deeper/trailing.JPG"), &trailing).unwrap();
    fs::write(cat.join("notes.txt"), "mine").unwrap();
    fs::write(source.path().join("readme.txt"), "not a class").unwrap();
    let out = outs.path().join("odd");
    let text = stdout(&import("imagefolder", source.path(), &out, &["--no-tile"]));
    assert!(
        text.contains("samples: 13") && text.contains("left out 2 .txt files, first readme.txt"),
        "{text}"
    );
    let found: BTreeMap<String, (u32, Vec<u8>)> =
        samples(&out).into_iter().map(|(key, label, image)| (key, (label, image))).collect();
    assert_eq!(found["cat/a_png_v2"], (2, png));
    assert_eq!(found["cat/cmyk"], (2, cmyk));
    assert_eq!(found["cat/trailing"], (2, trailing));
    let dataset = Dataset::open(out.to_str().unwrap()).unwrap();
    let names: BTreeSet<&str> = (0..13).map(|sample| dataset.sample_info(sample).unwrap().name).collect();
    assert!(names.contains("cat/a_png_v2.png") && names.contains("cat/trailing.jpg"), "{names:?}");

    fs::write(cat.join("empty.jpg"), b"").unwrap();
    fs::write(cat.join("page.jpg"), b"<html>").unwrap();
    let out = outs.path().join("bad");
    let strict = import("imagefolder", source.path(), &out, &["--shard-size", "1", "--threads", "1"]);
    let error = data_error(&strict);
    assert!(error.contains("cat/") && error.contains("--skip-bad"), "{error}");
    let skip = ["--shard-size", "1", "--skip-bad"]; // shards of nothing but a bad image aren't made
    let text = stdout(&import("imagefolder", source.path(), &out, &skip));
    assert!(text.contains("(samples: 13, shards: 13)") && text.contains("left out 2 bad images"), "{text}");
    let list = fs::read_to_string(out.join("bad_imports.txt")).unwrap();
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines.len() == 2, "{list}");
    assert!(lines[0].contains("cat/empty.jpg, key 'cat/empty': an empty file"), "{list}");
    assert!(lines[1].contains("cat/page.jpg, key 'cat/page': neither a JPEG nor a PNG"), "{list}");
    assert_eq!(samples(&out).len(), 13);
    assert!(stdout(&import("imagefolder", source.path(), &out, &skip)).contains("already complete"));
    let error = data_error(&import("imagefolder", source.path(), &out, &["--shard-size", "1"]));
    assert!(error.contains("--skip-bad"), "{error}");
    // Repaired images are imported, and the list of bad ones is removed.
    for name in ["empty.jpg", "page.jpg"] {
        fs::write(cat.join(name), photograph(501)).unwrap();
    }
    let text = stdout(&import("imagefolder", source.path(), &out, &["--shard-size", "1"]));
    assert!(text.contains("(samples: 15, shards: 15)") && !out.join("bad_imports.txt").exists(), "{text}");
}

#[test]
fn max_side_shrinks_and_reports_it() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    write_classes(source.path(), 4);
    let out = outs.path().join("set");
    let text = stdout(&import("imagefolder", source.path(), &out, &["--max-side", "17", "--no-tile"]));
    assert!(text.contains("this is other data"), "{text}");
    let mut shrunk = 0;
    for (key, label, image) in samples(&out) {
        let number = label as usize * 4 + key.rsplit('/').next().unwrap().parse::<usize>().unwrap();
        let before = photograph(number);
        let after = turbojpeg::read_header(&image).unwrap();
        let header = turbojpeg::read_header(&before).unwrap();
        assert!(after.width.max(after.height) <= 17);
        if header.width.max(header.height) > 17 {
            shrunk += 1;
            assert_eq!(after.width.max(after.height), 17);
        } else {
            assert_eq!(image, before);
        }
    }
    assert!((1..20).contains(&shrunk), "{shrunk}");
}

/// Unless they are asked to stay: the same pixels, in tiles.
#[test]
fn jpegs_become_tiled() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    write_classes(source.path(), 4);
    for (flag, tiled) in [(None, true), (Some("--no-tile"), false)] {
        let out = outs.path().join(flag.unwrap_or("tiled"));
        stdout(&import("imagefolder", source.path(), &out, flag.as_slice()));
        for (key, label, image) in samples(&out) {
            let before =
                photograph(label as usize * 4 + key.rsplit('/').next().unwrap().parse::<usize>().unwrap());
            let expected = if tiled { jpeg::tile::transcode(&before).unwrap() } else { before };
            assert!(image == expected, "{key}");
        }
    }
}

#[test]
fn folders_that_are_not_classes_are_refused() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let refused = || data_error(&import("imagefolder", source.path(), out.path(), &[]));
    assert!(refused().contains("no classes"));
    fs::create_dir(source.path().join("train")).unwrap();
    fs::create_dir(source.path().join("val")).unwrap();
    assert!(refused().contains("look like splits, not classes"));
    fs::create_dir(source.path().join("zebra")).unwrap();
    assert!(refused().contains("train: holds no .jpg, .jpeg or .png"));
    let error = data_error(&import("imagefolder", &source.path().join("nowhere"), out.path(), &[]));
    assert!(error.contains("nowhere: not a folder"), "{error}");
}
