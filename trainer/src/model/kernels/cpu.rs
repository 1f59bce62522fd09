//! The kernels on a CPU. Samples are shared out to libtorch's threads; sums are f32 over one sample and f64 over samples, in
//! one order whatever the number of threads. No multiplication and addition is contracted, so that all instruction sets
//! give the same bits.
#![expect(unsafe_code, reason = "several threads write to tensors' memory")]

use super::parts::{Bf16, Element, LANES, Lanes, Parts};
use super::{Given, Norm, Passes, Tail};
use crate::sys::parallel_for;
use pulp::{Arch, Simd, WithSimd};
use std::array::from_fn;
use tch::{Kind, Tensor};

/// Channel by channel: y = scale·h + shift, with `mean` and 1/σ as `rstd`.
pub struct Affine {
    scale: Vec<Lanes>,
    shift: Vec<Lanes>,
    mean: Vec<Lanes>,
    rstd: Vec<Lanes>,
}

/// What the backward pass needs of the forward pass.
pub struct Saved {
    h: Tensor,
    shortcut: Tensor,
    skip: Tensor,
    v: Tensor,
    tail: Tail,
    samples: usize,
    /// Of one sample.
    pixels: usize,
    /// Over [`LANES`].
    chunks: usize,
}

/// What all samples' kernels read.
struct Operands<'a, T> {
    h: Parts<'a, T>,
    shortcut: Parts<'a, T>,
    skip: Parts<'a, T>,
    v: Vec<f32>,
    affine: &'a Affine,
}

/// One sample's.
struct Sample<'a, T> {
    h: &'a [[T; LANES]],
    shortcut: &'a [[T; LANES]],
    skip: &'a [[T; LANES]],
    v: f32,
    affine: &'a Affine,
}

/// A kernel for the tail that the three flags say: whether there is a shortcut, a blend, a skip apart from the shortcut.
macro_rules! dispatch {
    ($tail:expr, $kernel:ident { $($field:tt)* }) => {
        match $tail {
            Tail::Relu => Arch::new().dispatch($kernel::<_, false, false, false> { $($field)* }),
            Tail::AddRelu => Arch::new().dispatch($kernel::<_, true, false, false> { $($field)* }),
            Tail::Blend => Arch::new().dispatch($kernel::<_, true, true, false> { $($field)* }),
            Tail::BlendApart => Arch::new().dispatch($kernel::<_, true, true, true> { $($field)* }),
        }
    };
}

impl Passes for Saved {
    type Kept = Affine;

    fn forward(&self, norm: &Norm) -> (Affine, Tensor, Tensor) {
        match self.h.kind() {
            Kind::BFloat16 => self.forward_of::<Bf16>(norm),
            _ => self.forward_of::<f32>(norm),
        }
    }

    fn backward(&self, affine: &Affine, out: Option<Tensor>, mean: Option<Tensor>) -> [Option<Tensor>; 6] {
        match self.h.kind() {
            Kind::BFloat16 => self.backward_of::<Bf16>(affine, out, mean),
            _ => self.backward_of::<f32>(affine, out, mean),
        }
    }
}

impl Saved {
    pub fn new(Given { h, shortcut, skip, v, tail }: Given) -> Self {
        let (samples, c, height, width) = h.size4().expect("[N, C, H, W]");
        let (samples, pixels, chunks) = (samples as usize, (height * width) as usize, c as usize / LANES);
        Self { h, shortcut, skip, v, tail, samples, pixels, chunks }
    }

    fn forward_of<T: Element>(&self, norm: &Norm) -> (Affine, Tensor, Tensor) {
        let affine = self.affine::<T>(norm);
        let out = self.h.empty_like();
        let mean = Tensor::empty(
            [self.samples as i64, (self.chunks * LANES) as i64],
            (Kind::Float, self.h.device()),
        );
        let (outs, means) = (Parts::<T>::of(&out, self.samples), Parts::<f32>::of(&mean, self.samples));
        let tail = self.tail;
        let operands = self.operands::<T>(&affine);
        parallel_for(self.samples, |n| {
            let sample = operands.sample(n);
            // SAFETY: tensors of this function's own, one sample a task.
            let (out, mean) = unsafe { (outs.get_mut(n), means.get_mut(n)) };
            dispatch!(tail, Forward { sample, out, mean });
        });
        (affine, out, mean)
    }

