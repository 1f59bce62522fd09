//! Shards in stores: S3 and what speaks its protocol, Google Cloud Storage, web servers.
//!
//! Requests that fail are retried with growing pauses until [`Options::timeout`]. Messages name the URL and the fix. They
//! never repeat a server's answer besides its status, because it may contain parts of credentials.

use std::collections::HashMap;
use std::error::Error as _;
use std::fs::File;
use std::future::Future;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::{
    BackoffConfig, ClientConfigKey, GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig,
    WriteMultipart,
};
use tokio::runtime::Runtime;

use super::cache::SharedFolder;
use super::options::Options;
use super::{Location, is_url, local};
use crate::error::{Error, IoContext, Result};
use crate::left_out::is_foreign;

/// Bytes of one request while scanning or fetching a shard, or writing a large object.
const PART: u64 = 8 << 20;

/// Simultaneous requests for parts of one shard or object.
const PARTS_AT_ONCE: usize = 4;

/// The most parts that S3 allows an object.
const MAX_PARTS: u64 = 10_000;

/// The stores of a dataset's shards, and the threads that send requests to them.
#[derive(Debug)]
pub(crate) struct Remote {
    runtime: Runtime,
    stores: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
    timeout: Duration,
    cache: Option<Arc<SharedFolder>>,
}

/// The state of an object when it was opened or listed.
#[derive(Debug, Clone)]
pub(crate) struct ObjectState {
    size: u64,
    etag: Option<String>,
    /// The ETag, or without one the time of the last change; without blanks.
    version: String,
}

/// One shard in a store.
#[derive(Debug)]
pub(crate) struct Object {
    remote: Arc<Remote>,
    location: ObjectLocation,
    url: PathBuf,
    state: ObjectState,
}

#[derive(Debug, Clone)]
struct ObjectLocation {
    store: Arc<dyn ObjectStore>,
    path: object_store::path::Path,
    url: String,
}

/// The result of reading a small object.
pub(crate) enum SmallObject {
    Missing,
    /// Access is denied. S3 also answers so for a missing object where listing isn't allowed.
    Denied(Error),
    TooLarge,
    Bytes(Vec<u8>),
}

/// Why a request failed.
enum Failure {
    Store(object_store::Error),
    Changed,
}

impl From<object_store::Error> for Failure {
    fn from(error: object_store::Error) -> Failure {
        Failure::Store(error)
    }
}

