//! The images of one split, before they are read.

use std::collections::HashSet;
use std::path::Path;

use super::inputs::{InputLocation, Listing};
use crate::error::{Error, Result};
use crate::left_out::LeftOut;
use crate::random::{self, Domain};

/// The images of one split, found but not read.
pub(super) struct ImageSet {
    /// The name in `dataset.json`: `imagenet train`.
    pub(super) name: String,
    /// The start of its shards' names.
    pub(super) split: String,
    pub(super) classes: usize,
    pub(super) class_names: Option<Vec<String>>,
    /// Each sample's key and label, in the order of the source.
    pub(super) samples: Vec<(Box<str>, u32)>,
    pub(super) images: Box<dyn ImageReader>,
    pub(super) left_out: LeftOut,
}

/// Reads encoded images by number, from many threads.
pub(super) trait ImageReader: Send + Sync {
    /// Replaces the contents of `bytes` by image `sample`, at most
    /// [`MAX_IMAGE_BYTES`](crate::shard::MAX_IMAGE_BYTES) + 1 bytes of it.
    fn read(&self, sample: usize, bytes: &mut Vec<u8>) -> Result<()>;

    /// The file that holds the image.
    fn path(&self, sample: usize) -> &Path;

    /// Declares that `sample` won't be read.
    fn skip(&self, _sample: usize) {}

    /// Shuffles samples 0..count for their way into shards.
    fn shuffle_samples(&self, count: usize, seed: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count as u32).collect();
        random::shuffle(&mut random::stream(Domain::Import, seed, 0, 0, 0), &mut order);
        order
    }
}

impl ImageReader for Vec<InputLocation> {
    fn read(&self, sample: usize, bytes: &mut Vec<u8>) -> Result<()> {
        self[sample].read(bytes)
    }

    fn path(&self, sample: usize) -> &Path {
        self[sample].path()
    }
}

/// The images of `classes`, sorted by class, then by name. `names` are all classes, sorted.
///
/// # Errors
/// No classes, a class twice or without images, a class that isn't among the names.
pub(super) fn list_classes(
    source: &Path,
    name: String,
    split: String,
    names: Vec<String>,
    classes: Listing,
) -> Result<ImageSet> {
    let Listing { inputs: classes, mut left_out } = classes;
    if classes.is_empty() {
        return Err(Error::malformed(
            source,
            "no classes; give a folder that holds a folder of images per class",
        ));
    }
    let mut samples = Vec::new();
    let mut locations = Vec::new();
    for (position, class) in classes.iter().enumerate() {
        if position > 0 && classes[position - 1].name == class.name {
            return Err(Error::malformed(
                source,
                format!("class '{}' exists twice; rename one of them", class.name),
            ));
        }
        let label = names.binary_search(&class.name).map_err(|_| {
            let what = format!("class '{}' isn't one of the {} that training has", class.name, names.len());
            Error::malformed(source, format!("{what}; add it to the training images, or move it elsewhere"))
        })?;
        let images = class.location.list_images()?;
        if images.inputs.is_empty() {
            let what = "no .jpg, .jpeg or .png in it; fetch or unpack it again";
            return Err(Error::malformed(source, format!("class '{}': {what}", class.name)));
        }
        left_out.merge(&images.left_out);
        let mut keys = UniqueKeys::default();
        for image in images.inputs {
            let key = format!("{}/{}", replace_unsafe(&class.name), keys.make(&image.name));
            samples.push((key.into(), label as u32));
            locations.push(image.location);
        }
    }
    Ok(ImageSet {
        name,
        split,
        classes: names.len(),
        class_names: Some(names),
        samples,
        images: Box::new(locations),
        left_out,
    })
}

/// Makes the last part of a key from a file name: no extension, no dots, none twice.
#[derive(Default)]
pub(super) struct UniqueKeys {
    used: HashSet<String>,
}

impl UniqueKeys {
    pub(super) fn make(&mut self, file_name: &str) -> String {
        let stem = file_name.rsplit_once('.').map_or(file_name, |(stem, _)| stem);
        let mut key = replace_unsafe(stem).replace('.', "_");
        while !self.used.insert(key.clone()) {
            key.push('_');
        }
        key
    }
}

/// Replaces characters that shards can't hold.
fn replace_unsafe(name: &str) -> String {
    name.replace(|c: char| c.is_control() || c == '\\', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_plain() {
        let mut keys = UniqueKeys::default();
        let made =
            ["a.jpg", "a.png", "a.JPEG", "b.v2.jpg", "b_v2.jpg", "c\td.png"].map(|name| keys.make(name));
        assert_eq!(made, ["a", "a_", "a__", "b_v2", "b_v2_", "c_d"]);
    }
}
