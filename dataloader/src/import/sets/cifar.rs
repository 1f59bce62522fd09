//! CIFAR-10 and CIFAR-100: 50,000 + 10,000 colour photographs, 32×32, in the published binary version.
//!
//! A file consists of records: a label (CIFAR-100: a coarse and a fine one), then the red, the green and the blue plane
//! by rows, all in single bytes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::decode::Channels;
use crate::encode::Encoding;
use crate::error::{Error, IoContext, Result};
use crate::import::entry::{Access, Entry, Importer, PixelImporter, Published, PublishedFile};
use crate::import::pixel_source::{PixelSource, PixelSplit, SampleSink, check_label, interleave_planes};
use crate::import::{broken_source, describe_unreadable, read_gzipped_member};

pub(super) const CIFAR10: Entry = Entry {
    name: LAYOUT_10.name,
    about: "CIFAR-10: 60,000 colour 32x32 photographs in 10 classes, from the binary version (or its .tar.gz)",
    source: SOURCE,
    published: Some(&Published {
        page: PAGE,
        terms: TERMS,
        access: Access::Download {
            base: BASE,
            files: &[PublishedFile {
                name: LAYOUT_10.archive,
                bytes: 170_052_171,
                md5: "c32a1d4ab5d03f1284b67883e8d87530",
                sha256: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
                optional: false,
            }],
        },
    }),
    importer: Importer::Pixels(PixelImporter { encoding: Encoding::Png, open: open_cifar10 }),
};

pub(super) const CIFAR100: Entry = Entry {
    name: LAYOUT_100.name,
    about: "CIFAR-100: 60,000 colour 32x32 photographs in 100 classes, from the binary version (or its .tar.gz)",
    source: SOURCE,
    published: Some(&Published {
        page: PAGE,
        terms: TERMS,
        access: Access::Download {
            base: BASE,
            files: &[PublishedFile {
                name: LAYOUT_100.archive,
                bytes: 168_513_733,
                md5: "03b5dce01913d631647c71ecec9e9cb8",
                sha256: "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
                optional: false,
            }],
        },
    }),
    importer: Importer::Pixels(PixelImporter { encoding: Encoding::Png, open: open_cifar100 }),
};

const SOURCE: &str = "The .tar.gz, or the folder of the binary version's files; nothing in it is changed";

const PAGE: &str = "https://www.cs.toronto.edu/~kriz/cifar.html";
const BASE: &str = "https://www.cs.toronto.edu/~kriz/";
const TERMS: &str = "the page states no licence; it asks to cite A. Krizhevsky, Learning Multiple Layers of Features from \
                     Tiny Images, 2009";

