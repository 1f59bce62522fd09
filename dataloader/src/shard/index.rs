//! Where each sample lies in a shard, so that samples can be read in any order.
//!
//! The index of `NAME.tar` is the text file `NAME.idx`: a line `codinet-index 2 SIZE VERSION SAMPLES` (the tar's
//! bytes, and its modification time when it was indexed; of an object in a store its ETag), then a tab-separated
//! line a sample: image member, offset and length of its contents in bytes, label, and the CRC-32 of the member's
//! header. By the last, reading a sample notices an index of another shard, whatever its size and time.
//!
//! It is a cache. Where it is missing, damaged, or the tar has changed since, the tar's headers are scanned again
//! and the index is written anew; where that isn't allowed (a read-only folder), the scan is only kept in memory.
//! Members are never extracted: a name is a label in messages, and whatever path it spells, nothing is written.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::tar_names::{is_image, is_label, key_and_extension};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::source::{LocalFile, ScanReader, Source};

const FORMAT: &str = "codinet-index 2";

/// An image of more bytes than this is taken for a broken or hostile header.
pub(crate) const MOST_IMAGE_BYTES: u64 = 256 << 20;

/// Bytes of a tar's header, which end where the member's contents begin.
pub(crate) const HEADER: usize = 512;

/// The samples of one shard: 24 bytes each, and their names in one string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Bytes of the tar, and what changes when it does: an index is valid for one state of it.
    size: u64,
    version: String,
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
    header: u32,
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
    /// CRC-32 of the 512 bytes before the image: its member's header.
    pub header: u32,
}

impl<'a> IndexedSample<'a> {
    /// The sample's key: the name up to the first dot of its file name.
    pub fn key(&self) -> &'a str {
        key_and_extension(self.name).0
    }
}

/// Where an index came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Read from the `.idx` file.
    Read,
    /// The `.idx` file was missing, damaged or out of date; it has been written anew.
    Rebuilt,
    /// As `Rebuilt`, but it couldn't be written; each opening scans the tar again.
    Unsaved,
    /// There is none: a folder of image files is listed at each opening.
    NotNeeded,
}

impl ShardIndex {
    /// Reads the index of the shard at `tar`, or rebuilds and saves it where it doesn't fit the tar.
    ///
    /// # Errors
    /// As [`rebuild`](Self::rebuild). Not being able to save isn't one.
    pub fn open(tar: &Path) -> Result<(ShardIndex, IndexState)> {
        ShardIndex::of(&Source::File(LocalFile::open(tar)?), false)
    }

    /// The index of an opened shard: the saved one if it fits and isn't to be made anew, else a scan, saved.
    pub(crate) fn of(source: &Source, anew: bool) -> Result<(ShardIndex, IndexState)> {
        if let Some(index) = (!anew).then(|| ShardIndex::saved(source)).flatten() {
            return Ok((index, IndexState::Read));
        }
        let index = ShardIndex::scan(source)?;
        let state = if index.keep(source) { IndexState::Rebuilt } else { IndexState::Unsaved };
        Ok((index, state))
    }

    /// The saved index of a shard, if it was made of its present state.
    fn saved(source: &Source) -> Option<ShardIndex> {
        // A file may change and keep its time, an object not its ETag.
        let kept = source.local_path().and_then(|tar| ShardIndex::load(&tar, source));
        if let Some(index) = kept.filter(|index| !matches!(source, Source::File(_)) || index.fits(source)) {
            return Some(index);
        }
        let index = ShardIndex::of_copy(&source.read_sibling("idx", most_index_bytes(source))?, source)?;
        index.keep(source); // else it is asked for again
        Some(index)
    }

    /// Saves it for the next opening, and whether there is a place for it that can be written.
    fn keep(&self, source: &Source) -> bool {
        source.local_path().is_some_and(|tar| self.save(&tar).is_ok())
    }

    /// Scans the headers of the shard at `tar`; of the contents only the labels are read.
    ///
    /// # Errors
    /// An unreadable file, one that isn't a tar or is cut short, an image without a label or a label without
    /// an image, a label that isn't a number.
    pub fn rebuild(tar: &Path) -> Result<ShardIndex> {
        ShardIndex::scan(&Source::File(LocalFile::open(tar)?))
    }

