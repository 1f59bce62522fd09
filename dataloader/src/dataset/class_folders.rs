//! A folder of class folders, as torchvision's `ImageFolder` reads it: classes are numbered in the order of their
//! names, and images come class by class, in each by folder and file name. Foreign files and folders, see
//! [`left_out`](crate::left_out), are no classes and no images.
//!
//! The folder is one shard whose samples are files, at 24 bytes and the name for each.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::info::DatasetInfo;
use crate::error::{Error, IoContext, Result};
use crate::left_out::{LeftOut, Reason, is_foreign};
use crate::shard::{IndexedSample, ShardIndex, is_image};
use crate::{files, parallel};

/// Limit of nested folders; deeper ones are a circle of links.
const MAX_DEPTH: usize = 32;

/// Formats that torchvision reads and this crate doesn't. Leaving them out would change the data.
const UNSUPPORTED: [&str; 6] = ["bmp", "pgm", "ppm", "tif", "tiff", "webp"];

/// Names of splits. A folder with no other folders holds splits, not classes.
const SPLITS: [&str; 6] = ["train", "val", "valid", "validation", "test", "extra"];

/// The class folders of a folder, before their images are listed.
pub(crate) struct ClassFolders {
    /// Their names, sorted.
    pub(crate) names: Vec<String>,
    pub(crate) left_out: LeftOut,
}

impl ClassFolders {
    /// Lists the class folders of `root`.
    ///
    /// # Errors
    /// A folder that can't be listed, a name that isn't UTF-8, folders of splits instead of classes.
    pub(crate) fn list(root: &Path) -> Result<ClassFolders> {
        let mut classes = ClassFolders { names: Vec::new(), left_out: LeftOut::default() };
        for entry in root.read_dir().context("list", root)? {
            let path = entry.context("list", root)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if is_foreign(&name) {
                classes.left_out.add(Reason::Foreign, &name);
            } else if path.is_dir() {
                classes.names.push(checked_name(&path)?.to_owned());
            } else if name != DatasetInfo::FILE {
                classes.left_out.add(Reason::Extension(file_extension(&name)), &name);
            }
        }
        classes.names.sort();
        classes.refuse_splits(root)?;
        Ok(classes)
    }

    fn refuse_splits(&self, root: &Path) -> Result<()> {
        let is_split = |name: &String| SPLITS.iter().any(|split| name.eq_ignore_ascii_case(split));
        if self.names.is_empty() || !self.names.iter().all(is_split) {
            return Ok(());
        }
        let paths: Vec<String> =
            self.names.iter().map(|name| root.join(name).display().to_string()).collect();
        let what =
            format!("its folders look like splits, not classes; name one of them: {}", paths.join(" or "));
        Err(Error::malformed(root, what))
    }
}

/// Whether `path` holds class folders: at least one folder, and no shards.
pub(crate) fn is_image_folder(path: &Path) -> Result<bool> {
    let mut folders = false;
    for entry in path.read_dir().context("list", path)? {
        let path = entry.context("list", path)?.path();
        if is_foreign(&files::file_name(&path)) {
            continue;
        }
        if has_tar_extension(&path) {
            return Ok(false);
        }
        folders = folders || path.is_dir();
    }
    Ok(folders)
}

