//! Holds kernels to libtorch's own operations: in tests, and before a run trusts the kernels for its GPU.

use super::{Norm, Then};
use crate::sys::channels_last;
use tch::{Device, Kind, Tensor};

/// Shapes `[N, C, H, W]`: odd ones; one pixel; more samples, or pixels of many channels, than one round of sums takes.
pub const SHAPES: [[i64; 4]; 5] =
    [[3, 32, 5, 7], [3, 48, 40, 41], [4, 16, 1, 1], [40, 16, 3, 3], [8, 256, 23, 25]];

/// By libtorch's own operations.
pub fn plainly(h: &Tensor, norm: &Norm, then: Then) -> (Tensor, Tensor) {
    let running = norm.running.map_or((None, None), |(mean, var)| (Some(mean), Some(var)));
    let (weight, bias) = (Some(norm.weight), Some(norm.bias));
    let y =
        Tensor::batch_norm(h, weight, bias, running.0, running.1, true, norm.momentum, norm.epsilon, false);
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

/// h, shortcut, skip, v, γ, β, running mean and variance, and what output and mean are weighted by. h's channels are far
/// from 0. No generator of libtorch's is moved.
pub fn draw([n, c, height, width]: [i64; 4], device: Device) -> [Tensor; 10] {
    let mut drawn = 0.0;
    let mut uniform = |shape: &[i64]| {
        drawn += 1.0;
        let count = shape.iter().product::<i64>();
        let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + 78.233 * drawn;
        let x: Tensor = angles.sin() * 43_758.545_3;
        (&x - x.floor()).view(shape).to_kind(Kind::Float).to_device(device) // in [0, 1)
    };
    let mut image = |offset: f64| channels_last(&((uniform(&[n, c, height, width]) - 0.5) * 5.0 + offset));
    let images = [image(8.0), image(0.0), image(0.5), image(0.0)];
    let [v, var] = [uniform(&[n]), uniform(&[c])];
    let [weight, bias, mean, of_mean] =
        [&[c][..], &[c], &[c], &[n, c]].map(|shape| (uniform(shape) - 0.5) * 3.5);
    let [h, shortcut, skip, slopes] = images;
    [h, shortcut, skip, v, weight, bias, mean, var, slopes, of_mean]
}

/// Output, mean, running statistics and all gradients; `which` of the four tails, of `kind`, in `kind`'s own arithmetic or
/// f64's.
pub fn run(
    operation: impl Fn(&Tensor, &Norm, Then) -> (Tensor, Tensor),
    which: usize,
    drawn: &[Tensor; 10],
    kind: Kind,
    exact: bool,
) -> Vec<Tensor> {
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

/// Holds `operation` to libtorch in f64: all tails, in f32 and bf16, values and gradients. In bf16 nothing but inputs and
/// results is rounded, so that they are off by one rounding; in f32 by at most `tolerance`. Fails with the first difference.
pub fn check(
    operation: impl Fn(&Tensor, &Norm, Then) -> (Tensor, Tensor),
    device: Device,
    shapes: &[[i64; 4]],
    tolerance: f64,
) -> Result<(), String> {
    for &shape in shapes {
        let drawn = draw(shape, device);
        for (kind, tolerance) in [(Kind::Float, tolerance), (Kind::BFloat16, 4e-3)] {
            for which in 0..4 {
                let (ours, exact) =
                    (run(&operation, which, &drawn, kind, false), run(plainly, which, &drawn, kind, true));
                assert_eq!((ours.len(), exact.len()), ([7, 8, 9, 10][which], [7, 8, 9, 10][which]));
                for (i, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
                    let off = off(ours, exact);
                    if off.is_nan() || off >= tolerance {
                        return Err(format!("{kind:?} {shape:?}, tail {which}, result {i}: off by {off:e}"));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Holds `pixels`, as [`super::pixels`] without its `None`, to libtorch in f64.
pub fn check_pixels(
    pixels: impl Fn(&Tensor, &Tensor, &Tensor, Kind) -> Tensor,
    device: Device,
) -> Result<(), String> {
    for (shape, channels) in [([3, 5, 7], 3), ([2, 32, 32], 1), ([1, 1, 1], 3), ([2, 64, 61], 4)] {
        let count = shape.iter().product::<i64>() * channels;
        let bytes = (Tensor::arange(count, (Kind::Int64, device)) * 37).remainder(256).to_kind(Kind::Uint8);
        let [n, height, width] = shape;
        let bytes = bytes.view([n, height, width, channels]);
        let numbers = |first: f64| Tensor::arange(channels, (Kind::Float, device)) * 0.07 + first;
        let (mean, std) = (numbers(0.4), numbers(0.2));
        let exact = (bytes.to_kind(Kind::Double) / 255.0 - &mean) / &std;
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 4e-3)] {
            let ours = pixels(&bytes, &mean, &std, kind);
            if ours.kind() != kind {
                return Err(format!("pixels as {:?}", ours.kind()));
            }
            let off = off(&ours, &exact.permute([0, 3, 1, 2]));
            if off.is_nan() || off >= tolerance {
                return Err(format!("pixels, {kind:?} {shape:?} of {channels}: off by {off:e}"));
            }
        }
    }
    Ok(())
}
