//! Where a shard's bytes come from: a file, an object in a store, or a local copy of one.
//!
//! A [`Source`] is read by position, from many threads at once. Files are read by `pread`, never mapped. So a file that
//! shrinks while it is read is an error; a mapping would kill the process.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::error::{Error, IoContext, Result};

mod cache;
mod copies;
mod local;
mod open_files;
mod options;
#[cfg(feature = "remote")]
mod remote;
mod scan;

use cache::SharedFolder;
pub use copies::CopyFolder;
pub(crate) use local::LocalFile;
pub(crate) use open_files::reserve_open_files;
pub use options::{Cache, Options};
pub(crate) use scan::ScanReader;

/// The bytes of one shard.
#[derive(Debug)]
pub(crate) enum Source {
    File(LocalFile),
    #[cfg(feature = "remote")]
    Object(Box<remote::Object>),
}

impl Source {
    /// The file's path or the object's URL, for messages.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Source::File(file) => file.path(),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.url(),
        }
    }

    /// Bytes of the shard when it was opened.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Source::File(file) => file.size(),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.size(),
        }
    }

    /// The version of the contents, without blanks: a file's modification time, an object's ETag.
    pub(crate) fn version(&self) -> &str {
        match self {
            Source::File(file) => file.version(),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.version(),
        }
    }

    /// Fills `header`, then `body`, from the bytes at `offset`.
    pub(crate) fn read_exact_at(&self, header: &mut [u8], body: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Source::File(file) => file.read_exact_at(header, body, offset),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.read_exact_at(header, body, offset),
        }
    }

    /// As [`read_exact_at`](Self::read_exact_at), but never fetches a whole shard into the cache.
    pub(crate) fn read_uncached(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Source::File(file) => file.read_in_place(&mut [], bytes, offset),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.read_from_store(&mut [], bytes, offset),
        }
    }

    /// Fills `bytes` for a scan of headers, which reads all of an object but little of a file.
    fn read_for_scan(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Source::File(file) => file.read_in_place(&mut [], bytes, offset),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.read_exact_at(&mut [], bytes, offset),
        }
    }

    /// The best number of bytes to read at once while scanning headers.
    fn scan_block(&self) -> usize {
        match self {
            Source::File(_) => 4096, // a label with its header and the next image's
            #[cfg(feature = "remote")]
            Source::Object(object) => object.scan_block(),
        }
    }

    /// The file on this machine that holds its bytes, or will hold them once they are fetched.
    pub(crate) fn local_path(&self) -> Option<PathBuf> {
        match self {
            Source::File(file) => Some(file.path().to_owned()),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.cached_path(),
        }
    }

    /// Passes all bytes from `start` on to `write`, in order, with the offset of each part. A web server that does not answer
    /// requests for parts sends all bytes from 0.
    pub(crate) fn stream(&self, start: u64, write: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        const PART: u64 = 8 << 20;
        match self {
            Source::File(file) => (start..file.size()).step_by(PART as usize).try_for_each(|offset| {
                let mut bytes = vec![0; PART.min(file.size() - offset) as usize];
                file.read_in_place(&mut [], &mut bytes, offset)?;
                write(offset, &bytes)
            }),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.stream(start, write),
        }
    }

    /// For an object: the contents of the object of this name with another extension, if it has at most `max_bytes`.
    #[cfg_attr(not(feature = "remote"), expect(unused_variables, reason = "only stores use it"))]
    pub(crate) fn read_sibling(&self, extension: &str, max_bytes: u64) -> Option<Vec<u8>> {
        match self {
            Source::File(_) => None,
            #[cfg(feature = "remote")]
            Source::Object(object) => object.read_sibling(extension, max_bytes),
        }
    }
}

/// Whether a pattern, or an entry of a list of shards, is the URL of an object in a store.
pub(crate) fn is_url(location: &str) -> bool {
    ["s3://", "gs://", "http://", "https://"].iter().any(|scheme| location.starts_with(scheme))
}

/// Opens files by paths and objects by URLs. Threads and connections for stores start with the first URL.
#[derive(Debug)]
pub(crate) struct Storage {
    options: Options,
    cache: OnceLock<Option<Arc<SharedFolder>>>,
    #[cfg(feature = "remote")]
    remote: OnceLock<Arc<remote::Remote>>,
}

/// The path or URL of a shard. A listing of a store also returns the object's state, which saves a request.
#[derive(Debug)]
pub(crate) struct Location {
    pub(crate) name: String,
    #[cfg(feature = "remote")]
    state: Option<remote::ObjectState>,
}

