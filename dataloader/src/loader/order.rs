//! The order of samples and each rank's part of it: pure functions of (seed, epoch) and (rank, world).
//!
//! There are two orders. A shuffle of all samples suits disks that read anywhere at the same cost. [`Lanes`] read shards
//! from end to end, which suits network file systems and object stores.
//!
//! The order is that of *global* batches. A rank loads its contiguous part of each. So the union over the ranks is the
//! same batch for any number of ranks, and a run can resume with a different number.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::random::{self, Domain};

/// The order of the samples of one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochOrder {
    samples: Vec<u32>,
    /// How often the epoch has drawn each of them before; empty if it draws no sample twice.
    repeats: Vec<u32>,
}

/// Samples that an epoch draws equally often: a set, or a class of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrawGroup {
    /// The samples.
    pub samples: Vec<u32>,
    /// How many samples an epoch draws from them. Each is drawn ⌊draws/len⌋ times, and a random part of them, another one each
    /// epoch, once more.
    pub draws: usize,
}

/// Divides `total` in proportion to `shares`, to whole numbers that add up to it: each is rounded down, and those with the
/// largest remainders, of equal ones the first, get one more.
///
/// # Panics
/// Where the shares add up to 0.
pub fn apportion(total: usize, shares: &[f64]) -> Vec<usize> {
    let sum: f64 = shares.iter().sum();
    assert!(sum > 0.0, "shares {shares:?}");
    let exact: Vec<f64> = shares.iter().map(|share| total as f64 * share / sum).collect();
    let mut parts: Vec<usize> = exact.iter().map(|&part| part as usize).collect();
    let mut by_remainder: Vec<usize> = (0..shares.len()).collect();
    by_remainder.sort_by(|&a, &b| exact[b].fract().total_cmp(&exact[a].fract())); // stable
    let missing = total - parts.iter().sum::<usize>();
    by_remainder.into_iter().take(missing).for_each(|part| parts[part] += 1);
    parts
}

impl EpochOrder {
    /// Shuffles `0..len` for this seed and epoch.
    ///
    /// # Panics
    /// Where `len` exceeds `u32::MAX`, which the length of a [`Dataset`](crate::Dataset) never does.
    pub fn new(seed: u64, epoch: u64, len: usize) -> EpochOrder {
        assert!(u32::try_from(len).is_ok(), "an order is of at most 2³² - 1 samples, not {len}");
        EpochOrder::draw(&[DrawGroup { samples: (0..len as u32).collect(), draws: len }], seed, epoch)
    }

    /// Draws from each group, and shuffles all draws, for this seed and epoch.
    ///
    /// # Panics
    /// Where a group without samples has draws.
    pub fn draw(groups: &[DrawGroup], seed: u64, epoch: u64) -> EpochOrder {
        let mut draws = Vec::with_capacity(groups.iter().map(|group| group.draws).sum());
        for (number, DrawGroup { samples, draws: wanted }) in
            groups.iter().enumerate().filter(|(_, g)| g.draws > 0)
        {
            let passes = wanted / samples.len();
            for pass in 0..passes as u32 {
                draws.extend(samples.iter().map(|&sample| (sample, pass)));
            }
            let rest = wanted % samples.len();
            if rest > 0 {
                let mut samples = samples.clone();
                let mut rng = random::stream(Domain::Order, seed, epoch, 1 + number as u64, 0);
                random::shuffle(&mut rng, &mut samples);
                draws.extend(samples[..rest].iter().map(|&sample| (sample, passes as u32)));
            }
        }
        let mut rng = random::stream(Domain::Order, seed, epoch, 0, 0);
        random::shuffle(&mut rng, &mut draws);
        let repeats = if draws.iter().any(|&(_, repeat)| repeat > 0) {
            draws.iter().map(|&(_, repeat)| repeat).collect()
        } else {
            Vec::new()
        };
        EpochOrder { samples: draws.into_iter().map(|(sample, _)| sample).collect(), repeats }
    }

