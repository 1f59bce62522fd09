//! What a dataset can be opened from, on the local disk: lists by other tools, folders of images, indices that
//! don't fit, and shards made to do harm.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use codinet_dataloader::{Cache, Dataset, Error, IndexState, Options, ShardIndex, ShardWriter};

use crate::data::{flat, open, write_flat, write_images};
use crate::program::{codinet_data, data_error, stdout};

fn open_error(pattern: &Path) -> String {
    let message = open(pattern).unwrap_err().to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn lists_of_other_tools_name_shards_and_count_them() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write_flat(folder.path(), 10); // 4, 4 and 2 samples
    fs::remove_file(at("dataset.json")).unwrap();
    let whole = open(folder.path()).unwrap().fingerprint();

    let wids = |samples| {
        format!(
            r#"{{"wids_version": 1, "name": "x", "shardlist": [{{"url": "x-000000.tar", "nsamples": 4}},
            {{"url": "x-000001.tar", "nsamples": 4}}, {{"url": "x-000002.tar", "nsamples": {samples}}}]}}"#
        )
    };
    fs::write(at("some.json"), wids(2)).unwrap();
    assert_eq!(open(&at("some.json")).unwrap().fingerprint(), whole);
    fs::write(at("some.json"), wids(3)).unwrap();
    let message = open_error(&at("some.json"));
    assert!(message.contains("expected 3 samples, found 2") && message.contains("x-000002.tar"), "{message}");
    assert!(open(folder.path()).is_ok(), "a list of another name lies there unread");
    fs::rename(at("some.json"), at("shardindex.json")).unwrap();
    assert!(open_error(folder.path()).contains("expected 3 samples, found 2"));
    assert!(matches!(open(&at("x-*0.tar")), Ok(dataset) if dataset.len() == 4));
    fs::remove_file(at("shardindex.json")).unwrap();

    let timm = r#"{"splits": {
        "train": {"name": "train", "filenames": ["x-000001.tar", "x-000000.tar"], "shard_lengths": [4, 4], "num_samples": 8},
        "val": {"name": "val", "filenames": ["x-000002.tar"], "shard_lengths": [2], "num_samples": 2}}}"#;
    fs::write(at("_info.json"), timm).unwrap();
    let train = open(&at("_info.json#train")).unwrap();
    assert_eq!((train.len(), train.sample_info(0).unwrap().key), (8, "k004"), "in the list's order");
    for pattern in [folder.path().to_owned(), at("_info.json")] {
        let message = open_error(&pattern);
        assert!(message.contains("_info.json#train") && message.contains("_info.json#val"), "{message}");
    }
    fs::remove_file(at("x-000001.tar")).unwrap();
    assert!(open_error(&at("_info.json#train")).contains("x-000001.tar"));
    assert!(open_error(&at("nothing.json")).contains("no shards at"));
    fs::write(at("other.json"), "{}").unwrap();
    assert!(open_error(&at("other.json")).contains("not a list of shards"));
}

#[test]
fn image_folders_open_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, value) in [("cat/b.png", 3), ("cat/sub/c.d.PNG", 4), ("ant/a.jpg", 5)] {
        fs::create_dir_all(at(name).parent().unwrap()).unwrap();
        fs::write(at(name), flat(value)).unwrap();
    }
    let dataset = open(folder.path()).unwrap();
    assert_eq!((dataset.len(), dataset.classes(), dataset.shards().len()), (3, Some(2), 1));
    assert_eq!(dataset.info().unwrap().class_names, Some(vec!["ant".into(), "cat".into()]));
    let mut encoded = vec![9; 9];
    for (sample, key, label, value) in [(2, "cat/sub/c.d", 1, 4), (0, "ant/a", 0, 5), (1, "cat/b", 1, 3)] {
        let info = dataset.read(sample, &mut encoded).unwrap();
        assert_eq!((info.key, info.label, info.shard), (key, label, folder.path()));
        assert_eq!((encoded.len(), &encoded), (info.length as usize, &flat(value)));
    }
    assert_eq!(dataset.shards().next().unwrap().index, IndexState::NotNeeded);
    assert!(
        stdout(&codinet_data(&["index", path(folder.path())]))
            .starts_with("image folder, which needs no index")
    );

    // Names and labels make the fingerprint; where the folder lies doesn't.
    let print = dataset.fingerprint();
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("moved");
    fs::rename(folder.path().join("cat"), elsewhere.path().join("cat")).unwrap();
    fs::create_dir(&moved).unwrap();
    fs::rename(elsewhere.path().join("cat"), moved.join("cat")).unwrap();
    fs::rename(at("ant"), moved.join("ant")).unwrap();
    assert_eq!(open(&moved).unwrap().fingerprint(), print);
    fs::rename(moved.join("ant"), moved.join("dog")).unwrap();
    assert_ne!(open(&moved).unwrap().fingerprint(), print);

    // What has gone since is named.
    let dataset = open(&moved).unwrap();
    fs::remove_file(moved.join("dog/a.jpg")).unwrap();
    assert!(dataset.read(2, &mut encoded).unwrap_err().to_string().contains("dog/a.jpg"));
}

