//! `codinet-data import` of CIFAR and SVHN, from small files of the published formats made here.

use std::fs::{self, File};
use std::path::Path;

use codinet_dataloader::{Channels, Dataset, DatasetInfo, Decoder};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::program::{data_error, stdout};
use crate::published::{compressed, element, import, mat};

/// One value of image `n` of the small files; rows, columns and channels can't be mistaken for one another.
fn value(n: usize, row: usize, column: usize, channel: usize) -> u8 {
    (row * 3 + column * 5 + channel * 40 + n * 17) as u8
}

/// Image `n` with its channels as planes, each by rows, or by columns.
fn planes(n: usize, by_columns: bool) -> Vec<u8> {
    let at = |channel, slow, fast| {
        if by_columns { value(n, fast, slow, channel) } else { value(n, slow, fast, channel) }
    };
    (0..3 * 32 * 32).map(|i| at(i / 1024, i / 32 % 32, i % 32)).collect()
}

/// Checks that `folder` holds images `first`, `first + 1` and so on, with these labels, to the last pixel.
fn check(folder: &Path, first: usize, labels: &[u32]) -> DatasetInfo {
    let dataset = Dataset::open(folder.to_str().unwrap()).unwrap();
    assert_eq!(dataset.len(), labels.len());
    let mut decoder = Decoder::new();
    let mut encoded = Vec::new();
    let mut pixels = Vec::new();
    for (sample, &label) in labels.iter().enumerate() {
        assert_eq!(dataset.read(sample, &mut encoded).unwrap().label, label);
        let header = decoder.header(&encoded).unwrap();
        assert_eq!((header.width, header.height), (32, 32));
        decoder.decode(&encoded, &header, Channels::Rgb, &mut pixels).unwrap();
        let original = |i: usize| value(first + sample, i / 96, i / 3 % 32, i % 3);
        assert!(pixels.iter().enumerate().all(|(i, &pixel)| pixel == original(i)), "sample {sample}");
    }
    let info = dataset.info().unwrap().clone();
    assert_eq!((info.channels, info.image_size, info.samples), (3, Some(32), labels.len() as u64));
    info
}

/// A CIFAR file of images from `first` on, each with these label bytes.
fn records(first: usize, labels: &[&[u8]]) -> Vec<u8> {
    let record = |(i, labels): (usize, &&[u8])| [labels, &planes(first + i, false)[..]].concat();
    labels.iter().enumerate().flat_map(record).collect()
}

/// The six files: two images in each training batch, labelled 0 to 9, and two test images.
fn write_cifar10(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for batch in 0..5_u8 {
        let contents = records(2 * usize::from(batch), &[&[2 * batch], &[2 * batch + 1]]);
        fs::write(folder.join(format!("data_batch_{}.bin", batch + 1)), contents).unwrap();
    }
    fs::write(folder.join("test_batch.bin"), records(10, &[&[9], &[3]])).unwrap();
}

fn write_cifar100(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("train.bin"), records(0, &[&[19, 99], &[0, 0], &[4, 25]])).unwrap();
    fs::write(folder.join("test.bin"), records(3, &[&[7, 50]])).unwrap();
}

