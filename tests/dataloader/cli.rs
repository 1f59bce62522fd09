//! `codinet-data` as a user runs it, on small files of the published formats made here.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Output;

use codinet_dataloader::{Channels, Dataset, Decoder};

use crate::program::{codinet_data, data_error, stdout};

#[test]
fn import_help_describes_each_data_set() {
    let help = stdout(&codinet_data(&["import", "--help"]));
    let lines: Vec<String> =
        help.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for start in ["fashion-mnist Fashion-MNIST: ", "cifar10 CIFAR-10: ", "imagenet ImageNet (ILSVRC 2012): "]
    {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}{help}");
    }
}

fn import(source: &Path, out: &Path, more: &[&str]) -> Output {
    let paths = ["--src", source.to_str().unwrap(), "--output", out.to_str().unwrap()];
    codinet_data(&[&["import", "fashion-mnist"], &paths[..], more].concat())
}

/// Image `n` of the small files: a slope, so that JPEG keeps it well.
fn image(n: usize) -> Vec<u8> {
    (0..28 * 28).map(|i| ((i % 28) * 4 + (i / 28) * 3 + n * 5) as u8).collect()
}

fn idx(magic: [u8; 4], dimensions: &[u32], bytes: &[u8]) -> Vec<u8> {
    let dimensions: Vec<u8> = dimensions.iter().flat_map(|dimension| dimension.to_be_bytes()).collect();
    [&magic[..], &dimensions, bytes].concat()
}

/// The four files: 7 training images (plain) and 3 test images (gzipped), labelled by number.
fn write_source(folder: &Path) {
    for (prefix, count) in [("train", 7), ("t10k", 3)] {
        let pixels: Vec<u8> = (0..count).flat_map(image).collect();
        let labels: Vec<u8> = (0..count as u8).collect();
        let files = [
            (format!("{prefix}-images-idx3-ubyte"), idx([0, 0, 8, 3], &[count as u32, 28, 28], &pixels)),
            (format!("{prefix}-labels-idx1-ubyte"), idx([0, 0, 8, 1], &[count as u32], &labels)),
        ];
        for (name, contents) in files {
            if prefix == "train" {
                fs::write(folder.join(name), contents).unwrap();
            } else {
                let file = fs::File::create(folder.join(format!("{name}.gz"))).unwrap();
                let mut zipped = flate2::write::GzEncoder::new(file, flate2::Compression::default());
                zipped.write_all(&contents).unwrap();
                zipped.finish().unwrap();
            }
        }
    }
}

/// The largest difference from the original over all images of the split.
fn worst_pixel(folder: &Path, count: usize) -> u8 {
    let dataset = Dataset::open(folder.to_str().unwrap()).unwrap();
    dataset.check_labels(10).unwrap();
    assert_eq!(dataset.len(), count);
    let mut decoder = Decoder::new();
    let mut encoded = Vec::new();
    let mut pixels = Vec::new();
    let mut worst = 0;
    for sample in 0..count {
        let label = dataset.read(sample, &mut encoded).unwrap().label;
        assert_eq!(label as usize, sample);
        let header = decoder.header(&encoded).unwrap();
        decoder.decode(&encoded, &header, Channels::Grey, &mut pixels).unwrap();
        let differences = pixels.iter().zip(image(sample)).map(|(a, b)| a.abs_diff(b));
        worst = differences.max().unwrap().max(worst);
    }
    worst
}

#[test]
fn fashion_mnist_is_imported() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    write_source(source.path());
    let train = out.path().join("train");
    let test = out.path().join("test");

    let text = stdout(&import(source.path(), out.path(), &["--shard-size", "3"]));
    assert!(
        text.contains("train (samples: 7, shards: 3)") && text.contains("test (samples: 3, shards: 1)"),
        "{text}"
    );
    assert!(worst_pixel(&train, 7) <= 3 && worst_pixel(&test, 3) <= 3);

    // Again: nothing to do, nothing touched.
    let modified = fs::metadata(train.join("train-000000.tar")).unwrap().modified().unwrap();
    let text = stdout(&import(source.path(), out.path(), &["--shard-size", "3"]));
    assert_eq!(text.matches("already complete").count(), 2, "{text}");
    assert_eq!(fs::metadata(train.join("train-000000.tar")).unwrap().modified().unwrap(), modified);

    // As a killed run leaves it: no dataset.json, a shard half written. And with larger shards this time.
    fs::remove_file(train.join("dataset.json")).unwrap();
    fs::write(train.join("train-000001.tar"), b"half").unwrap();
    fs::write(train.join("notes.txt"), b"mine").unwrap();
    let text = stdout(&import(source.path(), out.path(), &["--format", "png"]));
    assert!(text.contains("train (samples: 7, shards: 1)") && !text.contains("already"), "{text}");
    assert_eq!(worst_pixel(&train, 7), 0, "PNG is lossless");
    assert!(!train.join("train-000001.tar").exists() && train.join("notes.txt").exists());
}

