//! ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation photographs in 1,000 classes, from the
//! archives as their authors distribute them, which are read in place, or unpacked.
//!
//! A class's number is the place of its WordNet id among all in sorted order, as torchvision and everyone
//! else has it; the devkit's own numbers are different.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::devkit::Devkit;
use super::image_folder::{Keys, from_classes, is_named_image};
use super::images::{ImageNetSplit, ImageSet};
use super::places::{Found, Place, check_folder, first_existing, folders};
use crate::error::{Error, IoContext, Result};
use crate::shard::key_and_extension;

/// Where unpacked images may be, the last being how Kaggle has them.
const TRAIN: [&str; 4] =
    ["ILSVRC2012_img_train.tar", "train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train"];
const VAL: [&str; 4] = ["ILSVRC2012_img_val.tar", "val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val"];

/// The number of classes, where nothing tells what they are.
const CLASSES: usize = 1000;

/// The images of these splits in `folder`.
pub(super) fn find(
    folder: &Path,
    splits: &[ImageNetSplit],
    val_labels: Option<&Path>,
) -> Result<Vec<ImageSet>> {
    check_folder(folder)?;
    // Read for validation as well: it has to number the classes as training does.
    let train = match place(folder, &TRAIN)? {
        Some(place) => Some((place.path().to_owned(), train_classes(&place)?)),
        None => None,
    };
    let set = |split: &ImageNetSplit| match split {
        ImageNetSplit::Train => {
            let (source, classes) = train.clone().ok_or_else(|| missing(folder, &TRAIN))?;
            from_classes(&source, "imagenet train".into(), "train".into(), names(&classes), classes)
        }
        ImageNetSplit::Val => {
            let place = place(folder, &VAL)?.ok_or_else(|| missing(folder, &VAL))?;
            validation(folder, &place, train.as_ref().map(|(_, classes)| names(classes)), val_labels)
        }
    };
    splits.iter().map(set).collect()
}

/// The first of these that is there.
fn place(folder: &Path, candidates: &[&str]) -> Result<Option<Place>> {
    let Some(path) = first_existing(folder, candidates) else { return Ok(None) };
    Ok(Some(if path.is_dir() { Place::Path(path) } else { Place::archive(&path)? }))
}

fn missing(folder: &Path, candidates: &[&str]) -> Error {
    let what = format!("none of {candidates:?} is here; give the folder that holds one of them");
    Error::malformed(folder, what)
}

fn names(classes: &[Found]) -> Vec<String> {
    classes.iter().map(|class| class.name.clone()).collect()
}

/// The classes of the training images, sorted: folders, or archives in the archive, called by WordNet ids.
fn train_classes(place: &Place) -> Result<Vec<Found>> {
    let mut classes = match place {
        Place::Path(folder) => folders(folder)?,
        Place::Member { .. } => {
            let class = |member: Found| {
                let name = member.name.strip_suffix(".tar")?.to_owned();
                Some(Found { name, place: member.place })
            };
            place.contents()?.into_iter().filter_map(class).collect()
        }
    };
    classes.sort_by(|a, b| a.name.cmp(&b.name));
    match classes.iter().find(|class| !is_wnid(&class.name)) {
        None => Ok(classes),
        Some(Found { name, .. }) => {
            let what = format!("'{name}' isn't called by a WordNet id, like n01440764; is this ImageNet?");
            Err(Error::malformed(place.path(), format!("{what} (For other folders there is imagefolder.)")))
        }
    }
}