/// The images in `root`'s class folders, and the `dataset.json` that would describe them.
///
/// # Errors
/// As [`ClassFolders::list`], a class without images, an image in a format that isn't read.
pub(crate) fn list_images_by_class(root: &Path) -> Result<(ShardIndex, DatasetInfo)> {
    let ClassFolders { names: classes, mut left_out } = ClassFolders::list(root)?;
    let listed = parallel::map(&classes, parallel::count_cores(), |_, class| {
        let images = list_class(root, class)?;
        Ok((pack_names(&images.files), images.left_out))
    })?;
    let mut index = ShardIndex::new(0, "");
    for (label, ((names, ends), of_class)) in listed.into_iter().enumerate() {
        left_out.merge(&of_class);
        let mut start = 0;
        for end in ends {
            push_file(&mut index, &names[start..end], label as u32, root)?;
            start = end;
        }
    }
    index.set_left_out(left_out);
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

/// The images of one class, at any depth, in torchvision's order.
///
/// # Errors
/// A class without images, an image in a format that isn't read, a name that isn't UTF-8.
pub(crate) fn list_class(root: &Path, class: &str) -> Result<FolderImages> {
    let mut images = FolderImages::default();
    images.collect(root, class, MAX_DEPTH)?;
    if images.files.is_empty() {
        let folder = root.join(class);
        let what = if images.holds_tars {
            format!("holds shards, not images of a class; name it: {}", folder.display())
        } else {
            "holds no .jpg, .jpeg or .png; add images, or move the folder elsewhere".to_owned()
        };
        return Err(Error::malformed(&folder, what));
    }
    images.files.sort();
    Ok(images)
}

/// The image files among `paths` and in those that are folders, in the given order, a folder's by name.
///
/// # Errors
/// As [`list_class`], and a file that isn't named as an image, no path at all.
pub(crate) fn list_unlabelled(paths: &[PathBuf]) -> Result<ShardIndex> {
    let mut index = ShardIndex::new(0, "");
    let mut left_out = LeftOut::default();
    for path in paths {
        let text = path.to_str().filter(|text| !text.contains(char::is_control)).ok_or_else(|| {
            Error::malformed(path, "its name isn't UTF-8, or holds control characters; rename it")
        })?;
        if fs::metadata(path).context("read", path)?.is_dir() {
            let mut images = FolderImages::default();
            images.collect(Path::new(""), text.trim_end_matches('/'), MAX_DEPTH)?;
            left_out.merge(&images.left_out);
            if images.files.is_empty() {
                return Err(Error::malformed(path, "holds no .jpg, .jpeg or .png"));
            }
            images.files.sort();
            for (folder, name) in images.files {
                push_file(&mut index, &format!("{folder}/{name}"), 0, path)?;
            }
        } else if path.extension().and_then(|extension| extension.to_str()).is_some_and(is_image) {
            push_file(&mut index, text, 0, path)?;
        } else {
            return Err(Error::malformed(path, "its name doesn't end in .jpg, .jpeg or .png"));
        }
    }
    if index.is_empty() {
        return Err(Error::InvalidArgument("no images were named".to_owned()));
    }
    index.set_left_out(left_out);
    index.shrink();
    Ok(index)
}

fn push_file(index: &mut ShardIndex, name: &str, label: u32, root: &Path) -> Result<()> {
    let sample = IndexedSample { name, offset: 0, length: 0, label, header: 0 };
    let too_long = || Error::malformed(root, "over 4 GiB of names; write the images to shards");
    index.push(sample).ok_or_else(too_long)
}

/// Joins the names to one string, with the end of each: a vector of strings takes three times the memory.
fn pack_names(files: &[(String, String)]) -> (String, Vec<usize>) {
    let mut names = String::new();
    let mut ends = Vec::with_capacity(files.len());
    for (folder, name) in files {
        names.push_str(folder);
        names.push('/');
        names.push_str(name);
        ends.push(names.len());
    }
    names.shrink_to_fit();
    (names, ends)
}

/// The images in a folder and the folders in it.
#[derive(Default)]
pub(crate) struct FolderImages {
    /// Each image's folder, relative to the root, and its name.
    pub(crate) files: Vec<(String, String)>,
    pub(crate) left_out: LeftOut,
    holds_tars: bool,
}

impl FolderImages {
    /// Adds the images in `root`'s `folder` and below.
    fn collect(&mut self, root: &Path, folder: &str, depth: usize) -> Result<()> {
        let path = root.join(folder);
        if depth == 0 {
            let what = format!("over {MAX_DEPTH} folders deep; does a link lead back to a folder above it?");
            return Err(Error::malformed(&path, what));
        }
        for entry in path.read_dir().context("list", &path)? {
            let entry = entry.context("list", &path)?;
            let file_name = entry.file_name();
            let shown = file_name.to_string_lossy();
            if is_foreign(&shown) {
                self.left_out.add(Reason::Foreign, &format!("{folder}/{shown}"));
                continue;
            }
            let mut kind = entry.file_type().context("list", &entry.path())?;
            if kind.is_symlink() {
                kind = fs::metadata(entry.path()).context("follow the link", &entry.path())?.file_type();
            }
            let extension = file_name.as_bytes().rsplit(|&byte| byte == b'.').next().unwrap_or_default();
            let extension = std::str::from_utf8(extension).unwrap_or_default();
            if kind.is_dir() {
                self.collect(root, &format!("{folder}/{}", checked_name(&entry.path())?), depth - 1)?;
            } else if is_image(extension) {
                self.files.push((folder.to_owned(), checked_name(&entry.path())?.to_owned()));
            } else if UNSUPPORTED.iter().any(|known| extension.eq_ignore_ascii_case(known)) {
                let what = "an image format that isn't read; convert it to JPEG or PNG";
                return Err(Error::malformed(&entry.path(), what));
            } else {
                self.holds_tars |= has_tar_extension(&entry.path());
                self.left_out.add(Reason::Extension(file_extension(&shown)), &format!("{folder}/{shown}"));
            }
        }
        Ok(())
    }
}

fn has_tar_extension(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "tar")
}