#[test]
fn inspect_describes_shards() {
    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    write_source(source.path());
    stdout(&import(source.path(), out.path(), &["--shard-size", "4"]));
    let train = out.path().join("train");
    let text = stdout(&codinet_data(&["inspect", train.to_str().unwrap()]));
    for part in [
        "fashion-mnist train, 10 classes",
        "shards   2",
        "samples  7",
        "up to date",
        "Sandal",
        "7 decoded, 0 bad",
        "7  JPEG 28x28",
    ] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }

    fs::remove_file(train.join("train-000001.idx")).unwrap();
    let text = stdout(&codinet_data(&["inspect", train.to_str().unwrap(), "--decode", "2"]));
    assert!(text.contains("1 missing or out of date, rebuilt") && text.contains("2 decoded"), "{text}");

    // Scribble over the second image: its header is 512 bytes, after 3 blocks at least of the first sample.
    let shard = train.join("train-000000.tar");
    let mut bytes = fs::read(&shard).unwrap();
    let start = bytes.windows(2).enumerate().filter(|(_, pair)| *pair == [0xFF, 0xD8]).nth(1).unwrap().0;
    bytes[start..start + 2].copy_from_slice(b"??");
    fs::write(&shard, bytes).unwrap();
    let output = codinet_data(&["inspect", train.to_str().unwrap()]);
    let error = data_error(&output);
    assert!(error.contains("train-000000.tar, key '00000001'"), "{error}");
    assert!(String::from_utf8(output.stdout).unwrap().contains("7 decoded, 1 bad"));
}

#[test]
fn broken_sources_are_refused_before_anything_is_written() {
    let labels = "train-labels-idx1-ubyte";
    let images = "train-images-idx3-ubyte";
    let pixels: Vec<u8> = (0..7).flat_map(image).collect();
    let cases: [(&str, Vec<u8>, &str); 8] = [
        (
            images,
            idx([0, 0, 8, 3], &[7, 28, 28], &pixels[..pixels.len() - 1]),
            "cut short: 5487 of 5488 bytes",
        ),
        (
            images,
            idx([0, 0, 8, 3], &[7, 28, 28], &[&pixels[..], &[0]].concat()),
            "longer than the 5488 bytes",
        ),
        (images, idx([0, 0, 8, 3], &[7, 28], &[]), "cut short"),
        (images, idx([0, 0, 8, 3], &[6, 28, 28], &pixels[..6 * 784]), "[6, 28, 28]"),
        (images, idx([0, 0, 8, 3], &[7, 784, 1], &pixels), "[7, 784, 1]"),
        (images, idx([0, 0, 8, 3], &[u32::MAX; 3], &[]), "impossible dimensions"),
        (labels, idx([0, 0, 8, 3], &[7], &[0; 7]), "not the IDX file expected"),
        (labels, idx([0, 0, 8, 1], &[7], &[0, 1, 2, 3, 4, 5, 10]), "label 6 is 10"),
    ];
    for (name, contents, reason) in cases {
        let source = tempfile::tempdir().unwrap();
        let out = tempfile::tempdir().unwrap();
        write_source(source.path());
        fs::write(source.path().join(name), contents).unwrap();
        let error = data_error(&import(source.path(), out.path(), &[]));
        assert!(error.contains(name) && error.contains(reason), "no {reason} in: {error}");
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }

    let source = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    write_source(source.path());
    let zipped = source.path().join("t10k-images-idx3-ubyte.gz");
    let whole = fs::read(&zipped).unwrap();
    fs::write(&zipped, &whole[..whole.len() / 2]).unwrap();
    let error = data_error(&import(source.path(), out.path(), &[]));
    assert!(error.contains("t10k-images-idx3-ubyte.gz: cut short"), "{error}");
    fs::remove_file(&zipped).unwrap();
    let error = data_error(&import(source.path(), out.path(), &[]));
    assert!(error.contains("cannot open") && error.contains("t10k-images-idx3-ubyte"), "{error}");
}

#[test]
fn wrong_usage_and_missing_data_have_their_exit_codes() {
    assert_eq!(codinet_data(&[]).status.code(), Some(2));
    assert_eq!(codinet_data(&["import", "fashion-mnist"]).status.code(), Some(2));
    let zero = ["import", "fashion-mnist", "--src", "x", "--output", "x", "--shard-size", "0"];
    assert_eq!(codinet_data(&zero).status.code(), Some(2));
    assert!(stdout(&codinet_data(&["--help"])).contains("Examples:"));
    assert!(data_error(&codinet_data(&["inspect", "/nowhere/x-*.tar"])).contains("/nowhere/x-*.tar"));
}
