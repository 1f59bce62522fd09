//! ImageNet, from its archives and unpacked.

use std::io::Write;
use std::process::Output;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;
use crate::published::{array, compressed, element, mat};

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

/// An array of one row without a name: its class, the type its data are stored as, and the data.
fn value(class: u8, columns: u32, stored: u32, data: &[u8]) -> Vec<u8> {
    array("", class, &[1, columns], &[element(stored, data)])
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
    let names: Vec<u8> = names.iter().flat_map(|name| format!("{name:\0<18}").into_bytes()).collect();
    let contents = [element(5, &18_u32.to_le_bytes()), element(1, &names), records];
    mat(&[compressed(&array("synsets", 2, &[7, 1], &contents))])
}

#[test]
fn imagenet_from_archives_and_from_folders_is_the_same() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    write_archives(source.path());
    let text = stdout(&import("imagenet", source.path(), out.path(), &["--shard-size", "16", "--no-tile"]));
    assert!(text.contains("train (samples: 60, shards: 4)") && text.contains("val (samples: 10, shards: 1)"));

    let mut found = samples(&out.path().join("train"));
    let mixed: BTreeSet<u32> = found[..16].iter().map(|sample| sample.1).collect();
    assert!(mixed.len() >= 4, "the first shard holds only the classes {mixed:?}");
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
    let folders = tempfile::tempdir().unwrap();
    let again = tempfile::tempdir().unwrap();
    write_folders(folders.path());
    let data = folders.path().join("ILSVRC2012_devkit_t12/data");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("meta.mat"), meta()).unwrap();
    fs::write(data.join("ILSVRC2012_validation_ground_truth.txt"), truth()).unwrap();
    let settings = ["--shard-size", "16", "--no-tile", "--threads", "3"];
    stdout(&import("imagenet", folders.path(), again.path(), &settings));
    assert!(files(out.path()) == files(again.path()));

    // Only the validation split, in class folders, with the class numbers of the training images.
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
        (vec!["x.JPEG 1".into(); 2], "line 2: 'x.JPEG' occurs twice"),
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
    assert!(error.contains("put ILSVRC2012_devkit_t12.tar.gz in the same folder"), "{error}");
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
    assert!(refused().contains("'photos' isn't named by a WordNet id"));
}

#[test]
fn broken_devkit_is_refused() {
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
