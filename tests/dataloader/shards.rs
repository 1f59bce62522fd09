//! Shards through the public interface: written, named, opened, and every way in which they can be broken.

use std::fs;
use std::path::{Path, PathBuf};

use codinet_dataloader::{Dataset, Error, IndexState};

use crate::data::{flat, open, write_flat, write_images};

/// Name and contents of a tar's members.
type Members<'a> = &'a [(&'a str, &'a [u8])];

fn open_error(folder: &Path) -> String {
    open(folder).unwrap_err().to_string()
}

#[test]
fn written_shards_are_read_back() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let dataset = open(folder.path()).unwrap();
    assert_eq!((dataset.len(), dataset.classes(), dataset.shards().len()), (10, Some(10), 3));
    let mut encoded = vec![1, 2, 3];
    for sample in [9, 0, 4, 3] {
        let info = dataset.read(sample, &mut encoded).unwrap();
        assert_eq!(encoded, flat(sample as u32));
        assert_eq!((info.key, info.label), (format!("k{sample:03}").as_str(), sample as u32));
        assert_eq!(info.shard, folder.path().join(format!("x-00000{}.tar", sample / 4)));
        assert_eq!(dataset.sample_info(sample), Some(info));
    }
    assert!(matches!(dataset.read(10, &mut encoded), Err(Error::InvalidArgument(_))));
    assert_eq!(dataset.sample_info(10), None);
}

