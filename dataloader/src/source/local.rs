//! A shard in a local file, or in any mounted file system.

use std::fs::{File, Metadata};
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::cache::SharedFolder;
use super::open_files::FileSlot;
use crate::error::{Error, IoContext, Result};

/// Bytes that are copied at a time into the cache.
const COPY_BLOCK: usize = 8 << 20;

/// A file, with its size and version when it was opened.
#[derive(Debug)]
pub(crate) struct LocalFile {
    path: PathBuf,
    slot: FileSlot,
    size: u64,
    version: String,
    /// The cache that reads go to, for a file on another file system.
    cache: Option<Arc<SharedFolder>>,
}

impl LocalFile {
    pub(crate) fn open(path: &Path) -> Result<LocalFile> {
        LocalFile::open_cached(path, None)
    }

    /// Opens a file that is read by way of `cache`, unless it is on the cache's file system.
    pub(crate) fn open_cached(path: &Path, cache: Option<&Arc<SharedFolder>>) -> Result<LocalFile> {
        let mut file = LocalFile {
            path: path.to_owned(),
            slot: FileSlot::new(),
            size: 0,
            version: String::new(),
            cache: None,
        };
        let metadata = file.open_slot(|_| Ok(()))?.metadata().context("read", path)?;
        file.size = metadata.len();
        file.version = describe_version(&metadata);
        file.cache = cache.filter(|cache| cache.device() != Some(metadata.dev())).cloned();
        Ok(file)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Fills both buffers, from the local copy if there is a cache with space for it.
    pub(crate) fn read_exact_at(&self, header: &mut [u8], body: &mut [u8], offset: u64) -> Result<()> {
        if let Some(cache) = &self.cache {
            let path = std::path::absolute(&self.path).context("find", &self.path)?;
            let copy = cache.copy_path(&path.to_string_lossy(), &self.version, self.size);
            if let Some(file) = cache.open_or_fetch(&copy, self.size, |file| self.copy_to(file, &copy))? {
                return read_exact_at(&file, header, body, offset).context("read", &copy);
            }
        }
        self.read_in_place(header, body, offset)
    }

    /// Fills both buffers from the file itself, by one system call unless it is interrupted.
    pub(crate) fn read_in_place(&self, header: &mut [u8], body: &mut [u8], offset: u64) -> Result<()> {
        read_exact_at(&*self.file()?, header, body, offset).context("read", &self.path)
    }

    fn file(&self) -> Result<Arc<File>> {
        self.open_slot(|file| {
            let metadata = file.metadata().context("read", &self.path)?;
            if metadata.len() == self.size && describe_version(&metadata) == self.version {
                return Ok(());
            }
            Err(Error::malformed(&self.path, "it has changed since it was opened; start again"))
        })
    }

    /// The open file. `check` is called where it has to be opened.
    fn open_slot(&self, check: impl Fn(&File) -> Result<()>) -> Result<Arc<File>> {
        let open = || {
            let file = File::open(&self.path).context("open shard", &self.path)?;
            check(&file).map(|()| file)
        };
        let is_limit = |error: &Error| match error {
            Error::Io { cause, .. } => is_open_file_limit(cause),
            _ => false,
        };
        self.slot.file(open, is_limit)
    }

    fn copy_to(&self, copy: &File, copy_path: &Path) -> Result<()> {
        let file = self.file()?;
        let mut block = vec![0; COPY_BLOCK.min(self.size as usize)];
        for start in (0..self.size).step_by(COPY_BLOCK) {
            let length = (self.size - start).min(COPY_BLOCK as u64) as usize;
            file.read_exact_at(&mut block[..length], start).context("read", &self.path)?;
            copy.write_all_at(&block[..length], start).context("write", copy_path)?;
        }
        Ok(())
    }
}

/// The modification time, in one word.
fn describe_version(metadata: &Metadata) -> String {
    format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec())
}

/// Whether the process or the machine has too many open files.
fn is_open_file_limit(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Fills `header`, then `body`, from the bytes of `file` at `offset`.
pub(crate) fn read_exact_at(file: &File, header: &mut [u8], body: &mut [u8], offset: u64) -> io::Result<()> {
    let mut parts = [IoSliceMut::new(header), IoSliceMut::new(body)];
    let read = match rustix::io::preadv(file, &mut parts, offset) {
        Err(rustix::io::Errno::INTR) => 0,
        read => read?,
    };
    let in_header = read.min(header.len());
    let in_body = read.saturating_sub(header.len());
    file.read_exact_at(&mut header[in_header..], offset + in_header as u64)?;
    file.read_exact_at(&mut body[in_body..], offset + header.len() as u64 + in_body as u64)
}
