//! Files and members that are no data, or can't be read: each kind is left out and counted, or an error with its fix.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;

use codinet_dataloader::{Dataset, DatasetInfo, Error, IndexState};
use flate2::Compression;
use flate2::write::GzEncoder;

use crate::data::{flat, open, png, write_flat, write_images};
use crate::program::{codinet_data, data_error, stdout};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn error_of(path: &Path) -> String {
    let message = open(path).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

/// A member of a tar: its type, its name, and its contents or the target of a link.
type Member<'a> = (tar::EntryType, &'a str, &'a [u8]);

fn file<'a>(name: &'a str, contents: &'a [u8]) -> Member<'a> {
    (tar::EntryType::Regular, name, contents)
}

fn write_tar(path: &Path, members: &[Member]) {
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    for (kind, name, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        let link = [tar::EntryType::Link, tar::EntryType::Symlink].contains(kind);
        if link {
            header.set_size(0);
            tar.append_link(&mut header, name, std::str::from_utf8(contents).unwrap()).unwrap();
        } else {
            header.set_size(contents.len() as u64);
            tar.append_data(&mut header, name, *contents).unwrap();
        }
    }
    tar.finish().unwrap();
}

/// Keys and labels, in order.
fn samples(path: &Path) -> Vec<(String, u32)> {
    let dataset = open(path).unwrap();
    let sample = |number| dataset.sample_info(number).map(|info| (info.key.to_owned(), info.label)).unwrap();
    (0..dataset.len()).map(sample).collect()
}

#[test]
fn unread_members_are_counted_by_kind() {
    let folder = tempfile::tempdir().unwrap();
    let image = flat(3);
    let members = [
        file("readme.txt", b"hello"),
        file("a.png", &image),
        file("a.cls", b"1"),
        file("a.json", b"{}"),
        file("a.seg.png", &image),
        file("IMG.2020.05.jpg", &image),
        file("IMG.2020.05.cls", b"2"),
        file("__MACOSX/a.png", &image),
        file("./._a.png", b"?"),
        (tar::EntryType::Symlink, "link.png", b"a.png"),
        (tar::EntryType::Fifo, "pipe", b""),
        file("more.txt", b""),
    ];
    write_tar(&folder.path().join("x.tar"), &members);
    let counts = |dataset: &Dataset| {
        let left_out = dataset.left_out();
        left_out.kinds().map(|(kind, counts)| (kind.to_owned(), counts.clone())).collect::<Vec<_>>()
    };
    let scanned = open(folder.path()).unwrap();
    let found = counts(&scanned);
    let numbers: Vec<(&str, u64)> =
        found.iter().map(|(kind, counts)| (kind.split(' ').next().unwrap(), counts.count)).collect();
    let expected =
        [(".json", 1), (".txt", 2), ("devices,", 1), ("hidden", 2), ("images", 3), ("symbolic", 1)];
    assert_eq!(numbers, expected);
    assert_eq!(found[4].1.first, "a.seg.png");
    assert_eq!(samples(folder.path()), [("a".to_owned(), 1)]);

    // The index keeps the counts.
    let indexed = open(folder.path()).unwrap();
    assert_eq!(indexed.shards().next().unwrap().index, IndexState::Read);
    assert_eq!(counts(&indexed), found);

    // inspect and verify say so.
    for command in ["inspect", "verify"] {
        let text = stdout(&codinet_data(&[command, text(folder.path())]));
        for part in
            ["left out 2 .txt files, first readme.txt\n", "left out 3 images or labels with several dots"]
        {
            assert!(text.contains(part), "no {part} in:\n{text}");
        }
    }
    let report: serde_json::Value =
        serde_json::from_str(&stdout(&codinet_data(&["verify", text(folder.path()), "--json"]))).unwrap();
    assert_eq!(report["left_out"][".txt files"]["count"], 2);
}

#[test]
fn names_with_several_dots_explain_an_empty_shard() {
    let folder = tempfile::tempdir().unwrap();
    let image = flat(3);
    write_tar(&folder.path().join("x.tar"), &[file("I.2020.jpg", &image), file("I.2020.cls", b"1")]);
    let message = error_of(folder.path());
    for part in ["no samples in the shards", "2 images or labels with several dots", "I.2020.jpg", "rename"] {
        assert!(message.contains(part), "no {part} in: {message}");
    }
}

#[test]
fn labels_without_an_image_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let image = flat(3);
    let members =
        [file("a.png", &image), file("a.cls", b"1"), file("b.seg.png", &image), file("b.cls", b"2")];
    write_tar(&folder.path().join("x.tar"), &members);
    let message = error_of(folder.path());
    assert!(message.contains("key 'b': the .cls member has no .jpg, .jpeg or .png next to it"), "{message}");
}

