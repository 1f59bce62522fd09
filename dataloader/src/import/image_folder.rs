//! Folders of encoded images: one folder per class, as torchvision's `ImageFolder` reads them.

use std::collections::HashSet;
use std::path::Path;

use super::images::{ImageSet, split_name};
use super::places::{Found, check_folder, folders};
use crate::error::{Error, Result};
use crate::shard::is_image;

pub(super) fn find(folder: &Path, out: &Path) -> Result<ImageSet> {
    check_folder(folder)?;
    let classes = folders(folder)?;
    let names: Vec<String> = classes.iter().map(|class| class.name.clone()).collect();
    const SPLITS: [&str; 6] = ["train", "val", "valid", "validation", "test", "extra"];
    if !names.is_empty() && names.iter().all(|name| SPLITS.contains(&name.as_str())) {
        let what = format!("the folders {names:?} look like splits, not classes; import each by itself");
        return Err(Error::malformed(folder, what));
    }
    let name = folder.file_name().map_or("images".into(), |name| name.to_string_lossy().into_owned());
    from_classes(folder, name, split_name(out), names, classes)
}

/// The images of some classes, of those called `names`, in sorted order: by class, then by name.
///
/// # Errors
/// No classes, a class twice or without images, one that isn't among the names.
pub(super) fn from_classes(
    source: &Path,
    name: String,
    split: String,
    names: Vec<String>,
    classes: Vec<Found>,
) -> Result<ImageSet> {
    if classes.is_empty() {
        return Err(Error::malformed(
            source,
            "no classes; give a folder that holds a folder of images per class",
        ));
    }
    let (mut samples, mut places, mut ignored) = (Vec::new(), Vec::new(), 0);
    for (position, class) in classes.iter().enumerate() {
        if position > 0 && classes[position - 1].name == class.name {
            return Err(Error::malformed(
                source,
                format!("class '{}' is here twice; remove one", class.name),
            ));
        }
        let label = names.binary_search(&class.name).map_err(|_| {
            let what = format!("class '{}' isn't one of the {} that training has", class.name, names.len());
            Error::malformed(source, format!("{what}; remove it, or mend the training images"))
        })?;
        let files = class.place.contents()?;
        let (images, others): (Vec<_>, Vec<_>) =
            files.into_iter().partition(|file| is_named_image(&file.name));
        if images.is_empty() {
            let what = "no .jpg, .jpeg or .png in it; remove the class, or add its images";
            return Err(Error::malformed(source, format!("class '{}': {what}", class.name)));
        }
        ignored += others.len() as u64;
        let mut keys = Keys::default();
        for image in images {
            let key = format!("{}/{}", plain(&class.name), keys.unique(&image.name));
            samples.push((key.into(), label as u32));
            places.push(image.place);
        }
    }
    Ok(ImageSet {
        name,
        split,
        classes: names.len(),
        class_names: Some(names),
        samples,
        images: Box::new(places),
        ignored,
    })
}

/// Whether a file of this name is taken for an image.
pub(super) fn is_named_image(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| is_image(extension))
}

/// Makes the last parts of keys from file names: without the extension, other dots replaced, and none twice.
#[derive(Default)]
pub(super) struct Keys {
    taken: HashSet<String>,
}

impl Keys {
    pub(super) fn unique(&mut self, file_name: &str) -> String {
        let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem);
        let mut key = plain(stem).replace('.', "_");
        while !self.taken.insert(key.clone()) {
            key.push('_');
        }
        key
    }
}

/// A name without what shards can't hold.
fn plain(name: &str) -> String {
    name.replace(|c: char| c.is_control() || c == '\\', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_plain() {
        let mut keys = Keys::default();
        let made =
            ["a.jpg", "a.png", "a.JPEG", "b.v2.jpg", "b_v2.jpg", "c\td.png"].map(|name| keys.unique(name));
        assert_eq!(made, ["a", "a_", "a__", "b_v2", "b_v2_", "c_d"]);
    }

    #[test]
    fn extensions_tell_images() {
        assert!(is_named_image("x.JPEG") && is_named_image("a.b.png") && is_named_image("x.Jpg"));
        assert!(!is_named_image("jpg") && !is_named_image("x.jpg.txt") && !is_named_image("x.gif"));
    }
}
