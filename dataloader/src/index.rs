//! Where each sample lies in a shard, so that samples can be read in any order.
//!
//! The index of `NAME.tar` is the text file `NAME.idx`: a line `codinet-index 1 SIZE MTIME SAMPLES` (the tar's
//! bytes and modification time when it was indexed), then a tab-separated line a sample: image member, offset
//! and length of its contents in bytes, label. It is a cache. Where it is missing, damaged, or the tar has
//! changed since, the tar's headers are scanned again and the index is written anew; where that isn't allowed
//! (a read-only folder), the scan is only kept in memory.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::shard::{is_image, is_label, split_name};

const FORMAT: &str = "codinet-index 1";

/// The samples of one shard: about 24 bytes each, and their names in one string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Size and modification time of the tar: an index is valid for one state of it.
    stamp: Stamp,
    names: String,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    length: u32,
    label: u32,
    /// Where in `names` this sample's name ends; it begins where the one before ends.
    name_end: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// One sample of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexedSample<'a> {
    /// The image member's name in the tar.
    pub name: &'a str,
    /// Where the encoded image begins, in bytes from the tar's start.
    pub offset: u64,
    /// Its length in bytes.
    pub length: u32,
    /// The class number.
    pub label: u32,
}

impl<'a> IndexedSample<'a> {
    /// The sample's key: the name up to the first dot of its file name.
    pub fn key(&self) -> &'a str {
        split_name(self.name).0
    }
}

/// How an index was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Read from the `.idx` file.
    Read,
    /// The `.idx` file was missing, damaged or out of date; it has been written anew.
    Rebuilt,
    /// As `Rebuilt`, but it couldn't be written; each opening scans the tar again.
    Unsaved,
}

impl ShardIndex {
    /// Reads the index of the shard at `tar`, or rebuilds and saves it where it doesn't fit the tar.
    ///
    /// # Errors
    /// As [`rebuild`](Self::rebuild). Not being able to save isn't one.
    pub fn open(tar: &Path) -> Result<(ShardIndex, IndexState)> {
        let stamp = Stamp::of(&File::open(tar).context("open shard", tar)?, tar)?;
        if let Some(index) =
            std::fs::read_to_string(index_path(tar)).ok().and_then(|text| parse(&text, stamp))
        {
            return Ok((index, IndexState::Read));
        }
        let index = ShardIndex::rebuild(tar)?;
        let state = if index.save(tar).is_ok() { IndexState::Rebuilt } else { IndexState::Unsaved };
        Ok((index, state))
    }

    /// Scans the headers of the shard at `tar`; of the contents only the labels are read.
    ///
    /// # Errors
    /// An unreadable file, one that isn't a tar or is cut short, an image without a label or a label without
    /// an image, a label that isn't a number.
    pub fn rebuild(tar: &Path) -> Result<ShardIndex> {
        let file = File::open(tar).context("open shard", tar)?;
        let stamp = Stamp::of(&file, tar)?;
        let mut scan =
            Scan { tar, index: ShardIndex { stamp, names: String::new(), entries: Vec::new() }, open: None };
        let broken = |cause: std::io::Error| {
            Error::malformed(
                tar,
                format!("not a readable tar archive ({cause}); copy or write the shard again"),
            )
        };
        let mut archive = tar::Archive::new(file);
        let mut end = 0; // of the last member, padding included
        for member in archive.entries_with_seek().map_err(broken)? {
            let mut member = member.map_err(broken)?;
            let name = String::from_utf8(member.path_bytes().into_owned())
                .map_err(|error| broken(std::io::Error::other(error)))?;
            let (offset, length) = (member.raw_file_position(), member.size());
            end = offset.saturating_add(length).saturating_add(511) / 512 * 512;
            if end > stamp.size {
                return Err(Error::malformed(
                    tar,
                    format!("cut short inside '{name}'; copy the shard again"),
                ));
            }
            if member.header().entry_type().is_file() {
                scan.member(&name, offset, length, &mut member)?;
            }
        }
        // Cut exactly between two members, a tar looks whole but for the zero block that should end it.
        if end + 512 > stamp.size {
            return Err(Error::malformed(
                tar,
                "cut short: the tar's end marker is missing; copy the shard again",
            ));
        }
        scan.close_sample()?;
        Ok(scan.index)
    }

    /// Writes the index beside `tar`, in one step.
    pub fn save(&self, tar: &Path) -> Result<()> {
        let Stamp { size, seconds, nanoseconds } = self.stamp;
        let mut text = format!("{FORMAT} {size} {seconds}.{nanoseconds:09} {}\n", self.len());
        for sample in self.iter() {
            let IndexedSample { name, offset, length, label } = sample;
            let _ = writeln!(text, "{name}\t{offset}\t{length}\t{label}"); // writing to a String can't fail
        }
        files::replace(&index_path(tar), text.as_bytes())
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the shard holds no sample.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the tar.
    pub fn tar_size(&self) -> u64 {
        self.stamp.size
    }

    /// Sample `position` of the shard, in the tar's order; `None` past the end.
    pub fn get(&self, position: usize) -> Option<IndexedSample<'_>> {
        let Entry { offset, length, label, name_end } = *self.entries.get(position)?;
        let name_start = position.checked_sub(1).map_or(0, |before| self.entries[before].name_end);
        let name = &self.names[name_start as usize..name_end as usize];
        Some(IndexedSample { name, offset, length, label })
    }