#[test]
fn hard_links_have_the_contents_of_their_targets() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("x.tar");
    let images = [flat(1), flat(2)];
    let link = tar::EntryType::Link;
    let members = [
        file("a.png", &images[0]),
        file("a.cls", b"7"),
        file("b.png", &images[1]),
        (link, "b.cls", b"a.cls"),
        (link, "c.png", b"./a.png"),
        (link, "c.cls", b"b.cls"),
    ];
    write_tar(&tar, &members);
    for _ in 0..2 {
        // Scanned, then from the index.
        assert_eq!(samples(folder.path()), [("a".to_owned(), 7), ("b".to_owned(), 7), ("c".to_owned(), 7)]);
        let dataset = open(folder.path()).unwrap();
        let mut encoded = Vec::new();
        for (sample, image) in [(0, 0), (1, 1), (2, 0)] {
            dataset.read(sample, &mut encoded).unwrap();
            assert_eq!(encoded, images[image]);
        }
    }
    write_tar(&tar, &[file("a.png", &images[0]), (link, "a.cls", b"elsewhere.cls")]);
    let message = error_of(folder.path());
    assert!(
        message.contains("'a.cls' is a hard link to 'elsewhere.cls', which isn't in the tar"),
        "{message}"
    );
    assert!(message.contains("--hard-dereference"), "{message}");
}

#[test]
fn data_behind_the_end_marker_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("x-000000.tar");
    write_images(folder.path(), &[("a.png", flat(1))]);
    let one = fs::read(&tar).unwrap();
    for zeros in [0, 512, 20_000] {
        let padded = [&one[..], &vec![0; zeros]].concat();
        fs::write(&tar, &padded).unwrap();
        assert_eq!(open(folder.path()).unwrap().len(), 1, "zeros are padding");
        fs::write(&tar, [&padded, &one[..]].concat()).unwrap();
        let message = error_of(folder.path());
        for part in ["x-000000.tar", &format!("at byte {}", padded.len()), "--ignore-zeros"] {
            assert!(message.contains(part), "no {part} in: {message}");
        }
    }
}

#[test]
fn compressed_tars_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("x-000000.tar");
    write_images(folder.path(), &[("a.png", flat(1))]);
    let mut zipped = GzEncoder::new(Vec::new(), Compression::default());
    zipped.write_all(&fs::read(&tar).unwrap()).unwrap();
    fs::write(&tar, zipped.finish().unwrap()).unwrap();
    let message = data_error(&codinet_data(&["inspect", text(folder.path())]));
    assert!(message.contains("x-000000.tar: is gzip-compressed; decompress it with gunzip"), "{message}");
    // Other bytes never reach the terminal.
    fs::write(&tar, [&[0x01, 0x80, 0x1B][..], &[0xFE; 5000]].concat()).unwrap();
    let message = data_error(&codinet_data(&["inspect", text(folder.path())]));
    assert!(message.contains("not a readable tar archive"), "{message}");
    assert!(message.trim_end().chars().all(|c| c.is_ascii_graphic() || c == ' '), "{message}");
}

#[test]
fn foreign_tars_are_no_shards() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 8);
    fs::write(folder.path().join("._x-000000.tar"), b"resource fork").unwrap();
    assert_eq!(open(folder.path()).unwrap().len(), 8);
    assert_eq!(open(&folder.path().join("*.tar")).unwrap().len(), 8);
}

/// Writes a small image in each of these files.
fn write_photos(root: &Path, names: &[&str]) {
    for (number, name) in names.iter().enumerate() {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, png(&[number as u8 * 9; 64])).unwrap();
    }
}

