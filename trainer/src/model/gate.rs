//! Where a block's execution is decided: its Gumbel-Softmax relaxation (Eq. 6), the hard decision of inference
//! (Eq. 13), and what the decision chooses between.

use super::layers::{BatchNorm, Builder, Conv, Shape, Statistics};
use super::router::{Router, RouterBuilder};
use crate::config::{Relaxation, SkipBranch};
use crate::model::kernels::Then;
use codinet_dataloader::random::{self, Domain};
use rand::Rng as _;
use tch::{Kind, Tensor};

/// How gates decide.
#[derive(Clone, Copy, Debug)]
pub enum Decisions<'a> {
    /// v = σ((U[1] − U[0] + g₁ − g₀)/T), Eq. 6: each block's output is blended by v (Eq. 7).
    Relaxed {
        /// g₁ − g₀ for every input and block, `[N, n]`; `None`: without noise.
        noise: Option<&'a Tensor>,
        /// T.
        temperature: f64,
        /// Whether blocks are blended by v itself, or by v ≥ 0.5 with the gradient of v.
        relaxation: Relaxation,
    },
    /// u = 1 where U[1] ≥ U[0], Eq. 13, without noise.
    Hard,
}

/// What a block is replaced by when it is skipped.
#[derive(Debug)]
pub enum Skip {
    /// The input itself.
    Identity,
    /// conv1×1 + BN + ReLU, where the block changes the shape.
    Project(Conv, BatchNorm),
    /// The block's own shortcut + ReLU, where the block changes the shape.
    Shortcut,
}

/// A block's router and its way around the block.
#[derive(Debug)]
pub struct Gate {
    /// What decides.
    pub router: Router,
    /// What stands in for the block.
    pub skip: Skip,
}

impl Gate {
    /// The gate of block `name`; returns it with the MACs of its router and of its skip branch. `shortcut` is the
    /// MACs of the block's own.
    pub fn new(
        builder: &mut Builder,
        routers: &mut RouterBuilder,
        name: &str,
        from: Shape,
        to: Shape,
        skip: SkipBranch,
        shortcut: i64,
    ) -> (Self, i64, i64) {
        let before = builder.macs;
        let router = routers.build(builder, name, from);
        let router_macs = builder.macs - before;
        let (skip, skip_macs) = match skip {
            _ if from == to => (Skip::Identity, 0),
            SkipBranch::Shortcut => (Skip::Shortcut, shortcut),
            SkipBranch::Project => {
                let stride = (from.h + to.h - 1) / to.h;
                let (conv, _) = builder.conv(&format!("{name}.skip.0"), from, to.c, 1, stride);
                let norm = builder.norm(&format!("{name}.skip.1"), to.c, 1.0);
                (Skip::Project(conv, norm), builder.macs - before - router_macs)
            }
        };
        (Self { router, skip }, router_macs, skip_macs)
    }

    /// What stands in for the block when it is skipped, `[N, C', H', W']`; none: its shortcut, as it is.
    pub fn skip(&self, x: &Tensor, shortcut: &Tensor, statistics: Statistics) -> Option<Tensor> {
        match &self.skip {
            Skip::Identity => None, // of the same shape, so the shortcut is the input as well
            Skip::Project(conv, norm) => Some(norm.forward_then(&conv.forward(x), statistics, Then::Relu).x),
            Skip::Shortcut => Some(shortcut.relu()),
        }
    }
}

impl Decisions<'_> {
    /// The decision of block `k` from its logit `[N]`: v in \[0, 1\], or u in {0, 1}.
    pub fn decide(&self, logit: &Tensor, k: i64) -> Tensor {
        let Self::Relaxed { noise, temperature, relaxation } = self else { return hard(logit) };
        let v = match noise {
            Some(noise) => relaxed(&(logit + noise.select(1, k)), *temperature),
            None => relaxed(logit, *temperature),
        };
        match relaxation {
            Relaxation::Gumbel => v,
            // The difference to v has no gradient.
            Relaxation::StraightThrough => (v.ge(0.5).to_kind(v.kind()) - &v).detach() + v,
        }
    }
}

/// v = σ(logit/T): Eq. 6, of logits with their noise or without.
pub fn relaxed(logits: &Tensor, temperature: f64) -> Tensor {
    (logits / temperature).sigmoid()
}

/// u = 1 where the logit U[1] − U[0] is at least 0: Eq. 13.
pub fn hard(logits: &Tensor) -> Tensor {
    logits.ge(0.0).to_kind(Kind::Float)
}

/// g₁ − g₀ for every view of `samples` and every block, `[L·M, n]`: a pure function of (seed, step, sample,
/// view, block), so that no result depends on how many ranks share the work.
pub fn gumbel_noise(seed: u64, step: u64, samples: &[u32], views: usize, blocks: usize) -> Tensor {
    let mut noise = Vec::with_capacity(samples.len() * views * blocks);
    for &sample in samples {
        for view in 0..views as u64 {
            let mut rng = random::stream(Domain::Gumbel, seed, step, sample.into(), view);
            let mut gumbel = || {
                // In (0, 1): 2⁵² evenly spaced values, the outer ones half a step away from either end.
                let uniform = ((rng.next_u64() >> 12) as f64 + 0.5) / (1u64 << 52) as f64;
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
