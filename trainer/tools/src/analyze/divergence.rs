//! Kullback–Leibler divergences, in nats, between the network's outputs for an image and for its augmentation. The caption of
//! the paper's Figure 9 says that it shows predictions, the text says paths; both are here.

use codinet_trainer::metrics::routing::Histogram;
use tch::{Kind, Tensor};

/// KL of paths: Σ_k KL(B(v_k) ‖ B(v'_k)), where each block is an independent Bernoulli variable of probability
/// v = σ(logit). Logits `[N, n]` of the image (v) and of its augmentation (v') → `[N]`.
pub fn path_kl(image: &Tensor, augmented: &Tensor) -> Tensor {
    let image = image.to_kind(Kind::Double);
    let augmented = augmented.to_kind(Kind::Double);
    let runs = image.sigmoid();
    let skips = (-&image).sigmoid();
    let log_ratio = |sign: f64| (&image * sign).log_sigmoid() - (&augmented * sign).log_sigmoid();
    (runs * log_ratio(1.0) + skips * log_ratio(-1.0)).sum_dim_intlist([1].as_slice(), false, None)
}

/// KL of the classes' probabilities: logits `[N, classes]` → `[N]`.
pub fn prediction_kl(image: &Tensor, augmented: &Tensor) -> Tensor {
    let image = image.log_softmax(1, Kind::Double);
    let augmented = augmented.log_softmax(1, Kind::Double);
    (image.exp() * (&image - augmented)).sum_dim_intlist([1].as_slice(), false, None)
}

/// KL of the frequencies of hard paths over a whole set. Each path that occurs in either set counts half an image more, so
/// that a path that occurs in only one of them does not make it infinite.
pub fn frequency_kl(images: &Histogram, augmented: &Histogram) -> f64 {
    let mut union = images.clone();
    union.merge(augmented);
    let smoothed = |paths: &Histogram, path: &[u8]| {
        (paths.count(path) as f64 + 0.5) / (paths.images() as f64 + 0.5 * union.distinct() as f64)
    };
    let term = |path: &[u8]| {
        let p = smoothed(images, path);
        let q = smoothed(augmented, path);
        p * (p / q).ln()
    };
    union.iter().map(|(path, _)| term(path)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_match_hand_worked_values() {
        // One block at ½ and ¼, another at ½ and ½: ½ ln 2 + ½ ln ⅔ = ½ ln 4/3.
        let quarter = (0.25f64 / 0.75).ln();
        let own = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]);
        let changed = Tensor::from_slice(&[quarter, 0.0]).view([1, 2]);
        let found = path_kl(&own, &changed).double_value(&[0]);
        assert!((found - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-12, "{found}");
        assert_eq!(path_kl(&own, &own).double_value(&[0]), 0.0);
        // The divergence of saturated gates is finite.
        let far =
            path_kl(&Tensor::from_slice(&[60.0]).view([1, 1]), &Tensor::from_slice(&[-60.0]).view([1, 1]));
        assert!((far.double_value(&[0]) - 60.0).abs() < 1e-9);

        // (½, ½) against (¼, ¾): ½ ln 2 + ½ ln ⅔, by logits that differ by ln 3.
        let own = Tensor::from_slice(&[1.0f32, 1.0]).view([1, 2]);
        let changed = Tensor::from_slice(&[0.0f32, 3.0f32.ln()]).view([1, 2]);
        let found = prediction_kl(&own, &changed).double_value(&[0]);
        assert!((found - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-7, "{found}");

        // Counts (3, 0) and (1, 2), smoothed (3.5, 0.5)/4 and (1.5, 2.5)/4.
        let p = Histogram::new(&[0, 0, 0], 1, 3);
        let q = Histogram::new(&[0, 1, 1], 1, 3);
        let expected = 3.5 / 4.0 * (3.5f64 / 1.5).ln() + 0.5 / 4.0 * (0.5f64 / 2.5).ln();
        assert!((frequency_kl(&p, &q) - expected).abs() < 1e-12);
        assert_eq!(frequency_kl(&p, &p), 0.0);
    }
}