#[test]
fn cifar10_from_its_folder_the_folder_above_and_its_archive() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let folder = source.path().join("cifar-10-batches-bin");
    let train = out.path().join("train");
    let test = out.path().join("test");
    write_cifar10(&folder);
    let text = stdout(&import("cifar10", &folder, out.path(), &["--shard-size", "4"]));
    assert!(text.contains("train (samples: 10, shards: 3)") && text.contains("test (samples: 2"), "{text}");
    let labels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let info = check(&train, 0, &labels);
    assert_eq!((info.name.as_str(), info.classes), ("cifar10 train", 10));
    assert_eq!(info.class_names.unwrap()[..2], ["airplane", "automobile"]);
    check(&test, 10, &[9, 3]);

    // From the folder above: the same, so nothing to do. With a file of class names: written again.
    let text = stdout(&import("cifar10", source.path(), out.path(), &["--shard-size", "4"]));
    assert_eq!(text.matches("already complete").count(), 2, "{text}");
    let names: String = (0..10).map(|class| format!("class {class}\n")).collect();
    fs::write(folder.join("batches.meta.txt"), names + "\n").unwrap();
    let text = stdout(&import("cifar10", source.path(), out.path(), &["--shard-size", "4"]));
    assert!(!text.contains("already"), "{text}");
    assert_eq!(check(&train, 0, &labels).class_names.unwrap()[9], "class 9");

    // From the archive, given itself or its folder.
    let above = tempfile::tempdir().unwrap();
    let archive = above.path().join("cifar-10-binary.tar.gz");
    let mut tar = tar::Builder::new(GzEncoder::new(File::create(&archive).unwrap(), Compression::default()));
    tar.append_dir_all("cifar-10-batches-bin", &folder).unwrap();
    tar.into_inner().unwrap().finish().unwrap();
    let text = stdout(&import("cifar10", &archive, out.path(), &["--shard-size", "4"]));
    assert_eq!(text.matches("already complete").count(), 2, "{text}");
    fs::remove_file(train.join("dataset.json")).unwrap();
    let text = stdout(&import("cifar10", above.path(), out.path(), &[]));
    assert!(text.contains("train (samples: 10, shards: 1)"), "{text}");
    check(&train, 0, &labels);

    let whole = fs::read(&archive).unwrap();
    fs::write(&archive, &whole[..whole.len() - 3]).unwrap();
    let error = data_error(&import("cifar10", above.path(), out.path(), &[]));
    assert!(error.contains("cifar-10-binary.tar.gz: cut short or unreadable"), "{error}");
}

#[test]
fn cifar100_has_its_fine_labels() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let folder = source.path().join("cifar-100-binary");
    let train = out.path().join("train");
    write_cifar100(&folder);
    stdout(&import("cifar100", source.path(), out.path(), &[]));
    let info = check(&train, 0, &[99, 0, 25]);
    assert_eq!((info.name.as_str(), info.classes, info.class_names), ("cifar100 train", 100, None));
    check(&out.path().join("test"), 3, &[50]);

    let names: String = (0..100).map(|class| format!("fine_{class}\n")).collect();
    fs::write(folder.join("fine_label_names.txt"), names).unwrap();
    stdout(&import("cifar100", &folder, out.path(), &[]));
    assert_eq!(check(&train, 0, &[99, 0, 25]).class_names.unwrap()[99], "fine_99");

    let lock = File::open(&train).unwrap();
    lock.lock().unwrap();
    let error = data_error(&import("cifar100", &folder, out.path(), &["--format", "jpeg"]));
    assert!(error.contains("another import or fetch is writing here"), "{error}");
    lock.unlock().unwrap(); // not just closed: a process that another test is starting has it open, too

    // JPEG where it is asked for.
    stdout(&import("cifar100", &folder, out.path(), &["--format", "jpeg"]));
    let dataset = Dataset::open(train.to_str().unwrap()).unwrap();
    assert_eq!(dataset.sample_info(0).unwrap().name, "00000000.jpg");
}