fn file_extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
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
        let (index, info) = list_images_by_class(root.path()).unwrap();
        let listed: Vec<_> = index.iter().map(|sample| (sample.name, sample.label)).collect();
        let names = ["B/x.y.JPG", "b/a.Png", "b/z.png", "b/a/10.jpeg", "b/a/2.JPEG", "b/a-b/1.jpg"];
        let labels = [0, 1, 1, 1, 1, 1];
        let torchvision: Vec<_> = names.into_iter().zip(labels).collect(); // os.walk, sorted; checked with 0.26
        assert_eq!(listed, torchvision);
        assert_eq!(info.class_names.unwrap(), ["B", "b"]);
        let left_out = "1 .md files, first readme.md; 1 .txt files, first b/notes.txt";
        assert_eq!(index.left_out().to_string(), left_out);
    }

    #[test]
    fn foreign_files_and_folders_are_no_classes_and_no_images() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["ant/1.jpg", "bee/1.jpg", "bee/deeper/2.jpg"]);
        let (plain, info) = list_images_by_class(root.path()).unwrap();
        let foreign = [
            ".ipynb_checkpoints/x.jpg",
            ".trash/x.jpg",
            "__MACOSX/x.jpg",
            "@eaDir/x.jpg",
            "lost+found/x.jpg",
            "Thumbs.db",
            "ant/._1.jpg",
            "bee/deeper/@eaDir/2.jpg",
        ];
        touch(root.path(), &foreign);
        let (index, with_foreign) = list_images_by_class(root.path()).unwrap();
        assert_eq!(with_foreign, info);
        assert!(index.iter().eq(plain.iter()));
        let (kind, counts) = index.left_out().kinds().next().unwrap();
        assert_eq!((kind, counts.count), ("hidden or system files", foreign.len() as u64));
        let images = list_unlabelled(&[root.path().to_owned()]).unwrap();
        assert_eq!((images.len(), images.left_out().total()), (3, foreign.len() as u64));
        let named = list_unlabelled(&[root.path().join("ant/._1.jpg")]).unwrap();
        assert_eq!(named.len(), 1, "a file that is named itself is read");
    }

    #[test]
    fn splits_are_not_classes() {
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["train/ant/1.jpg", "Val/ant/1.jpg", ".git/x", "readme.md"]);
        let message = list_images_by_class(root.path()).err().unwrap().to_string();
        let path = |name: &str| root.path().join(name).display().to_string();
        assert!(
            message.contains(&format!("name one of them: {} or {}", path("Val"), path("train"))),
            "{message}"
        );
        touch(root.path(), &["car/1.jpg"]);
        let (_, info) = list_images_by_class(root.path()).unwrap();
        assert_eq!(info.class_names.unwrap(), ["Val", "car", "train"], "a class may be called train");
    }

    #[test]
    fn classes_without_images_and_other_formats_are_named() {
        for (names, reason) in [
            (&["a/1.jpg", "b/notes.txt"][..], "b: holds no .jpg"),
            (&["a/1.jpg", "b/x.tar"], "b: holds shards, not images of a class; name it: "),
            (&["a/1.jpg", "a/2.WebP"], "2.WebP: an image format that isn't read"),
            (&["a/1\n.jpg"], "1\\n.jpg: its name"),
        ] {
            let root = tempfile::tempdir().unwrap();
            touch(root.path(), names);
            let message = list_images_by_class(root.path()).unwrap_err().to_string();
            assert!(message.contains(reason) && !message.contains('\n'), "{message}");
        }
        let root = tempfile::tempdir().unwrap();
        touch(root.path(), &["a/1.jpg"]);
        std::os::unix::fs::symlink(root.path().join("a"), root.path().join("a/again")).unwrap();
        assert!(list_images_by_class(root.path()).unwrap_err().to_string().contains("does a link lead back"));
    }
}
