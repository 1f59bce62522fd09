//! ImageNet (ILSVRC 2012): 1,281,167 training and 50,000 validation photographs in 1,000 classes, from the authors'
//! archives, which are read in place, or unpacked.
//!
//! A class's number is the position of its WordNet id in sorted order, as in torchvision. The devkit's own numbers
//! differ.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, IoContext, Result};
use crate::import::entry::{Access, Entry, ImageImporter, ImageRequest, ImportOption, Importer, Published};
use crate::import::formats::devkit::Devkit;
use crate::import::image_set::{ImageSet, UniqueKeys, list_classes};
use crate::import::inputs::{Input, InputLocation, Listing, find_first, list_class_folders};
use crate::shard::split_key;

pub(super) const ENTRY: Entry = Entry {
    name: "imagenet",
    about: "ImageNet (ILSVRC 2012): its archives as downloaded, read in place, or unpacked",
    source: "Folder of ILSVRC2012_img_train.tar (or train/), ILSVRC2012_img_val.tar (or val/) and, for the labels of \
             val, ILSVRC2012_devkit_t12.tar.gz; nothing in it is changed",
    published: Some(&Published {
        page: "https://image-net.org/download",
        terms: "for non-commercial research and education only, as agreed with an account at image-net.org",
        access: Access::Account(&[
            "register at https://image-net.org with an academic address, and accept the terms of access",
            "under Download, 2012, fetch into one folder (wget -c resumes):",
            "  ILSVRC2012_img_train.tar      147,897,477,120 bytes   md5 1d675b47d978889d74fa0da5fadfb00e",
            "  ILSVRC2012_img_val.tar          6,744,924,160 bytes   md5 29b22e2961454d5413ddabcf34fc5622",
            "  ILSVRC2012_devkit_t12.tar.gz           2.5 MB         md5 fa75699e90414af021442c21a62c3abf",
            "compare the sums with md5sum; do not unpack the archives",
        ]),
    }),
    importer: Importer::Images(ImageImporter {
        several_sources: false,
        split_folders: true,
        options: &[
            ImportOption {
                name: SPLIT,
                value_name: "SPLIT",
                values: &["train", "val", "both"],
                default: Some("both"),
                help: "Which images to import",
            },
            ImportOption {
                name: VAL_LABELS,
                value_name: "FILE",
                values: &[],
                default: None,
                help: "Labels of the validation images, instead of the devkit's: a line per image, in the order of \
                       their names, of a WordNet id or a class number (0 to 999 in the order of WordNet ids), or of \
                       a name and one of these",
            },
        ],
        find: find_images,
    }),
};

const SPLIT: &str = "split";
const VAL_LABELS: &str = "val-labels";

/// Where the images may be, archived or unpacked; the last is Kaggle's layout.
const TRAIN: [&str; 4] =
    ["ILSVRC2012_img_train.tar", "train", "ILSVRC2012_img_train", "ILSVRC/Data/CLS-LOC/train"];
const VAL: [&str; 4] = ["ILSVRC2012_img_val.tar", "val", "ILSVRC2012_img_val", "ILSVRC/Data/CLS-LOC/val"];

/// The number of classes where their names are unknown.
const CLASSES: usize = 1000;

fn find_images(request: &ImageRequest) -> Result<Vec<ImageSet>> {
    let folder = request.source_folder()?;
    let split = request.options.get(SPLIT).map_or("both", String::as_str);
    // The training classes are needed for validation as well, to number its classes equally.
    let train = match find_location(folder, &TRAIN)? {
        Some(location) => Some((location.path().to_owned(), train_classes(&location)?)),
        None => None,
    };
    let mut sets = Vec::new();
    if split != "val" {
        let (source, classes) = train.clone().ok_or_else(|| missing_images(folder, &TRAIN))?;
        let names = class_names(&classes);
        sets.push(list_classes(&source, "imagenet train".into(), "train".into(), names, classes)?);
    }
    if split != "train" {
        let location = find_location(folder, &VAL)?.ok_or_else(|| missing_images(folder, &VAL))?;
        let training = train.as_ref().map(|(_, classes)| class_names(classes));
        let val_labels = request.options.get(VAL_LABELS).map(Path::new);
        sets.push(find_validation(folder, &location, training, val_labels)?);
    }
    Ok(sets)
}

