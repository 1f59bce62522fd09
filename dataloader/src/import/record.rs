//! The settings of an import of encoded images, saved so that only an import with the same settings resumes it.

use std::path::Path;
use std::{fs, io};

use serde::Serialize;

use crate::error::{Error, IoContext, Result};
use crate::files;

/// Everything that the bytes of the shards depend on; the contents of `import.json`.
#[derive(Serialize)]
pub(super) struct ImportRecord {
    pub(super) version: u32,
    pub(super) name: String,
    pub(super) samples: u64,
    /// SHA-256 of the keys and labels.
    pub(super) keys_and_labels: String,
    pub(super) seed: u64,
    pub(super) shard_size: u32,
    pub(super) tile: bool,
    pub(super) max_side: Option<u32>,
}

impl ImportRecord {
    const FILE: &str = "import.json";

    /// Saves the record to `folder`, or checks that the saved one is the same.
    ///
    /// # Errors
    /// Another record; shards without one.
    pub(super) fn save_or_check(&self, folder: &Path) -> Result<()> {
        let path = folder.join(Self::FILE);
        let now = serde_json::to_value(self).map_err(io::Error::from).context("write", &path)?;
        let then = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                refuse_shards(folder)?;
                return files::replace_file(&path, format!("{now:#}\n").as_bytes());
            }
            read => read.context("read", &path)?,
        };
        let then: serde_json::Value = serde_json::from_slice(&then)
            .map_err(|error| Error::malformed(&path, format!("{error}; give another --output")))?;
        let fields = now.as_object().into_iter().flatten();
        let Some((field, now)) = fields.into_iter().find(|(field, value)| then.get(field) != Some(value))
        else {
            return Ok(());
        };
        let begun = match field.as_str() {
            "keys_and_labels" => "other samples or labels".to_owned(),
            field => format!("{field} {}, now {now}", then.get(field).unwrap_or(&serde_json::Value::Null)),
        };
        let fix = "give the same settings and samples, or another --output";
        Err(Error::malformed(&path, format!("this import was begun with {begun}; {fix}")))
    }
}

fn refuse_shards(folder: &Path) -> Result<()> {
    for entry in folder.read_dir().context("list", folder)? {
        let path = entry.context("list", folder)?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            let what = "holds shards but no import.json; give another --output";
            return Err(Error::malformed(folder, what));
        }
    }
    Ok(())
}