impl ObjectState {
    fn from_meta(meta: &ObjectMeta) -> ObjectState {
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

impl Remote {
    pub(crate) fn start(options: &Options, cache: Option<Arc<SharedFolder>>) -> Result<Remote> {
        // Fails where the process has chosen a provider already; that one is used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("store")
            .enable_all()
            .build()
            .map_err(|error| Error::Exhausted(format!("cannot start threads for stores: {error}")))?;
        Ok(Remote { runtime, stores: Mutex::default(), timeout: options.timeout, cache })
    }

    /// Reads a whole object of at most `max_bytes`.
    pub(crate) fn read_small(&self, url: &str, max_bytes: u64) -> Result<SmallObject> {
        let location = self.locate(url)?;
        let read = self.send(&location.url, || async {
            let result = location.store.get_opts(&location.path, GetOptions::default()).await?;
            if result.meta.size > max_bytes {
                return Ok(None);
            }
            Ok(Some(result.bytes().await?))
        });
        match read {
            Ok(Some(bytes)) => Ok(SmallObject::Bytes(bytes.into())),
            Ok(None) => Ok(SmallObject::TooLarge),
            Err(Failure::Store(object_store::Error::NotFound { .. })) => Ok(SmallObject::Missing),
            Err(failure) => {
                let denied = matches!(failure, Failure::Store(object_store::Error::PermissionDenied { .. }));
                let error = self.describe("read", &location.url, failure);
                if denied { Ok(SmallObject::Denied(error)) } else { Err(error) }
            }
        }
    }

    /// Lists the shards that a glob or a folder matches, sorted.
    pub(crate) fn list(&self, pattern: &str) -> Result<Vec<Location>> {
        if pattern.starts_with("http") {
            return Err(Error::InvalidArgument(format!(
                "'{pattern}': a web server can't list its shards; name them by a range like \
                 x-{{000000..000012}}.tar or by a list (_info.json, shardindex.json)"
            )));
        }
        let (folder, name) = if pattern.contains(['*', '?', '[']) {
            pattern.rsplit_once('/').unwrap_or((pattern, ""))
        } else {
            (pattern.trim_end_matches('/'), "*.tar")
        };
        let glob = glob::Pattern::new(name).ok().filter(|_| !folder.contains(['*', '?', '[']));
        let glob = glob.ok_or_else(|| {
            Error::InvalidArgument(format!(
                "'{pattern}': a store lists only one folder; write wildcards only after the last slash"
            ))
        })?;
        let location = self.locate(folder)?;
        let listed = self
            .send(folder, || async { Ok(location.store.list_with_delimiter(Some(&location.path)).await?) });
        let listed = listed.map_err(|failure| self.describe("list", folder, failure))?;
        let mut shards: Vec<Location> = listed
            .objects
            .iter()
            .filter_map(|meta| {
                let name = meta.location.filename().filter(|name| glob.matches(name) && !is_foreign(name))?;
                Some(Location { name: format!("{folder}/{name}"), state: Some(ObjectState::from_meta(meta)) })
            })
            .collect();
        shards.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(shards)
    }

    /// Writes an object in one request.
    pub(crate) fn write(&self, url: &str, bytes: Bytes) -> Result<()> {
        let location = self.locate(url)?;
        let written =
            self.send(url, || async { Ok(location.store.put(&location.path, bytes.clone().into()).await?) });
        written.map(drop).map_err(|failure| self.describe("write", url, failure))
    }

    /// Writes a file as an object: a large one in parts, several at a time, each within the time limit. The object appears
    /// once it is whole.
    pub(crate) fn upload(&self, url: &str, file: &File) -> Result<()> {
        let size = file.metadata().context("read the file for", Path::new(url))?.len();
        let part = PART.max(size.div_ceil(MAX_PARTS));
        let read = |start: u64| -> Result<Bytes> {
            let mut bytes = vec![0; part.min(size - start) as usize];
            file.read_exact_at(&mut bytes, start).context("read the file for", Path::new(url))?;
            Ok(bytes.into())
        };
        if size <= part {
            return self.write(url, read(0)?);
        }
        let location = self.locate(url)?;
        let failed = |failure| self.describe("write", url, failure);
        let begun = self.send(url, || async { Ok(location.store.put_multipart(&location.path).await?) });
        let mut upload = WriteMultipart::new_with_chunk_size(begun.map_err(failed)?, part as usize);
        for start in (0..size).step_by(part as usize) {
            let sent = read(start).and_then(|bytes| {
                let sent = self.within_timeout(url, async {
                    upload.wait_for_capacity(PARTS_AT_ONCE).await?;
                    upload.put(bytes);
                    Ok(())
                });
                sent.map_err(failed)
            });
            if let Err(error) = sent {
                // The first error is the one to report.
                let _ = self.within_timeout(url, async { Ok(upload.abort().await?) });
                return Err(error);
            }
        }
        self.within_timeout(url, async { Ok(upload.finish().await?) }).map(drop).map_err(failed)
    }

    /// Removes an object; a missing one is no error.
    pub(crate) fn remove(&self, url: &str) -> Result<()> {
        let location = self.locate(url)?;
        match self.send(url, || async { Ok(location.store.delete(&location.path).await?) }) {
            Err(Failure::Store(object_store::Error::NotFound { .. })) => Ok(()),
            removed => removed.map_err(|failure| self.describe("remove", url, failure)),
        }
    }

    /// The names of the objects and folders directly in a folder, sorted.
    pub(crate) fn list_names(&self, folder: &str) -> Result<Vec<String>> {
        let location = self.locate(folder)?;
        let listed = self
            .send(folder, || async { Ok(location.store.list_with_delimiter(Some(&location.path)).await?) });
        let listed = listed.map_err(|failure| self.describe("list", folder, failure))?;
        let objects = listed.objects.iter().map(|object| &object.location);
        let names = objects.chain(&listed.common_prefixes).filter_map(|path| path.filename());
        let mut names: Vec<String> = names.map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    fn locate(&self, url: &str) -> Result<ObjectLocation> {
        let wrong = |what: &str| Error::InvalidArgument(format!("'{}': {what}", hide_password(url)));
        let (scheme, rest) =
            url.split_once("://").filter(|_| is_url(url)).ok_or_else(|| wrong("not a URL"))?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        if host.is_empty() {
            return Err(wrong("no bucket or host in it"));
        }
        if host.contains('@') {
            return Err(wrong("contains a password, which would end up in logs; remove it"));
        }
        let parsed = match scheme {
            "http" | "https" => object_store::path::Path::from_url_path(path),
            _ => object_store::path::Path::parse(path),
        };
        let path = parsed.map_err(|error| wrong(&format!("not a path in a store: {error}")))?;
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        let root = format!("{scheme}://{host}");
        let store = match stores.get(&root) {
            Some(store) => store.clone(),
            None => {
                let store = self.connect(scheme, host)?;
                stores.insert(root, store.clone());
                store
            }
        };
        Ok(ObjectLocation { store, path, url: url.to_owned() })
    }

    fn connect(&self, scheme: &str, host: &str) -> Result<Arc<dyn ObjectStore>> {
        let retry = RetryConfig {
            backoff: BackoffConfig { max_backoff: self.timeout / 8, ..BackoffConfig::default() },
            max_retries: 10,
            retry_timeout: self.timeout / 2, // so that the message has the last failure, not the time limit
        };
        let timeout = format!("{}ms", self.timeout.as_millis());
        let stalled = format!("{}ms", (self.timeout / 4).as_millis());
        let client = [(ClientConfigKey::Timeout, timeout), (ClientConfigKey::ReadTimeout, stalled)];
        let url = format!("{scheme}://{host}");
        let store: Result<Arc<dyn ObjectStore>, object_store::Error> = match scheme {
            "s3" => {
                let mut builder = AmazonS3Builder::from_env().with_bucket_name(host).with_retry(retry);
                for (key, value) in client {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
                }
                let endpoint = [AmazonS3ConfigKey::S3Endpoint, AmazonS3ConfigKey::Endpoint]
                    .iter()
                    .find_map(|key| builder.get_config_value(key));
                if endpoint.is_some_and(|endpoint| is_loopback_http(&endpoint)) {
                    builder = builder.with_allow_http(true);
                }
                builder.build().map(|store| Arc::new(store) as _)
            }
            "gs" => {
                let mut builder =
                    GoogleCloudStorageBuilder::from_env().with_bucket_name(host).with_retry(retry);
                for (key, value) in client {
                    builder = builder.with_config(GoogleConfigKey::Client(key), value);
                }
                let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
                if endpoint.is_some_and(|endpoint| is_loopback_http(&endpoint)) {
                    builder =
                        builder.with_config(GoogleConfigKey::Client(ClientConfigKey::AllowHttp), "true");
                }
                builder.build().map(|store| Arc::new(store) as _)
            }
            _ => {
                let plain = (scheme == "http").to_string();
                // Plain HTTP needs no certificates; a small machine may have none.
                let client = client.into_iter().chain([
                    (ClientConfigKey::AllowHttp, plain.clone()),
                    (ClientConfigKey::NoSystemCertificates, plain),
                ]);
                let builder = HttpBuilder::new().with_url(&url).with_retry(retry);
                let builder = client.fold(builder, |builder, (key, value)| builder.with_config(key, value));
                builder.build().map(|store| Arc::new(store) as _)
            }
        };
        store.map_err(|error| self.describe("connect to", &url, error.into()))
    }

    /// Sends `request` until it is answered. The store's client retries what fails before an answer begins; this
    /// function retries answers that break off.
    fn send<T, F: Future<Output = Result<T, Failure>>>(
        &self,
        url: &str,
        request: impl Fn() -> F,
    ) -> Result<T, Failure> {
        const MAX_TRIES: u32 = 4;
        let until_answered = async {
            let mut tries = 1;
            loop {
                match request().await {
                    Err(Failure::Store(error)) if is_truncated(&error) && tries < MAX_TRIES => {
                        tokio::time::sleep((self.timeout / 64).min(Duration::from_secs(1)) * tries * tries)
                            .await;
                        tries += 1;
                    }
                    outcome => return outcome,
                }
            }
        };
        self.within_timeout(url, until_answered)
    }

    fn within_timeout<T>(
        &self,
        url: &str,
        request: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let timed = async { tokio::time::timeout(self.timeout, request).await };
        self.runtime.block_on(timed).unwrap_or_else(|_| {
            let what = format!("no answer from {url} in {:?}", self.timeout);
            Err(Failure::Store(object_store::Error::Generic { store: "", source: what.into() }))
        })
    }

    fn describe(&self, action: &'static str, url: &str, failure: Failure) -> Error {
        let url = hide_password(url);
        let access = if matches!(action, "write" | "remove") { "write to" } else { "read" };
        let credentials = match url.split(':').next() {
            Some("s3") => format!(
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of an account that may {access} it \
                 (AWS_SKIP_SIGNATURE=true where no account is needed)"
            ),
            Some("gs") => {
                format!(
                    "set GOOGLE_APPLICATION_CREDENTIALS to the key file of an account that may {access} it"
                )
            }
            _ => "the server must give it to anyone who asks".to_owned(),
        };
        use object_store::Error as E;
        let what = match &failure {
            Failure::Changed => "it has changed since it was opened; start again".to_owned(),
            Failure::Store(E::NotFound { .. }) => "not found; check the URL".to_owned(),
            Failure::Store(E::PermissionDenied { .. } | E::Unauthenticated { .. }) => {
                format!("access denied; {credentials}")
            }
            Failure::Store(E::NotSupported { .. }) => {
                "the server doesn't answer requests for parts of a file; serve it by one that does".to_owned()
            }
            Failure::Store(error) => {
                let text = error.to_string();
                let status = text.split_once("status code: ").and_then(|(_, rest)| rest.split(':').next());
                let kind = find_http_error(error).map(HttpError::kind);
                if text.contains("169.254.169.254") || text.contains("metadata.google.internal") {
                    format!("no credentials; {credentials}")
                } else if status.is_some_and(|status| status.starts_with("401") || status.starts_with("403"))
                {
                    format!("access denied; {credentials}")
                } else if let Some(status) = status {
                    format!("the server answers {status}; check the URL, or try again later")
                } else if kind == Some(HttpErrorKind::Connect) {
                    "no connection; check the host, the port and the network".to_owned()
                } else if kind.is_some() || text.contains("no answer from") {
                    format!("no whole answer in {:?}; check the network, or allow more time", self.timeout)
                } else {
                    text.lines().next().unwrap_or_default().chars().take(200).collect()
                }
            }
        };
        Error::Store { action, url, what }
    }
}

/// The transport error in the chain of causes, if there is one.
fn find_http_error(error: &object_store::Error) -> Option<&HttpError> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        cause = error.source();
    }
    None
}

/// Whether an answer began and broke off.
fn is_truncated(error: &object_store::Error) -> bool {
    use HttpErrorKind::{Decode, Interrupted, Timeout, Unknown};
    find_http_error(error)
        .is_some_and(|error| matches!(error.kind(), Decode | Interrupted | Timeout | Unknown))
}

/// The URL without its password, for messages.
fn hide_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    match host.rsplit_once('@') {
        Some((_, host)) => format!("{scheme}://…@{host}/{path}"),
        None => url.to_owned(),
    }
}

