//! Batch norm and what follows it in a residual network, as one operation: to libtorch they are five to ten, each of
//! them a pass over memory that takes longer than its arithmetic. Forward and backward are two passes each: one for sums
//! over the batch, one for values.
//!
//! For channels-last fp32 and bf16 on a CPU and a multiple of 16 channels. Whatever else there is goes through libtorch's
//! own operations, in [`crate::model::layers`], which are also what tests hold this to.

mod cpu;

use crate::native;
use tch::{Device, Kind, Tensor};

/// What follows a batch norm's y; `shortcut` and `skip` are of its shape.
#[derive(Clone, Copy, Debug)]
pub enum Then<'a> {
    /// max(y, 0).
    Relu,
    /// F = max(y + shortcut, 0): the end of a block.
    AddRelu {
        /// The residual connection.
        shortcut: &'a Tensor,
    },
    /// Eq. 7, skip + v·(F − skip): the end of a gated block.
    Blend {
        /// The residual connection.
        shortcut: &'a Tensor,
        /// What stands in for the block; none: the shortcut.
        skip: Option<&'a Tensor>,
        /// How much of the block runs for each input, f32 `[N]`.
        v: &'a Tensor,
    },
}

/// A batch norm's own tensors, f32 `[C]` each.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// γ.
    pub weight: &'a Tensor,
    /// β.
    pub bias: &'a Tensor,
    /// Running mean and variance, where they are to move.
    pub running: Option<(&'a Tensor, &'a Tensor)>,
    /// How far they move.
    pub momentum: f64,
    /// Added to variances.
    pub epsilon: f64,
}

/// Whether there is a kernel for `h`, `[N, C, H, W]`.
pub fn has_kernel(h: &Tensor) -> bool {
    h.device() == Device::Cpu
        && h.size()[1] % cpu::LANES as i64 == 0
        && matches!(h.kind(), Kind::Float | Kind::BFloat16)
}

/// Normalises `h` by its own statistics and goes on as `then` says; returns that, and its mean over H and W, f32 `[N, C]`,
/// the router's view of it, which costs nothing here.
pub fn norm_then(h: &Tensor, norm: &Norm, then: Then) -> (Tensor, Tensor) {
    let (shortcut, skip, v) = match then {
        Then::Relu => (None, None, None),
        Then::AddRelu { shortcut } => (Some(shortcut), None, None),
        Then::Blend { shortcut, skip, v } => (Some(shortcut), skip, Some(v)),
    };
    let operands = [Some(h), shortcut, skip].map(|x| x.map(channels_last));
    let v = v.map(Tensor::contiguous);
    // What is not there is given as an empty tensor, which autograd has no edge to.
    let none = || Tensor::empty([0], (Kind::Float, h.device()));
    let [h, shortcut, skip] = operands.map(|x| x.unwrap_or_else(none));
    let v = v.unwrap_or_else(none);
    let saved = cpu::Saved::new(&h, &shortcut, &skip, &v, then);
    let (affine, out, mean) = tch::no_grad(|| saved.forward(norm));
    native::function(
        [&h, norm.weight, norm.bias, &shortcut, &skip, &v],
        [&out, &mean],
        move |[out, mean]| {
            let out = out.map(|gradient| channels_last(&gradient));
            saved.backward(&affine, out, mean.map(|gradient| gradient.contiguous()))
        },
    );
    (out, mean)
}

