//! ImageNet's development kit, of which two files matter: which class each validation image has, by the
//! devkit's own numbers, and which WordNet ids these numbers stand for.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::imagenet::Label;
use super::mat::{self, Value};
use super::places::first_existing;
use super::{broken, gzipped_member, unreadable};
use crate::error::{IoContext, Result};

const META: &str = "meta.mat";
const TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";

pub(super) struct Devkit {
    pub(super) path: PathBuf,
    /// The WordNet ids of the classes, sorted.
    pub(super) wnids: Vec<String>,
    /// The labels of the validation images, in the order of their names.
    pub(super) truth: Vec<Label>,
}

impl Devkit {
    /// Reads the devkit in `folder`, packed or unpacked; `None` where there is none.
    pub(super) fn find(folder: &Path) -> Result<Option<Devkit>> {
        const PLACES: [&str; 3] = ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", "devkit"];
        let Some(path) = first_existing(folder, &PLACES) else { return Ok(None) };
        let read = |name: &str| {
            if path.is_dir() {
                let file = path.join("data").join(name);
                return fs::read(&file).context("read", &file);
            }
            let archive = File::open(&path).context("open", &path)?;
            let found = gzipped_member(archive, name).map_err(|error| broken(&path, &unreadable(error)))?;
            found.ok_or_else(|| broken(&path, &format!("it holds no {name}")))
        };
        let numbered = leaves(&read(META)?).map_err(|what| broken(&path, &format!("{META}: {what}")))?;
        let truth = read(TRUTH)?;
        let label = |line: &str| {
            let number: u32 = line.trim().parse().ok()?;
            numbered.iter().find(|class| class.0 == number).map(|class| Label::Wnid(class.1.clone()))
        };
        let text = String::from_utf8_lossy(&truth);
        let labels: Option<Vec<Label>> = text.lines().map(label).collect();
        let truth =
            labels.ok_or_else(|| broken(&path, &format!("{TRUTH}: a line that isn't a class's number")))?;
        let mut wnids: Vec<String> = numbered.into_iter().map(|(_, wnid)| wnid).collect();
        wnids.sort();
        Ok(Some(Devkit { path, wnids, truth }))
    }
}

/// The devkit's number and the WordNet id of every class: of those synsets that have no others below them.
fn leaves(meta: &[u8]) -> Result<Vec<(u32, String)>, String> {
    let synsets = mat::records(meta, "synsets", &["ILSVRC2012_ID", "WNID", "num_children"])?;
    let mut classes = Vec::new();
    for (position, synset) in synsets.into_iter().enumerate() {
        match <[Value; 3]>::try_from(synset) {
            Ok([Value::Number(number), Value::Text(wnid), Value::Number(0.0)]) => {
                classes.push((number as u32, wnid));
            }
            Ok([_, _, Value::Number(_)]) => {}
            other => {
                return Err(format!(
                    "synset {position} is {other:?}; expected a number, a text and a number"
                ));
            }
        }
    }
    Ok(classes)
}
