//! Where encoded images lie, before they are read: files in folders, and members of tar archives, which are
//! read in place. Nothing is ever extracted, and of a member's path only the last part is used, as a name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::broken;
use crate::error::{Error, IoContext, Result};
use crate::shard::MOST_IMAGE_BYTES;

/// The most bytes of headers in a row, the long names in them included, that a tar may have.
const MOST_HEADER_BYTES: u64 = 1 << 24;

/// Something with a name that can be read.
#[derive(Clone)]
pub(super) struct Found {
    pub(super) name: String,
    pub(super) place: Place,
}

/// Where the bytes are.
#[derive(Clone)]
pub(super) enum Place {
    /// A file, or a folder.
    Path(PathBuf),
    /// A part of an archive.
    Member { archive: Arc<Archive>, offset: u64, length: u64 },
}

/// An opened tar archive.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
}

impl Place {
    /// The archive at `path`, whole.
    pub(super) fn archive(path: &Path) -> Result<Place> {
        let file = File::open(path).context("open", path)?;
        let length = file.metadata().context("read", path)?.len();
        let archive = Arc::new(Archive { path: path.to_owned(), file });
        Ok(Place::Member { archive, offset: 0, length })
    }

    /// The file that holds it.
    pub(super) fn path(&self) -> &Path {
        match self {
            Place::Path(path) => path,
            Place::Member { archive, .. } => &archive.path,
        }
    }

    /// Replaces the contents of `bytes` by those of the file or member, of which those past
    /// [`MOST_IMAGE_BYTES`] + 1 are left out.
    pub(super) fn read(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match self {
            Place::Path(path) => {
                bytes.clear();
                let file = File::open(path).context("open", path)?;
                file.take(MOST_IMAGE_BYTES + 1).read_to_end(bytes).context("read", path).map(drop)
            }
            Place::Member { archive, offset, length } => {
                bytes.resize(*length.min(&(MOST_IMAGE_BYTES + 1)) as usize, 0);
                archive.file.read_exact_at(bytes, *offset).context("read", &archive.path)
            }
        }
    }

    /// What is in it, sorted by name, where it is a folder (and the folders in that one) or a tar archive; of
    /// plain files only, hidden ones left out.
    ///
    /// # Errors
    /// A folder that can't be listed, an archive that is cut short or isn't one.
    pub(super) fn contents(&self) -> Result<Vec<Found>> {
        let mut found = Vec::new();
        match self {
            Place::Path(folder) => list(folder, &mut found)?,
            Place::Member { archive, offset, length } => {
                let window = Window { archive, offset: *offset, length: *length, at: 0, since_seek: 0 };
                found = members(window).map_err(|what| broken(&archive.path, &what))?;
            }
        }
        // The folders within a class may hold files of one name.
        found.sort_by(|a, b| (&a.name, a.place.path()).cmp(&(&b.name, b.place.path())));
        Ok(found)
    }
}

/// The folders in `folder`, sorted by name, hidden ones left out.
pub(super) fn folders(folder: &Path) -> Result<Vec<Found>> {
    let mut found = Vec::new();
    for (name, path, is_folder) in entries(folder)? {
        if is_folder {
            found.push(Found { name, place: Place::Path(path) });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// What is in `folder`: names as text, paths, and whether they (or what they are links to) are folders.
fn entries(folder: &Path) -> Result<Vec<(String, PathBuf, bool)>> {
    let mut found = Vec::new();
    for entry in folder.read_dir().context("list", folder)? {
        let entry = entry.context("list", folder)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            let path = entry.path();
            let kind = entry.file_type().context("read", &path)?;
            let is_folder = if kind.is_symlink() {
                fs::metadata(&path).context("read", &path)?.is_dir()
            } else {
                kind.is_dir()
            };
            found.push((name, path, is_folder));
        }
    }
    Ok(found)
}

fn list(folder: &Path, found: &mut Vec<Found>) -> Result<()> {
    for (name, path, is_folder) in entries(folder)? {
        if is_folder {
            list(&path, found)?;
        } else {
            found.push(Found { name, place: Place::Path(path) });
        }
    }
    Ok(())
}

/// The members of the tar archive in `window`. Only headers are read.
fn members(window: Window) -> Result<Vec<Found>, String> {
    let (archive, start, length) = (window.archive, window.offset, window.length);
    let unreadable = |error: io::Error| format!("not a readable tar archive ({error})");
    let mut tar = tar::Archive::new(window);
    let mut found = Vec::new();
    let mut end = 0_u64;
    for member in tar.entries_with_seek().map_err(unreadable)? {
        let member = member.map_err(unreadable)?;
        let (offset, size) = (member.raw_file_position(), member.size());
        let path = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        end = offset.saturating_add(size);
        if end > length {
            return Err(format!("cut short inside '{path}'"));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if member.header().entry_type().is_file() && !name.starts_with('.') {
            let place = Place::Member { archive: archive.clone(), offset: start + offset, length: size };
            found.push(Found { name: name.to_owned(), place });
        }
    }
    // Cut exactly between two members, a tar looks whole but for the zero block that should end it.
    if end.saturating_add(511) / 512 * 512 + 512 > length {
        return Err("cut short: the tar's end marker is missing".into());
    }
    Ok(found)
}

/// A part of an archive, as a file of its own.
struct Window<'a> {
    archive: &'a Arc<Archive>,
    offset: u64,
    length: u64,
    at: u64,
    /// Bytes read since the last seek. The tar crate holds a member's long name in memory, whatever its size;
    /// contents, which it seeks over, are of no concern.
    since_seek: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at).min(bytes.len() as u64) as usize;
        let read = self.archive.file.read_at(&mut bytes[..left], self.offset + self.at)?;
        self.at += read as u64;
        self.since_seek += read as u64;
        if self.since_seek > MOST_HEADER_BYTES {
            return Err(io::Error::other(format!("headers of more than {MOST_HEADER_BYTES} bytes")));
        }
        Ok(read)
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, distance) = match to {
            SeekFrom::Start(to) => (to, 0),
            SeekFrom::End(distance) => (self.length, distance),
            SeekFrom::Current(distance) => (self.at, distance),
        };
        self.at = base.checked_add_signed(distance).ok_or_else(|| io::Error::other("a seek out of range"))?;
        self.since_seek = 0;
        Ok(self.at)
    }
}

