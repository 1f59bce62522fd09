//! Measures of a set's paths: how often blocks run, for which classes, and whether an image keeps its path under augmentation.

use super::augment::Augmentation;
use super::collect::Observations;
use super::divergence;
use codinet_trainer::metrics::routing::Histogram;
use serde::Serialize;

/// The share of images that run each gated block, `[n]`.
pub fn rates(paths: &[u8], gates: usize) -> Vec<f64> {
    let images = (paths.len() / gates.max(1)).max(1) as f64;
    (0..gates)
        .map(|k| paths.iter().skip(k).step_by(gates).map(|&ran| f64::from(ran)).sum::<f64>() / images)
        .collect()
}

/// The same for each class, `[classes][n]`; NaN for a class without images.
pub fn rates_by_class(paths: &[u8], gates: usize, labels: &[i64], classes: usize) -> Vec<Vec<f64>> {
    let mut sums = vec![vec![0.0; gates]; classes];
    let mut images = vec![0.0; classes];
    for (path, &label) in paths.chunks(gates.max(1)).zip(labels) {
        images[label as usize] += 1.0;
        sums[label as usize].iter_mut().zip(path).for_each(|(sum, &ran)| *sum += f64::from(ran));
    }
    let mean = |(sums, images): (Vec<f64>, f64)| sums.into_iter().map(|sum| sum / images).collect();
    sums.into_iter().zip(images).map(mean).collect()
}

/// Σ_k v_k, the expected number of gated blocks that run, for each of so many `images`, `[N]`.
pub fn expected_blocks(relaxed: &[f32], gates: usize, images: usize) -> Vec<f64> {
    let path = |i: usize| &relaxed[i * gates..(i + 1) * gates];
    (0..images).map(|i| path(i).iter().map(|&v| f64::from(v)).sum()).collect()
}

/// The share of predictions that equal the label.
pub fn accuracy(predictions: &[i64], labels: &[i64]) -> f64 {
    predictions.iter().zip(labels).filter(|(a, b)| a == b).count() as f64 / labels.len() as f64
}

/// What one augmentation changes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Consistency {
    /// Its name.
    pub augmentation: &'static str,
    /// The share of images that keep their hard path.
    pub same_path: f64,
    /// The share of images that keep their predicted class.
    pub same_prediction: f64,
    /// Top-1 of the augmented images.
    pub top1: f64,
    /// Mean KL of paths, in nats.
    pub path_kl: f64,
    /// Mean KL of predictions, in nats.
    pub prediction_kl: f64,
    /// KL of the set's path frequencies, in nats.
    pub frequency_kl: f64,
    /// Distinct paths of the augmented set.
    pub distinct_paths: usize,
}

/// What each augmentation changes, in the order of [`Augmentation::ALL`], and the share of images that keep their path under
/// all of them.
pub fn consistency(observations: &Observations) -> (Vec<Consistency>, f64) {
    let Observations { labels, predictions, gates, paths, .. } = observations;
    let images = labels.len() as f64;
    let histogram = Histogram::new(paths, *gates, labels.len());
    let mean = |values: &[f64]| values.iter().sum::<f64>() / images;
    let mut same_under_all = vec![true; labels.len()];
    let mut consistency = Vec::new();
    for (kind, augmented) in Augmentation::ALL.into_iter().zip(&observations.augmented) {
        let same: Vec<bool> =
            paths.chunks(*gates).zip(augmented.paths.chunks(*gates)).map(|(a, b)| a == b).collect();
        same_under_all.iter_mut().zip(&same).for_each(|(all, same)| *all &= same);
        let augmented_histogram = Histogram::new(&augmented.paths, *gates, labels.len());
        consistency.push(Consistency {
            augmentation: kind.name(),
            same_path: same.iter().filter(|same| **same).count() as f64 / images,
            same_prediction: accuracy(&augmented.predictions, predictions),
            top1: accuracy(&augmented.predictions, labels),
            path_kl: mean(&augmented.path_kl),
            prediction_kl: mean(&augmented.prediction_kl),
            frequency_kl: divergence::frequency_kl(&histogram, &augmented_histogram),
            distinct_paths: augmented_histogram.distinct(),
        });
    }
    (consistency, same_under_all.iter().filter(|same| **same).count() as f64 / images)
}

