//! `dataset.json`, the description of a data set in its folder.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, IoContext, Result};
use crate::files;

/// The contents of `dataset.json`, which describes the shards in its folder. It is written last, so its presence means
/// that all shards are complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Version of this format: 1.
    pub version: u32,
    /// A name for people: `fashion-mnist train`.
    pub name: String,
    /// Number of classes; labels are 0..classes.
    pub classes: usize,
    /// Colour channels of the images: 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Width and height in pixels if all images are squares of one size, else null.
    pub image_size: Option<u32>,
    /// Samples in all shards.
    pub samples: u64,
    /// Number of shards.
    pub shards: u64,
    /// The classes' names in the order of their numbers, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<Vec<String>>,
}

impl DatasetInfo {
    pub(crate) const FILE: &str = "dataset.json";

    /// Reads `folder`'s `dataset.json`; `None` if it is missing.
    pub fn load(folder: &Path) -> Result<Option<DatasetInfo>> {
        let path = folder.join(Self::FILE);
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.context("read", &path)?,
        };
        DatasetInfo::parse(&path, &text).map(Some)
    }

    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<DatasetInfo> {
        let info: DatasetInfo = serde_json::from_slice(text).map_err(|error| {
            Error::malformed(path, format!("{error}; correct it or write the dataset again"))
        })?;
        let names = info.class_names.as_ref().map_or(info.classes, Vec::len);
        if info.version != 1 || names != info.classes {
            let what = format!(
                "version {}, {} classes, {names} class names; expected version 1 and a name for each class",
                info.version, info.classes
            );
            return Err(Error::malformed(path, what));
        }
        Ok(info)
    }

    /// How this set's classes differ from those of `other`, if they do: "class 1 is 'bee', and 'cat'".
    pub(super) fn class_difference(&self, other: &DatasetInfo) -> Option<String> {
        if let (Some(ours), Some(theirs)) = (&self.class_names, &other.class_names) {
            let class =
                (0..ours.len().max(theirs.len())).find(|&class| ours.get(class) != theirs.get(class))?;
            let name =
                |names: &[String]| names.get(class).map_or("missing".to_owned(), |name| format!("'{name}'"));
            return Some(format!("class {class} is {}, and {}", name(ours), name(theirs)));
        }
        let Self { classes, .. } = self;
        (*classes != other.classes).then(|| format!("there are {classes} classes, and {}", other.classes))
    }

    /// The description of both sets together, whose classes must be the same.
    pub(super) fn join(self, other: DatasetInfo) -> DatasetInfo {
        DatasetInfo {
            name: format!("{}, {}", self.name, other.name),
            image_size: self.image_size.filter(|_| self.image_size == other.image_size),
            samples: self.samples + other.samples,
            shards: self.shards + other.shards,
            class_names: self.class_names.or(other.class_names),
            ..self
        }
    }

    /// Writes it to `folder`, in one step.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        let mut text = serde_json::to_vec_pretty(self).map_err(io::Error::from).context("write", &path)?;
        text.push(b'\n');
        files::replace_file(&path, &text)?;
        files::sync_folder(folder).context("write to", folder)
    }

    /// Removes `folder`'s `dataset.json`, if any, because the shards are no longer complete.
    pub fn remove(folder: &Path) -> Result<()> {
        files::remove_if_exists(&folder.join(Self::FILE))
    }
}
