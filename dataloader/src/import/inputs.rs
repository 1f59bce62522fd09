//! The files to import: in folders, and in tar archives, which are read in place. Nothing is ever extracted. Only the
//! last part of a member's path is used, as its name.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::broken_source;
use crate::dataset::{ClassFolders, FolderImages, list_class};
use crate::error::{Error, IoContext, Result};
use crate::left_out::{LeftOut, Reason, is_foreign_path};
use crate::shard::{
    MAX_IMAGE_BYTES, MemberKind, TarMember, WalkError, is_image, last_extension, walk_members,
};

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

/// The inputs in a folder or an archive.
#[derive(Clone, Default)]
pub(super) struct Listing {
    /// Sorted by name.
    pub(super) inputs: Vec<Input>,
    pub(super) left_out: LeftOut,
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

    /// Replaces the contents of `bytes` by those of the file or member, at most [`MAX_IMAGE_BYTES`] + 1.
    pub(super) fn read(&self, bytes: &mut Vec<u8>) -> Result<()> {
        match self {
            InputLocation::Path(path) => {
                bytes.clear();
                let file = File::open(path).context("open", path)?;
                file.take(MAX_IMAGE_BYTES + 1).read_to_end(bytes).context("read", path).map(drop)
            }
            InputLocation::Member { archive, offset, length } => {
                bytes.resize(*length.min(&(MAX_IMAGE_BYTES + 1)) as usize, 0);
                archive.file.read_exact_at(bytes, *offset).context("read", &archive.path)
            }
        }
    }

    /// Lists the images in a folder, at any depth, or in a tar archive.
    ///
    /// # Errors
    /// A folder that can't be listed or holds images of other formats, an archive that is cut short or isn't a tar.
    pub(super) fn list_images(&self) -> Result<Listing> {
        match self {
            InputLocation::Path(folder) => {
                let root = folder.parent().unwrap_or(Path::new(""));
                let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let FolderImages { files, left_out, .. } = list_class(root, name)?;
                let input = |(folder, name): (String, String)| {
                    let path = root.join(folder).join(&name);
                    Input { name, location: InputLocation::Path(path) }
                };
                Ok(sort(files.into_iter().map(input).collect(), left_out))
            }
            InputLocation::Member { .. } => self.list_members(is_image),
        }
    }

    /// Lists the members of a tar archive whose extension is `wanted`.
    ///
    /// # Errors
    /// An archive that is cut short or isn't a tar.
    pub(super) fn list_members(&self, wanted: impl Fn(&str) -> bool) -> Result<Listing> {
        let InputLocation::Member { archive, offset: start, length } = self else {
            return Ok(Listing::default());
        };
        let mut inputs = Vec::new();
        let mut left_out = LeftOut::default();
        let window = Window { archive, offset: *start, length: *length, at: 0 };
        let walked = walk_members(window, *length, |TarMember { name: path, kind, offset, length }| {
            let extension = last_extension(&path);
            let reason = match kind {
                MemberKind::Folder => return Ok(()),
                _ if is_foreign_path(&path) => Reason::Foreign,
                MemberKind::SymbolicLink => Reason::SymbolicLink,
                MemberKind::Special => Reason::Special,
                MemberKind::File if wanted(extension) => {
                    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
                    let archive = archive.clone();
                    let location = InputLocation::Member { archive, offset: start + offset, length };
                    inputs.push(Input { name, location });
                    return Ok(());
                }
                MemberKind::File => Reason::Extension(extension),
            };
            left_out.add(reason, &path);
            Ok(())
        });
        match walked {
            Ok(()) => Ok(sort(inputs, left_out)),
            Err(WalkError::Damaged(what)) => Err(broken_source(&archive.path, &what)),
            Err(WalkError::Unsupported(what)) => Err(Error::malformed(&archive.path, what)),
            Err(WalkError::Visit(error)) => Err(error),
        }
    }
}

fn sort(mut inputs: Vec<Input>, left_out: LeftOut) -> Listing {
    // The folders within a class may hold files of the same name.
    inputs.sort_by(|a, b| (&a.name, a.location.path()).cmp(&(&b.name, b.location.path())));
    Listing { inputs, left_out }
}

/// Lists the class folders in `folder`.
///
/// # Errors
/// A folder that can't be listed, folders of splits instead of classes.
pub(super) fn list_class_folders(folder: &Path) -> Result<Listing> {
    let ClassFolders { names, left_out } = ClassFolders::list(folder)?;
    let input = |name: String| Input { location: InputLocation::Path(folder.join(&name)), name };
    Ok(Listing { inputs: names.into_iter().map(input).collect(), left_out })
}

/// A part of an archive, as a file of its own.
struct Window<'a> {
    archive: &'a Arc<Archive>,
    offset: u64,
    length: u64,
    at: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(self.at).min(bytes.len() as u64) as usize;
        let read = self.archive.file.read_at(&mut bytes[..left], self.offset + self.at)?;
        self.at += read as u64;
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
    use std::fs;

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
        InputLocation::open_archive(&path).unwrap().list_images().map(|listing| listing.inputs)
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
        assert!(error.to_string().contains("over 1 MiB of headers for one member"), "{error}");

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