    /// The batch's statistics, seen by the running ones.
    fn affine<T: Element>(&self, norm: &Norm) -> Affine {
        let (chunks, count) = (self.chunks, (self.samples * self.pixels) as f64);
        let h = Parts::<T>::of(&self.h, self.samples);
        let moments = self.sums(2, |n, sums| Arch::new().dispatch(Moments { h: h.get(n), sums }));
        let moment = |which: usize, n: usize, c: usize| {
            f64::from(moments[(2 * n + which) * chunks + c / LANES][c % LANES])
        };
        let over_samples = |of: &dyn Fn(usize) -> f64| (0..self.samples).map(of).sum::<f64>();
        let zeros = || vec![[0.0; LANES]; chunks];
        let mut affine = Affine { scale: zeros(), shift: zeros(), mean: zeros(), rstd: zeros() };
        let running = norm.running.map(|(mean, var)| [mean, var].map(|x| Parts::<f32>::of(x, 1)));
        let (weight, bias) = (Parts::<f32>::of(norm.weight, 1).get(0), Parts::<f32>::of(norm.bias, 1).get(0));
        for c in 0..chunks * LANES {
            let (j, lane) = (c / LANES, c % LANES);
            let mean = over_samples(&|n| moment(0, n, c)) / self.samples as f64;
            let squares =
                over_samples(&|n| moment(1, n, c) + self.pixels as f64 * (moment(0, n, c) - mean).powi(2));
            let rstd = 1.0 / (squares / count + norm.epsilon).sqrt();
            let scale = f64::from(weight[j][lane]) * rstd;
            affine.mean[j][lane] = mean as f32;
            affine.rstd[j][lane] = rstd as f32;
            affine.scale[j][lane] = scale as f32;
            affine.shift[j][lane] = (f64::from(bias[j][lane]) - mean * scale) as f32;
            let seen = [mean, squares / (count - 1.0).max(1.0)]; // the unbiased variance, as PyTorch has it
            for (running, seen) in running.iter().flatten().zip(seen) {
                // SAFETY: no task reads or writes running statistics.
                let running = unsafe { &mut running.get_mut(0)[j][lane] };
                *running += (norm.momentum * (seen - f64::from(*running))) as f32;
            }
        }
        affine
    }

    fn backward_of<T: Element>(
        &self,
        affine: &Affine,
        out: Option<Tensor>,
        mean: Option<Tensor>,
    ) -> [Option<Tensor>; 6] {
        let (samples, chunks) = (self.samples, self.chunks);
        let channels = (chunks * LANES) as i64;
        let float = (Kind::Float, self.h.device());
        let out = out.unwrap_or_else(|| self.h.zeros_like());
        let mean =
            mean.unwrap_or_else(|| Tensor::zeros([samples as i64, channels], float)) / self.pixels as f64;
        let (outs, means) = (Parts::<T>::of(&out, samples), Parts::<f32>::of(&mean, samples));
        let (tail, operands) = (self.tail, self.operands::<T>(affine));
        let sums = self.sums(3, |n, sums| {
            let (sample, out, mean) = (operands.sample(n), outs.get(n), means.get(n));
            dispatch!(tail, Reduce { sample, out, mean, sums });
        });
        let sum = |which: usize, n: usize, j: usize| sums[(3 * n + which) * chunks + j];
        let total = |which: usize| -> Vec<[f64; LANES]> {
            let add = |a: [f64; LANES], b: Lanes| from_fn(|i| a[i] + f64::from(b[i]));
            (0..chunks)
                .map(|j| (0..samples).fold([0.0; LANES], |total, n| add(total, sum(which, n, j))))
                .collect()
        };
        let (bias, scaled) = (total(0), total(1)); // Σ dz and Σ dz·(h − mean)
        let count = (samples * self.pixels) as f64;
        let rstd = |j: usize, i: usize| f64::from(affine.rstd[j][i]);
        let lanes = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Lanes> {
            (0..chunks).map(|j| from_fn(|i| of(j, i) as f32)).collect()
        };
        let (offset, slope) =
            (lanes(&|j, i| bias[j][i] / count), lanes(&|j, i| scaled[j][i] * rstd(j, i).powi(2) / count));
        let empty = || self.h.empty_like();
        let h = empty();
        let shortcut = (!matches!(tail, Tail::Relu)).then(empty);
        let skip = matches!(tail, Tail::BlendApart).then(empty);
        {
            let none = Tensor::empty([0], float);
            let [h, shortcut, skip] = [Some(&h), shortcut.as_ref(), skip.as_ref()]
                .map(|x| Parts::<T>::of(x.unwrap_or(&none), samples));
            parallel_for(samples, |n| {
                let (sample, out, mean) = (operands.sample(n), outs.get(n), means.get(n));
                let (offset, slope) = (&offset[..], &slope[..]);
                // SAFETY: tensors of this function's own, one sample a task.
                let (h, shortcut, skip) = unsafe { (h.get_mut(n), shortcut.get_mut(n), skip.get_mut(n)) };
                dispatch!(tail, Backward { sample, out, mean, offset, slope, h, shortcut, skip });
            });
        }
        let vector = |values: Vec<Lanes>| Tensor::from_slice(values.as_flattened());
        let weight = vector(lanes(&|j, i| scaled[j][i] * rstd(j, i)));
        let bias = vector(lanes(&|j, i| bias[j][i]));
        let v = matches!(tail, Tail::Blend | Tail::BlendApart).then(|| {
            let of = |n: usize| (0..chunks).flat_map(|j| sum(2, n, j)).map(f64::from).sum::<f64>() as f32;
            Tensor::from_slice(&(0..samples).map(of).collect::<Vec<_>>())
        });
        [Some(h), Some(weight), Some(bias), shortcut, skip, v]
    }

