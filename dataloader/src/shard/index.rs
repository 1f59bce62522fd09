//! The index of a shard: where each sample lies, so that samples can be read in any order.
//!
//! The index of `NAME.tar` is the text file `NAME.idx`. Its first line is `codinet-index 3 SIZE VERSION SAMPLES`: the
//! tar's bytes, and its modification time when it was indexed, or the ETag of an object in a store. The second line
//! counts the members that aren't read, as JSON. Then comes a tab-separated line for each sample: image member, offset
//! and length of its contents in bytes, label, and the CRC-32 of the member's header. By this checksum, reading a sample
//! detects an index of another shard, even if size and time are the same.
//!
//! The index is a cache. Where it is missing, damaged, or older than the tar, the tar's headers are scanned again and
//! the index is rewritten. In a read-only folder, the index is only kept in memory. Members are never extracted: a name
//! is only a label in messages, so nothing is written to the path that it spells.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::tar_names::{is_image, is_label, last_extension, split_key};
use super::tar_walk::{MemberKind, TarMember, WalkError, walk_members};
use crate::error::{Error, Result};
use crate::files;
use crate::left_out::{LeftOut, Reason, is_foreign_path};
use crate::source::{LocalFile, ScanReader, Source};

const FORMAT: &str = "codinet-index 3";

/// Limit of an image in bytes; a larger one has a broken or hostile header.
pub(crate) const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Bytes of a tar's header, which end where the member's contents begin.
pub(crate) const HEADER: usize = 512;

/// The samples of one shard: 24 bytes each, and their names in one string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardIndex {
    /// Bytes of the tar.
    size: u64,
    /// The version of the tar; an index is valid for one version.
    version: String,
    left_out: LeftOut,
    names: String,
    entries: Vec<Entry>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    offset: u64,
    length: u32,
    label: u32,
    /// Where in `names` this sample's name ends; it begins at the end of the one before.
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
        split_key(self.name).0
    }
}

/// The origin of an index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IndexState {
    /// Read from the `.idx` file.
    Read,
    /// The `.idx` file was missing, damaged or out of date, and has been rewritten.
    Rebuilt,
    /// As `Rebuilt`, but the file couldn't be written; each opening scans the tar again.
    Unsaved,
    /// A folder of image files has no index; it is listed at each opening.
    NotNeeded,
}

impl ShardIndex {
    /// Reads the index of the shard at `tar`, or rebuilds and saves it where it doesn't match the tar.
    ///
    /// # Errors
    /// As [`rebuild`](Self::rebuild). A failure to save is no error.
    pub fn open(tar: &Path) -> Result<(ShardIndex, IndexState)> {
        ShardIndex::open_source(&Source::File(LocalFile::open(tar)?), false)
    }

    /// Reads the index of an opened shard, or rebuilds and saves it: if it doesn't match, or if `rebuild` is set.
    pub(crate) fn open_source(source: &Source, rebuild: bool) -> Result<(ShardIndex, IndexState)> {
        if !rebuild && let Some(index) = ShardIndex::load(source) {
            return Ok((index, IndexState::Read));
        }
        let index = ShardIndex::scan(source)?;
        let state = if index.try_save(source) { IndexState::Rebuilt } else { IndexState::Unsaved };
        Ok((index, state))
    }

    /// The saved index of a shard, if it was made from the shard's present version.
    fn load(source: &Source) -> Option<ShardIndex> {
        // A file's time may stay the same while its contents change; an object's ETag doesn't.
        let saved = source.local_path().and_then(|tar| ShardIndex::load_file(&tar, source));
        if let Some(index) = saved.filter(|index| !matches!(source, Source::File(_)) || index.matches(source))
        {
            return Some(index);
        }
        let text = source.read_sibling("idx", max_index_bytes(source))?;
        let index = ShardIndex::parse_copied(&text, source)?;
        index.try_save(source); // saves the next request
        Some(index)
    }

    /// Saves it for the next opening; false where no folder can be written.
    fn try_save(&self, source: &Source) -> bool {
        source.local_path().is_some_and(|tar| self.save(&tar).is_ok())
    }

    /// Scans the headers of the shard at `tar`. It reads the labels, and no other contents.
    ///
    /// # Errors
    /// An unreadable file, one that isn't a tar or is cut short, data behind the end marker, an image without a label or
    /// a label without an image, a label that isn't a number.
    pub fn rebuild(tar: &Path) -> Result<ShardIndex> {
        ShardIndex::scan(&Source::File(LocalFile::open(tar)?))
    }

