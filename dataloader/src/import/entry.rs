//! The description of a data set that can be imported.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::image_set::ImageSet;
use super::pixel_source::PixelSource;
use crate::encode::Encoding;
use crate::error::{Error, Result};

/// A data set that can be imported: its name and help on the command line, and how its files are read.
#[derive(Debug)]
pub struct Entry {
    /// The name on the command line: `cifar10`.
    pub name: &'static str,
    /// One sentence about the data set and its published files.
    pub about: &'static str,
    /// The help of `--src`.
    pub source: &'static str,
    /// Where the authors publish the files; `None` for formats, and for sets that `fetch` does not have.
    pub published: Option<&'static Published>,
    /// How the files are read.
    pub importer: Importer,
}

/// Where a data set is published.
#[derive(Debug)]
pub struct Published {
    /// The authors' page.
    pub page: &'static str,
    /// Licence and terms, in a sentence.
    pub terms: &'static str,
    /// How the files are obtained.
    pub access: Access,
}

/// How published files are obtained.
#[derive(Debug)]
pub enum Access {
    /// By a download.
    Download {
        /// The URL of the files' folder.
        base: &'static str,
        /// The files.
        files: &'static [PublishedFile],
    },
    /// By an account, whose terms its owner accepts: what to do, a line each.
    Account(&'static [&'static str]),
}

/// A published file.
#[derive(Debug)]
pub struct PublishedFile {
    /// Its name in the folder.
    pub name: &'static str,
    /// Its size in bytes.
    pub bytes: u64,
    /// The MD5 of its contents, in hexadecimal, that users find elsewhere.
    pub md5: &'static str,
    /// The SHA-256, which downloads are checked against.
    pub sha256: &'static str,
    /// Whether an import does without it.
    pub optional: bool,
}

/// How the files of a data set are read.
#[derive(Debug)]
pub enum Importer {
    /// The files hold raw pixels, which are encoded; see [`PixelImport`](super::PixelImport).
    Pixels(PixelImporter),
    /// The files hold encoded images, which are kept; see [`ImageImport`](super::ImageImport).
    Images(ImageImporter),
}

/// How raw pixels are read.
#[derive(Debug)]
pub struct PixelImporter {
    /// The default encoding.
    pub encoding: Encoding,
    /// Finds the files in a folder.
    pub(super) open: fn(&Path) -> Result<PixelSource>,
}

/// How encoded images are read.
#[derive(Debug)]
pub struct ImageImporter {
    /// Whether `--src` takes several paths.
    pub several_sources: bool,
    /// Whether each split has its own folder in the output folder.
    pub split_folders: bool,
    /// The options that only this data set has.
    pub options: &'static [ImportOption],
    /// Finds the images without reading them.
    pub(super) find: fn(&ImageRequest) -> Result<Vec<ImageSet>>,
}

/// An option of one data set on the command line.
#[derive(Debug)]
pub struct ImportOption {
    /// The long name, without dashes.
    pub name: &'static str,
    /// The name of its value in the help.
    pub value_name: &'static str,
    /// The values that it takes; empty for any.
    pub values: &'static [&'static str],
    /// The default value, if it has one.
    pub default: Option<&'static str>,
    /// The help.
    pub help: &'static str,
}

/// The files to import, and the values of the data set's own options.
#[derive(Debug, Clone)]
pub struct ImageRequest {
    /// The paths or globs after `--src`.
    pub sources: Vec<String>,
    /// The output folder.
    pub out: PathBuf,
    /// The data set's own options, by name.
    pub options: BTreeMap<&'static str, String>,
}

impl ImageRequest {
    /// The one folder after `--src`.
    ///
    /// # Errors
    /// It is no folder.
    pub(super) fn source_folder(&self) -> Result<&Path> {
        let folder = Path::new(self.sources.first().map_or("", String::as_str));
        if folder.is_dir() {
            return Ok(folder);
        }
        Err(Error::malformed(folder, "not a folder; give the folder that holds the data set"))
    }

    /// The start of the shards' names: the output folder's name, if it is plain.
    pub(super) fn split_name(&self) -> String {
        let name = self.out.file_name().and_then(|name| name.to_str());
        let plain = |name: &&str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        name.filter(plain).unwrap_or("images").to_owned()
    }
}