/// The published files of one of the two.
struct Layout {
    name: &'static str,
    folder: &'static str,
    archive: &'static str,
    /// The number of classes of each label in a record; the last label is used.
    labels: &'static [usize],
    /// The file of the class names, and the names where it is missing; empty if unknown.
    class_file: &'static str,
    class_names: &'static [&'static str],
    splits: [(&'static str, &'static [&'static str]); 2],
}

const LAYOUT_10: Layout = Layout {
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

const LAYOUT_100: Layout = Layout {
    name: "cifar100",
    folder: "cifar-100-binary",
    archive: "cifar-100-binary.tar.gz",
    labels: &[20, 100],
    class_file: "fine_label_names.txt",
    class_names: &[],
    splits: [("train", &["train.bin"]), ("test", &["test.bin"])],
};

const SIZE: usize = 32;

pub(super) fn open_cifar10(folder: &Path) -> Result<PixelSource> {
    open_files(folder, &LAYOUT_10)
}

fn open_cifar100(folder: &Path) -> Result<PixelSource> {
    open_files(folder, &LAYOUT_100)
}

fn open_files(folder: &Path, layout: &'static Layout) -> Result<PixelSource> {
    let container = Container::find(folder, layout)?;
    let split = |(name, files): (_, &'static [&str])| {
        let container = container.clone();
        let read = move |sink: &mut SampleSink| {
            files.iter().try_for_each(|file| read_file(&container, file, layout, sink))
        };
        PixelSplit { name, read: Box::new(read) }
    };
    Ok(PixelSource {
        name: layout.name,
        classes: layout.labels[layout.labels.len() - 1],
        class_names: read_class_names(&container, layout)?,
        image_size: SIZE,
        channels: Channels::Rgb,
        splits: layout.splits.map(split).into(),
    })
}

fn read_class_names(container: &Container, layout: &Layout) -> Result<Option<Vec<String>>> {
    let known: Vec<String> = layout.class_names.iter().map(|&name| name.into()).collect();
    let Some(text) = container.read(layout.class_file)? else {
        return Ok(Some(known).filter(|n| !n.is_empty()));
    };
    let lines = String::from_utf8_lossy(&text);
    let names: Vec<String> =
        lines.lines().map(|line| line.trim().into()).filter(|name: &String| !name.is_empty()).collect();
    let classes = layout.labels[layout.labels.len() - 1];
    if names.len() != classes {
        let what = format!("names {} classes, not {classes}", names.len());
        return Err(broken_source(&container.path(layout.class_file), &what));
    }
    Ok(Some(names))
}

fn read_file(container: &Container, file: &str, layout: &Layout, sink: &mut SampleSink) -> Result<()> {
    let path = container.path(file);
    let bytes = container.read(file)?.ok_or_else(|| {
        Error::malformed(&path, format!("missing; fetch or unpack {} again", layout.archive))
    })?;
    let record = layout.labels.len() + 3 * SIZE * SIZE;
    if bytes.is_empty() || bytes.len() % record != 0 {
        let what = format!("cut short: {} bytes are not a number of records of {record}", bytes.len());
        return Err(broken_source(&path, &what));
    }
    for (position, record) in bytes.chunks_exact(record).enumerate() {
        let (labels, planes) = record.split_at(layout.labels.len());
        for (&label, &classes) in labels.iter().zip(layout.labels) {
            check_label(&path, position, label, classes)?;
        }
        sink(&interleave_planes(planes, SIZE, 1), labels[labels.len() - 1])?;
    }
    Ok(())
}

/// The folder or archive that holds the files.
#[derive(Clone)]
enum Container {
    Folder(PathBuf),
    /// A gzipped tar.
    Archive(PathBuf),
}

impl Container {
    /// Looks in `source`, in the published folder in it, and for the published archive there.
    fn find(source: &Path, layout: &Layout) -> Result<Container> {
        let first = layout.splits[0].1[0];
        let mut folders = [source.to_owned(), source.join(layout.folder)].into_iter();
        if let Some(folder) = folders.find(|folder| folder.join(first).exists()) {
            return Ok(Container::Folder(folder));
        }
        let mut archives = [source.to_owned(), source.join(layout.archive)].into_iter();
        archives.find(|archive| archive.is_file()).map(Container::Archive).ok_or_else(|| {
            let Layout { folder, archive, .. } = layout;
            let what = format!(
                "neither {first} nor {folder}/ nor {archive} is here; give the folder of the binary version's files"
            );
            Error::malformed(source, what)
        })
    }

    /// The path of `file` for messages.
    fn path(&self, file: &str) -> PathBuf {
        let (Container::Folder(path) | Container::Archive(path)) = self;
        path.join(file)
    }

    /// The contents of `file`; `None` where it is missing.
    fn read(&self, file: &str) -> Result<Option<Vec<u8>>> {
        match self {
            Container::Folder(folder) => {
                let path = folder.join(file);
                match fs::read(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    read => read.context("read", &path).map(Some),
                }
            }
            Container::Archive(archive) => {
                let opened = File::open(archive).context("open", archive)?;
                read_gzipped_member(opened, file)
                    .map_err(|error| broken_source(archive, &describe_unreadable(error)))
            }
        }
    }
}
