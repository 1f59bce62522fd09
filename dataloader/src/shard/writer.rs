//! Writes shards.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::index::ShardIndex;
use super::tar_names::{is_image, split_key};
use crate::error::{Error, IoContext, Result};
use crate::files;
use crate::left_out::is_foreign_path;

/// Limit of a member's name in a ustar header, without a prefix.
const USTAR_NAME_BYTES: usize = 100;

/// The file name of shard `number`.
pub(crate) fn shard_name(name: &str, number: u32) -> String {
    format!("{name}-{number:06}.tar")
}

/// Writes samples to `NAME-000000.tar`, `NAME-000001.tar`, …, each with its index.
///
/// The bytes are a function of the samples only: owners and times in the headers are constants. A shard gets its name
/// when it is complete and on disk. Until then its name ends in `.tar.tmp`, and an error removes the file.
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
        if key.is_empty() || key.ends_with('/') || control || split_key(&image_name) != (key, extension) {
            return Err(invalid_key(key, "it needs a file name without dots and control characters"));
        }
        if key.starts_with('/') || key.split('/').any(|part| part == "..") {
            return Err(invalid_key(key, "it must be a relative path without '..'"));
        }
        if is_foreign_path(&image_name) {
            return Err(invalid_key(
                key,
                "hidden and system files are left out when a shard is read; rename it",
            ));
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
        let tar = tar::Builder::new(BufWriter::new(file));
        Ok(OpenShard { tar, temporary: Temporary(temporary), path, samples: 0 })
    }
}

impl OpenShard {
    fn append(&mut self, name: &str, contents: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        match header.set_path(name) {
            Ok(()) => {}
            Err(_) if name.len() > USTAR_NAME_BYTES => {
                // The full name goes to a pax header, and its start to this one, as Python's tarfile writes it.
                let path = [("path", name.as_bytes())];
                self.tar.append_pax_extensions(path).context("write", &self.temporary.0)?;
                let start = &name.as_bytes()[..name.floor_char_boundary(USTAR_NAME_BYTES)];
                header = tar::Header::new_ustar();
                header.as_mut_bytes()[..start.len()].copy_from_slice(start);
            }
            Err(reason) => return Err(invalid_key(name, &reason.to_string())),
        }
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.tar.append(&header, contents).context("write", &self.temporary.0)
    }

    /// Syncs the shard to disk, renames it, and writes its index.
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

fn invalid_key(key: &str, reason: &str) -> Error {
    Error::InvalidArgument(format!("'{key}' can't be a sample's key: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_a_tar_would_change_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(folder.path(), "x", 10).unwrap();
        for key in ["", "a.b", "dir/", "tab\tbed", "/absolute", "../up", "lost+found/a"] {
            assert!(matches!(writer.write(key, "jpg", b"", 0), Err(Error::InvalidArgument(_))), "{key:?}");
        }
        assert!(matches!(writer.write("a", "gif", b"", 0), Err(Error::InvalidArgument(_))));
        assert!(matches!(ShardWriter::new(folder.path(), "x", 0), Err(Error::InvalidArgument(_))));
    }

    #[test]
    fn long_names_are_written_in_pax_headers() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = ShardWriter::new(folder.path(), "x", 10).unwrap();
        // 134 bytes, in one part, which ustar can't split; more than a prefix holds; letters of two bytes at the limit.
        let keys = ["n".repeat(130), format!("{}/n", "d/".repeat(200)), format!("a{}", "ü".repeat(60))];
        for (label, key) in keys.iter().enumerate() {
            writer.write(key, "jpg", b"image", label as u32).unwrap();
        }
        writer.finish().unwrap();
        let (index, _) = ShardIndex::open(&folder.path().join("x-000000.tar")).unwrap();
        let read: Vec<(&str, u32)> = index.iter().map(|sample| (sample.key(), sample.label)).collect();
        assert_eq!(read, [(&*keys[0], 0), (&*keys[1], 1), (&*keys[2], 2)]);
        assert!(index.left_out().is_empty());
    }

    #[test]
    fn unfinished_shard_leaves_nothing() {
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
