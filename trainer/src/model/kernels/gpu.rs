//! What the kernels of `kernels.cu` are asked for, one after another, and the memory between them, which is libtorch's: its
//! allocator gives memory out anew in the order of the stream that it was used on. Who launches is behind [`Launch`]: a GPU
//! (`cuda.rs`), or in tests a CPU.
#![expect(unsafe_code, reason = "kernels are given addresses")]

use super::{Given, Norm, Passes, Tail};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use tch::{Kind, Tensor};

/// Threads of every block, as `kernels.cu` has it.
pub const THREADS: i64 = 256;
/// Channels of a block that adds up over slabs, as `kernels.cu` has it.
const CHANNELS: i64 = 8;
/// Threads side by side on a pixel's channels at most: 512 neighbouring bytes.
const COLUMNS: i64 = 32;
/// Blocks to aim at, enough for any GPU: the same on all, so that results are.
const BLOCKS: i64 = 2048;
/// Pixels of a thread at least, where samples are cut: a block's sums are then 3 % of what it reads.
const PIXELS: i64 = 16;

/// `Task` of `kernels.cu`, where each field is explained.
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

/// What runs kernels.
pub trait Launch: Send + Sync {
    /// Starts `blocks` blocks of a kernel, after whatever this thread has started on the device; panics where the device is
    /// lost.
    ///
    /// # Safety
    /// `task` has the memory that the kernel reads and writes, on the device, until what follows it there.
    unsafe fn launch(&self, kernel: &str, blocks: i64, task: &Task);
}

/// The names of all kernels.
pub fn names() -> Vec<String> {
    let mut names = vec!["statistics".to_owned(), "fold".to_owned(), "gradients".to_owned()];
    for element in ["f32", "bf16"] {
        names.extend(["moments", "pixels"].map(|kernel| format!("{kernel}_{element}")));
        for kernel in ["forward", "reduce", "backward"] {
            names.extend(TAILS.map(|(_, tail)| format!("{kernel}_{element}_{tail}")));
        }
    }
    names
}

const TAILS: [(Tail, &str); 4] = [
    (Tail::Relu, "relu"),
    (Tail::AddRelu, "add_relu"),
    (Tail::Blend, "blend"),
    (Tail::BlendApart, "blend_apart"),
];

/// What the backward pass needs of the forward pass.
pub struct Saved {
    kernels: &'static dyn Launch,
    given: Given,
    element: &'static str,
    /// As a kernel's name ends.
    suffix: String,
    samples: i64,
    /// Of one sample.
    pixels: i64,
    channels: i64,
}

impl Task {
    /// Nothing to do yet, for so many pixels of so many samples, cut as the head of `kernels.cu` says into slabs and tiles of
    /// threads with `lanes` channels each.
    fn new(samples: i64, pixels: i64, channels: i64, lanes: i64) -> Self {
        let chunks = channels / lanes;
        let columns = 1 << chunks.min(COLUMNS).ilog2();
        let (tiles, rows) = (parts(chunks, columns), THREADS / columns);
        let slabs = parts(BLOCKS, samples * tiles).min(parts(pixels, rows * PIXELS));
        let slab = parts(pixels, slabs);
        // SAFETY: null addresses and zeros are values of all fields.
        let nothing: Self = unsafe { std::mem::zeroed() };
        Self { samples, pixels, channels, slabs: parts(pixels, slab), slab, tiles, columns, ..nothing }
    }

    fn blocks(&self) -> i64 {
        self.samples * self.slabs * self.tiles
    }
}

/// How many parts of `of` make at least `whole`.
fn parts(whole: i64, of: i64) -> i64 {
    (whole + of - 1) / of
}

/// A tensor's address; null where there is none or it is empty.
fn address<'a, T>(x: impl Into<Option<&'a Tensor>>) -> *mut T {
    x.into().filter(|x| x.numel() > 0).map_or(null_mut(), |x| x.data_ptr().cast())
}

