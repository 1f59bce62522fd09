//! What can go wrong with data. Every message is one line that says what is wrong, where, and how to mend it.

use std::io;
use std::path::{Path, PathBuf};

/// The result of everything in this crate that can fail; of what concerns one image, with [`BadImage`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something is wrong with the data, the machine under it, or the request.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder is missing, or the system refused to read or write it.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried, phrased to follow "cannot": `read`, `create`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said; part of the message, so not also `source()`.
        cause: io::Error,
    },

    /// An object in a store can't be had.
    #[error("cannot {action} {url}: {what}")]
    Store {
        /// What was tried, phrased to follow "cannot": `read`, `list`.
        action: &'static str,
        /// The object or folder.
        url: String,
        /// What went wrong, and how to mend it. Never a credential.
        what: String,
    },

    /// A file is there and readable, but isn't what its format demands.
    #[error("{}: {what}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, where in the file, and how to mend it.
        what: String,
    },

    /// A sample's image can't be decoded, or can't be cropped as asked.
    #[error("{}: {reason}", place(shard, key))]
    Undecodable {
        /// The shard that holds the sample.
        shard: PathBuf,
        /// The sample's key in it.
        key: String,
        /// What is wrong with the image, and how to mend it.
        reason: String,
    },

    /// A sample's label is missing, isn't a number, or isn't one of the classes.
    #[error("{}, key '{key}': {reason}", shard.display())]
    Label {
        /// The shard that holds the sample.
        shard: PathBuf,
        /// The sample's key in it.
        key: String,
        /// What is wrong with the label, and how to mend it.
        reason: String,
    },

    /// No shard, or no sample in the shards.
    #[error(
        "{what} at '{pattern}'; give a folder of .tar shards or of class folders, a glob, or a range like x-{{000000..000012}}.tar"
    )]
    Empty {
        /// What wasn't found: shards or samples.
        what: &'static str,
        /// The pattern as it was given.
        pattern: String,
    },

    /// The shards found aren't all of those (or more than those) that `dataset.json`, or another tool's list, counts.
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

    /// A setting or argument that can't be right whatever the data is.
    #[error("{0}")]
    InvalidArgument(String),

    /// The machine refused a thread or the memory for a decoder.
    #[error("{0}; lower the number of threads")]
    Exhausted(String),

    /// A decode thread panicked: a bug in this program, not in the data.
    #[error("a decode thread panicked at sample {sample} ({message}); please report this as a bug")]
    Panicked {
        /// Dataset index of the sample it was at.
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

/// Why an image can't be used, and how to mend it, said by code that doesn't know where the image came from.
/// [`BadImage::at`] adds that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadImage(pub String);

impl BadImage {
    /// The same as an [`Error`] that names the shard and the key.
    pub fn at(self, shard: &Path, key: &str) -> Error {
        Error::Undecodable { shard: shard.to_owned(), key: key.to_owned(), reason: self.0 }
    }
}

/// A sample's place: its shard and key, or the path of an image that lies in no shard.
fn place(shard: &Path, key: &str) -> String {
    if shard.as_os_str().is_empty() { key.to_owned() } else { format!("{}, key '{key}'", shard.display()) }
}

/// Adds what was tried, and on which path, to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: &Path) -> Result<T> {
        self.map_err(|cause| Error::Io { action, path: path.to_owned(), cause })
    }
}
