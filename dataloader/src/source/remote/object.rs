//! A shard in a store.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::failure::Failure;
use super::{ObjectLocation, PART, PARTS_AT_ONCE, Remote, SmallObject};
use crate::error::{Error, IoContext, Result};
use crate::source::cache::SharedFolder;
use crate::source::options::Options;
use crate::source::{Location, local};

/// One shard in a store.
#[derive(Debug)]
pub(crate) struct Object {
    remote: Arc<Remote>,
    location: ObjectLocation,
    url: PathBuf,
    state: ObjectState,
}

/// The state of an object when it was opened or listed.
#[derive(Debug, Clone)]
pub(crate) struct ObjectState {
    size: u64,
    etag: Option<String>,
    /// The ETag, or without one the time of the last change; without blanks.
    version: String,
}

impl ObjectState {
    pub(super) fn from_meta(meta: &ObjectMeta) -> ObjectState {
        let etag =
            meta.e_tag.as_deref().map(|etag| etag.replace(|c: char| c.is_whitespace() || c == '"', ""));
        let version = etag.clone().unwrap_or_else(|| meta.last_modified.timestamp().to_string());
        ObjectState { size: meta.size, etag, version }
    }

    /// Whether `now` is certainly another object. Some answers have no ETag.
    fn differs_from(&self, now: &ObjectState) -> bool {
        self.size != now.size || self.etag.is_some() && now.etag.is_some() && self.etag != now.etag
    }
}

impl Object {
    pub(crate) fn open(remote: &Arc<Remote>, listed: &Location) -> Result<Object> {
        let location = remote.locate(&listed.name)?;
        let state = match &listed.state {
            Some(state) => state.clone(),
            None => {
                let meta = remote
                    .send(&location.url, || async { Ok(location.store.head(&location.path).await?) })
                    .map_err(|failure| remote.describe("open shard", &location.url, failure))?;
                ObjectState::from_meta(&meta)
            }
        };
        let url = PathBuf::from(&location.url);
        Ok(Object { remote: remote.clone(), location, url, state })
    }

    pub(crate) fn url(&self) -> &Path {
        &self.url
    }

    pub(crate) fn size(&self) -> u64 {
        self.state.size
    }

    pub(crate) fn version(&self) -> &str {
        &self.state.version
    }

    pub(crate) fn scan_block(&self) -> usize {
        PART as usize
    }

    /// Fills both buffers, from the local copy if there is a cache with space for it.
    pub(crate) fn read_exact_at(&self, header: &mut [u8], body: &mut [u8], offset: u64) -> Result<()> {
        if let Some(cache) = &self.remote.cache {
            let path = self.copy_path(cache);
            if let Some(file) = cache.open_or_fetch(&path, self.size(), |file| self.fetch(file, &path))? {
                return local::read_exact_at(&file, header, body, offset).context("read", &path);
            }
        }
        self.read_from_store(header, body, offset)
    }

    /// Fills both buffers from the store, without the cache.
    pub(crate) fn read_from_store(&self, header: &mut [u8], body: &mut [u8], offset: u64) -> Result<()> {
        let range = offset..offset + (header.len() + body.len()) as u64;
        if range.end > self.size() {
            let what = format!("has {} bytes, {} were asked for", self.size(), range.end);
            return Err(Error::malformed(&self.url, what));
        }
        if range.is_empty() {
            return Ok(());
        }
        let bytes =
            self.remote.send(&self.location.url, || fetch_range(&self.location, &self.state, range.clone()));
        let bytes = bytes.map_err(|failure| self.remote.describe("read", &self.location.url, failure))?;
        let (first, rest) = bytes.split_at(header.len());
        header.copy_from_slice(first);
        body.copy_from_slice(rest);
        Ok(())
    }

    /// Fetches the whole shard into `file`, several parts at a time.
    fn fetch(&self, file: &std::fs::File, path: &Path) -> Result<()> {
        let starts: Vec<u64> = (0..self.size()).step_by(PART as usize).collect();
        crate::parallel::map(&starts, PARTS_AT_ONCE, |_, &start| {
            let range = start..self.size().min(start + PART);
            let bytes = self
                .remote
                .send(&self.location.url, || fetch_range(&self.location, &self.state, range.clone()));
            let bytes = bytes.map_err(|failure| self.remote.describe("read", &self.location.url, failure))?;
            std::os::unix::fs::FileExt::write_all_at(file, &bytes, start).context("write", path)
        })?;
        Ok(())
    }

    /// Passes all bytes from `start` on to `write`, in order, with the offset of each part; all bytes from 0 where the server
    /// does not answer requests for parts.
    pub(crate) fn stream(&self, start: u64, write: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        for start in (start..self.size()).step_by(PART as usize) {
            let range = start..self.size().min(start + PART);
            match self
                .remote
                .send(&self.location.url, || fetch_range(&self.location, &self.state, range.clone()))
            {
                Ok(bytes) => write(start, &bytes)?,
                Err(Failure::Store(object_store::Error::NotSupported { .. })) => {
                    return self.stream_whole(write);
                }
                Err(failure) => return Err(self.remote.describe("read", &self.location.url, failure)),
            }
        }
        Ok(())
    }

    /// Passes the whole object on to `write`, from one request, which may take longer than those for parts.
    fn stream_whole(&self, write: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        const SLOWEST: u64 = 100_000; // bytes per second
        let timeout = self.remote.timeout + Duration::from_secs(self.size() / SLOWEST);
        let patient = Remote::start(&Options { timeout, ..Options::default() }, None)?;
        match patient.read_small(&self.location.url, self.size())? {
            SmallObject::Bytes(bytes) if bytes.len() as u64 == self.size() => write(0, &bytes),
            SmallObject::Denied(error) => Err(error),
            _ => Err(patient.describe("read", &self.location.url, Failure::Changed)),
        }
    }

    fn copy_path(&self, cache: &SharedFolder) -> PathBuf {
        cache.copy_path(&self.location.url, &self.state.version, self.size())
    }

    /// The path of its copy in the cache.
    pub(crate) fn cached_path(&self) -> Option<PathBuf> {
        self.remote.cache.as_ref().map(|cache| self.copy_path(cache))
    }

    /// The contents of the object of this name with another `extension`, if it has at most `max_bytes`.
    pub(crate) fn read_sibling(&self, extension: &str, max_bytes: u64) -> Option<Vec<u8>> {
        let url = format!("{}.{extension}", self.location.url.strip_suffix(".tar")?);
        match self.remote.read_small(&url, max_bytes) {
            Ok(SmallObject::Bytes(bytes)) => Some(bytes),
            _ => None,
        }
    }
}

/// The bytes of a range of the object, if it hasn't changed since it was opened.
async fn fetch_range(
    location: &ObjectLocation,
    state: &ObjectState,
    range: Range<u64>,
) -> Result<Bytes, Failure> {
    let wanted = range.end - range.start;
    let options = GetOptions::default().with_range(Some(range));
    let result = location.store.get_opts(&location.path, options).await?;
    if state.differs_from(&ObjectState::from_meta(&result.meta)) {
        return Err(Failure::Changed);
    }
    let bytes = result.bytes().await?;
    if bytes.len() as u64 == wanted { Ok(bytes) } else { Err(Failure::Changed) }
}
