//! Shards in stores: S3 and what speaks its protocol, Google Cloud Storage, web servers.
//!
//! Requests that fail are retried with growing pauses until [`Options::timeout`]. Messages name the URL and the fix. They
//! never repeat a server's answer besides its status, because it may contain parts of credentials.

mod connect;
mod failure;
mod object;

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt, WriteMultipart};
use tokio::runtime::Runtime;

use self::failure::Failure;
pub(crate) use self::object::{Object, ObjectState};
use super::cache::SharedFolder;
use super::options::Options;
use super::{Location, is_url};
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
        let wrong = |what: &str| Error::InvalidArgument(format!("'{}': {what}", failure::hide_password(url)));
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
                let store = connect::connect(scheme, host, self.timeout)
                    .map_err(|error| self.describe("connect to", &root, error.into()))?;
                stores.insert(root, store.clone());
                store
            }
        };
        Ok(ObjectLocation { store, path, url: url.to_owned() })
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
                    Err(Failure::Store(error)) if failure::is_truncated(&error) && tries < MAX_TRIES => {
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
        failure.into_error(action, url, self.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
