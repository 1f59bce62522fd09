//! Whether similar images take similar paths: the Pearson correlation between the cosine similarities of features and of
//! paths, over all pairs of images (the paper's Section 4.4.4, Table 9 and Figure 12).

use codinet_dataloader::eval_samples;
use codinet_trainer::dist::World;
use codinet_trainer::sys::error::Result;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

/// Bins along a side of [`Correlation::bins`], for similarities of −1 to 1.
pub const BINS: i64 = 120;
/// The most pairs that are in memory at once.
const PAIRS_AT_ONCE: i64 = 1 << 22;

/// Statistics over all pairs of K images.
#[derive(Clone, Debug, Serialize)]
pub struct Correlation {
    /// The number of pairs.
    pub pairs: u64,
    /// Pearson's correlation coefficient; none if all pairs are equally similar in features or in paths.
    pub pcc: Option<f64>,
    /// The mean cosine similarity of two images' features.
    pub mean_feature_similarity: f64,
    /// The mean cosine similarity of two images' paths.
    pub mean_path_similarity: f64,
    /// The number of pairs for each similarity of features (column) and of paths (row), `[BINS · BINS]`.
    #[serde(skip)]
    pub bins: Vec<f64>,
}

/// All ranks, each with all of `features` `[K, F]` and `paths` `[K, n]`: each rank computes its share of the pairs. The
/// similarity with a row of zeros is 0.
pub fn correlate(world: &World, features: &Tensor, paths: &Tensor) -> Result<Correlation> {
    let features = normalise_rows(features);
    let paths = normalise_rows(paths);
    let images = features.size()[0];
    let mine = eval_samples(images as usize, world.rank(), world.ranks());
    let sums = Tensor::zeros([6], (Kind::Double, Device::Cpu));
    let mut bins = Tensor::zeros([BINS * BINS], (Kind::Double, Device::Cpu));
    let rows = (PAIRS_AT_ONCE / images.max(1)).max(1);
    let first = mine.start as i64;
    let end = mine.end as i64;
    for start in (first..end).step_by(rows as usize) {
        let part = rows.min(end - start);
        let own = Tensor::arange_start(start, start + part, (Kind::Int64, Device::Cpu)).unsqueeze(1);
        let others = Tensor::arange(images, (Kind::Int64, Device::Cpu)).unsqueeze(0);
        let later = own.less_tensor(&others); // each pair once
        let similarities =
            |rows: &Tensor| rows.narrow(0, start, part).matmul(&rows.tr()).masked_select(&later);
        let x = similarities(&features);
        let y = similarities(&paths);
        let count = Tensor::from(x.numel() as f64);
        let moments = [count, x.sum(None), y.sum(None), x.dot(&x), y.dot(&y), x.dot(&y)];
        let _ = sums.shallow_clone().g_add_(&Tensor::stack(&moments, 0));
        let bin = |x: &Tensor| ((x + 1.0) * (BINS as f64 / 2.0)).floor().clamp(0.0, (BINS - 1) as f64);
        let indices = (bin(&y) * BINS as f64 + bin(&x)).to_kind(Kind::Int64);
        bins += indices.bincount(None::<&Tensor>, BINS * BINS).to_kind(Kind::Double);
    }
    world.all_reduce_sum(&sums)?;
    world.all_reduce_sum(&bins)?;
    let sums = Vec::<f64>::try_from(&sums).expect("six numbers");
    let [pairs, x, y, xx, yy, xy] = sums[..] else { unreachable!("six numbers") };
    let variance = |sum: f64, squares: f64| pairs * squares - sum * sum;
    let variance_x = variance(x, xx);
    let variance_y = variance(y, yy);
    // Rounding leaves a little of a variance of zero.
    let varies = |variance: f64, squares: f64| variance > 1e-12 * pairs * squares;
    let pcc = (varies(variance_x, xx) && varies(variance_y, yy))
        .then(|| (pairs * xy - x * y) / (variance_x.sqrt() * variance_y.sqrt()));
    Ok(Correlation {
        pairs: pairs as u64,
        pcc,
        mean_feature_similarity: x / pairs,
        mean_path_similarity: y / pairs,
        bins: Vec::try_from(bins).expect("numbers"),
    })
}

/// Scales rows to length 1, in f64; rows of zeros stay zero.
fn normalise_rows(rows: &Tensor) -> Tensor {
    let rows = rows.to_kind(Kind::Double).to_device(Device::Cpu);
    let lengths = rows.square().sum_dim_intlist([1].as_slice(), true, None).sqrt();
    &rows / lengths.where_self(&lengths.gt(0.0), &Tensor::ones_like(&lengths))
}

#[cfg(test)]
mod tests {
    use super::*;
    use codinet_trainer::dist;

    #[test]
    fn correlation_matches_hand_worked_values() {
        let world = dist::join().unwrap();
        let rows = |values: &[f64]| Tensor::from_slice(values).view([-1, 2]);
        // Features at 0°, 60° and 90°: similarities ½ (1,2), 0 (1,3), √¾ (2,3). Paths: the first two the same, the third
        // across: 1, 0, 0.
        let half = 0.5;
        let tall = 0.75f64.sqrt();
        let features = rows(&[1.0, 0.0, half * 7.0, tall * 7.0, 0.0, 2.0]);
        let paths = rows(&[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]);
        let correlation = correlate(&world, &features, &paths).unwrap();
        let mean = (half + tall) / 3.0;
        let x = [half, 0.0, tall];
        let covariance = (x[0] - mean) * (2.0 / 3.0) - (x[1] - mean) / 3.0 - (x[2] - mean) / 3.0;
        let variance: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
        let expected = covariance / (variance * (4.0 / 9.0 + 2.0 / 9.0)).sqrt();
        assert!((correlation.pcc.unwrap() - expected).abs() < 1e-12, "{correlation:?}");
        assert_eq!(correlation.pairs, 3);
        assert!((correlation.mean_feature_similarity - mean).abs() < 1e-12);
        assert!((correlation.mean_path_similarity - 1.0 / 3.0).abs() < 1e-12);
        // Similarities of ½ and 1 fall into column 90 of the last row.
        assert_eq!(correlation.bins.iter().sum::<f64>(), 3.0);
        assert_eq!(correlation.bins[119 * 120 + 90] + correlation.bins[119 * 120 + 89], 1.0);

        let same = correlate(&world, &features, &features).unwrap();
        assert!((same.pcc.unwrap() - 1.0).abs() < 1e-12);
        let equal = correlate(&world, &features, &rows(&[1.0, 1.0, 2.0, 2.0, 3.0, 3.0])).unwrap();
        assert!(equal.pcc.is_none(), "paths that are all equally similar have no correlation");
        let zero = correlate(&world, &features, &rows(&[0.0, 0.0, 1.0, 0.0, 1.0, 0.0])).unwrap();
        assert!(
            (zero.mean_path_similarity - 1.0 / 3.0).abs() < 1e-12,
            "the similarity with a row of zeros is 0"
        );
    }
}
