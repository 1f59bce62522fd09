//! Accuracy by class: the confusion matrix, and the images that are most confidently wrong.

use crate::dist::{World, all_gather_lists};
use crate::sys::error::Result;
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// What the network predicts for one image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    /// The image's number in its set.
    pub sample: u32,
    /// Its class.
    pub label: usize,
    /// The most probable class.
    pub predicted: usize,
    /// The probability of that class.
    pub probability: f32,
    /// How many gated blocks ran.
    pub blocks_run: usize,
}

impl Prediction {
    /// All ranks: every rank's predictions, in rank order.
    pub fn all_gather(world: &World, own: &[Self]) -> Result<Vec<Self>> {
        let row = |prediction: &Self| {
            let Self { sample, label, predicted, probability, blocks_run } = *prediction;
            [f64::from(sample), label as f64, predicted as f64, f64::from(probability), blocks_run as f64]
        };
        let own: Vec<f64> = own.iter().flat_map(row).collect();
        let all = all_gather_lists(world, &own)?.concat();
        let prediction = |row: &[f64; 5]| Self {
            sample: row[0] as u32,
            label: row[1] as usize,
            predicted: row[2] as usize,
            probability: row[3] as f32,
            blocks_run: row[4] as usize,
        };
        Ok(all.as_chunks().0.iter().map(prediction).collect())
    }
}

/// The confusion matrix: the number of images of each class that are predicted as each class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confusion {
    /// By class and predicted class. Pairs without images are absent, so a thousand classes take little memory.
    counts: BTreeMap<(usize, usize), u64>,
    /// Images of each class, `[classes]`.
    images: Vec<u64>,
}

/// The most rows of a picture of the matrix: in smaller cells a mistake would hardly show.
pub const MATRIX_ROWS: usize = 100;

/// A confusion matrix with a row and a column for each group of neighbouring classes.
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    /// Classes of a group.
    pub group: usize,
    /// Groups.
    pub rows: usize,
    /// Row, column, and the share of the row's images that are predicted as a class of the column, for each cell with images.
    pub cells: Vec<(usize, usize, f64)>,
}

impl Confusion {
    /// Counts predictions for a network of so many `classes`.
    pub fn new(predictions: &[Prediction], classes: usize) -> Self {
        let mut counts = BTreeMap::new();
        let mut images = vec![0; classes];
        for &Prediction { label, predicted, .. } in predictions {
            *counts.entry((label, predicted)).or_default() += 1;
            images[label] += 1;
        }
        Self { counts, images }
    }

    /// The images of each class, `[classes]`.
    pub fn images(&self) -> &[u64] {
        &self.images
    }

    /// Class, predicted class and images of each pair that has images, in this order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, u64)> {
        self.counts.iter().map(|(&(class, predicted), &images)| (class, predicted, images))
    }

    /// The matrix for a picture of at most `rows` rows: with more classes, neighbouring ones form groups of one size.
    pub fn shares(&self, rows: usize) -> Shares {
        let group = self.images.len().div_ceil(rows).max(1);
        let images: Vec<u64> = self.images.chunks(group).map(|classes| classes.iter().sum()).collect();
        let mut counts: BTreeMap<(usize, usize), u64> = BTreeMap::new();
        for (class, predicted, images) in self.iter() {
            *counts.entry((class / group, predicted / group)).or_default() += images;
        }
        let share =
            |((row, column), count): ((usize, usize), u64)| (row, column, count as f64 / images[row] as f64);
        Shares { group, rows: images.len(), cells: counts.into_iter().map(share).collect() }
    }

    /// The share of each class's images that are predicted as that class, `[classes]`; none for a class without images.
    pub fn accuracies(&self) -> Vec<Option<f64>> {
        let accuracy = |(class, &images): (usize, &u64)| {
            let right = self.counts.get(&(class, class)).copied().unwrap_or(0);
            (images > 0).then(|| right as f64 / images as f64)
        };
        self.images.iter().enumerate().map(accuracy).collect()
    }

    /// At most `limit` classes with their accuracy, the lowest first; equal ones in the order of their numbers.
    pub fn worst_classes(&self, limit: usize) -> Vec<(usize, f64)> {
        let accuracies = self.accuracies().into_iter().enumerate();
        let mut classes: Vec<_> =
            accuracies.filter_map(|(class, accuracy)| Some((class, accuracy?))).collect();
        classes.sort_by(|a, b| a.1.total_cmp(&b.1)); // stable
        classes.truncate(limit);
        classes
    }

    /// At most `limit` pairs of two classes: class, predicted class and images, the most images first; equal ones in the order
    /// of their numbers.
    pub fn confused_pairs(&self, limit: usize) -> Vec<(usize, usize, u64)> {
        let mut pairs: Vec<_> = self.iter().filter(|(class, predicted, _)| class != predicted).collect();
        pairs.sort_by_key(|(.., images)| Reverse(*images)); // stable
        pairs.truncate(limit);
        pairs
    }
}

