//! t-SNE (van der Maaten & Hinton, JMLR 2008) of relaxed paths: the paper's Figures 6, 7, 10 and 11.

use codinet_dataloader::random::{self, Domain};

/// Barnes–Hut's θ.
const THETA: f32 = 0.5;
/// The largest coordinate of an initial position.
const START: f64 = 1e-4;

#[derive(Clone, Copy, Debug)]
pub struct TsneOptions {
    /// About the number of a point's neighbours; less if there are too few points.
    pub perplexity: f64,
    /// Steps of gradient descent.
    pub epochs: usize,
    /// The seed of the initial positions.
    pub seed: u64,
}

/// Positions in the plane, `[N][2]`, of `points` `[N, n]`; the initial ones if there are fewer than 4 points.
pub fn tsne(points: &[f32], n: usize, options: TsneOptions) -> Vec<[f64; 2]> {
    let rows: Vec<&[f32]> = points.chunks(n.max(1)).collect();
    let mut rng = random::stream(Domain::Analysis, options.seed, 2, 0, 0);
    let start: Vec<f32> =
        (0..2 * rows.len()).map(|_| random::draw_uniform(&mut rng, -START, START) as f32).collect();
    let pairs = |flat: &[f32]| flat.chunks(2).map(|at| [f64::from(at[0]), f64::from(at[1])]).collect();
    // Each point needs three times the perplexity of neighbours.
    let perplexity = options.perplexity.min((rows.len().saturating_sub(1)) as f64 / 3.0) as f32;
    if rows.len() < 4 {
        return pairs(&start);
    }
    let distance =
        |a: &&[f32], b: &&[f32]| a.iter().zip(*b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    let mut tsne = bhtsne::tSNE::<f32, &[f32], 2>::new(&rows);
    // scikit-learn's: N over the early exaggeration over 4, at least 50.
    let rate = (rows.len() as f32 / 12.0 / 4.0).max(50.0);
    tsne.perplexity(perplexity).epochs(options.epochs).learning_rate(rate).initial_embedding(start);
    tsne.barnes_hut(THETA, distance);
    pairs(&tsne.embedding())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also with many equal points.
    #[test]
    fn distant_clusters_stay_apart() {
        let mut points = Vec::new();
        for i in 0..120 {
            let far = if i % 2 == 0 { 0.0 } else { 1.0 };
            let wobble = if i < 40 { 0.0 } else { (i * 37 % 11) as f32 * 0.002 };
            points.extend([far, far + wobble, 1.0 - far, far - wobble]);
        }
        let options = TsneOptions { perplexity: 10.0, epochs: 500, seed: 3 };
        let places = tsne(&points, 4, options);
        assert!(places.iter().flatten().all(|at| at.is_finite()));
        let centre = |odd: usize| {
            let cluster = places.iter().skip(odd).step_by(2);
            let sum = cluster.fold([0.0, 0.0], |sum, at| [sum[0] + at[0], sum[1] + at[1]]);
            sum.map(|sum| sum / 60.0)
        };
        let centres = [centre(0), centre(1)];
        let distance = |a: &[f64; 2], b: &[f64; 2]| ((a[0] - b[0]).powi(2) + (a[1] - b[1]).powi(2)).sqrt();
        let nearer = places
            .iter()
            .enumerate()
            .filter(|(i, at)| distance(at, &centres[i % 2]) < distance(at, &centres[1 - i % 2]));
        assert_eq!(nearer.count(), 120);
        assert_eq!(tsne(&points[..8], 4, options).len(), 2);
    }
}
