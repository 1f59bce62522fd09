//! Compares the kernels with libtorch's operations: in tests, and before a run uses the kernels on its GPU.

use super::{Epilogue, EpilogueKind, NormTensors};
use crate::sys::channels_last;
use tch::{Device, Kind, Tensor};

/// Shapes `[N, C, H, W]`: odd ones; one pixel; more samples, or pixels of many channels, than one round of sums takes.
pub const SHAPES: [[i64; 4]; 5] =
    [[3, 32, 5, 7], [3, 48, 40, 41], [4, 16, 1, 1], [40, 16, 3, 3], [8, 256, 23, 25]];

/// [`super::fused_norm`] by libtorch's operations.
pub fn reference(h: &Tensor, norm: &NormTensors, epilogue: Epilogue) -> (Tensor, Tensor) {
    let (running_mean, running_var) = norm.running.unzip();
    let y = Tensor::batch_norm(
        h,
        Some(norm.weight),
        Some(norm.bias),
        running_mean,
        running_var,
        true,
        norm.momentum,
        norm.epsilon,
        false,
    );
    let out = match epilogue {
        Epilogue::Relu { .. } => y.relu(),
        Epilogue::AddRelu { shortcut } => (y + shortcut).relu(),
        Epilogue::Blend { shortcut, skip, v } => {
            let skip = skip.unwrap_or(shortcut);
            skip + v.view([-1, 1, 1, 1]) * ((y + shortcut).relu() - skip)
        }
    };
    let mean = out.mean_dim([2, 3].as_slice(), false, None);
    (out, mean)
}

/// Pseudo-random inputs of [`evaluate`].
pub struct Inputs {
    /// `[N, C, H, W]`; its channels' means are far from 0.
    h: Tensor,
    shortcut: Tensor,
    skip: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    /// The gradient of the output, `[N, C, H, W]`.
    out_gradient: Tensor,
    /// The gradient of the output's mean, `[N, C]`.
    mean_gradient: Tensor,
}

/// Inputs of this shape on `device`, drawn without libtorch's generators, whose state must not change.
pub fn inputs([n, c, height, width]: [i64; 4], device: Device) -> Inputs {
    let mut draws = 0.0;
    let mut uniform = |shape: &[i64]| {
        draws += 1.0;
        let count = shape.iter().product::<i64>();
        let angles = Tensor::arange(count, (Kind::Double, Device::Cpu)) * 12.9898 + 78.233 * draws;
        let x: Tensor = angles.sin() * 43_758.545_3;
        (&x - x.floor()).view(shape).to_kind(Kind::Float).to_device(device) // in [0, 1)
    };
    let mut image = |offset: f64| channels_last(&((uniform(&[n, c, height, width]) - 0.5) * 5.0 + offset));
    let h = image(8.0);
    let shortcut = image(0.0);
    let skip = image(0.5);
    let out_gradient = image(0.0);
    let v = uniform(&[n]);
    let running_var = uniform(&[c]);
    let [weight, bias, running_mean] = [(); 3].map(|()| (uniform(&[c]) - 0.5) * 3.5);
    let mean_gradient = (uniform(&[n, c]) - 0.5) * 3.5;
    Inputs { h, shortcut, skip, v, weight, bias, running_mean, running_var, out_gradient, mean_gradient }
}