/// At most `limit` images whose predicted class is wrong, the highest probability first; equal ones in the order of their
/// numbers.
pub fn confident_mistakes(predictions: &[Prediction], limit: usize) -> Vec<Prediction> {
    let mut mistakes: Vec<_> =
        predictions.iter().filter(|image| image.predicted != image.label).copied().collect();
    mistakes.sort_by(|a, b| b.probability.total_cmp(&a.probability).then(a.sample.cmp(&b.sample)));
    mistakes.truncate(limit);
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(sample: u32, label: usize, predicted: usize, probability: f32) -> Prediction {
        Prediction { sample, label, predicted, probability, blocks_run: 2 }
    }

    /// Eight images of four classes; class 2 has none.
    fn predictions() -> Vec<Prediction> {
        vec![
            prediction(7, 0, 0, 0.9),
            prediction(5, 0, 1, 0.6),
            prediction(1, 0, 1, 0.6),
            prediction(2, 0, 3, 0.8),
            prediction(3, 1, 1, 0.99),
            prediction(4, 1, 0, 0.5),
            prediction(6, 3, 3, 0.7),
            prediction(8, 3, 3, 0.4),
        ]
    }

    #[test]
    fn confusion_matches_hand_worked_values() {
        let confusion = Confusion::new(&predictions(), 4);
        assert_eq!(confusion.images(), [4, 2, 0, 2]);
        let counts: Vec<_> = confusion.iter().collect();
        assert_eq!(counts, [(0, 0, 1), (0, 1, 2), (0, 3, 1), (1, 0, 1), (1, 1, 1), (3, 3, 2)]);
        let shares = confusion.shares(4);
        assert_eq!((shares.group, shares.rows, shares.cells[1]), (1, 4, (0, 1, 0.5)));
        let halves = confusion.shares(3); // classes 0 and 1, 2 and 3
        assert_eq!((halves.group, halves.rows), (2, 2));
        assert_eq!(halves.cells, [(0, 0, 5.0 / 6.0), (0, 1, 1.0 / 6.0), (1, 1, 1.0)]);
        assert_eq!(confusion.accuracies(), [Some(0.25), Some(0.5), None, Some(1.0)]);
        assert_eq!(confusion.worst_classes(2), [(0, 0.25), (1, 0.5)]);
        assert_eq!(confusion.worst_classes(9).len(), 3, "a class without images has no accuracy");
        assert_eq!(confusion.confused_pairs(2), [(0, 1, 2), (0, 3, 1)], "(1, 0) has one image too");
    }

    #[test]
    fn mistakes_are_ranked_by_probability_then_number() {
        let samples = |limit| -> Vec<u32> {
            confident_mistakes(&predictions(), limit).iter().map(|image| image.sample).collect()
        };
        assert_eq!(samples(9), [2, 1, 5, 4]);
        assert_eq!(samples(2), [2, 1]);
    }

    #[test]
    fn gathered_predictions_keep_their_values() {
        let world = crate::dist::join().unwrap();
        assert_eq!(Prediction::all_gather(&world, &predictions()).unwrap(), predictions());
        assert!(Prediction::all_gather(&world, &[]).unwrap().is_empty());
    }
}