/// The address of as many f32 as `count`.
fn floats(x: &Tensor, count: i64) -> *mut f32 {
    assert!(x.kind() == Kind::Float && x.numel() as i64 == count && x.is_contiguous(), "{count} of {x:?}");
    address(x)
}

/// `x`, or a copy of it where a thread's 16 bytes would lie across the borders of such.
fn aligned(x: Tensor) -> Tensor {
    if x.numel() > 0 && !x.data_ptr().addr().is_multiple_of(16) { x.copy() } else { x }
}

impl Saved {
    pub fn new(kernels: &'static dyn Launch, given: Given) -> Self {
        let Given { h, shortcut, skip, v, tail } = given;
        let [h, shortcut, skip] = [h, shortcut, skip].map(aligned);
        for operand in [&shortcut, &skip] {
            assert!(operand.numel() == 0 || operand.kind() == h.kind(), "{operand:?} beside {h:?}");
        }
        let (samples, channels, height, width) = h.size4().expect("[N, C, H, W]");
        let element = element(h.kind());
        let (_, name) = TAILS.into_iter().find(|&(one, _)| one == tail).expect("one of four");
        let (pixels, suffix) = (height * width, format!("{element}_{name}"));
        let given = Given { h, shortcut, skip, v, tail };
        Self { kernels, given, element, suffix, samples, pixels, channels }
    }

    /// With the operands' addresses.
    fn task(&self, samples: i64, pixels: i64) -> Task {
        let Given { h, shortcut, skip, v, .. } = &self.given;
        Task {
            h: address(h),
            shortcut: address(shortcut),
            skip: address(skip),
            v: if v.numel() == 0 { null() } else { floats(v, self.samples) },
            ..Task::new(samples, pixels, self.channels, lanes(h.kind()))
        }
    }

    fn launch(&self, kernel: &str, blocks: i64, task: &Task) {
        // SAFETY: the addresses are those of contiguous tensors of the shapes that the kernel works on, or null where it has
        // no use for them; they live until the call returns, and libtorch gives their memory to nobody before the kernel on
        // this stream.
        unsafe { self.kernels.launch(kernel, blocks, task) };
    }

    /// Σ over k of `task.partials` `[outer, count, inner]`.
    fn fold(&self, partials: *mut f32, [outer, count, inner]: [i64; 3]) -> Tensor {
        let sums = self.floats([outer, inner]);
        let numbers = Task::new(outer, 1, inner, 1);
        let task = Task { partials, sums: address(&sums), slabs: count, ..numbers };
        self.launch("fold", parts(outer * inner, THREADS), &task);
        sums
    }

    fn floats<const N: usize>(&self, shape: [i64; N]) -> Tensor {
        Tensor::empty(shape, (Kind::Float, self.given.h.device()))
    }
}

impl Passes for Saved {
    /// Mean, 1/σ, scale and β, f32 `[4, C]`.
    type Kept = Tensor;

    fn forward(&self, norm: &Norm) -> (Tensor, Tensor, Tensor) {
        let (n, c) = (self.samples, self.channels);
        let affine = self.floats([4, c]);
        // Statistics know no samples.
        let mut task = self.task(1, n * self.pixels);
        let partials = self.floats([task.slabs, 2, c]);
        task.partials = address(&partials);
        self.launch(&format!("moments_{}", self.element), task.blocks(), &task);
        let (running_mean, running_var) =
            norm.running.map_or((null_mut(), null_mut()), |(mean, var)| (floats(mean, c), floats(var, c)));
        let task = Task {
            affine: address(&affine),
            weight: floats(norm.weight, c),
            bias: floats(norm.bias, c),
            running_mean,
            running_var,
            momentum: norm.momentum,
            epsilon: norm.epsilon,
            ..task
        };
        self.launch("statistics", c / CHANNELS, &task);

        let out = self.given.h.empty_like();
        let task = self.task(n, self.pixels);
        let pooled = self.floats([n, task.slabs, c]);
        let task = Task { affine: address(&affine), out: address(&out), partials: address(&pooled), ..task };
        self.launch(&format!("forward_{}", self.suffix), task.blocks(), &task);
        let mean = match task.slabs {
            1 => pooled.view([n, c]),
            slabs => self.fold(task.partials, [n, slabs, c]),
        };
        (affine, out, mean)
    }