    /// All samples in the tar's order.
    pub fn iter(&self) -> impl Iterator<Item = IndexedSample<'_>> {
        (0..self.len()).filter_map(|position| self.get(position))
    }

    /// Adds a sample; `None` where a number doesn't fit.
    fn push(&mut self, name: &str, offset: u64, length: u64, label: u32) -> Option<()> {
        self.names.push_str(name);
        let name_end = u32::try_from(self.names.len()).ok()?;
        self.entries.push(Entry { offset, length: u32::try_from(length).ok()?, label, name_end });
        Some(())
    }
}

impl Stamp {
    fn of(file: &File, path: &Path) -> Result<Stamp> {
        let metadata = file.metadata().context("read", path)?;
        Ok(Stamp { size: metadata.len(), seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() })
    }
}

/// A scan over a tar's members, which puts images and labels together.
struct Scan<'a> {
    tar: &'a Path,
    index: ShardIndex,
    /// The sample whose members are being met.
    open: Option<OpenSample>,
}

struct OpenSample {
    key: String,
    /// Name, offset and length of the image member.
    image: Option<(String, u64, u64)>,
    label: Option<u32>,
}

impl Scan<'_> {
    fn member(&mut self, name: &str, offset: u64, length: u64, contents: &mut impl Read) -> Result<()> {
        let (key, extension) = split_name(name);
        if !is_image(extension) && !is_label(extension) {
            return Ok(());
        }
        if name.contains(char::is_control) {
            let what = format!("control characters in the member name {name:?}; rename it");
            return Err(Error::malformed(self.tar, what));
        }
        if self.open.as_ref().is_some_and(|open| open.key != key) {
            self.close_sample()?;
        }
        let tar = self.tar;
        let open =
            self.open.get_or_insert_with(|| OpenSample { key: key.to_owned(), image: None, label: None });
        let twice = if is_image(extension) {
            open.image.replace((name.to_owned(), offset, length)).is_some()
        } else {
            open.label.replace(read_label(tar, key, contents)?).is_some()
        };
        if twice {
            let kind = if is_image(extension) { "image" } else { "label" };
            return Err(Error::malformed(
                tar,
                format!("key '{key}' has more than one {kind}; keep one of them"),
            ));
        }
        Ok(())
    }

    /// The open sample has met all its members.
    fn close_sample(&mut self) -> Result<()> {
        let Some(OpenSample { key, image, label }) = self.open.take() else { return Ok(()) };
        let label_error = |reason: &str| {
            Err(Error::Label { shard: self.tar.to_owned(), key: key.clone(), reason: reason.to_owned() })
        };
        match (image, label) {
            (Some((name, offset, length)), Some(label)) => {
                self.index.push(&name, offset, length, label).ok_or_else(|| {
                    Error::malformed(self.tar, format!("key '{key}': image or shard of over 4 GiB; split it"))
                })
            }
            (Some(_), None) => {
                label_error("the image has no .cls member beside it; write one with its class number")
            }
            (None, _) => label_error("the .cls member has no .jpg, .jpeg or .png beside it; add the image"),
        }
    }
}

fn read_label(tar: &Path, key: &str, contents: &mut impl Read) -> Result<u32> {
    let mut text = Vec::new();
    contents.take(64).read_to_end(&mut text).context("read", tar)?;
    let text = String::from_utf8_lossy(&text);
    text.trim().parse().map_err(|_| Error::Label {
        shard: tar.to_owned(),
        key: key.to_owned(),
        reason: format!("its .cls member holds {:?}; it must hold a class number, 0 or more", text.trim()),
    })
}

fn index_path(tar: &Path) -> PathBuf {
    tar.with_extension("idx")
}

/// The index in `text`, if it is whole and made for the tar in its present state.
fn parse(text: &str, stamp: Stamp) -> Option<ShardIndex> {
    let (header, lines) = text.split_once('\n')?;
    let Stamp { size, seconds, nanoseconds } = stamp;
    let count = header.strip_prefix(&format!("{FORMAT} {size} {seconds}.{nanoseconds:09} "))?;
    let count: usize = count.parse().ok()?;
    let mut index = ShardIndex { stamp, names: String::with_capacity(lines.len()), entries: Vec::new() };
    index.entries.reserve_exact(count.min(lines.len()));
    for line in lines.lines() {
        let mut fields = line.split('\t');
        let name = fields.next()?;
        let (offset, length): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let inside = offset.checked_add(length)? <= size;
        index.push(name, offset, length, fields.next()?.parse().ok().filter(|_| inside)?)?;
    }
    index.names.shrink_to_fit();
    (index.len() == count).then_some(index)
}