fn is_wnid(name: &str) -> bool {
    name.strip_prefix('n')
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The validation images, labelled by their folders, by `val_labels` or by the devkit.
fn validation(
    folder: &Path,
    place: &Place,
    training: Option<Vec<String>>,
    val_labels: Option<&Path>,
) -> Result<ImageSet> {
    let (name, split) = ("imagenet val".to_owned(), "val".to_owned());
    if let (Place::Path(images), None) = (place, val_labels) {
        let classes = folders(images)?;
        if !classes.is_empty() {
            return from_classes(images, name, split, training.unwrap_or_else(|| names(&classes)), classes);
        }
    }
    let (images, others): (Vec<_>, Vec<_>) =
        place.contents()?.into_iter().partition(|file| is_named_image(&file.name));
    if images.is_empty() {
        return Err(Error::malformed(place.path(), "no images in it; fetch or unpack the archive again"));
    }
    let labels = match val_labels {
        Some(path) => listed(path, &images)?,
        None => {
            let devkit = Devkit::find(folder)?.ok_or_else(|| {
                let what = "the validation images have no labels here; put ILSVRC2012_devkit_t12.tar.gz beside \
                            them, or give a list with --val-labels";
                Error::malformed(folder, what)
            })?;
            Labels { source: devkit.path, classes: Some(devkit.wnids), of_images: devkit.truth }
        }
    };
    let Labels { source, classes, of_images } = labels;
    if of_images.len() != images.len() {
        let what = format!(
            "{} labels for the {} images of {}",
            of_images.len(),
            images.len(),
            place.path().display()
        );
        return Err(Error::malformed(&source, format!("{what}; give a label an image")));
    }
    let class_names = training.or(classes);
    let classes = class_names.as_ref().map_or(CLASSES, Vec::len);
    let number = |label: Label| match label {
        Label::Number(number) if (number as usize) < classes => Ok(number),
        Label::Number(number) => Err(format!(
            "label {number} is outside the {classes} classes; they are numbered from 0 in the order of WordNet \
             ids, not as in the devkit"
        )),
        Label::Wnid(wnid) => {
            let position = class_names.as_ref().and_then(|names| names.binary_search(&wnid).ok());
            let position = position.map(|position| position as u32);
            position.ok_or_else(|| format!("'{wnid}' isn't one of the {classes} classes"))
        }
    };
    let labels: Result<Vec<u32>, String> = of_images.into_iter().map(number).collect();
    let labels = labels.map_err(|what| Error::malformed(&source, format!("{what}; mend the list")))?;
    let mut keys = Keys::default();
    let samples = images.iter().zip(&labels).map(|(image, &label)| (keys.unique(&image.name).into(), label));
    Ok(ImageSet {
        name,
        split,
        classes,
        class_names,
        samples: samples.collect(),
        images: Box::new(images.into_iter().map(|image| image.place).collect::<Vec<_>>()),
        ignored: others.len() as u64,
    })
}

/// The labels of the validation images, in the order of their names.
struct Labels {
    source: PathBuf,
    /// The classes' WordNet ids, sorted, where the source tells them.
    classes: Option<Vec<String>>,
    of_images: Vec<Label>,
}

pub(super) enum Label {
    Number(u32),
    Wnid(String),
}

/// Reads a list of labels: a WordNet id or a class number a line, in the order of the images' names, or a
/// name before each.
fn listed(path: &Path, images: &[Found]) -> Result<Labels> {
    let text = fs::read_to_string(path).context("read", path)?;
    let bad = |number: usize, what: &str| Error::malformed(path, format!("line {}: {what}", number + 1));
    let mut in_order = Vec::new();
    let mut by_name = HashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (name, label) = match words[..] {
            [label] => (None, label),
            [name, label] => (Some(name), label),
            _ => return Err(bad(number, "expected a label, or a name and a label")),
        };
        let label = match label.parse() {
            Ok(number) => Label::Number(number),
            Err(_) if is_wnid(label) => Label::Wnid(label.to_owned()),
            Err(_) => {
                return Err(bad(number, &format!("'{label}' is neither a class number nor a WordNet id")));
            }
        };
        match name {
            None => in_order.push(label),
            Some(name) if by_name.insert(key_and_extension(name).0.to_owned(), label).is_some() => {
                return Err(bad(number, &format!("'{name}' is here twice; remove one line")));
            }
            Some(_) => {}
        }
    }
    if !by_name.is_empty() {
        if !in_order.is_empty() {
            return Err(Error::malformed(
                path,
                "some lines have a name and some have none; write all one way",
            ));
        }
        let label = |image: &Found| {
            let label = by_name.remove(key_and_extension(&image.name).0);
            label.ok_or_else(|| Error::malformed(path, format!("no label for '{}'; add a line", image.name)))
        };
        in_order = images.iter().map(label).collect::<Result<_>>()?;
    }
    let wnid = |label: &Label| match label {
        Label::Wnid(wnid) => Some(wnid.clone()),
        Label::Number(_) => None,
    };
    let mut classes: Vec<String> = in_order.iter().filter_map(wnid).collect();
    classes.sort();
    classes.dedup();
    Ok(Labels {
        source: path.to_owned(),
        classes: Some(classes).filter(|classes| !classes.is_empty()),
        of_images: in_order,
    })
}