    fn backward(&self, affine: &Tensor, out: Option<Tensor>, mean: Option<Tensor>) -> [Option<Tensor>; 6] {
        let (n, c, h) = (self.samples, self.channels, &self.given.h);
        let [out, mean] = [out, mean].map(|gradient| gradient.map(aligned));
        if let Some(out) = &out {
            assert!(out.kind() == h.kind() && out.size() == h.size(), "the gradient {out:?} of {h:?}");
        }
        let task = self.task(n, self.pixels);
        let (slabs, tiles) = (task.slabs, task.tiles);
        let sums = 2 * n * slabs * c;
        let partials = self.floats([sums + n * slabs * tiles]);
        let slopes = self.floats([4, c]);
        let mut task = Task {
            out_gradient: address(out.as_ref()),
            mean_gradient: mean.as_ref().map_or(null_mut(), |mean| floats(mean, n * c)),
            partials: address(&partials),
            affine: address(affine),
            slopes: address(&slopes),
            ..task
        };
        self.launch(&format!("reduce_{}", self.suffix), task.blocks(), &task);
        self.launch("gradients", c / CHANNELS, &task);
        let of_h = h.empty_like();
        let shortcut = (self.given.tail != Tail::Relu).then(|| h.empty_like());
        let skip = (self.given.tail == Tail::BlendApart).then(|| h.empty_like());
        task.h_gradient = address(&of_h);
        task.shortcut_gradient = address(shortcut.as_ref());
        task.skip_gradient = address(skip.as_ref());
        self.launch(&format!("backward_{}", self.suffix), task.blocks(), &task);
        let v = matches!(self.given.tail, Tail::Blend | Tail::BlendApart).then(|| {
            let blend = partials.narrow(0, sums, n * slabs * tiles);
            self.fold(address(&blend), [n, slabs * tiles, 1]).view([n])
        });
        [Some(of_h), Some(slopes.get(2)), Some(slopes.get(3)), shortcut, skip, v]
    }
}

/// [`super::pixels`] by `kernels`.
pub fn pixels(kernels: &dyn Launch, bytes: &Tensor, mean: &Tensor, std: &Tensor, kind: Kind) -> Tensor {
    let (n, height, width, c) = bytes.size4().expect("[N, H, W, C]");
    assert_eq!(bytes.kind(), Kind::Uint8);
    let bytes = bytes.contiguous();
    let out = Tensor::empty([n, height, width, c], (kind, bytes.device()));
    let task = Task {
        out: address(&out),
        bytes: address(&bytes),
        weight: floats(mean, c),
        bias: floats(std, c),
        ..Task::new(n, height * width, c, 1)
    };
    let blocks = parts(n * height * width * c, THREADS * lanes(kind));
    // SAFETY: bytes and as many elements, and C numbers twice, of contiguous tensors that live until the call returns, whose
    // memory libtorch gives to nobody before the kernel on this stream.
    unsafe { kernels.launch(&format!("pixels_{}", element(kind)), blocks, &task) };
    out.permute([0, 3, 1, 2])
}

/// What `kernels.cu` calls the elements of a kind.
fn element(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "f32",
        Kind::BFloat16 => "bf16",
        kind => panic!("no kernel is for {kind:?}"),
    }
}

/// Elements of a kind in 16 bytes.
fn lanes(kind: Kind) -> i64 {
    16 / kind.elt_size_in_bytes() as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pixel and channel is in one slab and tile, every slab has some, and blocks are neither few nor many.
    #[test]
    fn work_is_cut_evenly() {
        for samples in [1, 3, 256, 5000] {
            for pixels in [1, 35, 49, 3136, 50176] {
                for (channels, lanes) in [(16, 8), (48, 4), (256, 8), (2048, 4)] {
                    let task = Task::new(samples, pixels, channels, lanes);
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
