//! Batch norm and what follows it in a residual network, as one operation: to libtorch they are five to ten, each of
//! them a pass over memory that takes longer than its arithmetic. Forward and backward are two passes each: one for sums
//! over the batch, one for values.
//!
//! For channels-last fp32 and bf16 and a multiple of 16 channels, on a CPU, and on a GPU where `run.cuda_kernels` asks for it:
//! `gpu.rs` launches the kernels of `kernels.cu`, which `cuda.rs` has compiled. Whatever else there is goes through libtorch's
//! own operations, in [`crate::model::layers`]; `check.rs` holds the kernels to them.

mod check;
mod cpu;
mod cuda;
#[cfg(test)]
mod emulate;
mod gpu;
pub mod parts;

use crate::sys::{attach_backward, channels_last};
use parts::LANES;
use std::sync::OnceLock;
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

/// [`Then`] without its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tail {
    Relu,
    AddRelu,
    Blend,
    BlendApart,
}

/// What the kernels read: channels-last, contiguous and without autograd's history; empty where [`Then`] has none.
struct Given {
    h: Tensor,
    shortcut: Tensor,
    skip: Tensor,
    v: Tensor,
    tail: Tail,
}

/// Forward and backward, on one kind of device.
trait Passes: Send + 'static {
    /// What the backward pass needs beside the operands.
    type Kept: Send + 'static;

    /// The output and its mean over pixels, f32 `[N, C]`.
    fn forward(&self, norm: &Norm) -> (Self::Kept, Tensor, Tensor);

    /// The gradients of h, γ, β, shortcut, skip and v from those of the output and its mean.
    fn backward(&self, kept: &Self::Kept, out: Option<Tensor>, mean: Option<Tensor>) -> [Option<Tensor>; 6];
}

/// How far a GPU's kernels may be off in f32, in units of a result's largest value.
const TOLERANCE: f64 = 2e-6;

/// The kernels for a GPU, compiled and found right there, or why there are none.
pub fn kernels_for(device: usize) -> Result<Kernels, String> {
    cuda::Cuda::new(device).and_then(|cuda| {
        let kernels = Kernels(Box::leak(Box::new(cuda))); // for as long as the process lives
        let device = Device::Cuda(device);
        let operation = |h: &Tensor, norm: &Norm, then: Then<'_>| norm_then_on(kernels.0, h, norm, then);
        check::check(operation, device, &check::SHAPES, TOLERANCE)?;
        check::check_pixels(|bytes, mean, std, kind| gpu::pixels(kernels.0, bytes, mean, std, kind), device)?;
        Ok(kernels)
    })
}

/// Kernels for a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Kernels(&'static cuda::Cuda);

/// Decided once, before the first step.
static ON_GPU: OnceLock<Kernels> = OnceLock::new();

/// From here on `kernels` are used on their GPU.
pub fn use_on_gpu(kernels: Kernels) {
    let _ = ON_GPU.set(kernels); // those that were there first are as good
}

/// The kernels for tensors on `device`, where they are in use.
fn on_gpu(device: Device) -> Option<&'static cuda::Cuda> {
    ON_GPU.get().map(|kernels| kernels.0).filter(|kernels| Device::Cuda(kernels.device()) == device)
}

/// Whether there is a kernel for `h`, `[N, C, H, W]`.
pub fn has_kernel(h: &Tensor) -> bool {
    (h.device() == Device::Cpu || on_gpu(h.device()).is_some())
        && h.size()[1] % LANES as i64 == 0
        && matches!(h.kind(), Kind::Float | Kind::BFloat16)
}

/// Normalises `h` by its own statistics and goes on as `then` says; returns that, and its mean over H and W, f32 `[N, C]`,
/// the router's view of it, which costs nothing here.
pub fn norm_then(h: &Tensor, norm: &Norm, then: Then) -> (Tensor, Tensor) {
    match on_gpu(h.device()) {
        Some(kernels) => norm_then_on(kernels, h, norm, then),
        None => norm_then_by(cpu::Saved::new, h, norm, then),
    }
}