    /// Reads whole shards in lanes, shuffled within windows, see [`Lanes`]. `shards` has each shard's samples.
    ///
    /// # Panics
    /// Where `lanes.count` is 0 or does not divide `global_batch`, or `lanes.window` is 0.
    pub fn in_lanes(
        shards: &[Vec<u32>],
        lanes: Lanes,
        global_batch: usize,
        seed: u64,
        epoch: u64,
    ) -> EpochOrder {
        let Lanes { count, window } = lanes;
        assert!(
            count > 0 && global_batch.is_multiple_of(count) && window > 0,
            "{lanes:?} for {global_batch}"
        );
        let shuffled = EpochOrder::new(seed, epoch, shards.len());
        let all: Vec<u32> =
            shuffled.samples.iter().flat_map(|&shard| &shards[shard as usize]).copied().collect();
        let each = all.len() / count;
        let share = global_batch / count;
        let lane = |lane: usize| {
            let mut rng = random::stream(Domain::Order, seed, epoch, 1 + lane as u64, 0);
            let mut waiting = all[lane * each..][..each].iter().copied();
            let mut open: Vec<u32> = waiting.by_ref().take(window).collect();
            let mut samples = Vec::with_capacity(each);
            while !open.is_empty() {
                let drawn = random::draw_below(&mut rng, open.len() as u32) as usize;
                samples.push(match waiting.next() {
                    Some(next) => std::mem::replace(&mut open[drawn], next),
                    None => open.swap_remove(drawn),
                });
            }
            samples
        };
        let lanes: Vec<Vec<u32>> = (0..count).map(lane).collect();
        let steps = each / share;
        let of_step = |step: usize| lanes.iter().flat_map(move |lane| &lane[step * share..][..share]);
        EpochOrder { samples: (0..steps).flat_map(of_step).copied().collect(), repeats: Vec::new() }
    }

    /// All samples, in order.
    pub fn samples(&self) -> &[u32] {
        &self.samples
    }

    /// How often the epoch draws the sample at `position` before that position.
    fn repeat_at(&self, position: usize) -> u32 {
        self.repeats.get(position).copied().unwrap_or(0)
    }

    /// Whole global batches in the epoch. The remaining samples are left out of this epoch; every epoch is shuffled
    /// differently, so they differ each time.
    ///
    /// # Panics
    /// Where `global_batch` is 0.
    pub fn steps(&self, global_batch: usize) -> usize {
        self.samples.len() / global_batch
    }

    /// The L = global_batch / world samples of global batch `step` that `rank` loads: slots [rank·L, (rank + 1)·L).
    ///
    /// # Panics
    /// Where `step` is not below [`steps`](Self::steps), `rank` not below `world`, or `world` doesn't divide
    /// `global_batch`. Callers check these before a run starts.
    pub fn rank_samples(&self, step: usize, global_batch: usize, rank: usize, world: usize) -> &[u32] {
        &self.samples[rank_slots(step, global_batch, rank, world)]
    }

    /// The plan of the batch of [`rank_samples`](Self::rank_samples), with replacements of bad samples.
    ///
    /// # Panics
    /// As there.
    pub fn rank_plan(
        self: &Arc<Self>,
        epoch: u64,
        step: usize,
        global_batch: usize,
        rank: usize,
        world: usize,
    ) -> BatchPlan {
        let slots = rank_slots(step, global_batch, rank, world);
        let repeats = if self.repeats.is_empty() { Vec::new() } else { self.repeats[slots.clone()].to_vec() };
        let replacements = Replacements { order: self.clone(), first: slots.start, global_batch };
        let samples = self.samples[slots].to_vec();
        BatchPlan { epoch, samples, repeats, replacements: Some(replacements), image_size: None }
    }
}

/// The positions in the order that `rank` loads of global batch `step`.
fn rank_slots(step: usize, global_batch: usize, rank: usize, world: usize) -> Range<usize> {
    assert!(rank < world && global_batch.is_multiple_of(world), "{rank} of {world} for {global_batch}");
    let local = global_batch / world;
    let first = step * global_batch + rank * local;
    first..first + local
}

/// Sequential reading. The epoch's shards, in shuffled order, are split into `count` lanes of equal length. Each lane
/// reads its shards one after another, through a window from which the next sample is drawn at random. Every global
/// batch has equally many samples of each lane, lane after lane. So a rank, which loads a contiguous part, has its own
/// lanes for any world size that divides their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Lanes {
    /// Number of lanes: a divisor of the global batch and a multiple of the number of ranks.
    pub count: usize,
    /// Number of samples from which a lane draws the next one.
    pub window: usize,
}

