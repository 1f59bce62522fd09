//! Random numbers as a pure function of their purpose.
//!
//! Every use has its own [`stream`], keyed by its purpose (a seed, an epoch or step, a sample, a view). No generator
//! is shared or carried along, so a number never depends on the thread, the rank or the moment. A resumed run draws
//! the numbers of the uninterrupted one.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The purpose of random numbers; streams of different domains are unrelated.
///
/// The discriminants are part of every key: **never renumber or reuse one**, or old runs can't be reproduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u64)]
pub enum Domain {
    /// The order of samples; keyed (seed, epoch, 0, 0).
    Order = 1,
    /// The crop, flips and augmentation of a view; keyed (seed, epoch, sample, view).
    View = 2,
    /// Initial weights; keyed (seed, parameter, 0, 0).
    Init = 3,
    /// Gumbel noise in the routers; keyed (seed, step, sample, view).
    Gumbel = 4,
    /// Mixup and CutMix of a batch; keyed (seed, epoch, step, 0).
    Mix = 5,
    /// Gumbel noise in an evaluation; keyed (seed, sample, 0, 0).
    EvaluationGumbel = 6,
    /// Residual branches that stochastic depth drops; keyed (seed, step, sample, view).
    DropPath = 7,
    /// The order in which an import puts samples into shards; keyed (seed, 0, 0, 0).
    Import = 10,
    /// Augmentations and initial layouts in an analysis; keyed (seed, purpose, sample, view).
    Analysis = 11,
}

/// The generator for one purpose: ChaCha8 whose key is (seed, a, b, c) and whose nonce is the domain.
pub fn stream(domain: Domain, seed: u64, a: u64, b: u64, c: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, word) in key.chunks_exact_mut(8).zip([seed, a, b, c]) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(domain as u64);
    rng
}

/// A number in [0, 1), a multiple of 2⁻⁵³. It is written here, like [`draw_below`], so that a new release of a
/// random number library can't change what a seed means.
pub fn draw_unit(rng: &mut impl Rng) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// A number in [low, high); `low` where the two are equal.
pub fn draw_uniform(rng: &mut impl Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * draw_unit(rng)
}

/// A whole number in 0..n, each equally likely (Lemire's method). 0 where n is 0.
pub fn draw_below(rng: &mut impl Rng, n: u32) -> u32 {
    let mut product = u64::from(rng.next_u32()) * u64::from(n);
    if (product as u32) < n {
        let biased = n.wrapping_neg() % n; // 2³² mod n: so many low parts would make some results likelier
        while (product as u32) < biased {
            product = u64::from(rng.next_u32()) * u64::from(n);
        }
    }
    (product >> 32) as u32
}

/// Shuffles `items`, every order being equally likely (Fisher and Yates).
///
/// # Panics
/// Where there are more than `u32::MAX` of them.
pub fn shuffle<T>(rng: &mut impl Rng, items: &mut [T]) {
    assert!(u32::try_from(items.len()).is_ok(), "{} items to shuffle", items.len());
    for last in (1..items.len()).rev() {
        items.swap(last, draw_below(rng, last as u32 + 1) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when a dependency (or an edit) changes what seeds mean, which would silently change every run. The
    /// numbers are from a ChaCha8 written from its specification, in another language.
    #[test]
    fn streams_are_pinned() {
        let mut order = stream(Domain::Order, 1, 2, 3, 4);
        assert_eq!(
            [order.next_u64(), order.next_u64()],
            [8_633_189_907_303_862_230, 18_225_287_609_222_557_118]
        );
        let mut gumbel = stream(Domain::Gumbel, 42, 1000, 7, 1);
        assert_eq!(
            [gumbel.next_u64(), gumbel.next_u64()],
            [17_302_159_703_806_259_070, 14_597_829_530_813_676_880]
        );
        let mut view = stream(Domain::View, 0, 0, 0, 0);
        assert_eq!(
            [draw_below(&mut view, 10), draw_below(&mut view, 1000), draw_below(&mut view, u32::MAX)],
            [2, 974, 615_128_444]
        );
        assert_eq!(draw_unit(&mut view), 0.762_101_961_676_216_2);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let first = |domain, seed, a, b, c| stream(domain, seed, a, b, c).next_u64();
        let mut outputs = vec![
            first(Domain::Order, 5, 5, 5, 5),
            first(Domain::View, 5, 5, 5, 5),
            first(Domain::View, 6, 5, 5, 5),
            first(Domain::View, 5, 6, 5, 5),
            first(Domain::View, 5, 5, 6, 5),
            first(Domain::View, 5, 5, 5, 6),
        ];
        outputs.sort_unstable();
        outputs.dedup();
        assert_eq!(outputs.len(), 6);
    }

    #[test]
    fn below_is_even_and_in_range() {
        let mut rng = stream(Domain::Order, 0, 0, 0, 0);
        let mut counts = [0_u32; 6];
        for _ in 0..60_000 {
            counts[draw_below(&mut rng, 6) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (9_600..10_400).contains(&count)), "{counts:?}");
    }

    #[test]
    fn unit_fills_the_interval() {
        let mut rng = stream(Domain::Order, 0, 0, 0, 0);
        let draws: Vec<f64> = (0..10_000).map(|_| draw_unit(&mut rng)).collect();
        assert!(draws.iter().all(|draw| (0.0..1.0).contains(draw)));
        let mean = draws.iter().sum::<f64>() / draws.len() as f64;
        assert!((0.49..0.51).contains(&mean), "{mean}");
    }
}
