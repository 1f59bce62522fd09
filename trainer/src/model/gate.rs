//! Where a block's execution is decided: the router of Section 3.1.3, its Gumbel-Softmax relaxation (Eq. 6)
//! and the hard decision of inference (Eq. 13).

use super::layers::{BatchNorm, Builder, Conv, Linear, Shape};
use codinet_dataloader::random::{self, Domain};
use rand::Rng as _;
use tch::{Kind, Tensor};

/// How gates decide.
#[derive(Clone, Copy, Debug)]
pub enum Decisions<'a> {
    /// v = σ((U[1] − U[0] + g₁ − g₀)/T), Eq. 6: each block's output is blended by v (Eq. 7). `noise` holds
    /// g₁ − g₀, `[N, n]`.
    Relaxed {
        /// g₁ − g₀ for every input and block, `[N, n]`.
        noise: &'a Tensor,
        /// T.
        temperature: f64,
    },
    /// u = 1 where U[1] ≥ U[0], Eq. 13, without noise.
    Hard,
}

/// A router: global average pooling, a hidden layer with ReLU, two outputs U (Eqs. 3 to 5).
#[derive(Debug)]
pub struct Router {
    fc1: Linear,
    fc2: Linear,
}

/// What a block is replaced by when it is skipped.
#[derive(Debug)]
pub enum Skip {
    /// The input itself.
    Identity,
    /// conv1×1 + BN + ReLU, where the block changes the shape.
    Project(Conv, BatchNorm),
}

/// A block's router and its way around the block.
#[derive(Debug)]
pub struct Gate {
    router: Router,
    skip: Skip,
}

impl Gate {
    /// The gate of block `name`; returns it with the MACs of its router and of its skip branch.
    ///
    /// `hidden` is the router's d; `open` the first value of U[1]'s bias over U[0]'s.
    pub fn new(
        builder: &mut Builder,
        name: &str,
        from: Shape,
        to: Shape,
        hidden: i64,
        open: f64,
    ) -> (Self, i64, i64) {
        let before = builder.macs;
        builder.router = true;
        let fc1 = builder.linear(&format!("{name}.router.fc1"), from.c, hidden);
        let fc2 = builder.linear(&format!("{name}.router.fc2"), hidden, 2);
        fc2.set_bias(&[0.0, open as f32]);
        builder.router = false;
        let router_macs = builder.macs - before;
        let skip = if from == to {
            Skip::Identity
        } else {
            let (conv, _) =
                builder.conv(&format!("{name}.skip.0"), from, to.c, 1, (from.h + to.h - 1) / to.h);
            Skip::Project(conv, builder.norm(&format!("{name}.skip.1"), to.c))
        };
        let skip_macs = builder.macs - before - router_macs;
        (Self { router: Router { fc1, fc2 }, skip }, router_macs, skip_macs)
    }

    /// U[1] − U[0], `[N]`, in fp32: the gate's logit.
    pub fn logit(&self, x: &Tensor) -> Tensor {
        let pooled = x.mean_dim([2, 3].as_slice(), false, Kind::Float);
        let u = self.router.fc2.forward(&self.router.fc1.forward(&pooled).relu());
        u.select(1, 1) - u.select(1, 0)
    }

    /// What stands in for the block when it is skipped, `[N, C', H', W']`.
    pub fn skip(&self, x: &Tensor, train: bool) -> Tensor {
        match &self.skip {
            Skip::Identity => x.shallow_clone(),
            Skip::Project(conv, norm) => norm.forward(&conv.forward(x), train).relu(),
        }
    }
}

impl Decisions<'_> {
    /// The decision of block `k` from its logit `[N]`: v in \[0, 1\], or u in {0, 1}.
    pub fn decide(&self, logit: &Tensor, k: i64) -> Tensor {
        match self {
            Self::Relaxed { noise, temperature } => ((logit + noise.select(1, k)) / *temperature).sigmoid(),
            Self::Hard => logit.ge(0.0).to_kind(Kind::Float),
        }
    }
}

/// g₁ − g₀ for every view of `samples` and every block, `[L·M, n]`: a pure function of (seed, step, sample,
/// view, block), so that no result depends on how many ranks share the work.
pub fn gumbel_noise(seed: u64, step: u64, samples: &[u32], views: usize, blocks: usize) -> Tensor {
    let mut noise = Vec::with_capacity(samples.len() * views * blocks);
    for &sample in samples {
        for view in 0..views as u64 {
            let mut rng = random::stream(Domain::Gumbel, seed, step, sample.into(), view);
            let mut gumbel = || {
                // In (0, 1): 2⁵³ evenly spaced values, each half a step away from either end.
                let uniform = ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
                -(-uniform.ln()).ln()
            };
            for _ in 0..blocks {
                let (g0, g1) = (gumbel(), gumbel());
                noise.push((g1 - g0) as f32);
            }
        }
    }
    Tensor::from_slice(&noise).view([(samples.len() * views) as i64, blocks as i64])
}