/// The first of some names in `folder` that is there.
pub(super) fn first_existing(folder: &Path, candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(|candidate| folder.join(candidate)).find(|path| path.exists())
}

/// Refuses a source that isn't there, before anything else is said about it.
pub(super) fn check_folder(folder: &Path) -> Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    Err(Error::malformed(folder, "not a folder; give the folder that holds the data set"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: tar::EntryType, name: &str, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        // Names that the tar crate would refuse to write are what archives from elsewhere may hold.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_cksum();
        header
    }

    fn contents(bytes: &[u8], sparse_length: u64) -> Result<Vec<Found>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        fs::write(&path, bytes).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(sparse_length.max(bytes.len() as u64))
            .unwrap();
        Place::archive(&path).unwrap().contents()
    }

    #[test]
    fn paths_that_lead_elsewhere_are_only_names() {
        let mut bytes = Vec::new();
        for name in ["../../etc/passwd.jpg", "/root/b.png", "d/./a.jpg", "..", "x/.hidden.jpg"] {
            bytes.extend_from_slice(header(tar::EntryType::Regular, name, 3).as_bytes());
            bytes.extend_from_slice(&[7; 3]);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        let link = header(tar::EntryType::Symlink, "link.jpg", 0);
        bytes.extend_from_slice(link.as_bytes());
        bytes.extend_from_slice(&[0; 1024]);
        let found = contents(&bytes, 0).unwrap();
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["a.jpg", "b.png", "passwd.jpg"]);
        let mut read = vec![1; 9];
        found[0].place.read(&mut read).unwrap();
        assert_eq!(read, [7; 3]);
    }

    #[test]
    fn claims_of_size_are_checked_before_memory_is_taken() {
        // An image of 8 GiB in a file of a kilobyte; a name of 4 GiB in a file that has as many, all holes.
        let huge = header(tar::EntryType::Regular, "huge.jpg", 1 << 33);
        let error = contents(&[huge.as_bytes(), &[0; 512][..]].concat(), 0).err().unwrap();
        assert!(error.to_string().contains("cut short inside 'huge.jpg'"), "{error}");
        let name = header(tar::EntryType::GNULongName, "././@LongLink", 1 << 32);
        let error = contents(name.as_bytes(), 1 << 33).err().unwrap();
        assert!(error.to_string().contains("headers of more than 16777216 bytes"), "{error}");

        // A member that is as large as it says, and all holes.
        let whole = contents(huge.as_bytes(), (1 << 33) + 1024).unwrap();
        assert!(matches!(whole[0].place, Place::Member { length: 0x2_0000_0000, .. }));
    }

    #[test]
    fn an_archive_cut_anywhere_is_refused() {
        let mut bytes = header(tar::EntryType::Regular, "a.jpg", 600).as_bytes().to_vec();
        bytes.resize(512 + 1024, 9);
        bytes.resize(512 + 1024 + 1024, 0);
        assert_eq!(contents(&bytes, 0).unwrap().len(), 1);
        for keep in [0, 100, 512, 700, 1536] {
            assert!(contents(&bytes[..keep], 0).is_err(), "{keep} bytes");
        }
    }
}
