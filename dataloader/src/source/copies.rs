//! A folder of copies, in a store or of a file system: the only place that this crate writes to by URL.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek};
use std::path::Path;
use std::time::Duration;

use super::{Location, Options, Storage, is_url, join};
use crate::error::{IoContext, Result};
use crate::files::{create_parent, remove_if_exists, replace_file, replace_file_by};

/// A folder in a store (`s3://`, `gs://`) or of a file system, to which files are copied and from which they are fetched.
/// Names are relative to it and may have slashes. A file appears or is replaced in one step, with its whole content.
#[derive(Debug)]
pub struct CopyFolder {
    root: String,
    storage: Storage,
}

impl CopyFolder {
    /// The folder at a path or URL, with the time limit of one request to a store, retries included.
    ///
    /// # Errors
    /// A URL, in a build without the feature `remote`.
    pub fn open(root: &str, timeout: Duration) -> Result<CopyFolder> {
        let storage = Storage::new(&Options { timeout, ..Options::default() });
        if is_url(root) {
            #[cfg(feature = "remote")]
            storage.remote()?;
            #[cfg(not(feature = "remote"))]
            return Err(super::without_stores(root));
        }
        Ok(CopyFolder { root: root.trim_end_matches('/').to_owned(), storage })
    }

    /// The path or URL of a file in it.
    pub fn location(&self, name: &str) -> String {
        join(&self.root, name)
    }

    /// Writes a small file.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let location = self.location(name);
        #[cfg(feature = "remote")]
        if is_url(&location) {
            return self.storage.remote()?.write(&location, bytes.to_vec().into());
        }
        let path = Path::new(&location);
        create_parent(path)?;
        replace_file(path, bytes)
    }

    /// Copies an open file of any size.
    pub fn upload(&self, name: &str, file: &File) -> Result<()> {
        let location = self.location(name);
        #[cfg(feature = "remote")]
        if is_url(&location) {
            return self.storage.remote()?.upload(&location, file);
        }
        let path = Path::new(&location);
        create_parent(path)?;
        replace_file_by(path, |copy| {
            let mut source = file;
            source.rewind()?;
            io::copy(&mut source, copy).map(drop)
        })
    }

    /// Reads a small file; none if it is missing.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.storage.read_small(&self.location(name), false)
    }

    /// The first bytes of a file of any size, at most `max_bytes`; none if it is missing.
    pub fn read_start(&self, name: &str, max_bytes: usize) -> Result<Option<Vec<u8>>> {
        let (folder, file) = name.rsplit_once('/').unwrap_or(("", name));
        if !self.list(folder)?.iter().any(|found| found == file) {
            return Ok(None);
        }
        let source = self.storage.open(&Location::new(self.location(name)))?;
        let mut bytes = vec![0; max_bytes.min(source.size() as usize)];
        source.read_uncached(&mut bytes, 0)?;
        Ok(Some(bytes))
    }

    /// Fetches a file of any size to `path`.
    pub fn download(&self, name: &str, path: &Path) -> Result<()> {
        let file = File::create(path).context("create", path)?;
        let source = self.storage.open(&Location::new(self.location(name)))?;
        source.stream(0, &mut |offset, bytes| {
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, offset).context("write", path)
        })
    }

    /// The names of the files and folders directly in the folder `name`, sorted; none if it is missing.
    pub fn list(&self, name: &str) -> Result<Vec<String>> {
        let location = self.location(name);
        #[cfg(feature = "remote")]
        if is_url(&location) {
            return self.storage.remote()?.list_names(&location);
        }
        let path = Path::new(&location);
        let entries = match fs::read_dir(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context("list", path)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            names.push(entry.context("list", path)?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    /// Removes a file; a missing one is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        let location = self.location(name);
        #[cfg(feature = "remote")]
        if is_url(&location) {
            return self.storage.remote()?.remove(&location);
        }
        remove_if_exists(Path::new(&location))
    }

    /// Removes the folder `name` with the files directly in it, in the order of their names.
    pub fn remove_folder(&self, name: &str) -> Result<()> {
        for file in self.list(name)? {
            self.remove(&format!("{name}/{file}"))?;
        }
        let location = self.location(name);
        if is_url(&location) {
            return Ok(()); // a store has no empty folders
        }
        fs::remove_dir(&location).context("remove", Path::new(&location))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_copied_fetched_and_removed() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("copies");
        let folder = CopyFolder::open(&format!("{}/", place.display()), Duration::from_secs(1)).unwrap();
        assert_eq!(folder.read("a/b").unwrap(), None);
        assert!(folder.list("a").unwrap().is_empty());
        folder.write("a/b", b"small").unwrap();
        let source = root.path().join("source");
        fs::write(&source, vec![7; 100_000]).unwrap();
        let file = File::open(&source).unwrap();
        for _ in 0..2 {
            folder.upload("a/large", &file).unwrap();
        }
        assert_eq!(fs::read(place.join("a/large")).unwrap(), vec![7; 100_000]);
        assert_eq!(folder.list("a").unwrap(), ["b", "large"]);
        assert_eq!(folder.read_start("a/large", 3).unwrap(), Some(vec![7; 3]));
        assert_eq!(folder.read_start("a/b", 9).unwrap(), Some(b"small".to_vec()));
        assert_eq!(folder.read_start("a/c", 9).unwrap(), None);
        let fetched = root.path().join("fetched");
        folder.download("a/large", &fetched).unwrap();
        assert_eq!(fs::read(fetched).unwrap(), vec![7; 100_000]);
        assert!(folder.download("a/none", &root.path().join("none")).is_err());
        folder.remove_folder("a").unwrap();
        folder.remove("a/b").unwrap();
        assert!(!place.join("a").exists());
    }
}
