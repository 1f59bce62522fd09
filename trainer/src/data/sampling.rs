//! How often an epoch draws each training sample: sets by their weights, classes equally often.

use crate::config::TrainData;
use codinet_dataloader::{Dataset, DrawGroup, apportion};
use std::collections::BTreeMap;

/// The groups of samples that an epoch of `draws` samples draws, from `samples`, rising numbers in the data set.
pub(super) fn draw_groups(
    train: &TrainData,
    dataset: &Dataset,
    samples: impl Iterator<Item = u32>,
    draws: usize,
) -> Vec<DrawGroup> {
    let label = |sample: u32| dataset.sample_info(sample as usize).expect("a sample of the set").label;
    let mut samples = samples.peekable();
    let mut end = 0;
    let split = |&size: &usize| -> Vec<u32> {
        end += size as u32;
        std::iter::from_fn(|| samples.next_if(|&sample| sample < end)).collect()
    };
    let sets: Vec<Vec<u32>> = dataset.set_sizes().iter().map(split).collect();
    divide(&sets, train.weights().as_deref(), train.balances_classes(), label, draws)
}

/// Divides `draws` among `sets` in proportion to their weights, or to their sizes, and each set's part among its classes if those
/// are balanced.
fn divide(
    sets: &[Vec<u32>],
    weights: Option<&[f64]>,
    balance_classes: bool,
    label: impl Fn(u32) -> u32,
    draws: usize,
) -> Vec<DrawGroup> {
    // All samples of a small set may be held out.
    let share = |(set, samples): (usize, &Vec<u32>)| match weights {
        Some(weights) if !samples.is_empty() => weights[set],
        _ => samples.len() as f64,
    };
    let shares: Vec<f64> = sets.iter().enumerate().map(share).collect();
    let mut groups = Vec::new();
    for (samples, draws) in sets.iter().zip(apportion(draws, &shares)) {
        if !balance_classes || samples.is_empty() {
            groups.push(DrawGroup { samples: samples.clone(), draws });
            continue;
        }
        let mut classes = BTreeMap::<u32, Vec<u32>>::new();
        for &sample in samples {
            classes.entry(label(sample)).or_default().push(sample);
        }
        let parts = apportion(draws, &vec![1.0; classes.len()]);
        groups.extend(classes.into_values().zip(parts).map(|(samples, draws)| DrawGroup { samples, draws }));
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(samples: &[u32], draws: usize) -> DrawGroup {
        DrawGroup { samples: samples.to_vec(), draws }
    }

    /// Twelve draws of two sets: of six samples, four of them of class 0, and of two samples, one of each class.
    #[test]
    fn draws_are_divided_by_weights_and_classes() {
        let sets = [vec![0, 1, 2, 3, 4, 5], vec![6, 7]];
        let label = |sample: u32| u32::from([4, 5, 7].contains(&sample));
        let divide = |weights: Option<&[f64]>, balance: bool, draws: usize| {
            divide(&sets, weights, balance, label, draws)
        };
        assert_eq!(divide(None, false, 8), [group(&sets[0], 6), group(&sets[1], 2)]);
        assert_eq!(divide(None, false, 12), [group(&sets[0], 9), group(&sets[1], 3)]);
        let weights: Option<&[f64]> = Some(&[2.0, 1.0]);
        assert_eq!(divide(weights, false, 12), [group(&sets[0], 8), group(&sets[1], 4)]);
        assert_eq!(
            divide(weights, true, 12),
            [group(&[0, 1, 2, 3], 4), group(&[4, 5], 4), group(&[6], 2), group(&[7], 2)]
        );
        assert_eq!(divide(None, true, 7)[..2], [group(&[0, 1, 2, 3], 3), group(&[4, 5], 2)], "5 of 7 draws");
    }
}
