//! Statistics of hard routing paths: how many images take each path, and how evenly.

use crate::dist::{World, all_gather_lists};
use crate::sys::error::Result;
use std::collections::BTreeMap;

/// The number of images on each path. A path has one byte per gated block: 1 if it ran, else 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: BTreeMap<Vec<u8>, u64>,
}

impl Histogram {
    /// Counts paths, `[images, gates]`. Without gates all images take the empty path.
    pub fn new(rows: &[u8], gates: usize, images: usize) -> Self {
        let mut histogram = Self::default();
        if gates == 0 {
            histogram.add(&[], images as u64);
        } else {
            rows.chunks(gates).for_each(|path| histogram.add(path, 1));
        }
        histogram
    }

    /// Adds `images` to the count of a path.
    pub fn add(&mut self, path: &[u8], images: u64) {
        match self.counts.get_mut(path) {
            Some(count) => *count += images,
            None if images > 0 => drop(self.counts.insert(path.to_vec(), images)),
            None => {}
        }
    }

    /// Adds another histogram's counts.
    pub fn merge(&mut self, other: &Self) {
        other.iter().for_each(|(path, images)| self.add(path, images));
    }

    /// All ranks: the sum of the ranks' histograms.
    pub fn over_ranks(&self, world: &World, gates: usize) -> Result<Self> {
        let row = |(path, images): (&[u8], u64)| [&images.to_le_bytes()[..], path].concat();
        let mine: Vec<u8> = self.iter().flat_map(row).collect();
        let mut all = Self::default();
        for row in all_gather_lists(world, &mine)?.iter().flat_map(|rows| rows.chunks(8 + gates)) {
            let (images, path) = row.split_first_chunk::<8>().expect("a count and a path");
            all.add(path, u64::from_le_bytes(*images));
        }
        Ok(all)
    }

    /// Paths and counts, in the order of the paths.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], u64)> {
        self.counts.iter().map(|(path, count)| (&path[..], *count))
    }

    /// The count of one path.
    pub fn count(&self, path: &[u8]) -> u64 {
        self.counts.get(path).copied().unwrap_or(0)
    }

    /// The number of distinct paths.
    pub fn distinct(&self) -> usize {
        self.counts.len()
    }

    /// The number of images.
    pub fn images(&self) -> u64 {
        self.counts.values().sum()
    }

    /// Paths and counts, the most frequent first; equally frequent ones in the order of the paths.
    pub fn by_frequency(&self) -> Vec<(&[u8], u64)> {
        let mut sorted: Vec<(&[u8], u64)> = self.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count)); // stable: ties keep the order of the paths
        sorted
    }

    /// Entropy of the paths' frequencies in bits: from 0, if all images take one path, to log₂ of the number of paths, if
    /// all are equally frequent.
    pub fn entropy(&self) -> f64 {
        let all = self.images() as f64;
        let bits = |count: &u64| {
            let share = *count as f64 / all;
            -share * share.log2()
        };
        self.counts.values().map(bits).sum::<f64>() + 0.0 // never −0
    }
}

/// A path as text: `1` for a block that ran, `0` for one that was skipped.
pub fn text(path: &[u8]) -> String {
    path.iter().map(|&ran| if ran == 1 { '1' } else { '0' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_entropy_match_hand_worked_values() {
        // Four of eight on one path, two on another, one each on two more: ½·1 + ¼·2 + 2·⅛·3 = 1.75 bits.
        let rows = [[1, 0], [1, 0], [0, 0], [1, 1], [1, 0], [1, 1], [1, 0], [0, 1]].concat();
        let histogram = Histogram::new(&rows, 2, 8);
        assert_eq!((histogram.distinct(), histogram.images()), (4, 8));
        assert_eq!(histogram.entropy(), 1.75);
        let sorted = histogram.by_frequency();
        assert_eq!(sorted[0], (&[1u8, 0][..], 4));
        assert_eq!(sorted[1], (&[1u8, 1][..], 2));
        assert_eq!((sorted[2], sorted[3]), ((&[0u8, 0][..], 1), (&[0u8, 1][..], 1)));
        assert_eq!((histogram.count(&[0, 1]), histogram.count(&[9, 9])), (1, 0));
        assert_eq!(text(sorted[0].0), "10");
        let world = crate::dist::join().unwrap();
        assert_eq!(histogram.over_ranks(&world, 2).unwrap(), histogram);
    }

    #[test]
    fn static_network_has_one_path() {
        let histogram = Histogram::new(&[], 0, 5);
        assert_eq!((histogram.distinct(), histogram.images(), histogram.entropy()), (1, 5, 0.0));
    }
}