/// Whether an endpoint is plain HTTP on this machine, which nobody else can read.
fn is_loopback_http(endpoint: &str) -> bool {
    let Some(rest) = endpoint.strip_prefix("http://") else { return false };
    let host = rest.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    host == "localhost"
        || host == "[::1]"
        || host.parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_loopback())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_read_without_tls() {
        for loopback in ["http://127.0.0.1:9000", "http://localhost/x", "http://[::1]:80", "http://127.1.2.3"]
        {
            assert!(is_loopback_http(loopback), "{loopback}");
        }
        for other in
            ["https://127.0.0.1", "http://10.0.0.1:9000", "http://localhost.evil.org", "http://[::2]:80"]
        {
            assert!(!is_loopback_http(other), "{other}");
        }
    }

    #[test]
    fn passwords_in_urls_are_refused_and_not_repeated() {
        let remote = Arc::new(Remote::start(&Options::default(), None).unwrap());
        let error =
            Object::open(&remote, &Location::new("https://me:secret@host/x.tar")).unwrap_err().to_string();
        assert!(
            error.contains("…@host/x.tar") && error.contains("password") && !error.contains("secret"),
            "{error}"
        );
        for wrong in ["s3:///x.tar", "http://"] {
            assert!(Object::open(&remote, &Location::new(wrong)).is_err());
        }
    }
}
