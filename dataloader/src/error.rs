//! Errors of the data, the machine under it, or the request. Every message is one line: what is wrong, where, and how
//! to fix it.

use std::io;
use std::path::{Path, PathBuf};

/// The result of every fallible function of this crate; the error is [`BadImage`] where it concerns one image.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something is wrong with the data, the machine under it, or the request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder is missing, or the system refused to read or write it.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// The operation, phrased to follow "cannot": `read`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error; part of the message, so not also `source()`.
        cause: io::Error,
    },

    /// An object in a store can't be read or listed.
    #[error("cannot {action} {url}: {what}")]
    Store {
        /// The operation, phrased to follow "cannot": `read`, `list`.
        action: &'static str,
        /// The object or folder.
        url: String,
        /// What went wrong, and how to fix it. Never a credential.
        what: String,
    },

    /// A file can be read but breaks its format.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and how to fix it.
        what: String,
    },

    /// A sample's image can't be decoded, or can't be cropped with these settings.
    #[error("{}: {reason}", sample_location(shard, key))]
    Undecodable {
        /// The shard that holds the sample.
        shard: PathBuf,
        /// The sample's key in it.
        key: String,
        /// What is wrong with the image, and how to fix it.
        reason: String,
    },

    /// A sample's label is missing, isn't a number, or isn't one of the classes.
    #[error("{}, key '{key}': {reason}", shard.display())]
    Label {
        /// The shard that holds the sample.
        shard: PathBuf,
        /// The sample's key in it.
        key: String,
        /// What is wrong with the label, and how to fix it.
        reason: String,
    },

    /// No shard, or no sample in the shards.
    #[error(
        "{what} at '{pattern}'; give a folder of .tar shards or of class folders, a glob, or a range like x-{{000000..000012}}.tar"
    )]
    Empty {
        /// What wasn't found: shards or samples.
        what: &'static str,
        /// The pattern as the user gave it.
        pattern: String,
    },

    /// The shards found are fewer or more than `dataset.json`, or another tool's list, states.
    #[error(
        "expected {expected} {unit}, found {found}, by {}; copy the missing shards, or write the dataset again",
        manifest.display()
    )]
    Incomplete {
        /// The file that states the count.
        manifest: PathBuf,
        /// `shards` or `samples`.
        unit: &'static str,
        /// The count it states.
        expected: u64,
        /// The count found.
        found: u64,
    },

    /// A setting or argument that is wrong whatever the data is.
    #[error("{0}")]
    InvalidArgument(String),

    /// The machine refused a thread or the memory for a decoder.
    #[error("{0}; lower the number of threads")]
    Exhausted(String),

    /// A decode thread panicked: a bug in this program, not in the data.
    #[error("a decode thread panicked at sample {sample} ({message}); please report this as a bug")]
    Panicked {
        /// Dataset index of the sample that the thread was decoding.
        sample: u32,
        /// The panic's message.
        message: String,
    },
}

impl Error {
    pub(crate) fn malformed(path: &Path, what: impl Into<String>) -> Error {
        Error::Malformed { path: path.to_owned(), what: what.into() }
    }
}

/// Why an image can't be used, and how to fix it, from code that doesn't know where the image came from.
/// [`BadImage::in_sample`] adds the location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadImage(pub String);

impl BadImage {
    /// The same as an [`Error`] that names the shard and the key.
    pub fn in_sample(self, shard: &Path, key: &str) -> Error {
        Error::Undecodable { shard: shard.to_owned(), key: key.to_owned(), reason: self.0 }
    }
}

/// The shard and key of a sample, or the path of an image that lies in no shard.
fn sample_location(shard: &Path, key: &str) -> String {
    if shard.as_os_str().is_empty() { key.to_owned() } else { format!("{}, key '{key}'", shard.display()) }
}

/// Adds the operation and the path to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::Io { action, path: path.to_owned(), cause })
    }
}
