//! CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour photographs, 32×32, in the published binary version.
//!
//! A file is records and nothing else: a label (CIFAR-100: a coarse one and a fine one), then the red, the green and
//! the blue plane by rows, all of single bytes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::{Each, Source, SourceSplit, broken, check_label, gzipped_member, interleave, unreadable};
use crate::decode::Channels;
use crate::error::{Error, IoContext, Result};

/// How one of the two is published.
pub(super) struct Layout {
    name: &'static str,
    folder: &'static str,
    archive: &'static str,
    /// The number of classes of each label in a record; the last is the label taken.
    labels: &'static [usize],
    /// The file of the class names, and the names where it is missing; none where they aren't known.
    class_file: &'static str,
    class_names: &'static [&'static str],
    splits: [(&'static str, &'static [&'static str]); 2],
}

pub(super) const CIFAR10: Layout = Layout {
    name: "cifar10",
    folder: "cifar-10-batches-bin",
    archive: "cifar-10-binary.tar.gz",
    labels: &[10],
    class_file: "batches.meta.txt",
    class_names: &["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
    splits: [
        (
            "train",
            &[
                "data_batch_1.bin",
                "data_batch_2.bin",
                "data_batch_3.bin",
                "data_batch_4.bin",
                "data_batch_5.bin",
            ],
        ),
        ("test", &["test_batch.bin"]),
    ],
};

pub(super) const CIFAR100: Layout = Layout {
    name: "cifar100",
    folder: "cifar-100-binary",
    archive: "cifar-100-binary.tar.gz",
    labels: &[20, 100],
    class_file: "fine_label_names.txt",
    class_names: &[],
    splits: [("train", &["train.bin"]), ("test", &["test.bin"])],
};

const SIZE: usize = 32;

pub(super) fn source(folder: &Path, layout: &'static Layout) -> Result<Source> {
    let place = Place::find(folder, layout)?;
    let split = |(name, files): (_, &'static [&str])| {
        let place = place.clone();
        let read = move |each: &mut Each| files.iter().try_for_each(|file| read(&place, file, layout, each));
        SourceSplit { name, read: Box::new(read) }
    };
    Ok(Source {
        name: layout.name,
        classes: layout.labels[layout.labels.len() - 1],
        class_names: class_names(&place, layout)?,
        image_size: SIZE,
        channels: Channels::Rgb,
        splits: layout.splits.map(split).into(),
    })
}

fn class_names(place: &Place, layout: &Layout) -> Result<Option<Vec<String>>> {
    let known: Vec<String> = layout.class_names.iter().map(|&name| name.into()).collect();
    let Some(text) = place.read(layout.class_file)? else { return Ok(Some(known).filter(|n| !n.is_empty())) };
    let lines = String::from_utf8_lossy(&text);
    let names: Vec<String> =
        lines.lines().map(|line| line.trim().into()).filter(|name: &String| !name.is_empty()).collect();
    let classes = layout.labels[layout.labels.len() - 1];
    if names.len() != classes {
        let what = format!("names {} classes, not {classes}", names.len());
        return Err(broken(&place.path(layout.class_file), &what));
    }
    Ok(Some(names))
}

fn read(place: &Place, file: &str, layout: &Layout, each: &mut Each) -> Result<()> {
    let path = place.path(file);
    let bytes = place.read(file)?.ok_or_else(|| {
        Error::malformed(&path, format!("missing; fetch or unpack {} again", layout.archive))
    })?;
    let record = layout.labels.len() + 3 * SIZE * SIZE;
    if bytes.is_empty() || bytes.len() % record != 0 {
        let what = format!("cut short: {} bytes are not a number of records of {record}", bytes.len());
        return Err(broken(&path, &what));
    }
    for (position, record) in bytes.chunks_exact(record).enumerate() {
        let (labels, planes) = record.split_at(layout.labels.len());
        for (&label, &classes) in labels.iter().zip(layout.labels) {
            check_label(&path, position, label, classes)?;
        }
        each(&interleave(planes, SIZE, 1), labels[labels.len() - 1])?;
    }
    Ok(())
}

/// Where the files are.
#[derive(Clone)]
enum Place {
    Folder(PathBuf),
    /// A gzipped tar.
    Archive(PathBuf),
}

impl Place {
    /// Looks in `source`, in the published folder in it, and for the published archive there.
    fn find(source: &Path, layout: &Layout) -> Result<Place> {
        let first = layout.splits[0].1[0];
        let mut folders = [source.to_owned(), source.join(layout.folder)].into_iter();
        if let Some(folder) = folders.find(|folder| folder.join(first).exists()) {
            return Ok(Place::Folder(folder));
        }
        let mut archives = [source.to_owned(), source.join(layout.archive)].into_iter();
        archives.find(|archive| archive.is_file()).map(Place::Archive).ok_or_else(|| {
            let Layout { folder, archive, .. } = layout;
            let what = format!(
                "neither {first} nor {folder}/ nor {archive} is here; give the folder of the binary version's files"
            );
            Error::malformed(source, what)
        })
    }

    /// The name of `file` for messages.
    fn path(&self, file: &str) -> PathBuf {
        let (Place::Folder(place) | Place::Archive(place)) = self;
        place.join(file)
    }

    /// The contents of `file`; `None` where there is no such file.
    fn read(&self, file: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Place::Folder(folder) => {
                let path = folder.join(file);
                match fs::read(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    read => read.context("read", &path).map(Some),
                }
            }
            Place::Archive(archive) => {
                let opened = File::open(archive).context("open", archive)?;
                gzipped_member(opened, file).map_err(|error| broken(archive, &unreadable(error)))
            }
        }
    }
}
