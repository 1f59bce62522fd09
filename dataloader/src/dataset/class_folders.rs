//! A folder whose subfolders hold images, a class each, as torchvision's `ImageFolder` takes it: classes are
//! numbered in the order of their names, and images come class by class, in each by folder and file name.
//!
//! It is listed as one shard whose samples are files: 24 bytes each and their names, however many there are.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::info::DatasetInfo;
use crate::error::{Error, IoContext, Result};
use crate::shard::{IndexedSample, ShardIndex, is_image};
use crate::{files, parallel};

/// Folders nest no deeper than this, unless a link leads round in a circle.
const MOST_DEPTH: usize = 32;

/// Formats that torchvision takes as well: leaving them out in silence would change the data.
const NOT_READ: [&str; 6] = ["bmp", "pgm", "ppm", "tif", "tiff", "webp"];

/// Whether `path` holds class folders: any folder at all, and no shards.
pub(crate) fn is_image_folder(path: &Path) -> Result<bool> {
    let mut folders = false;
    for entry in path.read_dir().context("list", path)? {
        let path = entry.context("list", path)?.path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            return Ok(false);
        }
        folders = folders || path.is_dir();
    }
    Ok(folders)
}

/// The images in `root`'s class folders, and what a `dataset.json` would say of them.
///
/// # Errors
/// A folder that can't be listed, a class without images, an image in a format that isn't read, a name that isn't
/// UTF-8.
pub(crate) fn list(root: &Path) -> Result<(ShardIndex, DatasetInfo)> {
    let mut classes = Vec::new();
    for entry in root.read_dir().context("list", root)? {
        let path = entry.context("list", root)?.path();
        if path.is_dir() {
            classes.push(checked_name(&path)?.to_owned());
        }
    }
    classes.sort();
    let listed = parallel::map(&classes, parallel::count_cores(), |_, class| {
        let mut files = Vec::new();
        walk(root, class, MOST_DEPTH, &mut files)?;
        if files.is_empty() {
            let what = "holds no .jpg, .jpeg or .png; add images, or remove the folder";
            return Err(Error::malformed(&root.join(class), what));
        }
        files.sort();
        Ok(compact(&files))
    })?;
    let mut index = ShardIndex::new(0, "");
    for (label, (names, ends)) in listed.into_iter().enumerate() {
        let mut start = 0;
        for end in ends {
            let name = &names[start..end];
            let sample = IndexedSample { name, offset: 0, length: 0, label: label as u32, header: 0 };
            index
                .push(sample)
                .ok_or_else(|| Error::malformed(root, "over 4 GiB of names; write the images to shards"))?;
            start = end;
        }
    }
    index.shrink();
    let info = DatasetInfo {
        version: 1,
        name: files::file_name(root),
        classes: classes.len(),
        channels: 3,
        image_size: None,
        samples: index.len() as u64,
        shards: 1,
        class_names: Some(classes),
    };
    Ok((index, info))
}

/// The image files among `paths` and in those that are folders, in the order given, a folder's by name.
///
/// # Errors
/// As [`list`], and a file that by its name is no image of a format that is read, no path at all.
pub(crate) fn list_images(paths: &[PathBuf]) -> Result<ShardIndex> {
    let mut index = ShardIndex::new(0, "");
    let mut push = |name: &str| {
        let sample = IndexedSample { name, offset: 0, length: 0, label: 0, header: 0 };
        index.push(sample).ok_or_else(|| {
            Error::malformed(Path::new(name), "over 4 GiB of names; write the images to shards")
        })
    };
    for path in paths {
        let text = path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| {
            Error::malformed(path, "its name isn't UTF-8, or holds control characters; rename it")
        })?;
        if fs::metadata(path).context("read", path)?.is_dir() {
            let mut files = Vec::new();
            walk(Path::new(""), text.trim_end_matches('/'), MOST_DEPTH, &mut files)?;
            if files.is_empty() {
                return Err(Error::malformed(path, "holds no .jpg, .jpeg or .png"));
            }
            files.sort();
            files.iter().try_for_each(|(folder, name)| push(&format!("{folder}/{name}")))?;
        } else if path.extension().and_then(|extension| extension.to_str()).is_some_and(is_image) {
            push(text)?;
        } else {
            return Err(Error::malformed(path, "is no .jpg, .jpeg or .png by its name"));
        }
    }
    if index.is_empty() {
        return Err(Error::InvalidArgument("no images were named".to_owned()));
    }
    index.shrink();
    Ok(index)
}