/// u8 `[N, H, W, C]` on a device → (x/255 − mean)/std `[N, C, H, W]`, channels last, of `kind`; `None` where there is no kernel
/// for it. `mean` and `std` are f32, of C elements.
pub fn pixels(bytes: &Tensor, mean: &Tensor, std: &Tensor, kind: Kind) -> Option<Tensor> {
    on_gpu(bytes.device()).map(|kernels| gpu::pixels(kernels, bytes, mean, std, kind))
}

/// [`norm_then`] by the kernels of `kernels.cu`.
fn norm_then_on(kernels: &'static dyn gpu::Launch, h: &Tensor, norm: &Norm, then: Then) -> (Tensor, Tensor) {
    norm_then_by(|given| gpu::Saved::new(kernels, given), h, norm, then)
}

fn norm_then_by<P: Passes>(
    passes: impl FnOnce(Given) -> P,
    h: &Tensor,
    norm: &Norm,
    then: Then,
) -> (Tensor, Tensor) {
    let (tail, shortcut, skip, v) = match then {
        Then::Relu => (Tail::Relu, None, None, None),
        Then::AddRelu { shortcut } => (Tail::AddRelu, Some(shortcut), None, None),
        Then::Blend { shortcut, skip: None, v } => (Tail::Blend, Some(shortcut), None, Some(v)),
        Then::Blend { shortcut, skip, v } => (Tail::BlendApart, Some(shortcut), skip, Some(v)),
    };
    for operand in [shortcut, skip].into_iter().flatten() {
        assert_eq!(operand.size(), h.size(), "an operand's shape beside h's");
    }
    let operands = [Some(h), shortcut, skip].map(|x| x.map(channels_last));
    let v = v.map(Tensor::contiguous);
    // What is not there is given as an empty tensor, which autograd has no edge to.
    let none = || Tensor::empty([0], (Kind::Float, h.device()));
    let [h, shortcut, skip] = operands.map(|x| x.unwrap_or_else(none));
    let v = v.unwrap_or_else(none);
    let given =
        Given { h: h.detach(), shortcut: shortcut.detach(), skip: skip.detach(), v: v.detach(), tail };
    let passes = passes(given);
    let (kept, out, mean) = tch::no_grad(|| passes.forward(norm));
    attach_backward([&h, norm.weight, norm.bias, &shortcut, &skip, &v], [&out, &mean], move |[out, mean]| {
        let out = out.map(|gradient| channels_last(&gradient));
        passes.backward(&kept, out, mean.map(|gradient| gradient.contiguous()))
    });
    (out, mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// By a GPU's kernels, on a CPU.
    fn emulated(h: &Tensor, norm: &Norm, then: Then) -> (Tensor, Tensor) {
        norm_then_on(emulate::kernels(), h, norm, then)
    }

    type Operation = fn(&Tensor, &Norm, Then) -> (Tensor, Tensor);

    /// The kernels for a CPU, and those for a GPU.
    const BOTH: [Operation; 2] = [norm_then, emulated];

    #[test]
    fn a_gpus_are_libtorchs_values_and_gradients() {
        check::check(emulated, Device::Cpu, &check::SHAPES, TOLERANCE).unwrap();
    }

    /// Those for a CPU add up a sample's pixels one after another in f32, and lose more where there are many: v's gradient,
    /// whose terms cancel most, is off by 4e-6.
    #[test]
    fn a_cpus_are_libtorchs_values_and_gradients() {
        let (few, many) = check::SHAPES.split_at(1);
        check::check(norm_then, Device::Cpu, few, 2e-6).unwrap();
        check::check(norm_then, Device::Cpu, many, 1e-5).unwrap();
    }

    #[test]
    fn pixels_are_libtorchs() {
        let pixels =
            |bytes: &_, mean: &_, std: &_, kind| gpu::pixels(emulate::kernels(), bytes, mean, std, kind);
        check::check_pixels(pixels, Device::Cpu).unwrap();
    }

    #[test]
    fn threads_change_no_bit() {
        let drawn = check::draw([3, 32, 5, 7], Device::Cpu);
        let results = [1, 3].map(|threads| {
            tch::set_num_threads(threads);
            check::run(norm_then, 3, &drawn, Kind::Float, false)
        });
        assert!(results[0].iter().zip(&results[1]).all(|(one, three)| one.equal(three)));
    }

    /// A GPU's threads and blocks take turns otherwise each time.
    #[test]
    fn no_order_changes_a_bit() {
        let drawn = check::draw([3, 48, 40, 41], Device::Cpu);
        for kind in [Kind::Float, Kind::BFloat16] {
            let results = [(); 3].map(|()| check::run(emulated, 3, &drawn, kind, false));
            for result in &results[1..] {
                assert!(result.iter().zip(&results[0]).all(|(one, other)| one.equal(other)));
            }
        }
    }

    /// What is not finite stays so, for the step to be left out.
    #[test]
    fn nan_is_not_cut_off() {
        let h = channels_last(&Tensor::randn([2, 16, 3, 3], RUN));
        let _ = h.get(1).get(4).fill_(f64::NAN);
        let (ones, zeros) = (Tensor::ones([16], RUN), Tensor::zeros([16], RUN));
        for operation in BOTH {
            for h in [h.shallow_clone(), h.to_kind(Kind::BFloat16)] {
                let norm = Norm { weight: &ones, bias: &zeros, running: None, momentum: 0.1, epsilon: 1e-5 };
                let (out, mean) = operation(&h, &norm, Then::Relu);
                for of_channel in [out.select(1, 4), mean.select(1, 4)] {
                    assert_eq!(of_channel.isnan().all().int64_value(&[]), 1);
                }
                assert_eq!(out.isnan().sum(Kind::Int64).int64_value(&[]), 2 * 9);
            }
        }
    }

    /// An output that nothing came of, and one that no gradient is asked of.
    #[test]
    fn gradients_may_be_missing() {
        let (ones, zeros) = (Tensor::ones([16], RUN), Tensor::zeros([16], RUN));
        let norm = Norm { weight: &ones, bias: &zeros, running: None, momentum: 0.1, epsilon: 1e-5 };
        let h = channels_last(&Tensor::randn([2, 16, 3, 3], RUN));
        let of = |operation: &dyn Fn(&Tensor, &Norm, Then) -> (Tensor, Tensor)| {
            let both = [h.copy(), h.copy()].map(|h| h.set_requires_grad(true));
            operation(&both[0], &norm, Then::Relu).0.square().sum(Kind::Float).backward();
            operation(&both[1], &norm, Then::Relu).1.square().sum(Kind::Float).backward();
            let unseen = tch::no_grad(|| operation(&both[0], &norm, Then::Relu).0);
            assert!(!unseen.requires_grad());
            both.map(|h| h.grad())
        };
        let plain = of(&check::plainly);
        for operation in BOTH {
            for (ours, theirs) in of(&operation).iter().zip(&plain) {
                assert!(ours.norm().double_value(&[]) > 0.0 && ours.allclose(theirs, 1e-4, 1e-5, false));
            }
        }
    }

    /// An operand that begins in mid-vector is read all the same.
    #[test]
    fn tensors_may_lie_anywhere() {
        let (ones, zeros) = (Tensor::ones([16], RUN), Tensor::zeros([16], RUN));
        let norm = Norm { weight: &ones, bias: &zeros, running: None, momentum: 0.1, epsilon: 1e-5 };
        let memory = Tensor::randn([2 * 3 * 3 * 16 + 1], RUN);
        let h = memory.narrow(0, 1, 2 * 3 * 3 * 16).view([2, 3, 3, 16]).permute([0, 3, 1, 2]);
        let [ours, theirs] = [emulated, check::plainly].map(|by| by(&h, &norm, Then::Relu).0);
        assert!(ours.allclose(&theirs, 1e-5, 1e-5, false));
    }
}