/// Output, its mean, running statistics and all gradients, for images of `kind`. If `exact`, they are computed in f64, from
/// inputs rounded to `kind`.
pub fn evaluate(
    operation: impl Fn(&Tensor, &NormTensors, Epilogue) -> (Tensor, Tensor),
    epilogue: EpilogueKind,
    inputs: &Inputs,
    kind: Kind,
    exact: bool,
) -> Vec<Tensor> {
    let image_kind = if exact { Kind::Double } else { kind };
    let parameter_kind = if exact { Kind::Double } else { Kind::Float };
    let image = |x: &Tensor| x.to_kind(kind).to_kind(image_kind).copy();
    let parameter = |x: &Tensor| x.to_kind(parameter_kind).copy();
    let h = image(&inputs.h).set_requires_grad(true);
    let shortcut = image(&inputs.shortcut).set_requires_grad(true);
    let skip = image(&inputs.skip).set_requires_grad(true);
    let v = parameter(&inputs.v).set_requires_grad(true);
    let weight = parameter(&inputs.weight).set_requires_grad(true);
    let bias = parameter(&inputs.bias).set_requires_grad(true);
    let running_mean = parameter(&inputs.running_mean);
    let running_var = parameter(&inputs.running_var);
    let epilogue = match epilogue {
        EpilogueKind::Relu => Epilogue::Relu { pool: true },
        EpilogueKind::AddRelu => Epilogue::AddRelu { shortcut: &shortcut },
        EpilogueKind::Blend => Epilogue::Blend { shortcut: &shortcut, skip: None, v: &v },
        EpilogueKind::BlendWithSkip => Epilogue::Blend { shortcut: &shortcut, skip: Some(&skip), v: &v },
    };
    let norm = NormTensors {
        weight: &weight,
        bias: &bias,
        running: Some((&running_mean, &running_var)),
        momentum: 0.1,
        epsilon: 1e-5,
    };
    let (out, mean) = operation(&h, &norm, epilogue);
    let of_out = (&out * image(&inputs.out_gradient)).sum(parameter_kind);
    let of_mean = (&mean * parameter(&inputs.mean_gradient)).sum(parameter_kind);
    (of_out + of_mean).backward();
    let leaves = [&h, &weight, &bias, &shortcut, &skip, &v];
    let gradients = leaves.into_iter().map(Tensor::grad).filter(Tensor::defined);
    [out, mean, running_mean, running_var].into_iter().chain(gradients).collect()
}

/// The largest difference of two tensors, relative to the second's largest value.
fn relative_error(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let a = a.to_kind(Kind::Double);
    let b = b.to_kind(Kind::Double);
    ((a - &b).abs().max() / b.abs().max()).double_value(&[])
}

/// Compares `operation` with libtorch in f64: all epilogues, f32 and bf16, values and gradients. In bf16 only inputs and results
/// are rounded, so results are off by one rounding; in f32 by at most `tolerance`.
///
/// # Errors
/// The first difference.
pub fn check_fused_norm(
    operation: impl Fn(&Tensor, &NormTensors, Epilogue) -> (Tensor, Tensor),
    device: Device,
    shapes: &[[i64; 4]],
    tolerance: f64,
) -> Result<(), String> {
    for &shape in shapes {
        let inputs = inputs(shape, device);
        for (kind, tolerance) in [(Kind::Float, tolerance), (Kind::BFloat16, 4e-3)] {
            for (epilogue, results) in EpilogueKind::ALL.into_iter().zip([7, 8, 9, 10]) {
                let ours = evaluate(&operation, epilogue, &inputs, kind, false);
                let exact = evaluate(reference, epilogue, &inputs, kind, true);
                assert_eq!((ours.len(), exact.len()), (results, results));
                for (i, (ours, exact)) in ours.iter().zip(&exact).enumerate() {
                    let error = relative_error(ours, exact);
                    if error.is_nan() || error >= tolerance {
                        return Err(format!(
                            "{kind:?} {shape:?}, {epilogue:?}, result {i}: off by {error:e}"
                        ));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Compares `normalise`, which is [`super::normalise_pixels`] without its `None`, with libtorch in f64.
///
/// # Errors
/// The first difference.
pub fn check_pixels(
    normalise: impl Fn(&Tensor, &Tensor, &Tensor, Kind) -> Tensor,
    device: Device,
) -> Result<(), String> {
    for (shape, channels) in [([3, 5, 7], 3), ([2, 32, 32], 1), ([1, 1, 1], 3), ([2, 64, 61], 4)] {
        let count = shape.iter().product::<i64>() * channels;
        let bytes = (Tensor::arange(count, (Kind::Int64, device)) * 37).remainder(256).to_kind(Kind::Uint8);
        let [n, height, width] = shape;
        let bytes = bytes.view([n, height, width, channels]);
        let by_channel = |first: f64| Tensor::arange(channels, (Kind::Float, device)) * 0.07 + first;
        let mean = by_channel(0.4);
        let std = by_channel(0.2);
        let exact = (bytes.to_kind(Kind::Double) / 255.0 - &mean) / &std;
        for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 4e-3)] {
            let ours = normalise(&bytes, &mean, &std, kind);
            if ours.kind() != kind {
                return Err(format!("pixels of {:?} instead of {kind:?}", ours.kind()));
            }
            let error = relative_error(&ours, &exact.permute([0, 3, 1, 2]));
            if error.is_nan() || error >= tolerance {
                return Err(format!("pixels, {kind:?} {shape:?} of {channels} channels: off by {error:e}"));
            }
        }
    }
    Ok(())
}
