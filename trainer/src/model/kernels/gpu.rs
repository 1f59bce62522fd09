//! The launches of `kernels.cu` and the memory between them. libtorch's allocator owns that memory, and reuses it in the order of
//! the stream that used it. [`Launch`] runs a kernel: on a GPU (`cuda.rs`), or in tests on a CPU (`emulate.rs`).
#![expect(unsafe_code, reason = "kernels are given addresses")]

use super::{EpilogueKind, Kernel, NormTensors, Operands};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use tch::{Kind, Tensor};

/// Threads of every block; equal to THREADS of `kernels.cu`.
pub const THREADS: i64 = 256;
/// Channels of a block that sums over slabs; equal to CHANNELS of `kernels.cu`.
const CHANNELS: i64 = 2;
/// At most this many threads share a pixel's channels: 512 neighbouring bytes.
const COLUMNS: i64 = 32;
/// The number of blocks to aim at: enough for any GPU, and the same on all GPUs, so that results are too.
const BLOCKS: i64 = 2048;
/// A thread has at least this many pixels if samples are cut into slabs: a block's sums are then 3 % of the memory it reads.
const PIXELS: i64 = 16;

/// `Task` of `kernels.cu`, which documents each field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Task {
    h: *const c_void,
    shortcut: *const c_void,
    skip: *const c_void,
    out_gradient: *const c_void,
    out: *mut c_void,
    h_gradient: *mut c_void,
    shortcut_gradient: *mut c_void,
    skip_gradient: *mut c_void,
    bytes: *const u8,
    v: *const f32,
    mean_gradient: *const f32,
    partials: *mut f32,
    sums: *mut f32,
    affine: *mut f32,
    slopes: *mut f32,
    weight: *const f32,
    bias: *const f32,
    running_mean: *mut f32,
    running_var: *mut f32,
    momentum: f64,
    epsilon: f64,
    samples: i64,
    pixels: i64,
    channels: i64,
    slabs: i64,
    slab: i64,
    tiles: i64,
    columns: i64,
}

/// Runs kernels.
pub trait Launch: Send + Sync {
    /// Starts `blocks` blocks of a kernel, after all work that this thread has started on the device. Panics if the device is
    /// lost.
    ///
    /// # Safety
    /// The memory that `task` names is valid on the device until the kernel has run.
    unsafe fn launch(&self, kernel: &str, blocks: i64, task: &Task);
}

/// The names of all kernels.
pub fn kernel_names() -> Vec<String> {
    let mut names = vec!["statistics".to_owned(), "fold".to_owned(), "gradients".to_owned()];
    for element in ["f32", "bf16"] {
        names.extend(["moments", "normalise"].map(|kernel| format!("{kernel}_{element}")));
        for kernel in ["forward", "reduce", "backward"] {
            let epilogues = EpilogueKind::ALL.map(epilogue_name);
            names.extend(epilogues.map(|epilogue| format!("{kernel}_{element}_{epilogue}")));
        }
    }
    names
}

/// The epilogue's name in kernels' names.
fn epilogue_name(epilogue: EpilogueKind) -> &'static str {
    match epilogue {
        EpilogueKind::Relu => "relu",
        EpilogueKind::AddRelu => "add_relu",
        EpilogueKind::Blend => "blend",
        EpilogueKind::BlendWithSkip => "blend_with_skip",
    }
}

/// The operands and their size.
pub struct GpuKernel {
    kernels: &'static dyn Launch,
    operands: Operands,
    element: &'static str,
    /// The end of a kernel's name: element and epilogue.
    suffix: String,
    samples: i64,
    /// Of one sample.
    pixels: i64,
    channels: i64,
}

impl Task {
    /// A task without addresses for `samples` samples of `pixels` pixels, cut into slabs and tiles as the head of `kernels.cu`
    /// describes. Each thread has `lanes` channels.
    fn without_addresses(samples: i64, pixels: i64, channels: i64, lanes: i64) -> Self {
        let chunks = channels / lanes;
        let columns = 1 << chunks.min(COLUMNS).ilog2();
        let tiles = div_ceil(chunks, columns);
        let rows = THREADS / columns;
        let slabs = div_ceil(BLOCKS, samples * tiles).min(div_ceil(pixels, rows * PIXELS));
        let slab = div_ceil(pixels, slabs);
        // SAFETY: all fields are addresses and numbers, which may be zero.
        let zeroed: Self = unsafe { std::mem::zeroed() };
        Self { samples, pixels, channels, slabs: div_ceil(pixels, slab), slab, tiles, columns, ..zeroed }
    }

    fn blocks(&self) -> i64 {
        self.samples * self.slabs * self.tiles
    }
}

/// ⌈whole / part⌉, of positive numbers.
fn div_ceil(whole: i64, part: i64) -> i64 {
    (whole + part - 1) / part
}

