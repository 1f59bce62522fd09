//! Batch norm and the operations that follow it in a residual network, fused into one. libtorch needs five to ten operations for
//! them, and each is a pass over memory that takes longer than its arithmetic. Here forward and backward are two passes each:
//! one for sums over the batch, one for values.
//!
//! The kernels take channels-last fp32 and bf16 with a multiple of 16 channels. `cpu.rs` has those for a CPU. On a GPU, if
//! `run.cuda_kernels` is set, `gpu.rs` launches those of `kernels.cu`, which `cuda.rs` has compiled. All other cases use
//! libtorch's operations, in [`super::layers`]. `check.rs` compares the kernels with them.

mod check;
mod code_cache;
mod cpu;
mod cuda;
#[cfg(test)]
mod emulate;
mod gpu;
mod slices;
#[cfg(test)]
mod tests;

pub use slices::{LANES, Lanes, SampleSlices};

use crate::sys::{attach_backward, channels_last};
use cpu::CpuKernel;
use cuda::Cuda;
use gpu::{GpuKernel, Launch};
use std::sync::OnceLock;
use tch::{Device, Kind, Tensor};

/// What follows the output y of a batch norm. `shortcut` and `skip` have y's shape.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue<'a> {
    /// max(y, 0).
    Relu {
        /// Whether its mean over H and W is needed, too.
        pool: bool,
    },
    /// F = max(y + shortcut, 0): the end of a block.
    AddRelu {
        /// The residual connection.
        shortcut: &'a Tensor,
    },
    /// skip + v·(F − skip), Eq. 7: the end of a gated block.
    Blend {
        /// The residual connection.
        shortcut: &'a Tensor,
        /// The output of the skip branch; `None`: `shortcut`.
        skip: Option<&'a Tensor>,
        /// Each input's decision, f32 `[N]`.
        v: &'a Tensor,
    },
}

/// A batch norm's tensors, f32 `[C]`, and constants.
#[derive(Clone, Copy, Debug)]
pub struct NormTensors<'a> {
    /// γ.
    pub weight: &'a Tensor,
    /// β.
    pub bias: &'a Tensor,
    /// Running mean and variance, if the pass updates them.
    pub running: Option<(&'a Tensor, &'a Tensor)>,
    /// Weight of the batch's statistics in that update.
    pub momentum: f64,
    /// Added to variances.
    pub epsilon: f64,
}

/// [`Epilogue`] without its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EpilogueKind {
    Relu,
    AddRelu,
    /// `Blend` without `skip`.
    Blend,
    /// `Blend` with `skip`.
    BlendWithSkip,
}

impl EpilogueKind {
    const ALL: [Self; 4] = [Self::Relu, Self::AddRelu, Self::Blend, Self::BlendWithSkip];

    fn adds_shortcut(self) -> bool {
        self != Self::Relu
    }

    fn blends(self) -> bool {
        matches!(self, Self::Blend | Self::BlendWithSkip)
    }
}

/// The tensors that a kernel reads: channels-last, contiguous and detached. Those that the epilogue does not have are empty.
struct Operands {
    h: Tensor,
    shortcut: Tensor,
    skip: Tensor,
    v: Tensor,
    epilogue: EpilogueKind,
    /// Whether the output's mean is needed.
    pool: bool,
}

/// Forward and backward pass of [`fused_norm`] on one kind of device.
trait Kernel: Send + 'static {
    /// What the backward pass needs besides the operands.
    type SavedForBackward: Send + 'static;

    /// What is saved for the backward pass, the output, and its mean over H and W, f32 `[N, C]`; it may be empty if it is not needed.
    fn forward(&self, norm: &NormTensors) -> (Self::SavedForBackward, Tensor, Tensor);

    /// The gradients of h, γ, β, shortcut, skip and v from those of the output and its mean.
    fn backward(
        &self,
        saved: &Self::SavedForBackward,
        out_gradient: Option<Tensor>,
        mean_gradient: Option<Tensor>,
    ) -> [Option<Tensor>; 6];
}

/// How far a GPU's kernels may be off in f32, relative to a result's largest value.
const TOLERANCE: f64 = 2e-6;

