//! The files to import: in folders, and in tar archives, which are read in place. Nothing is ever extracted. Only the
//! last part of a member's path is used, as its name.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::broken_source;
use crate::error::{IoContext, Result};
use crate::shard::MOST_IMAGE_BYTES;

/// Limit of consecutive header bytes in a tar, long names included.
const MAX_HEADER_BYTES: u64 = 1 << 24;

/// A file, a folder or an archive, with its name.
#[derive(Clone)]
pub(super) struct Input {
    pub(super) name: String,
    pub(super) location: InputLocation,
}

/// Where an input lies.
#[derive(Clone)]
pub(super) enum InputLocation {
    /// A file, or a folder.
    Path(PathBuf),
    /// A member of an archive.
    Member { archive: Arc<Archive>, offset: u64, length: u64 },
}

/// An open tar archive.
pub(super) struct Archive {
    path: PathBuf,
    file: File,
}

impl InputLocation {
    /// Opens the archive at `path`.
    pub(super) fn open_archive(path: &Path) -> Result<InputLocation> {
        let file = File::open(path).context("open", path)?;
        let length = file.metadata().context("read", path)?.len();
        let archive = Arc::new(Archive { path: path.to_owned(), file });
        Ok(InputLocation::Member { archive, offset: 0, length })
    }

    /// The file or archive.
    pub(super) fn path(&self) -> &Path {
        match self {
            InputLocation::Path(path) => path,
            InputLocation::Member { archive, .. } => &archive.path,
        }
    }

    /// Replaces the contents of `bytes` by those of the file or member, at most [`MOST_IMAGE_BYTES`] + 1.
    pub(super) fn read(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match self {
            InputLocation::Path(path) => {
                bytes.clear();
                let file = File::open(path).context("open", path)?;
                file.take(MOST_IMAGE_BYTES + 1).read_to_end(bytes).context("read", path).map(drop)
            }
            InputLocation::Member { archive, offset, length } => {
                bytes.resize(*length.min(&(MOST_IMAGE_BYTES + 1)) as usize, 0);
                archive.file.read_exact_at(bytes, *offset).context("read", &archive.path)
            }
        }
    }

    /// Lists the plain files in a folder, at any depth, or in a tar archive, sorted by name. Hidden files are left out.
    ///
    /// # Errors
    /// A folder that can't be listed, an archive that is cut short or isn't a tar.
    pub(super) fn list_files(&self) -> Result<Vec<Input>> {
        let mut files = Vec::new();
        match self {
            InputLocation::Path(folder) => collect_files(folder, &mut files)?,
            InputLocation::Member { archive, offset, length } => {
                let window = Window { archive, offset: *offset, length: *length, at: 0, since_seek: 0 };
                files = list_members(window).map_err(|what| broken_source(&archive.path, &what))?;
            }
        }
        // The folders within a class may hold files of the same name.
        files.sort_by(|a, b| (&a.name, a.location.path()).cmp(&(&b.name, b.location.path())));
        Ok(files)
    }
}

/// Lists the folders in `folder`, sorted by name. Hidden ones are left out.
pub(super) fn list_folders(folder: &Path) -> Result<Vec<Input>> {
    let mut found = Vec::new();
    for (name, path, is_folder) in list_entries(folder)? {
        if is_folder {
            found.push(Input { name, location: InputLocation::Path(path) });
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Lists `folder`: names as text, paths, and whether they are folders or links to folders.
fn list_entries(folder: &Path) -> Result<Vec<(String, PathBuf, bool)>> {
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

fn collect_files(folder: &Path, files: &mut Vec<Input>) -> Result<()> {
    for (name, path, is_folder) in list_entries(folder)? {
        if is_folder {
            collect_files(&path, files)?;
        } else {
            files.push(Input { name, location: InputLocation::Path(path) });
        }
    }
    Ok(())
}

/// Lists the members of the tar archive in `window`. Only headers are read.
fn list_members(window: Window) -> Result<Vec<Input>, String> {
    let Window { archive, offset: start, length, .. } = window;
    let unreadable = |error: io::Error| format!("not a readable tar archive ({error})");
    let mut tar = tar::Archive::new(window);
    let mut found = Vec::new();
    let mut end = 0_u64;
    for member in tar.entries_with_seek().map_err(unreadable)? {
        let member = member.map_err(unreadable)?;
        let offset = member.raw_file_position();
        let size = member.size();
        let path = String::from_utf8_lossy(&member.path_bytes()).into_owned();
        end = offset.saturating_add(size);
        if end > length {
            return Err(format!("cut short inside '{path}'"));
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        if member.header().entry_type().is_file() && !name.starts_with('.') {
            let location =
                InputLocation::Member { archive: archive.clone(), offset: start + offset, length: size };
            found.push(Input { name: name.to_owned(), location });
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
    /// Bytes read since the last seek. The tar crate holds a member's long name in memory, whatever its size. It seeks
    /// over contents, so they don't count.
    since_seek: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at).min(bytes.len() as u64) as usize;
        let read = self.archive.file.read_at(&mut bytes[..left], self.offset + self.at)?;
        self.at += read as u64;
        self.since_seek += read as u64;
        if self.since_seek > MAX_HEADER_BYTES {
            return Err(io::Error::other(format!("headers of more than {MAX_HEADER_BYTES} bytes")));
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

/// The first of `candidates` that exists in `folder`.
pub(super) fn find_first(folder: &Path, candidates: &[&str]) -> Option<PathBuf> {
    candidates.iter().map(|candidate| folder.join(candidate)).find(|path| path.exists())
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

    fn list(bytes: &[u8], sparse_length: u64) -> Result<Vec<Input>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.tar");
        fs::write(&path, bytes).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(sparse_length.max(bytes.len() as u64))
            .unwrap();
        InputLocation::open_archive(&path).unwrap().list_files()
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
        let found = list(&bytes, 0).unwrap();
        let names: Vec<&str> = found.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(names, ["a.jpg", "b.png", "passwd.jpg"]);
        let mut read = vec![1; 9];
        found[0].location.read(&mut read).unwrap();
        assert_eq!(read, [7; 3]);
    }

    #[test]
    fn claims_of_size_are_checked_before_memory_is_taken() {
        // An image of 8 GiB in a file of a kilobyte; a name of 4 GiB in a file that has as many, all holes.
        let huge = header(tar::EntryType::Regular, "huge.jpg", 1 << 33);
        let error = list(&[huge.as_bytes(), &[0; 512][..]].concat(), 0).err().unwrap();
        assert!(error.to_string().contains("cut short inside 'huge.jpg'"), "{error}");
        let name = header(tar::EntryType::GNULongName, "././@LongLink", 1 << 32);
        let error = list(name.as_bytes(), 1 << 33).err().unwrap();
        assert!(error.to_string().contains("headers of more than 16777216 bytes"), "{error}");

        // A member that is as large as it says, and all holes.
        let whole = list(huge.as_bytes(), (1 << 33) + 1024).unwrap();
        assert!(matches!(whole[0].location, InputLocation::Member { length: 0x2_0000_0000, .. }));
    }

    #[test]
    fn archive_cut_anywhere_is_refused() {
        let mut bytes = header(tar::EntryType::Regular, "a.jpg", 600).as_bytes().to_vec();
        bytes.resize(512 + 1024, 9);
        bytes.resize(512 + 1024 + 1024, 0);
        assert_eq!(list(&bytes, 0).unwrap().len(), 1);
        for keep in [0, 100, 512, 700, 1536] {
            assert!(list(&bytes[..keep], 0).is_err(), "{keep} bytes");
        }
    }
}
