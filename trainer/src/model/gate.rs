//! Gates' decisions: the Gumbel-Softmax relaxation of training (Eq. 6) and the hard decision of inference (Eq. 13).

use crate::config::{Noise, Relaxation, Skip};
use codinet_dataloader::random::{self, Domain};
use rand::Rng;
use tch::{Kind, Tensor};

/// How gates decide in a forward pass.
#[derive(Clone, Copy, Debug)]
pub enum Decisions<'a> {
    /// v = σ((U[1] − U[0] + g₁ − g₀)/T), Eq. 6. Blocks are blended by v (Eq. 7).
    Relaxed {
        /// g₁ − g₀ of every input and gate, `[N, n]`; `None`: no noise.
        noise: Option<&'a Tensor>,
        /// T.
        temperature: f64,
        /// Whether blocks are blended by v, or by v ≥ 0.5 with the gradient of v.
        relaxation: Relaxation,
    },
    /// u = 1 if U[1] ≥ U[0], else 0, Eq. 13. No noise.
    Hard,
    /// u = 1 if U[1] + g₁ ≥ U[0] + g₀, else 0: a block runs with probability σ(U[1] − U[0]). g₁ − g₀ as above.
    Sampled(&'a Tensor),
    /// As `Sampled` or, without noise, as `Hard`, but each input computes only the branch that it takes: a batch norm has the
    /// statistics of the inputs that reach it.
    Skipping(Option<&'a Tensor>),
    /// No gates: stochastic depth in the training of a static network. What multiplies each block's residual branch,
    /// f32 `[N, blocks]` (see [`super::drop_path_factors`]).
    DropPath(&'a Tensor),
}

impl<'a> Decisions<'a> {
    /// Hard decisions, with noise or without.
    pub fn hard(noise: Option<&'a Tensor>, skip: Skip) -> Self {
        match (skip, noise) {
            (Skip::Real, noise) => Self::Skipping(noise),
            (Skip::Masked, Some(noise)) => Self::Sampled(noise),
            (Skip::Masked, None) => Self::Hard,
        }
    }

    /// The decision of gate `k` for its logit `[N]`: v in \[0, 1\], or u in {0, 1}.
    pub fn decide(&self, logit: &Tensor, k: usize) -> Tensor {
        let logit = self.add_noise(logit, k);
        let Self::Relaxed { temperature, relaxation, .. } = self else { return hard_decisions(&logit) };
        let v = relaxed_decisions(&logit, *temperature);
        match relaxation {
            Relaxation::Gumbel => v,
            // The detached difference has no gradient.
            Relaxation::StraightThrough => (v.ge(0.5).to_kind(v.kind()) - &v).detach() + v,
        }
    }

    /// The logit of gate `k`, `[N]`, with its noise.
    pub(super) fn add_noise(&self, logit: &Tensor, k: usize) -> Tensor {
        match self {
            Self::Sampled(noise) | Self::Skipping(Some(noise)) | Self::Relaxed { noise: Some(noise), .. } => {
                logit + noise.select(1, k as i64)
            }
            Self::Hard | Self::Skipping(None) | Self::DropPath(_) | Self::Relaxed { noise: None, .. } => {
                logit.shallow_clone()
            }
        }
    }
}

/// v = σ(logit/T), Eq. 6; `logits` include the noise, if there is any.
pub fn relaxed_decisions(logits: &Tensor, temperature: f64) -> Tensor {
    if temperature == 1.0 { logits.sigmoid() } else { (logits / temperature).sigmoid() }
}

/// u = 1 if the logit U[1] − U[0] is at least 0, else 0: Eq. 13, f32.
pub fn hard_decisions(logits: &Tensor) -> Tensor {
    logits.ge(0.0).to_kind(Kind::Float)
}

/// g₁ − g₀ of every view of `samples` and every gate, `[L·M, n]`. A pure function of (seed, step, sample, view, gate), so the
/// number of ranks does not change it. Views that share noise have that of the first.
pub fn gumbel_noise(
    seed: u64,
    step: u64,
    samples: &[u32],
    views: usize,
    gates: usize,
    sharing: Noise,
) -> Tensor {
    let mut noise = Vec::with_capacity(samples.len() * views * gates);
    for &sample in samples {
        for view in 0..views as u64 {
            let draw = match sharing {
                Noise::PerView => view,
                Noise::PerSample => 0,
            };
            let rng = random::stream(Domain::Gumbel, seed, step, sample.into(), draw);
            noise.extend(gumbel_differences(rng).take(gates));
        }
    }
    Tensor::from_slice(&noise).view([(samples.len() * views) as i64, gates as i64])
}

/// g₁ − g₀ of every evaluated image of `samples` and every gate, `[N, n]`. A pure function of (seed, sample, gate).
pub fn evaluation_noise(seed: u64, samples: &[u32], gates: usize) -> Tensor {
    let stream = |&sample: &u32| random::stream(Domain::EvaluationGumbel, seed, sample.into(), 0, 0);
    let noise: Vec<f32> =
        samples.iter().flat_map(|sample| gumbel_differences(stream(sample)).take(gates)).collect();
    Tensor::from_slice(&noise).view([samples.len() as i64, gates as i64])
}

/// Draws of g₁ − g₀, the difference of two Gumbel variables.
fn gumbel_differences(mut rng: impl Rng) -> impl Iterator<Item = f32> {
    let mut gumbel = move || {
        // 2⁵² evenly spaced values in (0, 1), half a step away from either end.
        let uniform = ((rng.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
        -(-uniform.ln()).ln()
    };
    std::iter::repeat_with(move || {
        let g0 = gumbel();
        let g1 = gumbel();
        (g1 - g0) as f32
    })
}