/// A tensor's address; null for no tensor or an empty one.
fn address<'a, T>(x: impl Into<Option<&'a Tensor>>) -> *mut T {
    x.into().filter(|x| x.numel() > 0).map_or(null_mut(), |x| x.data_ptr().cast())
}

/// The address of a contiguous tensor of `count` f32.
fn f32_address(x: &Tensor, count: i64) -> *mut f32 {
    assert!(
        x.kind() == Kind::Float && x.numel() as i64 == count && x.is_contiguous(),
        "{x:?} is not {count} contiguous f32"
    );
    address(x)
}

/// `x` at an address that is a multiple of 16, as a thread's loads require; a copy if it is not.
fn align(x: Tensor) -> Tensor {
    if x.numel() > 0 && !x.data_ptr().addr().is_multiple_of(16) { x.copy() } else { x }
}

impl GpuKernel {
    pub fn new(kernels: &'static dyn Launch, operands: Operands) -> Self {
        let Operands { h, shortcut, skip, v, epilogue, pool } = operands;
        let [h, shortcut, skip] = [h, shortcut, skip].map(align);
        for operand in [&shortcut, &skip] {
            assert!(
                operand.numel() == 0 || operand.kind() == h.kind(),
                "{operand:?} has another kind than {h:?}"
            );
        }
        let (samples, channels, height, width) = h.size4().expect("[N, C, H, W]");
        let element = element(h.kind());
        let suffix = format!("{element}_{}", epilogue_name(epilogue));
        let operands = Operands { h, shortcut, skip, v, epilogue, pool };
        Self { kernels, operands, element, suffix, samples, pixels: height * width, channels }
    }

    /// A task with the operands' addresses.
    fn task(&self, samples: i64, pixels: i64) -> Task {
        let Operands { h, shortcut, skip, v, .. } = &self.operands;
        Task {
            h: address(h),
            shortcut: address(shortcut),
            skip: address(skip),
            v: if v.numel() == 0 { null() } else { f32_address(v, self.samples) },
            ..Task::without_addresses(samples, pixels, self.channels, lanes(h.kind()))
        }
    }

    fn launch(&self, kernel: &str, blocks: i64, task: &Task) {
        // SAFETY: the addresses are those of contiguous tensors of the shapes that the kernel works on, or null if it does not
        // use them. They live until the call returns, and libtorch reuses their memory only after the kernel on this stream.
        unsafe { self.kernels.launch(kernel, blocks, task) };
    }

    /// Σ over k of `task.partials` `[outer, count, inner]`.
    fn fold(&self, partials: *mut f32, [outer, count, inner]: [i64; 3]) -> Tensor {
        let sums = self.empty_f32([outer, inner]);
        let task = Task::without_addresses(outer, 1, inner, 1);
        let task = Task { partials, sums: address(&sums), slabs: count, ..task };
        self.launch("fold", div_ceil(outer * inner, THREADS), &task);
        sums
    }

    fn empty_f32<const N: usize>(&self, shape: [i64; N]) -> Tensor {
        Tensor::empty(shape, (Kind::Float, self.operands.h.device()))
    }
}

impl Kernel for GpuKernel {
    /// Mean, 1/σ, scale and β, f32 `[4, C]`.
    type SavedForBackward = Tensor;

    fn forward(&self, norm: &NormTensors) -> (Tensor, Tensor, Tensor) {
        let n = self.samples;
        let c = self.channels;
        let affine = self.empty_f32([4, c]);
        // For the statistics all pixels are those of one sample.
        let mut task = self.task(1, n * self.pixels);
        let partials = self.empty_f32([task.slabs, 2, c]);
        task.partials = address(&partials);
        self.launch(&format!("moments_{}", self.element), task.blocks(), &task);
        let (running_mean, running_var) = match norm.running {
            Some((mean, var)) => (f32_address(mean, c), f32_address(var, c)),
            None => (null_mut(), null_mut()),
        };
        let task = Task {
            affine: address(&affine),
            weight: f32_address(norm.weight, c),
            bias: f32_address(norm.bias, c),
            running_mean,
            running_var,
            momentum: norm.momentum,
            epsilon: norm.epsilon,
            ..task
        };
        self.launch("statistics", c / CHANNELS, &task);

        let out = self.operands.h.empty_like();
        let task = self.task(n, self.pixels);
        let slabs = if self.operands.pool { task.slabs } else { 0 };
        let pooled = self.empty_f32([n, slabs, c]);
        let task = Task { affine: address(&affine), out: address(&out), partials: address(&pooled), ..task };
        self.launch(&format!("forward_{}", self.suffix), task.blocks(), &task);
        let mean = match slabs {
            0 => pooled,
            1 => pooled.view([n, c]),
            slabs => self.fold(task.partials, [n, slabs, c]),
        };
        (affine, out, mean)
    }