    fn operands<'a, T: Element>(&'a self, affine: &'a Affine) -> Operands<'a, T> {
        let parts = |x| Parts::of(x, self.samples);
        let v = Vec::try_from(&self.v).expect("f32");
        Operands { h: parts(&self.h), shortcut: parts(&self.shortcut), skip: parts(&self.skip), v, affine }
    }

    /// `kinds` sums a channel of each sample, `[N, kinds, C]`, which `task` finds, in parallel.
    fn sums(&self, kinds: usize, task: impl Fn(usize, &mut [Lanes]) + Sync) -> Vec<Lanes> {
        let mut sums = vec![[0.0; LANES]; self.samples * kinds * self.chunks];
        let parts = Parts::over(&mut sums, self.samples);
        // SAFETY: a vector of this function's own, one sample a task.
        parallel_for(self.samples, |n| task(n, unsafe { parts.get_mut(n) }));
        sums
    }
}

impl<'a, T: Element> Operands<'a, T> {
    fn sample(&self, n: usize) -> Sample<'a, T> {
        let (h, shortcut, skip) = (self.h.get(n), self.shortcut.get(n), self.skip.get(n));
        Sample { h, shortcut, skip, v: self.v.get(n).copied().unwrap_or(1.0), affine: self.affine }
    }
}

#[inline(always)]
fn lanes(of: impl Fn(usize) -> f32) -> Lanes {
    from_fn(of)
}

/// `(mean, Σ (h − mean)²)` of each channel, as sums of distances from the first pixel.
struct Moments<'a, T> {
    h: &'a [[T; LANES]],
    sums: &'a mut [Lanes],
}

impl<T: Element> WithSimd for Moments<'_, T> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (sums, squares) = self.sums.split_at_mut(self.sums.len() / 2);
        let chunks = sums.len();
        let first = &self.h[..chunks];
        for row in self.h.chunks_exact(chunks) {
            for (((h, first), sum), square) in row.iter().zip(first).zip(&mut *sums).zip(&mut *squares) {
                let (h, first) = (T::load(h), T::load(first));
                for i in 0..LANES {
                    let off = h[i] - first[i];
                    sum[i] += off;
                    square[i] += off * off;
                }
            }
        }
        let count = (self.h.len() / chunks) as f32;
        for ((first, sum), square) in first.iter().zip(sums).zip(squares) {
            let first = T::load(first);
            for i in 0..LANES {
                square[i] -= sum[i] * sum[i] / count;
                sum[i] = first[i] + sum[i] / count;
            }
        }
    }
}

/// Values on the way to an output: z = y + shortcut, and what the block is skipped for.
struct Point {
    h: Lanes,
    z: Lanes,
    skip: Lanes,
}

impl<T: Element> Sample<'_, T> {
    /// Chunk `j` of the channels of a pixel, which is chunk `at` of the sample.
    #[inline(always)]
    fn point<const ADD: bool, const APART: bool>(&self, at: usize, j: usize) -> Point {
        let (scale, shift) = (&self.affine.scale[j], &self.affine.shift[j]);
        let h = T::load(&self.h[at]);
        let shortcut = if ADD { T::load(&self.shortcut[at]) } else { [0.0; LANES] };
        let z = lanes(|i| scale[i] * h[i] + shift[i] + shortcut[i]);
        Point { h, z, skip: if APART { T::load(&self.skip[at]) } else { shortcut } }
    }
}

/// max(z, 0), and NaN where z is.
#[inline(always)]
fn relu(z: f32) -> f32 {
    if z <= 0.0 { 0.0 } else { z }
}

struct Forward<'a, T, const ADD: bool, const BLEND: bool, const APART: bool> {
    sample: Sample<'a, T>,
    out: &'a mut [[T; LANES]],
    mean: &'a mut [Lanes],
}