#[test]
fn index_command_reports_its_work() {
    let folder = tempfile::tempdir().unwrap();
    write_flat(folder.path(), 10);
    let run = |more: &[&str]| stdout(&codinet_data(&[&["index", path(folder.path())], more].concat()));
    assert!(run(&[]).starts_with("already indexed: 3 shards, 10 samples, "));
    fs::remove_file(folder.path().join("x-000001.idx")).unwrap();
    assert!(run(&[]).starts_with("indexed 1 shard, already indexed: 2 shards, 10 samples, "));
    assert!(run(&["--force"]).starts_with("indexed 3 shards, 10 samples, "));
    fs::write(folder.path().join("x-000001.tar"), "no tar").unwrap();
    assert!(data_error(&codinet_data(&["index", path(folder.path())])).contains("x-000001.tar"));
}

/// Gives `path` the times of `like`.
fn same_time(path: &Path, like: &fs::Metadata) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_modified(like.modified().unwrap()).unwrap();
}

/// Neither size nor time tell: only the headers of the members do.
#[test]
fn index_of_another_shard_is_detected() {
    let shard = |keys: [&str; 3]| {
        let folder = tempfile::tempdir().unwrap();
        write_images(folder.path(), &keys.map(|key| (key, flat(1))));
        folder
    };
    let first = shard(["a.png", "b.png", "c.png"]);
    let last = shard(["a.png", "b.png", "z.png"]);
    let middle = shard(["a.png", "x.png", "c.png"]);
    let tar = first.path().join("x-000000.tar");
    let before = fs::metadata(&tar).unwrap();
    let replace = |by: &Path| {
        fs::copy(by.join("x-000000.tar"), &tar).unwrap();
        same_time(&tar, &before);
        let now = fs::metadata(&tar).unwrap();
        assert_eq!((now.len(), now.mtime_nsec()), (before.len(), before.mtime_nsec()));
    };
    // Another last sample is detected at once, and the index rebuilt.
    replace(last.path());
    let dataset = open(first.path()).unwrap();
    assert_eq!(
        (dataset.sample_info(2).unwrap().key, dataset.shards().next().unwrap().index),
        ("z", IndexState::Rebuilt)
    );

    // Another one in the middle: when it is read, and not before. (The index is now that of `last`.)
    let with_last = shard(["a.png", "x.png", "z.png"]);
    replace(with_last.path());
    let dataset = open(first.path()).unwrap();
    let mut encoded = Vec::new();
    assert_eq!(dataset.read(0, &mut encoded).unwrap().key, "a");
    let message = dataset.read(1, &mut encoded).unwrap_err().to_string();
    assert!(
        message.contains("'b.png' isn't where the index says") && message.contains("index --force"),
        "{message}"
    );
    stdout(&codinet_data(&["index", path(first.path()), "--force"]));
    assert_eq!(open(first.path()).unwrap().read(1, &mut encoded).unwrap().key, "x");

    // A shard that is replaced, or cut short, while it is open.
    let dataset = open(middle.path()).unwrap();
    let file = fs::File::options().write(true).open(middle.path().join("x-000000.tar")).unwrap();
    file.write_all_at(&[b'?'; 100], 0).unwrap();
    assert!(dataset.read(0, &mut encoded).unwrap_err().to_string().contains("'a.png' isn't where"));
    file.set_len(700).unwrap();
    let message = dataset.read(2, &mut encoded).unwrap_err().to_string();
    assert!(message.contains("cannot read") && message.contains("x-000000.tar"), "{message}");
}

/// Type, name, the size its header claims, and contents of a tar's members.
type RawMembers<'a> = &'a [(u8, &'a str, u64, &'a [u8])];