    fn backward(
        &self,
        affine: &Tensor,
        out_gradient: Option<Tensor>,
        mean_gradient: Option<Tensor>,
    ) -> [Option<Tensor>; 6] {
        let n = self.samples;
        let c = self.channels;
        let h = &self.operands.h;
        let epilogue = self.operands.epilogue;
        let [out_gradient, mean_gradient] = [out_gradient, mean_gradient].map(|gradient| gradient.map(align));
        if let Some(gradient) = &out_gradient {
            assert!(
                gradient.kind() == h.kind() && gradient.size() == h.size(),
                "the gradient {gradient:?} of {h:?}"
            );
        }
        let task = self.task(n, self.pixels);
        let slabs = task.slabs;
        let tiles = task.tiles;
        let sums = 2 * n * slabs * c;
        let partials = self.empty_f32([sums + n * slabs * tiles]);
        let slopes = self.empty_f32([4, c]);
        let mut task = Task {
            out_gradient: address(out_gradient.as_ref()),
            mean_gradient: mean_gradient.as_ref().map_or(null_mut(), |mean| f32_address(mean, n * c)),
            partials: address(&partials),
            affine: address(affine),
            slopes: address(&slopes),
            ..task
        };
        self.launch(&format!("reduce_{}", self.suffix), task.blocks(), &task);
        self.launch("gradients", c / CHANNELS, &task);
        let h_gradient = h.empty_like();
        let shortcut_gradient = epilogue.adds_shortcut().then(|| h.empty_like());
        let skip_gradient = (epilogue == EpilogueKind::BlendWithSkip).then(|| h.empty_like());
        task.h_gradient = address(&h_gradient);
        task.shortcut_gradient = address(shortcut_gradient.as_ref());
        task.skip_gradient = address(skip_gradient.as_ref());
        self.launch(&format!("backward_{}", self.suffix), task.blocks(), &task);
        let v_gradient = epilogue.blends().then(|| {
            let blend = partials.narrow(0, sums, n * slabs * tiles);
            self.fold(address(&blend), [n, slabs * tiles, 1]).view([n])
        });
        let weight_gradient = Some(slopes.get(2));
        let bias_gradient = Some(slopes.get(3));
        [Some(h_gradient), weight_gradient, bias_gradient, shortcut_gradient, skip_gradient, v_gradient]
    }
}

/// [`super::normalise_pixels`] by `kernels`.
pub fn normalise_pixels(
    kernels: &dyn Launch,
    bytes: &Tensor,
    mean: &Tensor,
    std: &Tensor,
    kind: Kind,
) -> Tensor {
    let (n, height, width, c) = bytes.size4().expect("[N, H, W, C]");
    assert_eq!(bytes.kind(), Kind::Uint8);
    let bytes = bytes.contiguous();
    let out = Tensor::empty([n, height, width, c], (kind, bytes.device()));
    let task = Task {
        out: address(&out),
        bytes: address(&bytes),
        weight: f32_address(mean, c),
        bias: f32_address(std, c),
        ..Task::without_addresses(n, height * width, c, 1)
    };
    let blocks = div_ceil(n * height * width * c, THREADS * lanes(kind));
    // SAFETY: contiguous tensors of as many bytes as elements, and of C numbers twice. They live until the call returns, and
    // libtorch reuses their memory only after the kernel on this stream.
    unsafe { kernels.launch(&format!("normalise_{}", element(kind)), blocks, &task) };
    out.permute([0, 3, 1, 2])
}

/// The name of a kind in kernels' names.
fn element(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "f32",
        Kind::BFloat16 => "bf16",
        kind => panic!("no kernel takes {kind:?}"),
    }
}

/// How many elements of a kind 16 bytes hold.
fn lanes(kind: Kind) -> i64 {
    16 / kind.elt_size_in_bytes() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Also that no slab is empty and blocks are not too many.
    #[test]
    fn slabs_and_tiles_cover_every_pixel_and_channel_once() {
        for samples in [1, 3, 256, 5000] {
            for pixels in [1, 35, 49, 3136, 50176] {
                for (channels, lanes) in [(16, 8), (48, 4), (256, 8), (2048, 4)] {
                    let task = Task::without_addresses(samples, pixels, channels, lanes);
                    let rows = THREADS / task.columns;
                    assert!(task.slabs * task.slab >= pixels && (task.slabs - 1) * task.slab < pixels);
                    assert!(task.tiles * task.columns * lanes >= channels);
                    assert!((task.tiles - 1) * task.columns * lanes < channels);
                    assert_eq!(rows * task.columns, THREADS);
                    let most = (2 * BLOCKS).max(samples * task.tiles);
                    assert!(task.blocks() <= most, "{samples} × {pixels} × {channels}: {}", task.blocks());
                }
            }
        }
    }
}
