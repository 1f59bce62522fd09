//! How far the network's view of an image is from its view of the same image augmented: Kullback–Leibler divergences, in
//! nats. The paper's Figure 9 is captioned as that of predictions, its text speaks of paths; both are here.

use codinet_trainer::metrics::routing::Histogram;
use tch::{Kind, Tensor};

/// KL(own ‖ changed) of paths: Σ_k KL(B(v_k) ‖ B(v'_k)), blocks taken as independent coins of probability v = σ(logit).
/// `[N, n]` logits → `[N]`.
pub fn of_paths(own: &Tensor, changed: &Tensor) -> Tensor {
    let own = own.to_kind(Kind::Double);
    let changed = changed.to_kind(Kind::Double);
    let runs = own.sigmoid();
    let skips = (-&own).sigmoid();
    let log_ratio = |sign: f64| (&own * sign).log_sigmoid() - (&changed * sign).log_sigmoid();
    (runs * log_ratio(1.0) + skips * log_ratio(-1.0)).sum_dim_intlist([1].as_slice(), false, None)
}

/// KL(own ‖ changed) of the predicted classes' probabilities: `[N, classes]` logits → `[N]`.
pub fn of_predictions(own: &Tensor, changed: &Tensor) -> Tensor {
    let own = own.log_softmax(1, Kind::Double);
    let changed = changed.log_softmax(1, Kind::Double);
    (own.exp() * (&own - changed)).sum_dim_intlist([1].as_slice(), false, None)
}

/// KL(own ‖ changed) of how often each hard path is taken over a whole set; half an image is added to every path that
/// either set takes, so that a path new to one of them does not make it infinite.
pub fn of_frequencies(own: &Histogram, changed: &Histogram) -> f64 {
    let mut union = own.clone();
    union.merge(changed);
    let smoothed = |of: &Histogram, path: &[u8]| {
        (of.count(path) as f64 + 0.5) / (of.images() as f64 + 0.5 * union.distinct() as f64)
    };
    let term = |path: &[u8]| {
        let p = smoothed(own, path);
        let q = smoothed(changed, path);
        p * (p / q).ln()
    };
    union.iter().map(|(path, _)| term(path)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_worked_by_hand() {
        // One block at ½ and ¼, another at ½ and ½: ½ ln 2 + ½ ln ⅔ = ½ ln 4/3.
        let quarter = (0.25f64 / 0.75).ln();
        let own = Tensor::from_slice(&[0.0, 0.0]).view([1, 2]);
        let changed = Tensor::from_slice(&[quarter, 0.0]).view([1, 2]);
        let found = of_paths(&own, &changed).double_value(&[0]);
        assert!((found - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-12, "{found}");
        assert_eq!(of_paths(&own, &own).double_value(&[0]), 0.0);
        // Saturated gates stay finite: a coin that nearly always falls one way, taken for one that falls the other.
        let far =
            of_paths(&Tensor::from_slice(&[60.0]).view([1, 1]), &Tensor::from_slice(&[-60.0]).view([1, 1]));
        assert!((far.double_value(&[0]) - 60.0).abs() < 1e-9);

        // (½, ½) against (¼, ¾): ½ ln 2 + ½ ln ⅔, by logits that differ by ln 3.
        let own = Tensor::from_slice(&[1.0f32, 1.0]).view([1, 2]);
        let changed = Tensor::from_slice(&[0.0f32, 3.0f32.ln()]).view([1, 2]);
        let found = of_predictions(&own, &changed).double_value(&[0]);
        assert!((found - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-7, "{found}");

        // Counts (3, 0) and (1, 2), smoothed (3.5, 0.5)/4 and (1.5, 2.5)/4.
        let p = Histogram::new(&[0, 0, 0], 1, 3);
        let q = Histogram::new(&[0, 1, 1], 1, 3);
        let expected = 3.5 / 4.0 * (3.5f64 / 1.5).ln() + 0.5 / 4.0 * (0.5f64 / 2.5).ln();
        assert!((of_frequencies(&p, &q) - expected).abs() < 1e-12);
        assert_eq!(of_frequencies(&p, &p), 0.0);
    }
}