#[test]
fn imported_and_direct_classes_are_the_same() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    let photos = ["bee/1.png", "ant/2.png", "ant/1.png", "ant/deep/3.png", "Cat/x.y.png"];
    write_photos(source.path(), &photos);
    let foreign =
        [".ipynb_checkpoints/x.png", "__MACOSX/x.png", ".trash/x.png", "@eaDir/x.png", "lost+found/x.png"];
    write_photos(source.path(), &foreign);
    write_photos(source.path(), &["ant/._1.png", "ant/@eaDir/2.png"]);
    fs::write(source.path().join("bee/Thumbs.db"), b"?").unwrap();
    let out = outs.path().join("set");
    let arguments = ["import", "imagefolder", "--src", text(source.path()), "--output", text(&out)];
    let report = stdout(&codinet_data(&arguments));
    assert!(report.contains("left out 8 hidden or system files, first "), "{report}");

    let direct = open(source.path()).unwrap();
    let imported = open(&out).unwrap();
    let names = |dataset: &Dataset| dataset.info().unwrap().class_names.clone().unwrap();
    assert_eq!(names(&direct), ["Cat", "ant", "bee"]); // as torchvision's ImageFolder without the foreign folders
    assert_eq!(names(&imported), names(&direct));
    let images = |dataset: &Dataset| {
        let mut images = Vec::new();
        for sample in 0..dataset.len() {
            let mut image = Vec::new();
            let label = dataset.read(sample, &mut image).unwrap().label;
            images.push((label, image));
        }
        images.sort();
        images
    };
    assert_eq!(images(&imported), images(&direct));
    assert_eq!(direct.len(), photos.len());
    let text = stdout(&codinet_data(&["inspect", text(source.path())]));
    assert!(text.contains("left out 8 hidden or system files"), "{text}");
}

#[test]
fn folders_of_splits_are_refused_by_every_command() {
    let folder = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    write_photos(folder.path(), &["train/ant/1.png", "val/ant/1.png"]);
    let path = text(folder.path());
    let commands: [&[&str]; 5] = [
        &["inspect", path],
        &["verify", path],
        &["bench", path],
        &["index", path],
        &["import", "imagefolder", "--src", path, "--output", text(out.path())],
    ];
    for command in commands {
        let message = data_error(&codinet_data(command));
        assert!(message.contains("look like splits, not classes; name one of them: "), "{message}");
        assert!(message.contains(&format!("{path}/train or {path}/val")), "{message}");
    }

    // A folder of shard sets, with names of splits and with others.
    let sets = tempfile::tempdir().unwrap();
    let at = |name: &str| sets.path().join(name);
    write_flat(&at("train"), 8);
    write_flat(&at("test"), 4);
    let message = error_of(sets.path());
    assert!(message.contains(&format!("name one of them: {}", at("test").display())), "{message}");
    fs::rename(at("test"), at("other")).unwrap();
    let message = error_of(sets.path());
    assert!(
        message.contains(&format!("holds shards, not images of a class; name it: {}", at("other").display()))
    );
}

#[test]
fn named_classes_must_match_the_number_of_classes() {
    let folder = tempfile::tempdir().unwrap();
    write_photos(folder.path(), &["ant/1.png", "bee/1.png"]);
    let dataset = open(folder.path()).unwrap();
    dataset.check_labels(2).unwrap();
    for classes in [1, 3] {
        let error = dataset.check_labels(classes).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument(_)), "{error}");
        let part = format!("names 2 classes, not {classes}; set the number of classes (data.classes) to 2");
        assert!(error.to_string().contains(&part), "{error}");
    }
    // Shards without names may have fewer labels than classes.
    let shards = tempfile::tempdir().unwrap();
    write_flat(shards.path(), 4);
    assert!(DatasetInfo::load(shards.path()).unwrap().unwrap().class_names.is_none());
    open(shards.path()).unwrap().check_labels(12).unwrap();
}

#[test]
fn images_with_long_names_are_imported() {
    let source = tempfile::tempdir().unwrap();
    let outs = tempfile::tempdir().unwrap();
    let long = format!("{}.png", "n".repeat(130));
    write_photos(source.path(), &["ant/1.png", "bee/1.png"]);
    write_photos(&source.path().join("bee"), &[&long]);
    let out = outs.path().join("set");
    stdout(&codinet_data(&["import", "imagefolder", "--src", text(source.path()), "--output", text(&out)]));
    let mut keys: Vec<String> = samples(&out).into_iter().map(|sample| sample.0).collect();
    keys.sort();
    assert_eq!(keys, ["ant/1", "bee/1", &format!("bee/{}", "n".repeat(130))]);
}

/// More shards than the process may open.
#[test]
fn shards_beyond_the_limit_of_open_files_are_read() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 4 * 60);
    let run = |command: &str| {
        let program = env!("CARGO_BIN_EXE_codinet-data");
        let script = format!("ulimit -n 24; exec '{program}' {command} '{}'", folder.path().display());
        stdout(&Command::new("sh").args(["-c", &script]).output().unwrap())
    };
    let report = run("verify --threads 2");
    assert!(report.contains("240 in 60 shards") && report.contains("bad         0"), "{report}");
    assert!(run("inspect").contains("samples  240"));
}