    fn scan(source: &Source) -> Result<ShardIndex> {
        let tar = source.path();
        let reader = ScanReader::new(source);
        let index = ShardIndex::new(source.size(), source.version());
        let mut scan = MemberScan { tar, reader: &reader, index, pending: None };
        match walk_members(&reader, source.size(), |member| scan.add_member(member)) {
            Ok(()) => {}
            Err(WalkError::Visit(error)) => return Err(error),
            Err(WalkError::Unsupported(what)) => return Err(Error::malformed(tar, what)),
            Err(WalkError::Damaged(what)) => {
                let damaged = || Error::malformed(tar, format!("{what}; copy or write the shard again"));
                return Err(reader.take_error().unwrap_or_else(damaged));
            }
        }
        scan.close_sample()?;
        Ok(scan.index)
    }

    /// The index in the folder of `tar`, a shard's file or its copy, if it was made from `source` in its present version.
    fn load_file(tar: &Path, source: &Source) -> Option<ShardIndex> {
        let mut text = String::new();
        File::open(index_path(tar)).ok()?.take(max_index_bytes(source)).read_to_string(&mut text).ok()?;
        parse_index(&text, source.size()).filter(|index| index.version == source.version())
    }

    /// As [`load_file`](Self::load_file), for an index that was copied to the store together with its shard. It has the
    /// time of the original file, so only the headers can tell whether it matches.
    fn parse_copied(text: &[u8], source: &Source) -> Option<ShardIndex> {
        let mut index = parse_index(std::str::from_utf8(text).ok()?, source.size())?;
        index.version = source.version().to_owned();
        index.matches(source).then_some(index)
    }

    /// Whether the last sample's header is where the index says.
    fn matches(&self, source: &Source) -> bool {
        let Some(last) = self.get(self.len().wrapping_sub(1)) else { return true };
        let mut header = [0; HEADER];
        source.read_uncached(&mut header, last.offset - HEADER as u64).is_ok()
            && header_crc(&header) == last.header
    }

    /// Writes the index to the folder of `tar`, in one step.
    pub fn save(&self, tar: &Path) -> Result<()> {
        files::replace_file(&index_path(tar), self.to_text().as_bytes())
    }

    /// The text of the index file.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("{FORMAT} {} {} {}\n", self.size, self.version, self.len());
        // Neither a map of strings to JSON nor writing to a String can fail.
        let _ = writeln!(text, "{}", serde_json::to_string(&self.left_out).unwrap_or_default());
        for sample in self.iter() {
            let IndexedSample { name, offset, length, label, header } = sample;
            let _ = writeln!(text, "{name}\t{offset}\t{length}\t{label}\t{header:08x}");
        }
        text
    }

    /// An empty index.
    pub(crate) fn new(size: u64, version: &str) -> ShardIndex {
        ShardIndex {
            size,
            version: version.to_owned(),
            left_out: LeftOut::default(),
            names: String::new(),
            entries: Vec::new(),
        }
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the shard holds no sample.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Members that aren't read.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    /// Sets the counts of files that aren't read.
    pub(crate) fn set_left_out(&mut self, left_out: LeftOut) {
        self.left_out = left_out;
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

    /// Frees the unused capacity.
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

/// A scan over a tar's members, which joins images and labels to samples.
struct MemberScan<'a> {
    tar: &'a Path,
    reader: &'a ScanReader<'a>,
    index: ShardIndex,
    /// The sample whose members are being read.
    pending: Option<PendingSample>,
}

struct PendingSample {
    key: String,
    image: Option<ImageMember>,
    label: Option<u32>,
}

struct ImageMember {
    name: String,
    offset: u64,
    length: u32,
    /// CRC-32 of its header.
    header: u32,
}

impl MemberScan<'_> {
    fn add_member(&mut self, TarMember { name, kind, offset, length }: TarMember) -> Result<()> {
        let (key, extension) = split_key(&name);
        let last = last_extension(&name);
        let reason = match kind {
            MemberKind::Folder => return Ok(()),
            _ if is_foreign_path(&name) => Reason::Foreign,
            MemberKind::SymbolicLink => Reason::SymbolicLink,
            MemberKind::Special => Reason::Special,
            MemberKind::File if is_image(extension) || is_label(extension) => {
                return self.add_file(&name, key, extension, offset, length);
            }
            MemberKind::File if is_image(last) || is_label(last) => Reason::SeveralDots,
            MemberKind::File => Reason::Extension(last),
        };
        self.index.left_out.add(reason, &name);
        Ok(())
    }

    fn add_file(&mut self, name: &str, key: &str, extension: &str, offset: u64, length: u64) -> Result<()> {
        if name.contains(char::is_control) {
            let what = format!("control characters in the member name {name:?}; rename it");
            return Err(Error::malformed(self.tar, what));
        }
        if self.pending.as_ref().is_some_and(|pending| pending.key != key) {
            self.close_sample()?;
        }
        let twice = if is_image(extension) {
            let member = self.read_image_header(name, offset, length)?;
            self.pending(key).image.replace(member).is_some()
        } else {
            let label = self.read_label(key, offset, length)?;
            self.pending(key).label.replace(label).is_some()
        };
        if twice {
            let kind = if is_image(extension) { "image" } else { "label" };
            let what = format!("key '{key}' has more than one {kind}; keep one of them");
            return Err(Error::malformed(self.tar, what));
        }
        Ok(())
    }

    fn pending(&mut self, key: &str) -> &mut PendingSample {
        let new = || PendingSample { key: key.to_owned(), image: None, label: None };
        self.pending.get_or_insert_with(new)
    }

    fn read_image_header(&self, name: &str, offset: u64, length: u64) -> Result<ImageMember> {
        let length = u32::try_from(length).ok().filter(|_| length <= MAX_IMAGE_BYTES).ok_or_else(|| {
            let most = MAX_IMAGE_BYTES >> 20;
            Error::malformed(
                self.tar,
                format!("'{name}' has {length} bytes; the most are {most} MiB an image"),
            )
        })?;
        let mut header = [0; HEADER];
        self.reader.read_exact_at(&mut header, offset.saturating_sub(HEADER as u64))?;
        Ok(ImageMember { name: name.to_owned(), offset, length, header: header_crc(&header) })
    }

    fn read_label(&self, key: &str, offset: u64, length: u64) -> Result<u32> {
        let mut text = vec![0; length.min(64) as usize];
        self.reader.read_exact_at(&mut text, offset)?;
        let text = String::from_utf8_lossy(&text);
        text.trim().parse().map_err(|_| {
            let text = text.trim();
            self.label_error(
                key,
                format!("its .cls member holds {text:?}; it must hold a class number, 0 or more"),
            )
        })
    }

    fn label_error(&self, key: &str, reason: String) -> Error {
        Error::Label { shard: self.tar.to_owned(), key: key.to_owned(), reason }
    }

    /// Adds the pending sample to the index.
    fn close_sample(&mut self) -> Result<()> {
        let Some(PendingSample { key, image, label }) = self.pending.take() else { return Ok(()) };
        let Some(ImageMember { name, offset, length, header }) = image else {
            let reason = "the .cls member has no .jpg, .jpeg or .png next to it; add the image";
            return Err(self.label_error(&key, reason.to_owned()));
        };
        let Some(label) = label else {
            let reason = "the image has no .cls member next to it; write one with its class number";
            return Err(self.label_error(&key, reason.to_owned()));
        };
        let sample = IndexedSample { name: &name, offset, length, label, header };
        let too_long = || Error::malformed(self.tar, "over 4 GiB of names; split the shard");
        self.index.push(sample).ok_or_else(too_long)
    }
}

