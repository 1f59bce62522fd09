//! `codinet-data import` of ImageNet, folders of images and Parquet files, from small ones made here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use codinet_dataloader::encode::{Encoder, Encoding};
use codinet_dataloader::{Channels, Dataset, jpeg};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};

#[path = "dataloader_program.rs"]
mod program;
use program::{codinet_data, data_error, stdout};

fn import(kind: &str, source: &Path, out: &Path, more: &[&str]) -> Output {
    let paths = ["--src", source.to_str().unwrap(), "--out", out.to_str().unwrap()];
    codinet_data(&[&["import", kind], &paths[..], more].concat())
}

/// A small JPEG; each number makes another one.
fn photograph(number: usize) -> Vec<u8> {
    let (width, height) = (16 + number % 5, 12 + number % 7);
    let pixels: Vec<u8> = (0..width * height * 3).map(|i| (i * (number + 3) / 2 % 251) as u8).collect();
    let mut encoder = Encoder::new(Encoding::Jpeg { quality: 90 }).unwrap();
    encoder.encode(&pixels, width as u32, height as u32, Channels::Rgb).unwrap()
}

fn tar(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, &contents[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// In the devkit's order, in which class 1 of the devkit is class 3 by sorted ids, and so on.
const WNIDS: [&str; 5] = ["n03000003", "n01000001", "n05000005", "n02000002", "n04000004"];

/// The number of a class by sorted ids.
fn class(wnid: &str) -> u32 {
    wnid[2..3].parse::<u32>().unwrap() - 1
}

/// 12 images of each class: file name, contents.
fn training_images(wnid: &str) -> Vec<(String, Vec<u8>)> {
    (0..12).map(|i| (format!("{wnid}_{}.JPEG", i * 7), photograph(class(wnid) as usize * 100 + i))).collect()
}

/// 10 images: file name, contents, the devkit's number of their class.
fn validation_images() -> Vec<(String, Vec<u8>, usize)> {
    (1..=10).map(|i| (format!("ILSVRC2012_val_{i:08}.JPEG"), photograph(900 + i), i * 3 % 5 + 1)).collect()
}

/// The three archives, as published.
fn write_archives(folder: &Path) {
    let classes: Vec<_> =
        WNIDS.iter().map(|wnid| (format!("{wnid}.tar"), tar(&training_images(wnid)))).collect();
    fs::write(folder.join("ILSVRC2012_img_train.tar"), tar(&classes)).unwrap();
    let images: Vec<_> =
        validation_images().into_iter().rev().map(|(name, image, _)| (name, image)).collect();
    fs::write(folder.join("ILSVRC2012_img_val.tar"), tar(&images)).unwrap();
    write_devkit(folder, &meta(), &truth());
}

/// What class each validation image has, by the devkit's numbers.
fn truth() -> String {
    validation_images().iter().map(|(_, _, number)| format!("{number}\n")).collect()
}

fn write_devkit(folder: &Path, meta: &[u8], truth: &str) {
    let devkit = tar(&[
        ("ILSVRC2012_devkit_t12/readme.txt".into(), b"hello".to_vec()),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt".into(), truth.into()),
        ("ILSVRC2012_devkit_t12/data/meta.mat".into(), meta.into()),
    ]);
    let file = File::create(folder.join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    let mut zipped = GzEncoder::new(file, Compression::default());
    zipped.write_all(&devkit).unwrap();
    zipped.finish().unwrap();
}

/// The same images, unpacked.
fn write_folders(folder: &Path) {
    for wnid in WNIDS {
        fs::create_dir_all(folder.join("train").join(wnid)).unwrap();
        for (name, image) in training_images(wnid) {
            fs::write(folder.join("train").join(wnid).join(name), image).unwrap();
        }
    }
    fs::create_dir(folder.join("val")).unwrap();
    for (name, image, _) in validation_images() {
        fs::write(folder.join("val").join(name), image).unwrap();
    }
}

/// A data element of a MAT-file: of up to 4 bytes in the tag itself, above it padded to 8.
fn element(kind: u32, bytes: &[u8]) -> Vec<u8> {
    let size = bytes.len() as u32;
    let mut element = match size {
        1..=4 => (size << 16 | kind).to_le_bytes().to_vec(),
        _ => [kind.to_le_bytes(), size.to_le_bytes()].concat(),
    };
    element.extend_from_slice(bytes);
    element.resize(element.len().next_multiple_of(8), 0);
    element
}

/// An array without a name: its class, the type its data are stored as, and the data.
fn value(class: u8, columns: u32, stored: u32, data: &[u8]) -> Vec<u8> {
    let dimensions = [1_u32.to_le_bytes(), columns.to_le_bytes()].concat();
    let header = [element(6, &[class, 0, 0, 0, 0, 0, 0, 0]), element(5, &dimensions), element(1, b"")];
    element(14, &[header.concat(), element(stored, data)].concat())
}

/// `meta.mat`: the five classes, and two synsets above them, with the fields of the published file.
fn meta() -> Vec<u8> {
    let text = |text: &str| {
        let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        value(4, text.len() as u32, 4, &units)
    };
    let double = |number: f64| value(6, 1, 9, &number.to_le_bytes());
    let small = |number: u8| value(6, 1, 2, &[number]);
    let mut records = Vec::new();
    let above = [("n00001740", 2_u8), ("n00001930", 3)];
    let synsets = WNIDS.iter().map(|wnid| (*wnid, 0)).chain(above);
    for (position, (wnid, children)) in synsets.enumerate() {
        records.extend(double(position as f64 + 1.0));
        records.extend(text(wnid));
        records.extend(text("tench, Tinca tinca"));
        records.extend(small(children));
        records.extend(value(6, children.into(), 2, &vec![7; children.into()]));
    }
    let names = ["ILSVRC2012_ID", "WNID", "words", "num_children", "children"];
    let names: Vec<u8> = names
        .iter()
        .flat_map(|name| {
            let mut padded = name.as_bytes().to_vec();
            padded.resize(18, 0);
            padded
        })
        .collect();
    let parts = [
        element(6, &[2, 0, 0, 0, 0, 0, 0, 0]),
        element(5, &[7_u32.to_le_bytes(), 1_u32.to_le_bytes()].concat()),
        element(1, b"synsets"),
        element(5, &18_u32.to_le_bytes()),
        element(1, &names),
        records,
    ];
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&element(14, &parts.concat())).unwrap();
    let zipped = zlib.finish().unwrap();
    let mut file = b"MATLAB 5.0 MAT-file, Platform: GLNXA64".to_vec();
    file.resize(124, b' ');
    file.extend_from_slice(&[0, 1, b'I', b'M']);
    file.extend([&15_u32.to_le_bytes()[..], &(zipped.len() as u32).to_le_bytes(), &zipped].concat());
    file
}

/// Every sample: key, label, encoded image, in the order of the shards.
fn samples(folder: &Path) -> Vec<(String, u32, Vec<u8>)> {
    let dataset = Dataset::open(folder.to_str().unwrap()).unwrap();
    let sample = |number| {
        let mut image = Vec::new();
        let info = dataset.read(number, &mut image).unwrap();
        (info.key.to_owned(), info.label, image)
    };
    (0..dataset.len()).map(sample).collect()
}

/// All files but indexes, which hold the time of writing: path in the folder, contents.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else if !name.ends_with(".idx") {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn imagenet_from_archives_and_from_folders_is_the_same() {
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_archives(source.path());
    let text = stdout(&import("imagenet", source.path(), out.path(), &["--shard-size", "16", "--no-tile"]));
    assert!(text.contains("train (samples: 60, shards: 4)") && text.contains("val (samples: 10, shards: 1)"));

    let mut found = samples(&out.path().join("train"));
    let mixed: BTreeSet<u32> = found[..16].iter().map(|sample| sample.1).collect();
    assert!(mixed.len() >= 4, "the first shard holds the classes {mixed:?} alone");
    let mut expected: Vec<_> = WNIDS
        .iter()
        .flat_map(|wnid| {
            let image = move |(name, image): (String, Vec<u8>)| {
                (format!("{wnid}/{}", name.strip_suffix(".JPEG").unwrap()), class(wnid), image)
            };
            training_images(wnid).into_iter().map(image)
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let info = Dataset::open(out.path().join("train").to_str().unwrap()).unwrap().info().unwrap().clone();
    assert_eq!(
        (info.name.as_str(), info.classes, info.channels, info.image_size),
        ("imagenet train", 5, 3, None)
    );
    assert_eq!(info.class_names.unwrap(), ["n01000001", "n02000002", "n03000003", "n04000004", "n05000005"]);

    let mut found = samples(&out.path().join("val"));
    found.sort();
    let expected: Vec<_> = validation_images()
        .into_iter()
        .map(|(name, image, number)| {
            (name.strip_suffix(".JPEG").unwrap().to_owned(), class(WNIDS[number - 1]), image)
        })
        .collect();
    assert_eq!(found, expected);

    // From folders, with the devkit unpacked, by other threads: the same bytes.
    let (folders, again) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_folders(folders.path());
    let data = folders.path().join("ILSVRC2012_devkit_t12/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("meta.mat"), meta()).unwrap();
    fs::write(data.join("ILSVRC2012_validation_ground_truth.txt"), truth()).unwrap();
    let settings = ["--shard-size", "16", "--no-tile", "--threads", "3"];
    stdout(&import("imagenet", folders.path(), again.path(), &settings));
    assert!(files(out.path()) == files(again.path()));

    // One split alone, of validation images in folders of their classes; training numbers them all the same.
    let classes = tempfile::tempdir().unwrap();
    for (name, image, number) in validation_images().into_iter().filter(|(_, _, number)| *number != 2) {
        let folder = classes.path().join("val").join(WNIDS[number - 1]);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(name), image).unwrap();
    }
    fs::copy(source.path().join("ILSVRC2012_img_train.tar"), classes.path().join("ILSVRC2012_img_train.tar"))
        .unwrap();
    let val = tempfile::tempdir().unwrap();
    stdout(&import("imagenet", classes.path(), val.path(), &["--split", "val"]));
    let labels: BTreeSet<u32> = samples(&val.path().join("val")).iter().map(|sample| sample.1).collect();
    assert_eq!(labels, [1, 2, 3, 4].into());
    assert!(!val.path().join("train").exists());
}

#[test]
fn validation_labels_by_a_list() {
    let source = tempfile::tempdir().unwrap();
    write_archives(source.path());
    fs::remove_file(source.path().join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    let list = source.path().join("labels.txt");
    let val = |lines: Vec<String>| {
        fs::write(&list, lines.join("\n") + "\n").unwrap();
        let out = tempfile::tempdir().unwrap();
        let more = ["--split", "val", "--val-labels", list.to_str().unwrap()];
        (import("imagenet", source.path(), out.path(), &more), out)
    };
    let labels = |(output, out): (Output, tempfile::TempDir)| {
        stdout(&output);
        let mut found = samples(&out.path().join("val"));
        found.sort();
        found.into_iter().map(|sample| sample.1).collect::<Vec<_>>()
    };
    let wnid = |number: &usize| WNIDS[number - 1].to_owned();
    let numbers: Vec<usize> = validation_images().iter().map(|image| image.2).collect();
    let expected: Vec<u32> = numbers.iter().map(|number| class(&wnid(number))).collect();
    assert_eq!(labels(val(numbers.iter().map(wnid).collect())), expected);
    assert_eq!(labels(val(expected.iter().map(u32::to_string).collect())), expected);
    let named =
        validation_images().into_iter().rev().map(|(name, _, number)| format!("{name} {}", wnid(&number)));
    assert_eq!(labels(val(named.collect())), expected);

    let cases: [(Vec<String>, &str); 6] = [
        (vec!["0".into(); 9], "9 labels for the 10 images"),
        (vec!["5".into(); 10], "label 5 is outside the 5 classes; they are numbered from 0"),
        (vec!["n09999999".into(); 10], "'n09999999' isn't one of the 5 classes"),
        (vec!["cat".into(); 10], "line 1: 'cat' is neither a class number nor a WordNet id"),
        (vec!["x.JPEG 1".into(); 2], "line 2: 'x.JPEG' is here twice"),
        (vec!["x.JPEG 1".into()], "no label for 'ILSVRC2012_val_00000001.JPEG'"),
    ];
    for (lines, reason) in cases {
        let error = data_error(&val(lines).0);
        assert!(error.contains("labels.txt") && error.contains(reason), "no {reason} in: {error}");
    }
    // Without training images, numbers are of the 1,000 classes.
    fs::remove_file(source.path().join("ILSVRC2012_img_train.tar")).unwrap();
    assert_eq!(labels(val(vec!["999".into(); 10])), [999; 10]);
    let error = data_error(&val(vec!["1000".into(); 10]).0);
    assert!(error.contains("label 1000 is outside the 1000 classes"), "{error}");
    let out = tempfile::tempdir().unwrap();
    let error = data_error(&import("imagenet", source.path(), out.path(), &["--split", "val"]));
    assert!(error.contains("put ILSVRC2012_devkit_t12.tar.gz beside them"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "refused before anything was written");
}

#[test]
fn broken_imagenet_archives_are_refused() {
    let source = tempfile::tempdir().unwrap();
    let train = source.path().join("ILSVRC2012_img_train.tar");
    let refused = || {
        let out = tempfile::tempdir().unwrap();
        let error = data_error(&import("imagenet", source.path(), out.path(), &["--split", "train"]));
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
        error
    };
    assert!(refused().contains("none of [\"ILSVRC2012_img_train.tar\""));
    write_archives(source.path());
    let whole = fs::read(&train).unwrap();
    fs::write(&train, &whole[..whole.len() * 2 / 3]).unwrap();
    assert!(refused().contains("ILSVRC2012_img_train.tar: cut short inside 'n0"));
    let class = tar(&training_images(WNIDS[0]));
    // A class archive cut short inside a whole one; one that isn't a tar; a name that leads out of the
    // folder.
    fs::write(&train, tar(&[("n01000001.tar".into(), class[..class.len() / 2].to_vec())])).unwrap();
    assert!(refused().contains("cut short"));
    fs::write(&train, tar(&[("n01000001.tar".into(), vec![b'x'; 4096])])).unwrap();
    assert!(refused().contains("not a readable tar archive"));
    fs::write(&train, tar(&[("...tar".into(), class.clone()), ("n01000001.tar".into(), class.clone())]))
        .unwrap();
    let out = tempfile::tempdir().unwrap();
    stdout(&import("imagenet", source.path(), out.path(), &["--split", "train"]));
    assert_eq!(samples(&out.path().join("train")).len(), 12, "only the class with a proper name is taken");
    fs::write(&train, tar(&[("photos.tar".into(), class)])).unwrap();
    assert!(refused().contains("'photos' isn't called by a WordNet id"));
}

#[test]
fn a_broken_devkit_is_refused() {
    let source = tempfile::tempdir().unwrap();
    write_archives(source.path());
    let refused = |meta: &[u8], truth: &str| {
        write_devkit(source.path(), meta, truth);
        let out = tempfile::tempdir().unwrap();
        let error = data_error(&import("imagenet", source.path(), out.path(), &["--split", "val"]));
        assert!(error.contains("ILSVRC2012_devkit_t12.tar.gz: "), "{error}");
        error
    };
    let whole = meta();
    for keep in [0, 100, 130, 150, whole.len() / 2, whole.len() - 1] {
        assert!(refused(&whole[..keep], &truth()).contains("meta.mat: "), "{keep} of {} bytes", whole.len());
    }
    assert!(refused(&whole, &truth().replace('1', "6")).contains("a line that isn't a class's number"));
    assert!(refused(&whole, "1\n2\n").contains("2 labels for the 10 images"));
}

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
fn an_import_that_was_killed_goes_on_to_the_same_bytes() {
    let source = tempfile::tempdir().unwrap();
    write_classes(source.path(), 240);
    let outs = tempfile::tempdir().unwrap();
    let (whole, killed) = (outs.path().join("a/set"), outs.path().join("b/set"));
    stdout(&import("imagefolder", source.path(), &whole, &["--shard-size", "4", "--threads", "2"]));

    let mut child = Command::new(env!("CARGO_BIN_EXE_codinet-data"))
        .args(["import", "imagefolder", "--shard-size", "4", "--threads", "1", "--src"])
        .args([source.path(), "--out".as_ref(), &killed])
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
    let (expected, found) = (files(&whole), files(&killed));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(found == expected);
    let text = stdout(&import("imagefolder", source.path(), &killed, &["--shard-size", "4"]));
    assert!(text.contains("already complete"), "{text}");
}

#[test]
fn other_settings_are_refused() {
    let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
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
    assert!(error.contains("shards that no import.json speaks of"), "{error}");

    let lock = File::open(outs.path()).unwrap();
    lock.lock().unwrap();
    let error = data_error(&import("imagefolder", source.path(), outs.path(), &[]));
    assert!(error.contains("another import is writing here"), "{error}");
}

#[test]
fn odd_images_are_kept_and_bad_ones_named() {
    let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
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
    assert!(text.contains("samples: 13") && text.contains("passed over 1 files"), "{text}");
    let found: BTreeMap<String, (u32, Vec<u8>)> =
        samples(&out).into_iter().map(|(key, label, image)| (key, (label, image))).collect();
    assert_eq!(found["cat/a_png_v2"], (2, png));
    assert_eq!(found["cat/cmyk"], (2, cmyk));
    assert_eq!(found["cat/trailing"], (2, trailing));
    let dataset = Dataset::open(out.to_str().unwrap()).unwrap();
    let names: BTreeSet<&str> = (0..13).map(|sample| dataset.meta(sample).unwrap().name).collect();
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
}

#[test]
fn max_side_shrinks_and_says_so() {
    let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_classes(source.path(), 4);
    let out = outs.path().join("set");
    let text = stdout(&import("imagefolder", source.path(), &out, &["--max-side", "17", "--no-tile"]));
    assert!(text.contains("this is other data"), "{text}");
    let mut shrunk = 0;
    for (key, label, image) in samples(&out) {
        let number = label as usize * 4 + key.rsplit('/').next().unwrap().parse::<usize>().unwrap();
        let (before, after) = (photograph(number), turbojpeg::read_header(&image).unwrap());
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
    let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
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
    let (source, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let refused = || data_error(&import("imagefolder", source.path(), out.path(), &[]));
    assert!(refused().contains("no classes"));
    fs::create_dir(source.path().join("train")).unwrap();
    fs::create_dir(source.path().join("val")).unwrap();
    assert!(refused().contains("look like splits, not classes"));
    fs::create_dir(source.path().join("zebra")).unwrap();
    assert!(refused().contains("class 'train': no .jpg, .jpeg or .png in it"));
    let error = data_error(&import("imagefolder", &source.path().join("nowhere"), out.path(), &[]));
    assert!(error.contains("nowhere: not a folder"), "{error}");
}

#[cfg(feature = "parquet")]
mod parquet_files {
    use std::sync::Arc;

    use parquet::basic::Compression;
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::metadata::KeyValue;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    /// Images and labels.
    type Rows = Vec<(Option<Vec<u8>>, i64)>;

    /// As the `datasets` library writes it.
    fn write(path: &Path, groups: &[Rows]) {
        let schema = "message schema {
            optional group image { optional binary bytes; optional binary path (STRING); }
            optional int64 label;
        }";
        let names = r#"{"info": {"features": {"label": {"names": ["tench", "goldfish", "shark"]}}}}"#;
        let metadata = vec![KeyValue::new("huggingface".to_owned(), names.to_owned())];
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_key_value_metadata(Some(metadata))
            .build();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let file = File::create(path).unwrap();
        let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
        for rows in groups {
            let mut group = writer.next_row_group().unwrap();
            let images: Vec<ByteArray> =
                rows.iter().filter_map(|row| row.0.clone().map(Into::into)).collect();
            let levels: Vec<i16> = rows.iter().map(|row| if row.0.is_some() { 2 } else { 1 }).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), None).unwrap();
            column.close().unwrap();
            let names = vec![ByteArray::from("x.JPEG"); rows.len()];
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&names, Some(&vec![2; rows.len()]), None).unwrap();
            column.close().unwrap();
            let labels: Vec<i64> = rows.iter().map(|row| row.1).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        writer.close().unwrap();
    }

    fn rows(first: usize, count: usize) -> Rows {
        (first..first + count).map(|number| (Some(photograph(number)), number as i64 % 3)).collect()
    }

    #[test]
    fn parquet_becomes_shards() {
        let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        write(&source.path().join("train-00000-of-00002.parquet"), &[rows(0, 10), vec![], rows(10, 7)]);
        write(&source.path().join("train-00001-of-00002.parquet"), &[rows(17, 13)]);
        let out = outs.path().join("train");
        let settings = ["--shard-size", "8", "--no-tile"];
        let text = stdout(&import("parquet", source.path(), &out, &settings));
        assert!(text.contains("train (samples: 30, shards: 4)"), "{text}");
        let mut found = samples(&out);
        let order: Vec<String> = found.iter().map(|sample| sample.0.clone()).collect();
        found.sort();
        assert_ne!(order, found.iter().map(|sample| sample.0.clone()).collect::<Vec<_>>(), "not shuffled");
        for (number, (key, label, image)) in found.into_iter().enumerate() {
            let (file, row) = if number < 17 { (0, number) } else { (1, number - 17) };
            assert_eq!(key, format!("train-{file:05}-of-00002/{row:06}"));
            assert_eq!((label as usize, image), (number % 3, photograph(number)));
        }
        let info = Dataset::open(out.to_str().unwrap()).unwrap().info().unwrap().clone();
        assert_eq!(info.class_names.unwrap(), ["tench", "goldfish", "shark"]);

        // Without a shard and the last word, as after a kill: the same bytes again.
        let before = files(&out);
        fs::remove_file(out.join("train-000002.tar")).unwrap();
        fs::remove_file(out.join("dataset.json")).unwrap();
        let glob = source.path().join("train-*.parquet");
        stdout(&import("parquet", &glob, &out, &[&settings[..], &["--threads", "3"]].concat()));
        assert!(files(&out) == before);
    }

    /// Row groups of one file are read by several threads at a time.
    #[test]
    fn threads_do_not_disturb_one_another() {
        let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // Nothing is decoded here, so that anything that begins like a JPEG will do; it can't be compressed.
        let image = |number: usize| {
            let mut state = number as u64 + 1;
            let mut noise = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            [vec![0xFF, 0xD8], (0..200_000).map(|_| noise()).collect()].concat()
        };
        let groups: Vec<Rows> =
            (0..8).map(|group| (0..40).map(|row| (Some(image(group * 40 + row)), 1)).collect()).collect();
        write(&source.path().join("train.parquet"), &groups);
        let out = outs.path().join("train");
        stdout(&import(
            "parquet",
            source.path(),
            &out,
            &["--shard-size", "8", "--no-tile", "--threads", "4"],
        ));
        let mut found = samples(&out);
        found.sort();
        assert_eq!(found.len(), 320);
        for (number, (key, _, found)) in found.into_iter().enumerate() {
            assert!(found == image(number), "{key}");
        }
    }

    #[test]
    fn parquet_that_cannot_be_trained_on_is_refused() {
        let (source, outs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let out = outs.path().join("train");
        let refused = |reason: &str| {
            let error = data_error(&import("parquet", source.path(), &out, &[]));
            assert!(error.contains(reason), "no {reason} in: {error}");
        };
        refused("no .parquet files here");
        let train = source.path().join("train-00000-of-00001.parquet");
        write(&train, &[vec![(Some(photograph(0)), -1)]]);
        refused("row 0 has label -1: no class");
        write(&train, &[vec![(Some(photograph(0)), 3)]]);
        refused("label 3 is outside the 3 classes");
        write(&train, &[]);
        refused("no rows in it");
        write(&train, &[vec![(Some(photograph(0)), 0), (None, 1)]]);
        refused("key 'train-00000-of-00001/000001': an empty file");
        let whole = fs::read(&train).unwrap();
        fs::write(&train, &whole[..whole.len() - 9]).unwrap();
        refused("not a readable Parquet file");
        fs::write(source.path().join("test-00000-of-00001.parquet"), &whole).unwrap();
        refused("files of the splits {\"test\", \"train\"}");
    }
}