/// The samples of one batch, in order.
#[derive(Debug, Clone)]
pub struct BatchPlan {
    /// The epoch; crops depend on it.
    pub epoch: u64,
    /// Dataset indices.
    pub samples: Vec<u32>,
    /// How often the epoch has drawn each of them before, which gives each draw other views; empty: never.
    pub repeats: Vec<u32>,
    /// Replacements of bad samples; without them, bad samples leave their slots empty.
    pub replacements: Option<Replacements>,
    /// Width and height of its views in pixels; `None`: those of the loader's settings.
    pub image_size: Option<u32>,
}

impl BatchPlan {
    /// A batch without replacements.
    pub fn new(epoch: u64, samples: Vec<u32>) -> BatchPlan {
        BatchPlan { epoch, samples, repeats: Vec::new(), replacements: None, image_size: None }
    }

    /// The same batch with views of another size, which must pass [`Transform::check`](crate::transform::Transform::check).
    pub fn with_image_size(self, image_size: u32) -> BatchPlan {
        BatchPlan { image_size: Some(image_size), ..self }
    }

    /// How often the epoch has drawn the sample in `slot` before.
    pub(super) fn repeat(&self, slot: usize) -> u32 {
        self.repeats.get(slot).copied().unwrap_or(0)
    }
}

/// Replacements of bad samples: the sample in the same slot of the next global batch, or of the one after that. They
/// don't depend on the number of ranks.
#[derive(Debug, Clone)]
pub struct Replacements {
    /// The epoch's order.
    pub order: Arc<EpochOrder>,
    /// Position in the order of the batch's first slot.
    pub first: usize,
    /// Samples of a global batch.
    pub global_batch: usize,
}

impl Replacements {
    /// Bad samples in a row after which the batch is an error.
    pub const MAX_TRIES: usize = 64;

    /// The `attempt`-th replacement for `slot`, counted from 1.
    pub fn pick(&self, slot: usize, attempt: usize) -> u32 {
        self.order.samples[self.position(slot, attempt)]
    }

    /// How often the epoch draws that sample before its own position.
    pub(super) fn repeat(&self, slot: usize, attempt: usize) -> u32 {
        self.order.repeat_at(self.position(slot, attempt))
    }

    fn position(&self, slot: usize, attempt: usize) -> usize {
        (self.first + slot + attempt * self.global_batch) % self.order.samples.len()
    }
}