impl<T: Element, const ADD: bool, const BLEND: bool, const APART: bool> WithSimd
    for Forward<'_, T, ADD, BLEND, APART>
{
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (chunks, v) = (self.mean.len(), self.sample.v);
        self.mean.fill([0.0; LANES]);
        for (pixel, row) in self.out.chunks_exact_mut(chunks).enumerate() {
            for (j, (out, mean)) in row.iter_mut().zip(&mut *self.mean).enumerate() {
                let Point { z, skip, .. } = self.sample.point::<ADD, APART>(pixel * chunks + j, j);
                let run = lanes(|i| relu(z[i]));
                let value = if BLEND { lanes(|i| skip[i] + v * (run[i] - skip[i])) } else { run };
                T::store(out, value);
                *mean = lanes(|i| mean[i] + value[i]);
            }
        }
        let count = (self.out.len() / chunks) as f32;
        for mean in self.mean {
            *mean = mean.map(|sum| sum / count);
        }
    }
}

/// For each channel Σ dz, Σ dz·(h − mean), and what v's gradient is the sum of, where dz is the gradient of z.
struct Reduce<'a, T, const ADD: bool, const BLEND: bool, const APART: bool> {
    sample: Sample<'a, T>,
    /// The gradients of the output and, spread over pixels, of its mean.
    out: &'a [[T; LANES]],
    mean: &'a [Lanes],
    sums: &'a mut [Lanes],
}

impl<T: Element, const ADD: bool, const BLEND: bool, const APART: bool> WithSimd
    for Reduce<'_, T, ADD, BLEND, APART>
{
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (chunks, v) = (self.mean.len(), self.sample.v);
        let (bias, sums) = self.sums.split_at_mut(chunks);
        let (scaled, blend) = sums.split_at_mut(chunks);
        for (pixel, row) in self.out.chunks_exact(chunks).enumerate() {
            for (j, out) in row.iter().enumerate() {
                let Point { h, z, skip } = self.sample.point::<ADD, APART>(pixel * chunks + j, j);
                let (out, of_mean, mean) = (T::load(out), &self.mean[j], &self.sample.affine.mean[j]);
                let (bias, scaled, blend) = (&mut bias[j], &mut scaled[j], &mut blend[j]);
                for i in 0..LANES {
                    let mut g = out[i] + of_mean[i];
                    if BLEND {
                        blend[i] += g * (relu(z[i]) - skip[i]);
                        g *= v;
                    }
                    let dz = if z[i] <= 0.0 { 0.0 } else { g };
                    bias[i] += dz;
                    scaled[i] += dz * (h[i] - mean[i]);
                }
            }
        }
    }
}

/// The gradients of h, scale·(dz − offset − slope·(h − mean)), of the shortcut and of the skip.
struct Backward<'a, T, const ADD: bool, const BLEND: bool, const APART: bool> {
    sample: Sample<'a, T>,
    /// The gradients of the output and, spread over pixels, of its mean.
    out: &'a [[T; LANES]],
    mean: &'a [Lanes],
    offset: &'a [Lanes],
    slope: &'a [Lanes],
    h: &'a mut [[T; LANES]],
    shortcut: &'a mut [[T; LANES]],
    skip: &'a mut [[T; LANES]],
}

impl<T: Element, const ADD: bool, const BLEND: bool, const APART: bool> WithSimd
    for Backward<'_, T, ADD, BLEND, APART>
{
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let (chunks, v, affine) = (self.mean.len(), self.sample.v, self.sample.affine);
        for (pixel, row) in self.out.chunks_exact(chunks).enumerate() {
            for (j, out) in row.iter().enumerate() {
                let at = pixel * chunks + j;
                let Point { h, z, .. } = self.sample.point::<ADD, APART>(at, j);
                let (out, of_mean) = (T::load(out), &self.mean[j]);
                let (offset, slope, mean, scale) =
                    (&self.offset[j], &self.slope[j], &affine.mean[j], &affine.scale[j]);
                let g = lanes(|i| out[i] + of_mean[i]);
                let dz = lanes(|i| {
                    let run = if BLEND { v * g[i] } else { g[i] };
                    if z[i] <= 0.0 { 0.0 } else { run }
                });
                T::store(
                    &mut self.h[at],
                    lanes(|i| scale[i] * (dz[i] - offset[i] - slope[i] * (h[i] - mean[i]))),
                );
                if ADD {
                    let around = lanes(|i| if BLEND && !APART { dz[i] + (1.0 - v) * g[i] } else { dz[i] });
                    T::store(&mut self.shortcut[at], around);
                }
                if APART {
                    T::store(&mut self.skip[at], lanes(|i| (1.0 - v) * g[i]));
                }
            }
        }
    }
}
