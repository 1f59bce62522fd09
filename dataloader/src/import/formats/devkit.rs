//! ImageNet's development kit. Two of its files are read: the classes of the validation images, by the devkit's own
//! numbers, and the WordNet ids of these numbers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::mat::{self, Value};
use crate::error::{IoContext, Result};
use crate::import::inputs::find_first;
use crate::import::{broken_source, describe_unreadable, read_gzipped_member};

const META: &str = "meta.mat";
const TRUTH: &str = "ILSVRC2012_validation_ground_truth.txt";

pub(in crate::import) struct Devkit {
    pub(in crate::import) path: PathBuf,
    /// The WordNet ids of the classes, sorted.
    pub(in crate::import) wnids: Vec<String>,
    /// The WordNet ids of the validation images, in the order of their names.
    pub(in crate::import) validation: Vec<String>,
}

impl Devkit {
    /// Reads the devkit in `folder`, packed or unpacked; `None` where it is missing.
    pub(in crate::import) fn find(folder: &Path) -> Result<Option<Devkit>> {
        const PATHS: [&str; 3] = ["ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12", "devkit"];
        let Some(path) = find_first(folder, &PATHS) else { return Ok(None) };
        let read = |name: &str| {
            if path.is_dir() {
                let file = path.join("data").join(name);
                return fs::read(&file).context("read", &file);
            }
            let archive = File::open(&path).context("open", &path)?;
            read_gzipped_member(archive, name)
                .map_err(|error| broken_source(&path, &describe_unreadable(error)))?
                .ok_or_else(|| broken_source(&path, &format!("it holds no {name}")))
        };
        let numbered =
            read_leaves(&read(META)?).map_err(|what| broken_source(&path, &format!("{META}: {what}")))?;
        let truth = read(TRUTH)?;
        let wnid = |line: &str| {
            let number: u32 = line.trim().parse().ok()?;
            numbered.iter().find(|class| class.0 == number).map(|class| class.1.clone())
        };
        let text = String::from_utf8_lossy(&truth);
        let labels: Option<Vec<String>> = text.lines().map(wnid).collect();
        let validation = labels
            .ok_or_else(|| broken_source(&path, &format!("{TRUTH}: a line that isn't a class's number")))?;
        let mut wnids: Vec<String> = numbered.into_iter().map(|(_, wnid)| wnid).collect();
        wnids.sort();
        Ok(Some(Devkit { path, wnids, validation }))
    }
}

/// The devkit's number and the WordNet id of every class. The classes are the synsets without children.
fn read_leaves(meta: &[u8]) -> Result<Vec<(u32, String)>, String> {
    let synsets = mat::read_records(meta, "synsets", &["ILSVRC2012_ID", "WNID", "num_children"])?;
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
