//! A shard in a local file.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{IoContext, Result};

/// An open file, with its size and version when it was opened.
#[derive(Debug)]
pub(crate) struct LocalFile {
    path: PathBuf,
    file: File,
    size: u64,
    version: String,
}

impl LocalFile {
    pub(crate) fn open(path: &Path) -> Result<LocalFile> {
        let file = File::open(path).context("open shard", path)?;
        let metadata = file.metadata().context("read", path)?;
        let version = format!("{}.{:09}", metadata.mtime(), metadata.mtime_nsec());
        Ok(LocalFile { path: path.to_owned(), file, size: metadata.len(), version })
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

    /// Fills both buffers, by one system call unless it is interrupted.
    pub(crate) fn read_exact_at(&self, header: &mut [u8], body: &mut [u8], offset: u64) -> Result<()> {
        read_exact_at(&self.file, header, body, offset).context("read", &self.path)
    }
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