/// The first of `candidates` that exists in `folder`.
fn find_location(folder: &Path, candidates: &[&str]) -> Result<Option<InputLocation>> {
    let Some(path) = find_first(folder, candidates) else { return Ok(None) };
    Ok(Some(if path.is_dir() { InputLocation::Path(path) } else { InputLocation::open_archive(&path)? }))
}

fn missing_images(folder: &Path, candidates: &[&str]) -> Error {
    let what = format!("none of {candidates:?} is here; give the folder that holds one of them");
    Error::malformed(folder, what)
}

fn class_names(classes: &Listing) -> Vec<String> {
    classes.inputs.iter().map(|class| class.name.clone()).collect()
}

/// The classes of the training images, sorted: folders, or archives in the archive, named by WordNet ids.
fn train_classes(location: &InputLocation) -> Result<Listing> {
    let classes = match location {
        InputLocation::Path(folder) => list_class_folders(folder)?,
        InputLocation::Member { .. } => {
            let mut archives = location.list_members(|extension| extension == "tar")?;
            for class in &mut archives.inputs {
                class.name.truncate(class.name.len() - ".tar".len());
            }
            archives.inputs.sort_by(|a, b| a.name.cmp(&b.name));
            archives
        }
    };
    match classes.inputs.iter().find(|class| !is_wnid(&class.name)) {
        None => Ok(classes),
        Some(Input { name, .. }) => {
            let what = format!("'{name}' isn't named by a WordNet id, like n01440764; is this ImageNet?");
            Err(Error::malformed(location.path(), format!("{what} (For other folders use imagefolder.)")))
        }
    }
}

fn is_wnid(name: &str) -> bool {
    name.strip_prefix('n')
        .is_some_and(|digits| digits.len() == 8 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// The validation images, labelled by their folders, by `val_labels` or by the devkit.
fn find_validation(
    folder: &Path,
    location: &InputLocation,
    training: Option<Vec<String>>,
    val_labels: Option<&Path>,
) -> Result<ImageSet> {
    let name = "imagenet val".to_owned();
    let split = "val".to_owned();
    if let (InputLocation::Path(images), None) = (location, val_labels) {
        let classes = list_class_folders(images)?;
        if !classes.inputs.is_empty() {
            let names = training.unwrap_or_else(|| class_names(&classes));
            return list_classes(images, name, split, names, classes);
        }
    }
    let Listing { inputs: images, left_out } = location.list_images()?;
    if images.is_empty() {
        return Err(Error::malformed(location.path(), "no images in it; fetch or unpack the archive again"));
    }
    let labels = match val_labels {
        Some(path) => read_list(path, &images)?,
        None => {
            let devkit = Devkit::find(folder)?.ok_or_else(|| {
                let what = "the validation images have no labels here; put ILSVRC2012_devkit_t12.tar.gz in the \
                            same folder, or give a list with --val-labels";
                Error::malformed(folder, what)
            })?;
            let of_images = devkit.validation.into_iter().map(Label::Wnid).collect();
            Labels { source: devkit.path, classes: Some(devkit.wnids), of_images }
        }
    };
    let Labels { source, classes, of_images } = labels;
    if of_images.len() != images.len() {
        let what = format!(
            "{} labels for the {} images of {}",
            of_images.len(),
            images.len(),
            location.path().display()
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
    let labels = labels.map_err(|what| Error::malformed(&source, format!("{what}; correct the list")))?;
    let mut keys = UniqueKeys::default();
    let samples = images.iter().zip(&labels).map(|(image, &label)| (keys.make(&image.name).into(), label));
    Ok(ImageSet {
        name,
        split,
        classes,
        class_names,
        samples: samples.collect(),
        images: Box::new(images.into_iter().map(|image| image.location).collect::<Vec<_>>()),
        left_out,
    })
}

/// The labels of the validation images, in the order of their names.
struct Labels {
    source: PathBuf,
    /// The classes' WordNet ids, sorted, if the source names them.
    classes: Option<Vec<String>>,
    of_images: Vec<Label>,
}

enum Label {
    Number(u32),
    Wnid(String),
}

/// Reads a list of labels: a WordNet id or a class number on each line, in the order of the images' names, or after
/// the image's name.
fn read_list(path: &Path, images: &[Input]) -> Result<Labels> {
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
            Some(name) if by_name.insert(split_key(name).0.to_owned(), label).is_some() => {
                return Err(bad(number, &format!("'{name}' occurs twice; keep one line")));
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
        let label = |image: &Input| {
            let label = by_name.remove(split_key(&image.name).0);
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
