//! Where a shard's bytes come from: a file, an object in a store, or a local copy of one.
//!
//! A [`Source`] is read by position, from many threads at once. Files are read by `pread`, never mapped: one that
//! shrinks while it is read is an error, where a mapping would kill the process.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};

#[cfg(feature = "remote")]
mod cache;
mod local;
mod options;
#[cfg(feature = "remote")]
mod remote;
mod scan;

pub(crate) use local::LocalFile;
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

    /// Bytes of the shard, as it was when it was opened.
    pub(crate) fn size(&self) -> u64 {
        match self {
            Source::File(file) => file.size(),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.size(),
        }
    }

    /// What changes when the contents do, in one word: a file's modification time, an object's ETag.
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

    /// As [`read_exact_at`](Self::read_exact_at), for a few bytes for which no shard is to be fetched.
    pub(crate) fn peek(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Source::File(file) => file.read_exact_at(&mut [], bytes, offset),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.read_from_store(&mut [], bytes, offset),
        }
    }

    /// How many bytes a scan of the headers had best read at once.
    fn scan_block(&self) -> usize {
        match self {
            Source::File(_) => 4096, // a label with its header and the next image's
            #[cfg(feature = "remote")]
            Source::Object(object) => object.scan_block(),
        }
    }

    /// Where its bytes lie as a file on this machine, or would, were they fetched.
    pub(crate) fn local_path(&self) -> Option<PathBuf> {
        match self {
            Source::File(file) => Some(file.path().to_owned()),
            #[cfg(feature = "remote")]
            Source::Object(object) => object.cached_path(),
        }
    }

    /// Of an object: the contents of the one beside it that differs in its extension, if it has at most `most_bytes`.
    #[cfg_attr(not(feature = "remote"), expect(unused_variables, reason = "of stores alone"))]
    pub(crate) fn beside(&self, extension: &str, most_bytes: u64) -> Option<Vec<u8>> {
        match self {
            Source::File(_) => None,
            #[cfg(feature = "remote")]
            Source::Object(object) => object.beside(extension, most_bytes),
        }
    }
}

/// Whether a pattern, or an entry of a list of shards, names an object in a store.
pub(crate) fn is_url(location: &str) -> bool {
    ["s3://", "gs://", "http://", "https://"].iter().any(|scheme| location.starts_with(scheme))
}

/// Opens what paths and URLs name. What stores need (threads, connections) begins with the first URL.
#[derive(Debug)]
pub(crate) struct Storage {
    #[cfg(feature = "remote")]
    options: Options,
    #[cfg(feature = "remote")]
    remote: std::sync::OnceLock<std::sync::Arc<remote::Remote>>,
}

/// A shard that a listing found. Of an object it also says the state, which needn't be asked for again.
#[derive(Debug)]
pub(crate) struct Location {
    pub(crate) name: String,
    #[cfg(feature = "remote")]
    state: Option<remote::State>,
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
    #[cfg(feature = "remote")]
    pub(crate) fn new(options: &Options) -> Storage {
        Storage { options: options.clone(), remote: std::sync::OnceLock::new() }
    }

    #[cfg(not(feature = "remote"))]
    pub(crate) fn new(_: &Options) -> Storage {
        Storage {}
    }

    /// Opens a shard.
    pub(crate) fn open(&self, location: &Location) -> Result<Source> {
        if !is_url(&location.name) {
            return Ok(Source::File(LocalFile::open(Path::new(&location.name))?));
        }
        #[cfg(feature = "remote")]
        return Ok(Source::Object(Box::new(remote::Object::open(self.remote()?, location)?)));
        #[cfg(not(feature = "remote"))]
        Err(without_stores(&location.name))
    }

    /// The contents of a small file, such as a list of shards; `None` where there is none. Of one that is `optional`
    /// a store needn't say whether it is there.
    ///
    /// # Errors
    /// One that can't be read, or is larger than a list could be.
    pub(crate) fn read_small(&self, location: &str, optional: bool) -> Result<Option<Vec<u8>>> {
        const MOST_BYTES: u64 = 64 << 20;
        let too_large = || {
            let what = format!("over {} MiB, larger than a list of shards; is it one?", MOST_BYTES >> 20);
            Err(Error::malformed(Path::new(location), what))
        };
        if is_url(location) {
            #[cfg(feature = "remote")]
            return match self.remote()?.read_whole(location, MOST_BYTES)? {
                remote::Whole::Missing => Ok(None),
                remote::Whole::Denied(_) if optional => Ok(None),
                remote::Whole::Denied(error) => Err(error),
                remote::Whole::TooLarge => too_large(),
                remote::Whole::Bytes(bytes) => Ok(Some(bytes)),
            };
            #[cfg(not(feature = "remote"))]
            return if optional { Ok(None) } else { Err(without_stores(location)) };
        }
        let path = Path::new(location);
        let mut text = Vec::new();
        match fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file
                .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut text))
                .context("read", path)?,
        };
        if text.len() as u64 > MOST_BYTES { too_large() } else { Ok(Some(text)) }
    }

    /// The shards in a store that `pattern` takes, sorted: a glob, or a folder for every `.tar` directly in it.
    pub(crate) fn list(&self, pattern: &str) -> Result<Vec<Location>> {
        #[cfg(feature = "remote")]
        return self.remote()?.list(pattern);
        #[cfg(not(feature = "remote"))]
        Err(without_stores(pattern))
    }

    #[cfg(feature = "remote")]
    fn remote(&self) -> Result<&std::sync::Arc<remote::Remote>> {
        if let Some(remote) = self.remote.get() {
            return Ok(remote);
        }
        let remote = std::sync::Arc::new(remote::Remote::start(&self.options)?);
        Ok(self.remote.get_or_init(|| remote))
    }
}

#[cfg(not(feature = "remote"))]
fn without_stores(url: &str) -> Error {
    Error::InvalidArgument(format!(
        "'{url}' lies in a store, which this program was built without; build it with the feature `remote`"
    ))
}

/// A path that may be a URL, whose slashes are kept as they are.
pub(crate) fn folder_of(location: &str) -> &str {
    location.rfind('/').map_or("", |slash| if slash == 0 { "/" } else { &location[..slash] })
}

/// `name` in `folder`, both of which may be URLs; a name that is complete by itself stays what it is.
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