/// The samples of an evaluation that `rank` loads, in dataset order. The ranks' shares are disjoint, cover `0..len`,
/// and differ in size by at most one. Nothing is padded or left out, so counts are exact.
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
    use std::collections::BTreeSet;

    #[test]
    fn epoch_has_each_sample_once() {
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
    fn global_batch_is_the_same_for_every_world() {
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
    fn totals_are_divided_by_largest_remainders() {
        for (total, shares, parts) in [
            (12, &[2.0, 1.0][..], &[8, 4][..]),
            (10, &[1.0, 1.0, 1.0], &[4, 3, 3]),
            (7, &[0.5, 0.3, 0.2], &[4, 2, 1]), // 3.5, 2.1, 1.4
            (3, &[0.0, 5.0], &[0, 3]),
            (2, &[1.0, 1.0, 1.0], &[1, 1, 0]),
            (103, &[60.0, 43.0], &[60, 43]),
        ] {
            assert_eq!(apportion(total, shares), parts, "{total} by {shares:?}");
        }
    }

    #[test]
    fn groups_are_drawn_as_often_as_asked_and_each_draw_is_numbered() {
        let groups = [
            DrawGroup { samples: vec![0, 1, 2, 3], draws: 4 },
            DrawGroup { samples: vec![4, 5, 6], draws: 8 }, // twice each, and two of them once more
            DrawGroup { samples: vec![7, 8], draws: 1 },
            DrawGroup { samples: vec![], draws: 0 },
        ];
        let mut extra = BTreeSet::new();
        for epoch in 0..50 {
            let order = EpochOrder::draw(&groups, 5, epoch);
            assert_eq!(order.samples().len(), 13);
            let count = |sample: u32| order.samples().iter().filter(|&&other| other == sample).count();
            assert!((0..4).all(|sample| count(sample) == 1));
            let twice: Vec<u32> = (4..7).filter(|&sample| count(sample) == 2).collect();
            assert_eq!((twice.len(), (4..7).map(count).sum::<usize>()), (1, 8));
            assert_eq!(count(7) + count(8), 1);
            extra.insert((twice[0], count(7)));
            for sample in 0..9 {
                let mut repeats: Vec<u32> = (0..13)
                    .filter(|&at| order.samples()[at] == sample)
                    .map(|at| order.repeat_at(at))
                    .collect();
                repeats.sort_unstable();
                assert_eq!(repeats, (0..count(sample) as u32).collect::<Vec<_>>(), "sample {sample}");
            }
        }
        assert_eq!(extra.len(), 6, "epochs draw other samples: {extra:?}");
    }

    #[test]
    fn draws_are_the_same_for_every_world_and_epoch_start() {
        let groups = [
            DrawGroup { samples: (0..40).collect(), draws: 20 },
            DrawGroup { samples: (40..44).collect(), draws: 30 },
        ];
        let order = Arc::new(EpochOrder::draw(&groups, 3, 7));
        assert_eq!(*order, EpochOrder::draw(&groups, 3, 7), "a resumed epoch has the same order");
        for step in 0..order.steps(12) {
            for world in [1, 2, 3] {
                let plans: Vec<BatchPlan> =
                    (0..world).map(|rank| order.rank_plan(7, step, 12, rank, world)).collect();
                let samples: Vec<u32> = plans.iter().flat_map(|plan| plan.samples.clone()).collect();
                let repeats: Vec<u32> = plans.iter().flat_map(|plan| plan.repeats.clone()).collect();
                assert_eq!(samples, order.samples()[step * 12..][..12]);
                assert_eq!(repeats, order.repeats[step * 12..][..12]);
            }
        }
        assert!(order.repeats.contains(&7), "30 draws of 4 samples");
    }

    #[test]
    fn lanes_read_shards_one_after_another() {
        let mut samples = 0..;
        let shards: Vec<Vec<u32>> =
            (0..23).map(|shard| samples.by_ref().take(90 + shard % 7).collect()).collect();
        let lanes = Lanes { count: 4, window: 50 };
        let order = EpochOrder::in_lanes(&shards, lanes, 16, 5, 2);
        let total: usize = shards.iter().map(Vec::len).sum();
        assert_eq!(order.samples().len(), total / 4 / 4 * 16, "no more than a global batch is left out");
        let mut sorted = order.samples().to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), order.samples().len(), "each at most once");
        let shard_of = |sample: u32| shards.iter().position(|shard| shard.contains(&sample)).unwrap();
        for lane in 0..4 {
            let of_lane: Vec<u32> =
                order.samples().chunks(16).flat_map(|batch| batch[lane * 4..][..4].to_vec()).collect();
            // A lane mostly reads two shards at a time; over the epoch it reads slightly more than a quarter of them.
            let open =
                |part: &[u32]| part.iter().map(|&sample| shard_of(sample)).collect::<BTreeSet<_>>().len();
            let parts: Vec<usize> = of_lane.windows(20).map(open).collect();
            assert!(parts.iter().sum::<usize>() < 3 * parts.len(), "{parts:?}");
            let read: BTreeSet<usize> = of_lane.iter().map(|&sample| shard_of(sample)).collect();
            assert!((6..=8).contains(&read.len()), "{read:?}");
            assert!(
                of_lane.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count() < of_lane.len() / 10,
                "shuffled"
            );
            // The lane belongs to one rank of two, or of four.
            for world in [1, 2, 4] {
                let rank = lane * world / 4;
                let part = order.rank_samples(3, 16, rank, world);
                assert!(of_lane[12..16].iter().all(|sample| part.contains(sample)));
            }
        }
        assert_eq!(order, EpochOrder::in_lanes(&shards, lanes, 16, 5, 2));
        assert_ne!(order, EpochOrder::in_lanes(&shards, lanes, 16, 5, 3));
    }

    #[test]
    fn spares_come_from_the_slot_in_later_batches() {
        let order = Arc::new(EpochOrder::new(1, 0, 10));
        let at = |place: usize| order.samples()[place % 10];
        // Slot 3 of global batch 1 of 4, as a world of one has it and as the second of two ranks has.
        let whole = 4;
        let half = 4 + 2;
        for (first, slot) in [(whole, 3), (half, 1)] {
            let replacements = Replacements { order: order.clone(), first, global_batch: 4 };
            assert_eq!([1, 2, 3].map(|attempt| replacements.pick(slot, attempt)), [at(11), at(15), at(19)]);
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
    fn uneven_split_is_refused() {
        EpochOrder::new(0, 0, 100).rank_samples(0, 8, 0, 3);
    }
}
