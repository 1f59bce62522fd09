//! Gates' decisions: the Gumbel-Softmax relaxation of training (Eq. 6) and the hard decision of inference (Eq. 13).

use crate::config::{Noise, Relaxation};
use codinet_dataloader::random::{self, Domain};
use rand::Rng as _;
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
}

impl Decisions<'_> {
    /// The decision of gate `k` for its logit `[N]`: v in \[0, 1\], or u in {0, 1}.
    pub fn decide(&self, logit: &Tensor, k: usize) -> Tensor {
        let Self::Relaxed { noise, temperature, relaxation } = self else { return hard_decisions(logit) };
        let v = match noise {
            Some(noise) => relaxed_decisions(&(logit + noise.select(1, k as i64)), *temperature),
            None => relaxed_decisions(logit, *temperature),
        };
        match relaxation {
            Relaxation::Gumbel => v,
            // The detached difference has no gradient.
            Relaxation::StraightThrough => (v.ge(0.5).to_kind(v.kind()) - &v).detach() + v,
        }
    }
}

/// v = σ(logit/T), Eq. 6; `logits` include the noise, if there is any.
pub fn relaxed_decisions(logits: &Tensor, temperature: f64) -> Tensor {
    (logits / temperature).sigmoid()
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
            let mut rng = random::stream(Domain::Gumbel, seed, step, sample.into(), draw);
            let mut gumbel = || {
                // 2⁵² evenly spaced values in (0, 1), half a step away from either end.
                let uniform = ((rng.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
                -(-uniform.ln()).ln()
            };
            for _ in 0..gates {
                let g0 = gumbel();
                let g1 = gumbel();
                noise.push((g1 - g0) as f32);
            }
        }
    }
    Tensor::from_slice(&noise).view([(samples.len() * views) as i64, gates as i64])
}