fn index_path(tar: &Path) -> PathBuf {
    tar.with_extension("idx")
}

/// Limit of an index file in bytes. An index repeats parts of the tar's headers, so a longer file isn't one.
fn max_index_bytes(source: &Source) -> u64 {
    source.size().saturating_add(FORMAT.len() as u64 + MAX_LEFT_OUT_BYTES)
}

/// Limit of the first two lines in bytes.
const MAX_LEFT_OUT_BYTES: u64 = 1 << 14;

/// Parses an index; `None` if it is damaged, or wasn't made from a tar of `size` bytes.
pub(crate) fn parse_index(text: &str, size: u64) -> Option<ShardIndex> {
    let (header, rest) = text.split_once('\n')?;
    let (left_out, lines) = rest.split_once('\n')?;
    let mut fields = header.strip_prefix(FORMAT)?.strip_prefix(' ')?.split(' ');
    let same_size = fields.next()?.parse::<u64>().ok()? == size;
    let version = fields.next()?;
    let count = fields.next()?.parse::<usize>().ok()?;
    if !same_size || fields.next().is_some() {
        return None;
    }
    let mut index = ShardIndex::new(size, version);
    index.left_out = serde_json::from_str(left_out).ok()?;
    index.names.reserve_exact(lines.len());
    index.entries.reserve_exact(count.min(lines.len() / 14)); // the shortest line
    for line in lines.lines() {
        let mut fields = line.split('\t');
        let name = fields.next().filter(|name| !name.contains(char::is_control))?;
        let offset: u64 = fields.next()?.parse().ok()?;
        let length: u32 = fields.next()?.parse().ok()?;
        let label = fields.next()?.parse().ok()?;
        let header = u32::from_str_radix(fields.next().filter(|crc| crc.len() == 8)?, 16).ok()?;
        let inside = offset >= HEADER as u64 && offset.checked_add(length.into())? <= size;
        if !inside || u64::from(length) > MAX_IMAGE_BYTES || fields.next().is_some() {
            return None;
        }
        index.push(IndexedSample { name, offset, length, label, header })?;
    }
    index.names.shrink_to_fit();
    (index.len() == count).then_some(index)
}