/// The kernels, compiled for one GPU.
#[derive(Clone, Copy, Debug)]
pub struct GpuKernels(&'static Cuda);

/// Set once, before the first step.
static ENABLED: OnceLock<GpuKernels> = OnceLock::new();

impl GpuKernels {
    /// Compiles the kernels for GPU `device` and checks their results against libtorch's.
    ///
    /// # Errors
    /// Why the GPU cannot use them.
    pub fn compile(device: usize) -> Result<Self, String> {
        let cuda = Cuda::new(device)?;
        let kernels = Self(Box::leak(Box::new(cuda))); // for as long as the process lives
        let device = Device::Cuda(device);
        let operation = |h: &Tensor, norm: &NormTensors, epilogue: Epilogue| {
            fused_norm_on_gpu(kernels.0, h, norm, epilogue)
        };
        check::check_fused_norm(operation, device, &check::SHAPES, TOLERANCE)?;
        let normalise =
            |bytes: &_, mean: &_, std: &_, kind| gpu::normalise_pixels(kernels.0, bytes, mean, std, kind);
        check::check_pixels(normalise, device)?;
        Ok(kernels)
    }

    /// Makes later operations on this GPU use the kernels.
    pub fn enable(self) {
        let _ = ENABLED.set(self); // a second call would set the same kernels
    }
}

/// The kernels for tensors on `device`, if they are enabled.
fn enabled_on(device: Device) -> Option<&'static Cuda> {
    ENABLED.get().map(|kernels| kernels.0).filter(|kernels| Device::Cuda(kernels.device()) == device)
}

/// Whether [`fused_norm`] can take `h`, `[N, C, H, W]`.
pub fn has_kernel(h: &Tensor) -> bool {
    (h.device() == Device::Cpu || enabled_on(h.device()).is_some())
        && h.size()[1] % LANES as i64 == 0
        && matches!(h.kind(), Kind::Float | Kind::BFloat16)
}

/// Normalises `h` `[N, C, H, W]` by its own statistics and applies `epilogue`. Returns the result and its mean over H and W,
/// f32 `[N, C]`, which the next router needs; it is empty where that is not needed and would cost something.
pub fn fused_norm(h: &Tensor, norm: &NormTensors, epilogue: Epilogue) -> (Tensor, Tensor) {
    match enabled_on(h.device()) {
        Some(kernels) => fused_norm_on_gpu(kernels, h, norm, epilogue),
        None => fused_norm_by(CpuKernel::new, h, norm, epilogue),
    }
}

/// u8 `[N, H, W, C]` on a device → (x/255 − mean)/std, `[N, C, H, W]`, channels last, of `kind`; `None` if there is no kernel for
/// it. `mean` and `std` are f32 `[C]`.
pub fn normalise_pixels(bytes: &Tensor, mean: &Tensor, std: &Tensor, kind: Kind) -> Option<Tensor> {
    enabled_on(bytes.device()).map(|kernels| gpu::normalise_pixels(kernels, bytes, mean, std, kind))
}

/// [`fused_norm`] by the kernels of `kernels.cu`.
fn fused_norm_on_gpu(
    kernels: &'static dyn Launch,
    h: &Tensor,
    norm: &NormTensors,
    epilogue: Epilogue,
) -> (Tensor, Tensor) {
    fused_norm_by(|operands| GpuKernel::new(kernels, operands), h, norm, epilogue)
}

fn fused_norm_by<K: Kernel>(
    make_kernel: impl FnOnce(Operands) -> K,
    h: &Tensor,
    norm: &NormTensors,
    epilogue: Epilogue,
) -> (Tensor, Tensor) {
    let (kind, shortcut, skip, v) = match epilogue {
        Epilogue::Relu { .. } => (EpilogueKind::Relu, None, None, None),
        Epilogue::AddRelu { shortcut } => (EpilogueKind::AddRelu, Some(shortcut), None, None),
        Epilogue::Blend { shortcut, skip: None, v } => (EpilogueKind::Blend, Some(shortcut), None, Some(v)),
        Epilogue::Blend { shortcut, skip, v } => (EpilogueKind::BlendWithSkip, Some(shortcut), skip, Some(v)),
    };
    for operand in [shortcut, skip].into_iter().flatten() {
        assert_eq!(operand.size(), h.size(), "operands have h's shape");
    }
    // A missing operand is an empty tensor, to which autograd has no edge.
    let or_empty = |x: Option<Tensor>| x.unwrap_or_else(|| Tensor::empty([0], (Kind::Float, h.device())));
    let [h, shortcut, skip] = [Some(h), shortcut, skip].map(|x| or_empty(x.map(channels_last)));
    let v = or_empty(v.map(Tensor::contiguous));
    let kernel = make_kernel(Operands {
        h: h.detach(),
        shortcut: shortcut.detach(),
        skip: skip.detach(),
        v: v.detach(),
        epilogue: kind,
        pool: !matches!(epilogue, Epilogue::Relu { pool: false }),
    });
    let (saved, out, mean) = tch::no_grad(|| kernel.forward(norm));
    attach_backward(
        [&h, norm.weight, norm.bias, &shortcut, &skip, &v],
        [&out, &mean],
        move |[out_gradient, mean_gradient]| {
            let out_gradient = out_gradient.map(|gradient| channels_last(&gradient));
            let mean_gradient = mean_gradient.map(|gradient| gradient.contiguous());
            kernel.backward(&saved, out_gradient, mean_gradient)
        },
    );
    (out, mean)
}
