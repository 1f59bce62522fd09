//! Stochastic depth of a static network.

use codinet_dataloader::random::{self, Domain, draw_unit};
use tch::Tensor;

/// What multiplies each block's residual branch for every view of `samples`, f32 `[L·M, blocks]`: with probability p_b 0, otherwise
/// 1/(1 − p_b), where p_b = `rate`·b/(blocks − 1) rises from 0 for the first block to `rate` for the last (arXiv 1603.09382, scaled as
/// in timm). A pure function of (seed, step, sample, view, block), so the number of ranks does not change it.
pub fn drop_path_factors(
    seed: u64,
    step: u64,
    samples: &[u32],
    views: usize,
    blocks: usize,
    rate: f64,
) -> Tensor {
    let mut factors = Vec::with_capacity(samples.len() * views * blocks);
    for &sample in samples {
        for view in 0..views as u64 {
            let mut rng = random::stream(Domain::DropPath, seed, step, sample.into(), view);
            factors.extend((0..blocks).map(|block| {
                let dropped = rate * block as f64 / blocks.saturating_sub(1).max(1) as f64;
                if draw_unit(&mut rng) < dropped { 0.0 } else { (1.0 / (1.0 - dropped)) as f32 }
            }));
        }
    }
    Tensor::from_slice(&factors).view([(samples.len() * views) as i64, blocks as i64])
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn branches_are_dropped_at_rates_that_rise_linearly() {
        let samples: Vec<u32> = (0..4000).collect();
        let factors = drop_path_factors(1, 7, &samples, 2, 4, 0.3);
        for (block, rate) in [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.3)] {
            let column = factors.select(1, block);
            let kept =
                column.eq(1.0 / (1.0 - rate)).logical_or(&(&column - 1.0 / (1.0 - rate)).abs().lt(1e-6));
            let dropped = column.eq(0.0);
            assert!(bool::try_from(kept.logical_or(&dropped).all()).unwrap(), "either kept or dropped");
            let share = f64::try_from(dropped.to_kind(Kind::Double).mean(None)).unwrap();
            assert!((share - rate).abs() < 0.02, "block {block}: {share}, {rate}");
        }
        assert_eq!(drop_path_factors(1, 7, &[3], 1, 1, 0.3), Tensor::from_slice(&[1.0f32]).view([1, 1]));
    }

    #[test]
    fn factors_depend_on_step_sample_and_view_and_not_on_ranks() {
        let draw = |step, samples: &[u32]| drop_path_factors(1, step, samples, 2, 40, 0.5);
        let all = draw(3, &[5, 9, 2, 4]);
        assert_eq!(Tensor::cat(&[draw(3, &[5, 9]), draw(3, &[2, 4])], 0), all);
        assert_ne!(draw(4, &[5, 9, 2, 4]), all);
        assert_ne!(all.get(0), all.get(1), "views");
        assert_ne!(all.get(0), all.get(2), "samples");
    }
}
