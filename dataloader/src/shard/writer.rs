//! How shards are written.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::index::ShardIndex;
use super::tar_names::{is_image, key_and_extension};
use crate::error::{Error, IoContext, Result};
use crate::files;

/// The file name of shard `number`.
pub(crate) fn shard_name(name: &str, number: u32) -> String {
    format!("{name}-{number:06}.tar")
}

/// Writes samples to `NAME-000000.tar`, `NAME-000001.tar`, …, each with its index.
///
/// The bytes written are a function of the samples alone: owners and times in the headers are constants.
/// A shard gets its name only when it is complete and on disk; until then it ends in `.tar.tmp`, and is removed where
/// writing ends before that, unless the program is killed.
pub struct ShardWriter {
    folder: PathBuf,
    name: String,
    shard_size: u32,
    shards: u32,
    samples: u64,
    open: Option<OpenShard>,
}

struct OpenShard {
    tar: tar::Builder<BufWriter<File>>,
    temporary: Temporary,
    path: PathBuf,
    samples: u32,
}

/// A temporary file, deleted on drop unless it was renamed.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl ShardWriter {
    /// Creates `folder` where needed. Existing shards of this name are overwritten one by one.
    pub fn new(folder: &Path, name: &str, shard_size: u32) -> Result<ShardWriter> {
        if shard_size == 0 {
            return Err(Error::InvalidArgument("shard_size must be at least 1, not 0".into()));
        }
        fs::create_dir_all(folder).context("create folder", folder)?;
        Ok(ShardWriter {
            folder: folder.to_owned(),
            name: name.to_owned(),
            shard_size,
            shards: 0,
            samples: 0,
            open: None,
        })
    }

    /// Writes a single shard with this number and any number of samples.
    pub(crate) fn new_single(folder: &Path, name: &str, number: u32) -> Result<ShardWriter> {
        let writer = ShardWriter::new(folder, name, u32::MAX)?;
        Ok(ShardWriter { shards: number, ..writer })
    }

    /// Adds a sample: its key, the image's extension (`jpg`, `jpeg` or `png`), the encoded image, the label.
    ///
    /// # Errors
    /// A key or extension the format can't hold, or a disk that can't be written.
    pub fn write(&mut self, key: &str, extension: &str, image: &[u8], label: u32) -> Result<()> {
        let image_name = format!("{key}.{extension}");
        let control = key.contains(char::is_control);
        if key.is_empty()
            || key.ends_with('/')
            || control
            || key_and_extension(&image_name) != (key, extension)
        {
            return Err(Error::InvalidArgument(format!(
                "'{key}' can't be a sample's key; give it a file name without dots and control characters"
            )));
        }
        if !is_image(extension) {
            return Err(Error::InvalidArgument(format!(
                "'{extension}' isn't the extension of an image shards hold; use jpg, jpeg or png"
            )));
        }
        let mut shard = match self.open.take() {
            Some(shard) => shard,
            None => self.start()?,
        };
        shard.append(&image_name, image)?;
        shard.append(&format!("{key}.cls"), label.to_string().as_bytes())?;
        shard.samples += 1;
        self.samples += 1;
        if shard.samples == self.shard_size {
            shard.complete(&self.folder)?;
        } else {
            self.open = Some(shard);
        }
        Ok(())
    }

    /// Completes the last shard. Returns the number of shards and of samples written.
    pub fn finish(mut self) -> Result<(u32, u64)> {
        if let Some(shard) = self.open.take() {
            shard.complete(&self.folder)?;
        }
        Ok((self.shards, self.samples))
    }

    fn start(&mut self) -> Result<OpenShard> {
        let path = self.folder.join(shard_name(&self.name, self.shards));
        let temporary = path.with_extension("tar.tmp");
        let file = File::create(&temporary).context("create", &temporary)?;
        self.shards += 1;
        let (tar, temporary) = (tar::Builder::new(BufWriter::new(file)), Temporary(temporary));
        Ok(OpenShard { tar, temporary, path, samples: 0 })
    }
}

impl OpenShard {
    fn append(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(|reason| {
            Error::InvalidArgument(format!(
                "'{name}' can't be a tar member ({reason}); use a shorter, relative key"
            ))
        })?;
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.tar.append(&header, contents).context("write", &self.temporary.0)
    }

    /// Brings the shard to disk under its name, then writes its index.
    fn complete(self, folder: &Path) -> Result<()> {
        let OpenShard { tar, temporary, path, .. } = self;
        tar.into_inner()
            .and_then(|mut buffer| buffer.flush().and_then(|()| buffer.get_ref().sync_all()))
            .context("write", &temporary.0)?;
        fs::rename(&temporary.0, &path).context("rename to", &path)?;
        files::sync_folder(folder).context("write to", folder)?;
        ShardIndex::rebuild(&path)?.save(&path) // the index holds the modification time: after the rename
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_not_come_back_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(folder.path(), "x", 10).unwrap();
        for key in ["", "a.b", "dir/", "tab\tbed", "/absolute", "../up"] {
            assert!(matches!(writer.write(key, "jpg", b"", 0), Err(Error::InvalidArgument(_))), "{key:?}");
        }
        assert!(matches!(writer.write("a", "gif", b"", 0), Err(Error::InvalidArgument(_))));
        assert!(matches!(ShardWriter::new(folder.path(), "x", 0), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn an_unfinished_shard_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(folder.path(), "x", 10).unwrap();
        writer.write("a", "png", b"image", 0).unwrap();
        assert!(folder.path().join("x-000000.tar.tmp").exists());
        drop(writer);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn shards_roll_over_and_are_reproducible_to_the_byte() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            let folder = folder.path().join(name);
            let mut writer = ShardWriter::new(&folder, "x", 2).unwrap();
            for label in 0..5 {
                writer.write(&format!("k{label}"), "png", &[label as u8; 700], label).unwrap();
            }
            assert_eq!(writer.finish().unwrap(), (3, 5));
            let mut names: Vec<_> =
                fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(
                names,
                [
                    "x-000000.idx",
                    "x-000000.tar",
                    "x-000001.idx",
                    "x-000001.tar",
                    "x-000002.idx",
                    "x-000002.tar"
                ]
            );
            fs::read(folder.join("x-000001.tar")).unwrap()
        };
        assert_eq!(write("first"), write("second"));
    }
}