fn raw_tar(path: &Path, members: RawMembers) {
    let mut bytes = Vec::new();
    for &(kind, name, size, contents) in members {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.as_gnu_mut().unwrap().realsize = *b"00000000000\0"; // of a sparse member, which has no data here
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(contents);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn paths_outside_the_folder_are_only_names() {
    let folder = tempfile::tempdir().unwrap();
    let inside = folder.path().join("a/b");
    fs::create_dir_all(&inside).unwrap();
    let image = flat(1);
    let length = image.len() as u64;
    let up = "../../up";
    let absolute = path(folder.path()).to_owned() + "/abs";
    raw_tar(
        &inside.join("x.tar"),
        &[
            (b'0', &format!("{up}.png"), length, &image),
            (b'0', &format!("{up}.cls"), 1, b"1"),
            (b'0', &format!("{absolute}.png"), length, &image),
            (b'0', &format!("{absolute}.cls"), 1, b"2"),
            (b'2', "link.png", 0, b""), // a symbolic link is no image
        ],
    );
    let dataset = open(&inside).unwrap();
    let keys: Vec<_> = (0..dataset.len()).map(|sample| dataset.sample_info(sample).unwrap().key).collect();
    assert_eq!(keys, [up, &absolute]);
    let mut encoded = Vec::new();
    dataset.read(0, &mut encoded).unwrap();
    assert_eq!(encoded, image);
    let names = |folder: &Path| -> Vec<_> {
        folder.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!((names(folder.path()), names(&folder.path().join("a"))), (vec!["a".into()], vec!["b".into()]));
}

#[test]
fn hostile_shards_are_refused_before_memory_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("x.tar");
    let huge = 300 << 20;
    let pax_sparse = b"22 GNU.sparse.major=1\n";
    let long = vec![b'n'; 3 << 20];
    let cases: [(RawMembers, &str); 6] = [
        (&[(b'0', "a.png", u64::from(u32::MAX) * 2, b"")], "cut short inside 'a.png'"),
        (&[(b'0', "a.png", u64::MAX / 2, b"")], "x.tar"),
        (&[(b'S', "a.png", 0, b""), (b'0', "a.cls", 1, b"1")], "stored sparsely"),
        (
            &[(b'x', "p", 22, pax_sparse), (b'0', "a.png", 0, b""), (b'0', "a.cls", 1, b"1")],
            "stored sparsely",
        ),
        (&[(b'L', "l", long.len() as u64, &long), (b'0', "a.png", 0, b"")], "over 1 MiB of headers"),
        (&[(b'L', "l", 0, b""), (b'L', "l", 0, b"")], "x.tar"),
    ];
    for (members, reason) in cases {
        raw_tar(&tar, members);
        let message = open_error(&tar);
        assert!(message.contains("x.tar") && message.contains(reason), "no {reason} in: {message}");
    }
    // Larger than an image may be, in a file that really has as many bytes (of a hole).
    raw_tar(&tar, &[(b'0', "a.png", huge, b"")]);
    fs::File::options().write(true).open(&tar).unwrap().set_len(huge + 4096).unwrap();
    assert!(open_error(&tar).contains("the most are 256 MiB an image"));
}

/// As hostile as an index can be: each is found out, and the shard is scanned instead.
#[test]
fn hostile_indices_are_rebuilt() {
    let folder = tempfile::tempdir().unwrap();
    write_images(folder.path(), &[("a.png", flat(1)), ("b.png", flat(2))]);
    let idx = folder.path().join("x-000000.idx");
    let text = fs::read_to_string(&idx).unwrap();
    let b = text.lines().nth(3).unwrap();
    let fields: Vec<_> = b.split('\t').collect();
    let with = |n: usize, field: &str| {
        let mut fields = fields.clone();
        fields[n] = field;
        text.replace(b, &fields.join("\t"))
    };
    for hostile in [
        with(1, "0"),
        with(1, "511"),
        with(1, "18446744073709551615"),
        with(2, "4294967295"),
        with(2, "99999999999999"),
        with(3, "-1"),
        with(4, "00000000"),
        with(4, ""),
        with(0, "b\u{1b}[31m.png"),
        text.replace(" 2\n", " 18446744073709551615\n"),
        text.clone() + &"x".repeat(1 << 20),
    ] {
        assert_ne!(hostile, text);
        fs::write(&idx, &hostile).unwrap();
        let dataset = open(folder.path()).unwrap();
        assert_eq!(dataset.shards().next().unwrap().index, IndexState::Rebuilt, "{hostile:.200}");
        assert_eq!(fs::read_to_string(&idx).unwrap(), text);
    }
}

#[test]
fn pax_and_gnu_headers_are_read_as_pythons_tarfile_writes_them() {
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("x.tar");
    let long = format!("{}/ü.png", "d".repeat(120));
    let image = flat(7);
    let record = |key: &str, value: &str| {
        let rest = format!(" {key}={value}\n");
        let length = (1..).find(|digits| (rest.len() + digits).to_string().len() == *digits).unwrap();
        format!("{}{rest}", rest.len() + length)
    };
    // As tarfile does: the name in full before the member, and cut to what fits in it; owners and times as well.
    let before = record("path", &long) + &record("uid", "12345678901") + &record("mtime", "1.5");
    let cls = record("path", &long.replace("png", "cls"));
    raw_tar(
        &tar,
        &[
            (b'x', "././@PaxHeader", before.len() as u64, before.as_bytes()),
            (b'0', &long[..100], image.len() as u64, &image),
            (b'x', "././@PaxHeader", cls.len() as u64, cls.as_bytes()),
            (b'0', &long[..100], 1, b"3"),
            (b'L', "././@LongLink", 111, format!("{}.png\0", "e".repeat(106)).as_bytes()),
            (b'0', &"e".repeat(100), image.len() as u64, &image),
            (b'L', "././@LongLink", 111, format!("{}.cls\0", "e".repeat(106)).as_bytes()),
            (b'0', &"e".repeat(100), 1, b"4"),
        ],
    );
    for _ in 0..2 {
        // Scanned, then from the index.
        let dataset = open(&tar).unwrap();
        let mut encoded = Vec::new();
        let info = dataset.read(0, &mut encoded).unwrap();
        assert_eq!((info.name, info.label, &encoded), (long.as_str(), 3, &image));
        assert_eq!(dataset.read(1, &mut encoded).unwrap().key, "e".repeat(106));
        assert_eq!(encoded, image);
    }
    assert_eq!(ShardIndex::open(&tar).unwrap().1, IndexState::Read);
}

#[test]
fn many_samples_are_indexed_by_their_headers() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::new(folder.path(), "x", 1000).unwrap();
    for sample in 0..5000_u32 {
        writer.write(&format!("{sample:08}"), "jpg", b"an image", sample % 10).unwrap();
    }
    assert_eq!(writer.finish().unwrap(), (5, 5000));
    let text = stdout(&codinet_data(&["index", path(folder.path()), "--force"]));
    assert!(text.starts_with("indexed 5 shards, 5000 samples, "), "{text}");
    assert!(matches!(Dataset::open("/nowhere"), Err(Error::Empty { .. })));
}

#[cfg(not(feature = "remote"))]
#[test]
fn without_stores_a_url_says_what_to_build() {
    for pattern in
        ["s3://bucket/train", "https://host/x-{0..3}.tar", "gs://bucket/x.tar", "http://host/list.json"]
    {
        let message = Dataset::open(pattern).unwrap_err().to_string();
        assert!(message.contains(pattern.split('{').next().unwrap()), "{message}");
        assert!(message.contains("build it with the feature `remote`"), "{message}");
    }
}

/// A file system other than the temporary folder's, to play the slow one.
const OTHER_FILE_SYSTEM: &str = "/dev/shm";

#[test]
fn shards_of_another_file_system_are_staged_in_the_cache() {
    let slow = tempfile::tempdir_in(OTHER_FILE_SYSTEM).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let device = |folder: &Path| fs::metadata(folder).unwrap().dev();
    assert_ne!(device(slow.path()), device(cache.path()), "this test needs two file systems");
    write_flat(slow.path(), 10);
    let options = |limit_bytes| Options {
        cache: Some(Cache { folder: cache.path().to_owned(), limit_bytes }),
        ..Options::default()
    };
    let copies = || {
        let names = cache.path().read_dir().unwrap().map(|entry| entry.unwrap().path());
        names.filter(|path| path.extension().is_some_and(|extension| extension == "tar")).count()
    };
    let read_all = |dataset: &Dataset| {
        let mut encoded = Vec::new();
        for sample in 0..dataset.len() {
            dataset.read(sample, &mut encoded).unwrap();
            assert_eq!(encoded, flat(sample as u32));
        }
    };
    let dataset = Dataset::open_with(path(slow.path()), &options(1 << 20)).unwrap();
    assert_eq!(copies(), 0, "opening copies nothing");
    read_all(&dataset);
    assert_eq!(copies(), 3, "a copy of each shard");

    // Another process reads the copies: the shards themselves are gone.
    let again = Dataset::open_with(path(slow.path()), &options(1 << 20)).unwrap();
    for entry in slow.path().read_dir().unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    read_all(&again);

    // A cache without space is no obstacle, and shards on its own file system are read in place.
    write_flat(slow.path(), 10);
    read_all(&Dataset::open_with(path(slow.path()), &options(1000)).unwrap());
    let near = tempfile::tempdir().unwrap();
    write_flat(near.path(), 10);
    let before = copies();
    read_all(&Dataset::open_with(path(near.path()), &options(1 << 20)).unwrap());
    assert_eq!(copies(), before);
}