#[test]
fn folders_globs_ranges_and_files_name_shards() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let at = |pattern: &str| Dataset::open(folder.path().join(pattern).to_str().unwrap());
    let whole = at("").unwrap().fingerprint();
    assert_eq!(whole, at("*.tar").unwrap().fingerprint());
    assert_eq!(whole, at("x-{000000..000002}.tar").unwrap().fingerprint());
    let part = at("x-{000001..000002}.tar").unwrap();
    assert_eq!((part.len(), part.sample_info(0).unwrap().key), (6, "k004"));
    assert_ne!(whole, part.fingerprint());
    assert_eq!(at("x-000002.tar").unwrap().len(), 2);
    // A glob that finds fewer than dataset.json counts is a missing shard; a range that names one is, too.
    assert!(matches!(at("x-*1.tar"), Err(Error::Incomplete { unit: "shards", expected: 3, found: 1, .. })));
    assert!(at("x-{000002..000003}.tar").unwrap_err().to_string().contains("x-000003.tar"));
    for nothing in ["y-*.tar", "*.zip"] {
        assert!(matches!(at(nothing), Err(Error::Empty { .. })), "{nothing}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(open_error(empty.path()).contains(empty.path().to_str().unwrap()));
    assert!(open_error(&folder.path().join("nowhere")).contains("nowhere"));
}

#[test]
fn missing_shards_and_samples_are_detected() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    fs::remove_file(folder.path().join("x-000001.tar")).unwrap();
    let message = open_error(folder.path());
    assert!(message.contains("expected 2 shards, found 1") && message.contains("dataset.json"), "{message}");

    write_images(folder.path(), &[("only.png", flat(0))]); // another x-000000.tar
    fs::copy(folder.path().join("x-000000.tar"), folder.path().join("x-000001.tar")).unwrap();
    assert!(
        open_error(folder.path()).contains("expected 8 samples, found 2"),
        "{}",
        open_error(folder.path())
    );

    fs::write(folder.path().join("dataset.json"), r#"{"version": 2}"#).unwrap();
    assert!(open_error(folder.path()).contains("dataset.json"));
}

#[test]
fn labels_outside_the_classes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    let dataset = open(folder.path()).unwrap();
    dataset.check_labels(8).unwrap();
    let message = dataset.check_labels(6).unwrap_err().to_string();
    for part in ["x-000001.tar", "key 'k006'", "label 6 is outside the 6 classes"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

/// A tar of these members, with GNU headers as other tools write them, and no index.
fn write_tar(folder: &Path, members: Members) -> PathBuf {
    let path = folder.join("x-000000.tar");
    let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
    for (name, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        tar.append_data(&mut header, name, *contents).unwrap();
    }
    tar.finish().unwrap();
    path
}

#[test]
fn shards_of_other_tools_open() {
    let folder = tempfile::tempdir().unwrap();
    let long = format!("{}/n01440764_18.JPEG", "d".repeat(150));
    let long_label = long.replace("JPEG", "cls");
    let image = flat(3);
    let members: [(&str, &[u8]); 6] = [
        ("readme.txt", b"hello"),
        ("a.cls", b" 4\n"),
        ("a.json", b"{}"),
        ("a.png", &image),
        (&long, &image),
        (&long_label, b"5"),
    ];
    write_tar(folder.path(), &members);
    let dataset = open(folder.path()).unwrap();
    let labels: Vec<_> = (0..2)
        .map(|sample| dataset.sample_info(sample).map(|info| (info.key, info.label)).unwrap())
        .collect();
    assert_eq!(labels, [("a", 4), (long.strip_suffix(".JPEG").unwrap(), 5)]);
    let mut encoded = Vec::new();
    dataset.read(1, &mut encoded).unwrap();
    assert_eq!(encoded, image);
}

#[test]
fn broken_shards_are_named() {
    let image = flat(0);
    let cases: [(Members, &str); 6] = [
        (&[("a.png", &image)], "key 'a': the image has no .cls"),
        (&[("a.cls", b"1"), ("b.png", &image), ("b.cls", b"2")], "key 'a': the .cls member has no .jpg"),
        (&[("a.png", &image), ("a.cls", b"cat")], "key 'a': its .cls member holds \"cat\""),
        (&[("a.png", &image), ("a.cls", b"-1")], "key 'a': its .cls member holds \"-1\""),
        (&[("a.png", &image), ("a.jpg", &image), ("a.cls", b"1")], "key 'a' has more than one image"),
        (&[("readme.txt", b"")], "no samples in the shards"),
    ];
    for (members, reason) in cases {
        let folder = tempfile::tempdir().unwrap();
        write_tar(folder.path(), members);
        let message = open_error(folder.path());
        assert!(message.contains(reason) && !message.contains('\n'), "{message}");
        assert!(message.contains("x-000000.tar") || reason.starts_with("no samples"), "{message}");
    }

    let folder = tempfile::tempdir().unwrap();
    let path = write_tar(folder.path(), &[("a.png", &image), ("a.cls", b"1")]);
    let whole = fs::read(&path).unwrap();
    // Inside a header, inside contents, between two members, without the end marker.
    for (keep, reason) in [
        (100, "not a readable tar"),
        (512 + 20, "inside 'a.png'"),
        (1024, "end marker"),
        (2048, "end marker"),
    ] {
        fs::write(&path, &whole[..keep]).unwrap();
        let message = open_error(folder.path());
        assert!(message.contains("x-000000.tar") && message.contains(reason), "{keep} bytes: {message}");
    }
    fs::write(&path, b"just some text, not an archive".repeat(100)).unwrap();
    assert!(
        open_error(folder.path()).contains("not a readable tar archive"),
        "{}",
        open_error(folder.path())
    );
}

#[test]
fn stale_and_damaged_indices_are_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("x-000000.tar");
    let idx = folder.path().join("x-000000.idx");
    let state = || open(folder.path()).unwrap().shards().next().unwrap().index;
    write_images(folder.path(), &[("a.png", flat(1)), ("b.png", flat(2))]);
    assert_eq!(state(), IndexState::Read);

    fs::remove_file(&idx).unwrap();
    assert_eq!((state(), state()), (IndexState::Rebuilt, IndexState::Read));

    let text = fs::read_to_string(&idx).unwrap();
    let without_last_line = &text[..text.trim_end().rfind('\n').unwrap() + 1];
    for damaged in [
        without_last_line,
        &text[..text.len() - 20],
        "",
        &text.replace("a.png\t", "a.png\t9"),
        &text.replace("x 3 ", "x 2 "),
    ] {
        assert_ne!(damaged, text);
        fs::write(&idx, damaged).unwrap();
        assert_eq!(state(), IndexState::Rebuilt, "{damaged}");
        assert_eq!(fs::read_to_string(&idx).unwrap(), text);
    }

    // The same size, another key: only the time tells. The old index must not be believed.
    let elsewhere = tempfile::tempdir().unwrap();
    write_images(elsewhere.path(), &[("a.png", flat(1)), ("c.png", flat(2))]);
    let size = fs::metadata(&tar).unwrap().len();
    fs::copy(elsewhere.path().join("x-000000.tar"), &tar).unwrap();
    assert_eq!(fs::metadata(&tar).unwrap().len(), size);
    let dataset = open(folder.path()).unwrap();
    assert_eq!(dataset.sample_info(1).unwrap().key, "c");
    assert_eq!(dataset.shards().next().unwrap().index, IndexState::Rebuilt);
}