impl Location {
    pub(crate) fn new(name: impl Into<String>) -> Location {
        Location {
            name: name.into(),
            #[cfg(feature = "remote")]
            state: None,
        }
    }
}

impl Storage {
    pub(crate) fn new(options: &Options) -> Storage {
        Storage {
            options: options.clone(),
            cache: OnceLock::new(),
            #[cfg(feature = "remote")]
            remote: OnceLock::new(),
        }
    }

    /// The folder for copies of shards, if there is one.
    fn cache(&self) -> Result<Option<&Arc<SharedFolder>>> {
        if let Some(cache) = self.cache.get() {
            return Ok(cache.as_ref());
        }
        let cache = self.options.cache.as_ref().map(SharedFolder::open).transpose()?;
        Ok(self.cache.get_or_init(|| cache.map(Arc::new)).as_ref())
    }

    /// Opens a shard.
    pub(crate) fn open(&self, location: &Location) -> Result<Source> {
        if !is_url(&location.name) {
            return Ok(Source::File(LocalFile::open_cached(Path::new(&location.name), self.cache()?)?));
        }
        #[cfg(feature = "remote")]
        return Ok(Source::Object(Box::new(remote::Object::open(self.remote()?, location)?)));
        #[cfg(not(feature = "remote"))]
        Err(without_stores(&location.name))
    }

    /// Reads a small file, such as a list of shards; `None` where it is missing. With `optional`, a store that denies
    /// access counts as missing.
    ///
    /// # Errors
    /// The file can't be read, or is larger than a list of shards can be.
    pub(crate) fn read_small(&self, location: &str, optional: bool) -> Result<Option<Vec<u8>>> {
        const MAX_BYTES: u64 = 64 << 20;
        let too_large = || {
            let what = format!("over {} MiB, larger than a list of shards; is it one?", MAX_BYTES >> 20);
            Err(Error::malformed(Path::new(location), what))
        };
        if is_url(location) {
            #[cfg(feature = "remote")]
            return match self.remote()?.read_small(location, MAX_BYTES)? {
                remote::SmallObject::Missing => Ok(None),
                remote::SmallObject::Denied(_) if optional => Ok(None),
                remote::SmallObject::Denied(error) => Err(error),
                remote::SmallObject::TooLarge => too_large(),
                remote::SmallObject::Bytes(bytes) => Ok(Some(bytes)),
            };
            #[cfg(not(feature = "remote"))]
            return if optional { Ok(None) } else { Err(without_stores(location)) };
        }
        let path = Path::new(location);
        let mut text = Vec::new();
        match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => {
                file.and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut text)).context("read", path)?
            }
        };
        if text.len() as u64 > MAX_BYTES { too_large() } else { Ok(Some(text)) }
    }

    /// Lists the shards in a store that `pattern` matches, sorted: a glob, or a folder for every `.tar` directly in it.
    pub(crate) fn list(&self, pattern: &str) -> Result<Vec<Location>> {
        #[cfg(feature = "remote")]
        return self.remote()?.list(pattern);
        #[cfg(not(feature = "remote"))]
        Err(without_stores(pattern))
    }

    #[cfg(feature = "remote")]
    fn remote(&self) -> Result<&Arc<remote::Remote>> {
        if let Some(remote) = self.remote.get() {
            return Ok(remote);
        }
        let remote = Arc::new(remote::Remote::start(&self.options, self.cache()?.cloned())?);
        Ok(self.remote.get_or_init(|| remote))
    }
}

#[cfg(not(feature = "remote"))]
fn without_stores(url: &str) -> Error {
    Error::InvalidArgument(format!(
        "'{url}' lies in a store, which this program was built without; build it with the feature `remote`"
    ))
}

/// The folder of a path or URL; slashes stay as they are.
pub(crate) fn folder_of(location: &str) -> &str {
    location.rfind('/').map_or("", |slash| if slash == 0 { "/" } else { &location[..slash] })
}

/// Joins `name` to `folder`. Both may be URLs; an absolute name stays as it is.
pub(crate) fn join(folder: &str, name: &str) -> String {
    if is_url(folder) && !is_url(name) && !name.starts_with('/') {
        let name = name.trim_start_matches("./");
        return format!("{}/{name}", folder.trim_end_matches('/'));
    }
    if is_url(name) {
        return name.to_owned();
    }
    PathBuf::from(folder).join(name).to_string_lossy().into_owned()
}