#[test]
fn broken_cifar_files_are_refused_before_anything_is_written() {
    type Write = fn(&Path);
    let cifar10 = ("cifar10", write_cifar10 as Write);
    let cifar100 = ("cifar100", write_cifar100 as Write);
    let cases = [
        (cifar10, "test_batch.bin", records(0, &[&[1]])[1..].to_vec(), "3072 bytes are not a number of"),
        (cifar10, "data_batch_3.bin", Vec::new(), "cut short: 0 bytes"),
        (cifar10, "data_batch_5.bin", records(0, &[&[9], &[10]]), "label 1 is 10, outside the 10 classes"),
        (cifar10, "batches.meta.txt", b"one\ntwo\n".to_vec(), "names 2 classes, not 10"),
        (cifar100, "train.bin", records(0, &[&[20, 0]]), "label 0 is 20, outside the 20 classes"),
        (cifar100, "test.bin", records(0, &[&[0, 99], &[0, 100]]), "label 1 is 100, outside the 100"),
        (cifar100, "test.bin", records(0, &[&[1]]), "3073 bytes are not a number of records of 3074"),
    ];
    for ((dataset, write), name, contents, reason) in cases {
        let source = tempfile::tempdir().unwrap();
        let out = tempfile::tempdir().unwrap();
        write(source.path());
        fs::write(source.path().join(name), contents).unwrap();
        let error = data_error(&import(dataset, source.path(), out.path(), &[]));
        assert!(error.contains(name) && error.contains(reason), "no {reason} in: {error}");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let error = data_error(&import("cifar10", source.path(), out.path(), &[]));
    assert!(error.contains("neither data_batch_1.bin nor cifar-10-batches-bin/"), "{error}");
    write_cifar10(source.path());
    fs::remove_file(source.path().join("data_batch_4.bin")).unwrap();
    let error = data_error(&import("cifar10", source.path(), out.path(), &[]));
    assert!(error.contains("data_batch_4.bin: missing; fetch or unpack cifar-10-binary.tar.gz"), "{error}");
}

const DOUBLE: (u8, u32) = (6, 9);
const UINT8: (u8, u32) = (9, 2);
/// As MATLAB stores doubles that are small integers.
const DOUBLE_IN_BYTES: (u8, u32) = (6, 2);

/// An array: its name, its class and the type its data are stored as, its dimensions, its data.
fn array(name: &str, (class, stored): (u8, u32), dimensions: &[u32], data: &[u8]) -> Vec<u8> {
    crate::published::array(name, class, dimensions, &[element(stored, data)])
}

/// `X`, of images from `first` on.
fn images(first: usize, count: usize) -> Vec<u8> {
    let data: Vec<u8> = (first..first + count).flat_map(|n| planes(n, true)).collect();
    array("X", UINT8, &[32, 32, 3, count as u32], &data)
}

fn doubles(values: &[f64]) -> Vec<u8> {
    let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    array("y", DOUBLE, &[values.len() as u32, 1], &data)
}

/// Training images as published: compressed, with bytes for labels. Test images neither, and the labels first.
fn write_svhn(folder: &Path) {
    let labels = array("y", UINT8, &[5, 1], &[10, 1, 2, 9, 10]);
    let train = mat(&[compressed(&images(0, 5)), compressed(&labels)]);
    fs::write(folder.join("train_32x32.mat"), train).unwrap();
    let test = mat(&[doubles(&[3.0, 10.0]), images(5, 2)]);
    fs::write(folder.join("test_32x32.mat"), test).unwrap();
}

#[test]
fn svhn_from_mat_files_compressed_and_not() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    write_svhn(source.path());
    let text = stdout(&import("svhn", source.path(), out.path(), &["--shard-size", "2"]));
    assert!(text.contains("train (samples: 5, shards: 3)") && !text.contains("extra"), "{text}");
    let info = check(&out.path().join("train"), 0, &[0, 1, 2, 9, 0]);
    assert_eq!((info.name.as_str(), info.classes), ("svhn train", 10));
    assert_eq!(info.class_names.unwrap()[9], "9");
    check(&out.path().join("test"), 5, &[3, 0]);

    // A third split, of doubles stored as bytes (few enough to lie in the tag), next to an array that isn't read.
    let labels = array("y", DOUBLE_IN_BYTES, &[3, 1], &[10, 8, 7]);
    let other = array("notes", UINT8, &[1, 2], &[1, 2]);
    let extra = mat(&[other, compressed(&images(7, 3)), compressed(&labels)]);
    fs::write(source.path().join("extra_32x32.mat"), extra).unwrap();
    let text = stdout(&import("svhn", source.path(), out.path(), &["--shard-size", "2"]));
    assert_eq!(text.matches("already complete").count(), 2, "{text}");
    check(&out.path().join("extra"), 7, &[0, 8, 7]);
}

/// `svhn_scipy.mat` was made with SciPy 1.17.1, from the values of [`value`]:
///
/// ```python
/// r, c, k, n = numpy.meshgrid(range(32), range(32), range(3), range(4), indexing="ij")
/// X = ((r*3 + c*5 + k*40 + n*17) % 256).astype(numpy.uint8)
/// y = numpy.array([[10], [1], [9], [2]], numpy.uint8)
/// scipy.io.savemat("svhn_scipy.mat", {"X": X, "y": y}, do_compression=True)
/// ```
#[test]
fn svhn_from_files_that_scipy_wrote() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    for name in ["train_32x32.mat", "test_32x32.mat"] {
        fs::write(source.path().join(name), include_bytes!("../golden/svhn_scipy.mat")).unwrap();
    }
    stdout(&import("svhn", source.path(), out.path(), &[]));
    check(&out.path().join("train"), 0, &[0, 1, 9, 2]);
    check(&out.path().join("test"), 0, &[0, 1, 9, 2]);
}