/// The mean distance of a group's paths from their centre, and between two groups' centres: ‖r − r̄‖ and ‖r̄_i − r̄_j‖ of
/// Eqs. 8 and 9. Paths `[groups · views, n]`.
pub fn group_distances(groups: &[f32], views: usize, gates: usize) -> (f64, f64) {
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let wide: Vec<f64> = groups.iter().map(|&v| f64::from(v)).collect();
    let rows: Vec<&[f64]> = wide.chunks(gates.max(1)).collect();
    let centre = |group: &&[&[f64]]| -> Vec<f64> {
        (0..gates).map(|k| group.iter().map(|row| row[k]).sum::<f64>() / group.len() as f64).collect()
    };
    let parts: Vec<&[&[f64]]> = rows.chunks(views).collect();
    let centres: Vec<Vec<f64>> = parts.iter().map(centre).collect();
    let within =
        parts.iter().zip(&centres).flat_map(|(group, centre)| group.iter().map(|row| distance(row, centre)));
    let within = within.sum::<f64>() / rows.len() as f64;
    let pairs = (0..centres.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let between: Vec<f64> = pairs.map(|(i, j)| distance(&centres[i], &centres[j])).collect();
    (within, between.iter().sum::<f64>() / between.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::super::collect::AugmentedResults;
    use super::*;

    #[test]
    fn rates_match_hand_worked_values() {
        let paths = [[1, 0], [1, 1], [0, 0], [1, 0]].concat();
        assert_eq!(rates(&paths, 2), [0.75, 0.25]);
        let by_class = rates_by_class(&paths, 2, &[0, 0, 2, 2], 3);
        assert_eq!((&by_class[0], &by_class[2]), (&vec![1.0, 0.5], &vec![0.5, 0.0]));
        assert!(by_class[1].iter().all(|rate| rate.is_nan()));
        assert_eq!(expected_blocks(&[0.5, 0.25, 1.0, 0.0], 2, 2), [0.75, 1.0]);
        assert_eq!(accuracy(&[1, 2, 3], &[1, 0, 3]), 2.0 / 3.0);
    }

    #[test]
    fn consistency_matches_hand_worked_values() {
        let augmented = |paths: [[u8; 2]; 4], predictions: [i64; 4]| AugmentedResults {
            predictions: predictions.into(),
            paths: paths.concat(),
            path_kl: vec![0.0, 1.0, 2.0, 1.0],
            prediction_kl: vec![0.5; 4],
        };
        let observations = Observations {
            labels: vec![0, 1, 2, 3],
            predictions: vec![0, 1, 2, 0],
            gates: 2,
            paths: [[1, 0], [1, 1], [0, 0], [1, 0]].concat(),
            augmented: vec![
                augmented([[1, 0], [1, 1], [0, 0], [1, 1]], [0, 1, 2, 3]),
                augmented([[1, 0], [0, 1], [0, 0], [1, 0]], [1, 1, 2, 0]),
                augmented([[1, 0], [1, 1], [0, 0], [1, 0]], [0, 1, 2, 0]),
                augmented([[1, 1], [0, 0], [0, 0], [0, 1]], [0, 1, 2, 0]),
            ],
            ..Observations::default()
        };
        let (each, all) = consistency(&observations);
        let shares: Vec<f64> = each.iter().map(|part| part.same_path).collect();
        assert_eq!(shares, [0.75, 0.75, 1.0, 0.25]);
        assert_eq!(all, 0.25, "only the third image keeps its path under all four");
        assert_eq!((each[0].top1, each[0].same_prediction), (1.0, 0.75));
        assert_eq!((each[1].path_kl, each[1].prediction_kl, each[3].distinct_paths), (1.0, 0.5, 3));
        assert_eq!((each[0].augmentation, each[2].frequency_kl), ("random crop", 0.0));
    }

    #[test]
    fn group_distances_match_hand_worked_values() {
        // Two groups of two: centres (0.5, 0) and (0.5, 1), views half a unit from them.
        let groups = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0];
        assert_eq!(group_distances(&groups, 2, 2), (0.5, 1.0));
    }
}