/// `x`, or a copy of it, with channels innermost.
fn channels_last(x: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// By libtorch's own operations.
    fn plainly(h: &Tensor, norm: &Norm, then: Then) -> (Tensor, Tensor) {
        let running = norm.running.map_or((None, None), |(mean, var)| (Some(mean), Some(var)));
        let (weight, bias) = (Some(norm.weight), Some(norm.bias));
        let y = Tensor::batch_norm(
            h,
            weight,
            bias,
            running.0,
            running.1,
            true,
            norm.momentum,
            norm.epsilon,
            false,
        );
        let out = match then {
            Then::Relu => y.relu(),
            Then::AddRelu { shortcut } => (y + shortcut).relu(),
            Then::Blend { shortcut, skip, v } => {
                let skip = skip.unwrap_or(shortcut);
                skip + v.view([-1, 1, 1, 1]) * ((y + shortcut).relu() - skip)
            }
        };
        let mean = out.mean_dim([2, 3].as_slice(), false, None);
        (out, mean)
    }

    type Operation = fn(&Tensor, &Norm, Then) -> (Tensor, Tensor);

    /// h, shortcut, skip, v, γ, β, running mean and variance, and what output and mean are weighted by. h's channels are far
    /// from 0.
    fn draw() -> [Tensor; 10] {
        let image = |offset: f64| channels_last(&(Tensor::randn([3, 32, 5, 7], RUN) * 1.5 + offset));
        let vector = || Tensor::randn([32], RUN);
        let (v, var, of_mean) =
            (Tensor::rand([3], RUN), Tensor::rand([32], RUN), Tensor::randn([3, 32], RUN));
        [image(8.0), image(0.0), image(0.5), v, vector(), vector(), vector(), var, image(0.0), of_mean]
    }

    /// Output, mean, running statistics and all gradients; `which` of `then`, of `kind`, in `kind`'s own arithmetic or f64's.
    fn run(operation: Operation, which: usize, drawn: &[Tensor; 10], kind: Kind, exact: bool) -> Vec<Tensor> {
        let values = if exact { Kind::Double } else { kind };
        let parameters = if exact { Kind::Double } else { Kind::Float };
        let of = |x: &Tensor| match x.dim() {
            4 => x.to_kind(kind).to_kind(values), // rounded, so that both have the same
            _ => x.to_kind(parameters),
        };
        let [h, shortcut, skip, v, weight, bias, mean, var, slopes, of_mean] =
            drawn.each_ref().map(|x| of(x).copy());
        let [h, shortcut, skip, v, weight, bias] =
            [h, shortcut, skip, v, weight, bias].map(|x| x.set_requires_grad(true));
        let then = match which {
            0 => Then::Relu,
            1 => Then::AddRelu { shortcut: &shortcut },
            2 => Then::Blend { shortcut: &shortcut, skip: None, v: &v },
            _ => Then::Blend { shortcut: &shortcut, skip: Some(&skip), v: &v },
        };
        let norm =
            Norm { weight: &weight, bias: &bias, running: Some((&mean, &var)), momentum: 0.1, epsilon: 1e-5 };
        let (out, pooled) = operation(&h, &norm, then);
        ((&out * slopes).sum(parameters) + (&pooled * of_mean).sum(parameters)).backward();
        let leaves = [&h, &weight, &bias, &shortcut, &skip, &v];
        let gradients = leaves.into_iter().map(Tensor::grad).filter(Tensor::defined);
        [out, pooled, mean, var].into_iter().chain(gradients).collect()
    }

    /// The largest distance between two tensors, in units of the second's largest value.
    fn off(a: &Tensor, b: &Tensor) -> f64 {
        assert_eq!(a.size(), b.size());
        let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
        ((a - &b).abs().max() / b.abs().max()).double_value(&[])
    }

    /// Against libtorch in f64. In bf16 nothing but inputs and results is rounded, so that they are off by one rounding.
    #[test]
    fn it_is_libtorchs_values_and_gradients() {
        for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 4e-3)] {
            for which in 0..4 {
                let drawn = draw();
                let (ours, exact) =
                    (run(norm_then, which, &drawn, kind, false), run(plainly, which, &drawn, kind, true));
                assert_eq!((ours.len(), exact.len()), ([7, 8, 9, 10][which], [7, 8, 9, 10][which]));
                for (i, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
                    let off = off(ours, exact);
                    assert!(off < tolerance, "{kind:?}, case {which}, result {i}: off by {off}");
                }
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let drawn = draw();
        let results = [1, 3].map(|threads| {
            tch::set_num_threads(threads);
            run(norm_then, 3, &drawn, Kind::Float, false)
        });
        assert!(results[0].iter().zip(&results[1]).all(|(one, three)| one.equal(three)));
    }

    /// What is not finite stays so, for the step to be left out.
    #[test]
    fn nan_is_not_cut_off() {
        let h = channels_last(&Tensor::randn([2, 16, 3, 3], RUN));
        let _ = h.get(1).get(4).fill_(f64::NAN);
        let (ones, zeros) = (Tensor::ones([16], RUN), Tensor::zeros([16], RUN));
        for h in [h.shallow_clone(), h.to_kind(Kind::BFloat16)] {
            let norm = Norm { weight: &ones, bias: &zeros, running: None, momentum: 0.1, epsilon: 1e-5 };
            let (out, mean) = norm_then(&h, &norm, Then::Relu);
            for of_channel in [out.select(1, 4), mean.select(1, 4)] {
                assert_eq!(of_channel.isnan().all().int64_value(&[]), 1);
            }
            assert_eq!(out.isnan().sum(Kind::Int64).int64_value(&[]), 2 * 9);
        }
    }

    /// An output that nothing came of, and one that no gradient is asked of.
    #[test]
    fn gradients_may_be_missing() {
        let h = || channels_last(&Tensor::randn([2, 16, 3, 3], RUN)).set_requires_grad(true);
        let (ones, zeros) = (Tensor::ones([16], RUN), Tensor::zeros([16], RUN));
        let norm = Norm { weight: &ones, bias: &zeros, running: None, momentum: 0.1, epsilon: 1e-5 };
        let h = [h(), h()];
        norm_then(&h[0], &norm, Then::Relu).0.square().sum(Kind::Float).backward();
        norm_then(&h[1], &norm, Then::Relu).1.square().sum(Kind::Float).backward();
        assert!(h.iter().all(|h| h.grad().norm().double_value(&[]) > 0.0));
        let unseen = tch::no_grad(|| norm_then(&h[0], &norm, Then::Relu).0);
        assert!(!unseen.requires_grad());
    }
}
