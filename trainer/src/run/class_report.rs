//! Accuracy by class in the files of an evaluation: `summary.json`, `confusion.csv`, `mistakes.csv`.

use super::write_table;
use crate::metrics::classes::{Confusion, Prediction};
use crate::run_dir::{CONFUSION, MISTAKES};
use crate::sys::error::Result;
use codinet_dataloader::contact_sheet::ContactSheet;
use codinet_dataloader::{Dataset, LoaderSpec};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;

/// How many images `mistakes.csv` lists.
pub const LISTED_MISTAKES: usize = 24;
/// How many classes and pairs `summary.json` lists.
const WORST: usize = 10;

/// Accuracy by class in `summary.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassSummary {
    /// The accuracy of each class, in the order of their numbers; null for a class without images.
    pub class_accuracy: Vec<Option<f64>>,
    /// The ten classes with the lowest accuracy.
    pub worst_classes: Vec<WorstClass>,
    /// The ten pairs of classes with the most mistakes.
    pub confused_pairs: Vec<ConfusedPair>,
}

/// A class with a low accuracy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WorstClass {
    pub class: String,
    pub images: u64,
    pub accuracy: f64,
}

/// Images of one class that are predicted as another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfusedPair {
    pub class: String,
    pub predicted: String,
    pub images: u64,
}

impl ClassSummary {
    /// `names` has the name of each class.
    pub fn new(confusion: &Confusion, names: &[String]) -> Self {
        let worst = |(class, accuracy): (usize, f64)| WorstClass {
            class: names[class].clone(),
            images: confusion.images()[class],
            accuracy,
        };
        let pair = |(class, predicted, images): (usize, usize, u64)| ConfusedPair {
            class: names[class].clone(),
            predicted: names[predicted].clone(),
            images,
        };
        Self {
            class_accuracy: confusion.accuracies(),
            worst_classes: confusion.worst_classes(WORST).into_iter().map(worst).collect(),
            confused_pairs: confusion.confused_pairs(WORST).into_iter().map(pair).collect(),
        }
    }
}

/// Writes `confusion.csv` and `mistakes.csv` into `dir`. `image_name` names an image by its number.
pub fn write_class_tables(
    dir: &Path,
    confusion: &Confusion,
    mistakes: &[Prediction],
    names: &[String],
    image_name: impl Fn(u32) -> String,
) -> Result<()> {
    let pair = |(class, predicted, images): (usize, usize, u64)| {
        vec![names[class].clone(), names[predicted].clone(), images.to_string()]
    };
    write_table(&dir.join(CONFUSION), &["class", "predicted", "images"], confusion.iter().map(pair))?;
    let mistake = |image: &Prediction| {
        vec![
            image_name(image.sample),
            names[image.label].clone(),
            names[image.predicted].clone(),
            image.probability.to_string(),
            image.blocks_run.to_string(),
        ]
    };
    let columns = ["image", "class", "predicted", "probability", "blocks_run"];
    write_table(&dir.join(MISTAKES), &columns, mistakes.iter().map(mistake))
}

/// Draws the images of `mistakes`, a row for each class, under the classes that they are predicted as. `spec` is how evaluation
/// sees images.
pub(crate) fn draw_mistakes(
    set: &Arc<Dataset>,
    spec: &LoaderSpec,
    mistakes: &[Prediction],
    names: &[String],
) -> Result<ContactSheet> {
    let mut by_class = mistakes.to_vec();
    by_class.sort_by_key(|image| image.label); // stable: the highest probability comes first
    let row = |images: &[Prediction]| {
        let predicted = images
            .iter()
            .map(|image| format!("{} {:.1}%", names[image.predicted], 100.0 * image.probability));
        let predicted: Vec<String> = predicted.collect();
        let samples = images.iter().map(|image| image.sample).collect();
        (format!("{} as {}", names[images[0].label], predicted.join(", ")), samples)
    };
    let rows: Vec<(String, Vec<u32>)> = by_class.chunk_by(|a, b| a.label == b.label).map(row).collect();
    Ok(ContactSheet::draw_rows(set, spec, &rows)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};
    use std::fs;

    #[test]
    fn files_match_hand_worked_values() {
        let prediction = |sample: u32, label: usize, predicted: usize, probability: f32| Prediction {
            sample,
            label,
            predicted,
            probability,
            blocks_run: 5,
        };
        let predictions = [
            prediction(0, 0, 0, 0.5),
            prediction(1, 0, 1, 0.75),
            prediction(2, 1, 1, 1.0),
            prediction(3, 0, 1, 0.5),
        ];
        let names = ["cat", "dog, large", "2"].map(str::to_owned);
        let confusion = Confusion::new(&predictions, 3);
        let summary = to_value(ClassSummary::new(&confusion, &names)).unwrap();
        let expected = json!({
            "class_accuracy": [1.0 / 3.0, 1.0, null],
            "worst_classes": [
                {"class": "cat", "images": 3, "accuracy": 1.0 / 3.0},
                {"class": "dog, large", "images": 1, "accuracy": 1.0},
            ],
            "confused_pairs": [{"class": "cat", "predicted": "dog, large", "images": 2}],
        });
        assert_eq!(summary, expected);
        let folder = tempfile::tempdir().unwrap();
        let image_name = |sample: u32| format!("val.tar:{sample}");
        write_class_tables(folder.path(), &confusion, &predictions[1..2], &names, image_name).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        let counts =
            "class,predicted,images\ncat,cat,1\ncat,\"dog, large\",2\n\"dog, large\",\"dog, large\",1\n";
        assert_eq!(read(CONFUSION), counts);
        let mistakes = "image,class,predicted,probability,blocks_run\nval.tar:1,cat,\"dog, large\",0.75,5\n";
        assert_eq!(read(MISTAKES), mistakes);
    }
}