    fn scan(source: &Source) -> Result<ShardIndex> {
        let tar = source.path();
        let reader = ScanReader::new(source);
        let mut scan = Scan { tar, index: ShardIndex::new(source.size(), source.version()), open: None };
        let broken = |cause: std::io::Error| {
            reader.take_error().unwrap_or_else(|| {
                let what = format!("not a readable tar archive ({cause}); copy or write the shard again");
                Error::malformed(tar, what)
            })
        };
        let mut archive = tar::Archive::new(&reader);
        let mut end = 0; // of the last member, padding included
        for member in archive.entries_with_seek().map_err(broken)? {
            let mut member = member.map_err(broken)?;
            reader.start_member();
            let name = String::from_utf8(member.path_bytes().into_owned())
                .map_err(|error| broken(std::io::Error::other(error)))?;
            let (offset, length) = (member.raw_file_position(), member.size());
            end = offset.saturating_add(length).saturating_add(511) / 512 * 512;
            if end > source.size() {
                return Err(Error::malformed(
                    tar,
                    format!("cut short inside '{name}'; copy the shard again"),
                ));
            }
            if is_sparse(&mut member).map_err(broken)? {
                let what = format!("'{name}' is stored sparsely; write the shard without tar's --sparse");
                return Err(Error::malformed(tar, what));
            }
            if member.header().entry_type().is_file() {
                let mut header = [0; HEADER];
                reader.read_exact_at(&mut header, offset.saturating_sub(HEADER as u64))?;
                scan.member(&name, offset, length, header_crc(&header), &mut member)?;
            }
        }
        // Cut exactly between two members, a tar looks whole but for the zero block that should end it.
        if end + 512 > source.size() {
            return Err(Error::malformed(
                tar,
                "cut short: the tar's end marker is missing; copy the shard again",
            ));
        }
        scan.close_sample()?;
        Ok(scan.index)
    }

    /// The index beside `tar`, a shard's file or its copy, if it was made for `source` in its present state.
    fn load(tar: &Path, source: &Source) -> Option<ShardIndex> {
        let mut text = String::new();
        File::open(index_path(tar)).ok()?.take(most_index_bytes(source)).read_to_string(&mut text).ok()?;
        parse_index(&text, source.size()).filter(|index| index.version == source.version())
    }

    /// As [`load`](Self::load), of an index that was copied beside an object, so that it holds the time of the
    /// file that it was made of.
    fn of_copy(text: &[u8], source: &Source) -> Option<ShardIndex> {
        let mut index = parse_index(std::str::from_utf8(text).ok()?, source.size())?;
        index.version = source.version().to_owned();
        index.fits(source).then_some(index)
    }

    /// Whether the last sample's header is where it says.
    fn fits(&self, source: &Source) -> bool {
        let Some(last) = self.get(self.len().wrapping_sub(1)) else { return true };
        let mut header = [0; HEADER];
        source.read_uncached(&mut header, last.offset - HEADER as u64).is_ok()
            && header_crc(&header) == last.header
    }

    /// Writes the index beside `tar`, in one step.
    pub fn save(&self, tar: &Path) -> Result<()> {
        files::replace_file(&index_path(tar), self.to_text().as_bytes())
    }

    /// What [`save`](Self::save) writes.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{FORMAT} {} {} {}\n", self.size, self.version, self.len());
        for sample in self.iter() {
            let IndexedSample { name, offset, length, label, header } = sample;
            // Writing to a String can't fail.
            let _ = writeln!(text, "{name}\t{offset}\t{length}\t{label}\t{header:08x}");
        }
        text
    }

    /// An index of nothing yet.
    pub(crate) fn new(size: u64, version: &str) -> ShardIndex {
        ShardIndex { size, version: version.to_owned(), names: String::new(), entries: Vec::new() }
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
        self.size
    }

    /// Sample `position` of the shard, in the tar's order; `None` past the end.
    pub fn get(&self, position: usize) -> Option<IndexedSample<'_>> {
        let Entry { offset, length, label, name_end, header } = *self.entries.get(position)?;
        let name_start = position.checked_sub(1).map_or(0, |before| self.entries[before].name_end);
        let name = &self.names[name_start as usize..name_end as usize];
        Some(IndexedSample { name, offset, length, label, header })
    }

    /// All samples in the tar's order.
    pub fn iter(&self) -> impl Iterator<Item = IndexedSample<'_>> {
        (0..self.len()).filter_map(|position| self.get(position))
    }

    /// Adds a sample; `None` where a number doesn't fit.
    pub(crate) fn push(&mut self, sample: IndexedSample<'_>) -> Option<()> {
        let IndexedSample { name, offset, length, label, header } = sample;
        self.names.push_str(name);
        let name_end = u32::try_from(self.names.len()).ok()?;
        self.entries.push(Entry { offset, length, label, name_end, header });
        Some(())
    }

    /// Gives back the memory that growing has taken beyond what is held.
    pub(crate) fn shrink(&mut self) {
        self.names.shrink_to_fit();
        self.entries.shrink_to_fit();
    }
}