/// The names in one string, and where each ends: a vector of strings takes three times the memory.
fn compact(files: &[(String, String)]) -> (String, Vec<usize>) {
    let (mut names, mut ends) = (String::new(), Vec::with_capacity(files.len()));
    for (folder, name) in files {
        names.push_str(folder);
        names.push('/');
        names.push_str(name);
        ends.push(names.len());
    }
    names.shrink_to_fit();
    (names, ends)
}

/// Adds the images in `root`'s `folder` and below, each as its folder (relative to `root`) and its name.
fn walk(root: &Path, folder: &str, depth: usize, files: &mut Vec<(String, String)>) -> Result<()> {
    let path = root.join(folder);
    if depth == 0 {
        let what = format!("over {MOST_DEPTH} folders deep; does a link lead back to one above?");
        return Err(Error::malformed(&path, what));
    }
    for entry in path.read_dir().context("list", &path)? {
        let entry = entry.context("list", &path)?;
        let mut kind = entry.file_type().context("list", &entry.path())?;
        if kind.is_symlink() {
            kind = fs::metadata(entry.path()).context("follow the link", &entry.path())?.file_type();
        }
        let file_name = entry.file_name();
        let extension = file_name.as_bytes().rsplit(|&byte| byte == b'.').next().unwrap_or_default();
        let extension = std::str::from_utf8(extension).unwrap_or_default();
        if kind.is_dir() {
            walk(root, &format!("{folder}/{}", checked_name(&entry.path())?), depth - 1, files)?;
        } else if is_image(extension) {
            files.push((folder.to_owned(), checked_name(&entry.path())?.to_owned()));
        } else if NOT_READ.iter().any(|known| extension.eq_ignore_ascii_case(known)) {
            return Err(Error::malformed(&entry.path(), "of a format not read here; make it a JPEG or PNG"));
        }
    }
    Ok(())
}

fn checked_name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.filter(|name| !name.contains(char::is_control)).ok_or_else(|| {
        let what = "its name isn't UTF-8, or holds control characters; rename it";
        Error::malformed(Path::new(&path.to_string_lossy().escape_debug().to_string()), what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes empty files.
    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
    }

    #[test]
    fn classes_and_images_come_in_torchvisions_order() {
        let root = tempfile::tempdir().unwrap();
        touch(
            root.path(),
            &["b/z.png", "b/a-b/1.jpg", "b/a/2.JPEG", "b/a/10.jpeg", "B/x.y.JPG", "b/notes.txt"],
        );
        touch(root.path(), &["readme.md", "b/a.Png"]);
        let (index, info) = list(root.path()).unwrap();
        let listed: Vec<_> = index.iter().map(|sample| (sample.name, sample.label)).collect();
        let names = ["B/x.y.JPG", "b/a.Png", "b/z.png", "b/a/10.jpeg", "b/a/2.JPEG", "b/a-b/1.jpg"];
        let labels = [0, 1, 1, 1, 1, 1];
        let torchvision: Vec<_> = names.into_iter().zip(labels).collect(); // os.walk, sorted; checked with 0.26
        assert_eq!(listed, torchvision);
        assert_eq!(info.class_names.unwrap(), ["B", "b"]);
    }

    #[test]
    fn what_would_be_left_out_or_go_round_is_named() {
        for (names, reason) in [
            (&["a/1.jpg", "b/notes.txt"][..], "b: holds no .jpg"),
            (&["a/1.jpg", "a/2.WebP"], "2.WebP: of a format not read"),
            (&["a/1\n.jpg"], "1\\n.jpg: its name"),
        ] {
            let root = tempfile::tempdir().unwrap();
            touch(root.path(), names);
            let message = list(root.path()).unwrap_err().to_string();
            assert!(message.contains(reason) && !message.contains('\n'), "{message}");
        }
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["a/1.jpg"]);
        std::os::unix::fs::symlink(root.path().join("a"), root.path().join("a/again")).unwrap();
        assert!(list(root.path()).unwrap_err().to_string().contains("does a link lead back"));
    }
}
