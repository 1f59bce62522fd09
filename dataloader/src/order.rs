//! Which samples are served when, and by which rank: pure functions of (seed, epoch) and (rank, world).
//!
//! The order is that of *global* batches. A rank serves its contiguous part of each, so that the union over the
//! ranks is the same batch whatever the number of ranks, and a run can resume with a different number.

use std::ops::Range;

use crate::random::{self, Domain};

/// The order of the samples of one epoch: each exactly once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder {
    samples: Vec<u32>,
}

impl EpochOrder {
    /// Shuffles `0..len` for this seed and epoch.
    ///
    /// # Panics
    /// Where `len` exceeds `u32::MAX`, which the length of a [`Dataset`](crate::Dataset) never does.
    pub fn new(seed: u64, epoch: u64, len: usize) -> EpochOrder {
        assert!(u32::try_from(len).is_ok(), "an order is of at most 2³² - 1 samples, not {len}");
        let mut rng = random::stream(Domain::Order, seed, epoch, 0, 0);
        let mut samples: Vec<u32> = (0..len as u32).collect();
        random::shuffle(&mut rng, &mut samples);
        EpochOrder { samples }
    }

    /// All samples, in order.
    pub fn samples(&self) -> &[u32] {
        &self.samples
    }

    /// Whole global batches in the epoch. The samples left over are not served in this epoch; since each epoch
    /// is shuffled anew, they are different ones each time.
    ///
    /// # Panics
    /// Where `global_batch` is 0.
    pub fn steps(&self, global_batch: usize) -> usize {
        self.samples.len() / global_batch
    }

    /// The L = global_batch / world samples that `rank` serves of global batch `step`: slots
    /// [rank·L, (rank + 1)·L) of it.
    ///
    /// # Panics
    /// Where `step` is not below [`steps`](Self::steps), `rank` not below `world`, or `world` doesn't divide
    /// `global_batch`: all known before a run starts, and to be refused there.
    pub fn rank_samples(&self, step: usize, global_batch: usize, rank: usize, world: usize) -> &[u32] {
        assert!(rank < world && global_batch.is_multiple_of(world), "{rank} of {world} for {global_batch}");
        let local = global_batch / world;
        &self.samples[step * global_batch + rank * local..][..local]
    }
}

/// The samples of an evaluation that `rank` serves, in dataset order: the ranks' shares are disjoint, cover
/// `0..len`, and differ in size by at most one. Nothing is padded or left out, so that a count is a count.
///
/// # Panics
/// Where `rank` is not below `world`, or `len` exceeds `u32::MAX`.
pub fn eval_samples(len: usize, rank: usize, world: usize) -> Range<u32> {
    assert!(rank < world && u32::try_from(len).is_ok(), "rank {rank} of {world}, {len} samples");
    let bound = |rank: usize| (len as u64 * rank as u64 / world as u64) as u32;
    bound(rank)..bound(rank + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_serves_each_sample_once() {
        let order = EpochOrder::new(7, 3, 1003);
        let mut sorted = order.samples().to_vec();
        assert_ne!(sorted, (0..1003).collect::<Vec<u32>>(), "not shuffled at all");
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1003).collect::<Vec<u32>>());
        assert_eq!(order.steps(16), 62);
    }

    #[test]
    fn epochs_and_seeds_differ_and_repeat() {
        assert_eq!(EpochOrder::new(7, 3, 100), EpochOrder::new(7, 3, 100));
        assert_ne!(EpochOrder::new(7, 3, 100), EpochOrder::new(7, 4, 100));
        assert_ne!(EpochOrder::new(7, 3, 100), EpochOrder::new(8, 3, 100));
    }

    #[test]
    fn a_global_batch_is_the_same_for_every_world() {
        let order = EpochOrder::new(1, 0, 103);
        for step in 0..order.steps(8) {
            for world in [1, 2, 4] {
                let union: Vec<u32> =
                    (0..world).flat_map(|rank| order.rank_samples(step, 8, rank, world).to_vec()).collect();
                assert_eq!(union, order.samples()[step * 8..(step + 1) * 8]);
            }
        }
    }

    #[test]
    fn every_place_is_equally_likely() {
        // Sample 0 of 5 should land on each place in a fifth of the epochs.
        let mut places = [0; 5];
        for epoch in 0..5000 {
            let order = EpochOrder::new(0, epoch, 5);
            places[order.samples().iter().position(|&sample| sample == 0).unwrap()] += 1;
        }
        assert!(places.iter().all(|&count| (880..1120).contains(&count)), "{places:?}");
    }

    #[test]
    fn evaluation_shares_are_exact() {
        for len in [0, 1, 3, 7, 10_000] {
            for world in [1, 2, 3, 4, 8] {
                let shares: Vec<Range<u32>> = (0..world).map(|rank| eval_samples(len, rank, world)).collect();
                let union: Vec<u32> = shares.iter().cloned().flatten().collect();
                assert_eq!(union, (0..len as u32).collect::<Vec<u32>>());
                let sizes: Vec<usize> = shares.iter().map(ExactSizeIterator::len).collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "0 of 3 for 8")]
    fn an_uneven_split_is_refused() {
        EpochOrder::new(0, 0, 100).rank_samples(0, 8, 0, 3);
    }
}