#[test]
fn broken_mat_files_are_refused_before_anything_is_written() {
    let good = || doubles(&[1.0, 2.0]);
    let zeros = |dimensions, kind| array("X", kind, dimensions, &[0; 2 * 3072]);
    let whole = mat(&[images(0, 2), good()]);
    let zipped = compressed(&images(0, 2));
    let mut checksum = zipped.clone();
    *checksum.last_mut().unwrap() ^= 1;
    let mut garbled = zipped.clone();
    garbled[20..40].fill(0xFF);
    let mut complex = images(0, 2);
    complex[8 + 8 + 1] = 8; // the flags, after the array's tag and their own
    let longer = [&images(0, 2)[8..], &[0; 8]].concat();
    let cases = [
        (whole[..whole.len() - 1].to_vec(), "cut short"),
        (whole[..100].to_vec(), "cut short"),
        (mat(&[good(), compressed(&images(0, 2)[..5000])]), "array X: cut short"),
        (mat(&[good(), checksum]), "cut short or unreadable (corrupt"),
        (mat(&[good(), garbled]), "unreadable"),
        (mat(&[good(), element(14, &longer)]), "array X: more data than the dimensions make"),
        (b"<!DOCTYPE html>".repeat(20), "not a MAT-file of version 5"),
        (b"MATLAB 7.3 MAT-file".repeat(20), "starts with \"MATLAB 7.3 MAT-fileM\""),
        (mat(&[good()]), "no array X among the arrays [\"y\"]"),
        (mat(&[images(0, 2)]), "no array y among the arrays [\"X\"]"),
        (mat(&[images(0, 3), good()]), "array X is 32x32x3x3 uint8; expected 32x32x3x2 uint8"),
        (mat(&[zeros(&[2, 3, 32, 32], UINT8), good()]), "array X is 2x3x32x32 uint8; expected"),
        (mat(&[zeros(&[6144], UINT8), good()]), "array X is 6144 uint8; expected"),
        (mat(&[zeros(&[32, 32, 3, 2], (8, 1)), good()]), "array X is 32x32x3x2 int8; expected"),
        (mat(&[zeros(&[32, 32, 3, 3], UINT8), good()]), "of 1 bytes each, but its data are 6144 bytes"),
        (mat(&[zeros(&[u32::MAX; 4], UINT8), good()]), "but its data are 6144 bytes"),
        (mat(&[zeros(&[32, 32, 3, 2], (2, 2)), good()]), "2 struct, stored as type 2; expected real"),
        (mat(&[complex, good()]), "array X is 32x32x3x2 complex uint8"),
        (mat(&[images(0, 2), array("y", UINT8, &[1, 2], &[1, 2])]), "array y is 1x2 uint8; expected Nx1"),
        (mat(&[images(0, 2), array("y", UINT8, &[0, 1], &[])]), "array y is 0x1 uint8; expected Nx1"),
        (mat(&[images(0, 2), doubles(&[1.0, 11.0])]), "label 1 is 11, not one of 1 to 10"),
        (mat(&[images(0, 2), doubles(&[0.0, 1.0])]), "label 0 is 0, not one of 1 to 10"),
        (mat(&[images(0, 2), doubles(&[1.0, 2.5])]), "label 1 is 2.5"),
        (mat(&[images(0, 2), doubles(&[f64::NAN, 1.0])]), "label 0 is NaN"),
        (mat(&[element(7, &[0; 16])]), "an element of type 7; expected an array"),
        (mat(&[element(14, &element(6, &[6]))]), "an array without flags"),
        (mat(&[vec![0xFF; 8]]), "an impossible tag"),
    ];
    let out = tempfile::tempdir().unwrap();
    for (contents, reason) in cases {
        let source = tempfile::tempdir().unwrap();
        write_svhn(source.path());
        fs::write(source.path().join("test_32x32.mat"), contents).unwrap();
        let error = data_error(&import("svhn", source.path(), out.path(), &[]));
        assert!(error.contains("test_32x32.mat") && error.contains(reason), "no {reason} in: {error}");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
    let error = data_error(&import("svhn", tempfile::tempdir().unwrap().path(), out.path(), &[]));
    assert!(error.contains("cannot open") && error.contains("train_32x32.mat"), "{error}");
}