/// CRC-32 of a member's header.
pub(crate) fn header_crc(header: &[u8; HEADER]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(header);
    crc.sum()
}

/// Whether a member's contents have holes that the tar leaves out: in GNU's format, or in pax headers.
fn is_sparse<R: Read>(member: &mut tar::Entry<'_, R>) -> std::io::Result<bool> {
    if member.header().entry_type().is_gnu_sparse() {
        return Ok(true);
    }
    let Some(extensions) = member.pax_extensions()? else { return Ok(false) };
    for extension in extensions {
        if extension?.key_bytes().starts_with(b"GNU.sparse.") {
            return Ok(true);
        }
    }
    Ok(false)
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
    /// The image member: its name, then offset, length and CRC-32 of its header.
    image: Option<(String, u64, u32, u32)>,
    label: Option<u32>,
}

impl Scan<'_> {
    fn member(
        &mut self,
        name: &str,
        offset: u64,
        length: u64,
        header: u32,
        contents: &mut impl Read,
    ) -> Result<()> {
        let (key, extension) = key_and_extension(name);
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
            let length =
                u32::try_from(length).ok().filter(|_| length <= MOST_IMAGE_BYTES).ok_or_else(|| {
                    let most = MOST_IMAGE_BYTES >> 20;
                    Error::malformed(
                        tar,
                        format!("'{name}' has {length} bytes; the most are {most} MiB an image"),
                    )
                })?;
            open.image.replace((name.to_owned(), offset, length, header)).is_some()
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
            (Some((name, offset, length, header)), Some(label)) => {
                let sample = IndexedSample { name: &name, offset, length, label, header };
                self.index
                    .push(sample)
                    .ok_or_else(|| Error::malformed(self.tar, "over 4 GiB of names; split the shard"))
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

/// An index has fewer bytes than its tar, whose headers hold all that it says: a longer file isn't one.
fn most_index_bytes(source: &Source) -> u64 {
    source.size().saturating_add(FORMAT.len() as u64 + 256)
}

/// The index in `text`, if it is whole and made for a tar of `size` bytes.
pub(crate) fn parse_index(text: &str, size: u64) -> Option<ShardIndex> {
    let (header, lines) = text.split_once('\n')?;
    let mut fields = header.strip_prefix(FORMAT)?.strip_prefix(' ')?.split(' ');
    let same_size = fields.next()?.parse::<u64>().ok()? == size;
    let (version, count) = (fields.next()?, fields.next()?.parse::<usize>().ok()?);
    if !same_size || fields.next().is_some() {
        return None;
    }
    let mut index = ShardIndex::new(size, version);
    index.names.reserve_exact(lines.len());
    index.entries.reserve_exact(count.min(lines.len() / 14)); // the shortest line
    for line in lines.lines() {
        let mut fields = line.split('\t');
        let name = fields.next().filter(|name| !name.contains(char::is_control))?;
        let (offset, length): (u64, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let label = fields.next()?.parse().ok()?;
        let header = u32::from_str_radix(fields.next().filter(|crc| crc.len() == 8)?, 16).ok()?;
        let inside = offset >= HEADER as u64 && offset.checked_add(length.into())? <= size;
        if !inside || u64::from(length) > MOST_IMAGE_BYTES || fields.next().is_some() {
            return None;
        }
        index.push(IndexedSample { name, offset, length, label, header })?;
    }
    index.names.shrink_to_fit();
    (index.len() == count).then_some(index)
}
