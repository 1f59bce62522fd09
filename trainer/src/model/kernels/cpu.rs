//! The kernels on a CPU. libtorch's threads work on different samples. Sums are f32 over one sample and f64 over samples, in an
//! order that does not depend on the number of threads. No multiplication and addition is contracted, so all instruction sets
//! give the same bits.
#![expect(unsafe_code, reason = "several threads write to tensors' memory")]

use super::slices::{Bf16, Element, LANES, Lanes, SampleSlices};
use super::{EpilogueKind, Kernel, NormTensors, Operands};
use crate::sys::parallel_for;
use pulp::{Arch, Simd, WithSimd};
use std::array::from_fn;
use tch::{Kind, Tensor};

/// The normalisation by channel: y = scale·h + shift, and the batch's mean and 1/σ (`rstd`).
pub struct Affine {
    scale: Vec<Lanes>,
    shift: Vec<Lanes>,
    mean: Vec<Lanes>,
    rstd: Vec<Lanes>,
}

/// The operands and their size.
pub struct CpuKernel {
    operands: Operands,
    samples: usize,
    /// Of one sample.
    pixels: usize,
    /// Channels divided by [`LANES`].
    chunks: usize,
}

/// The operands' memory.
struct OperandSlices<'a, T> {
    h: SampleSlices<'a, T>,
    shortcut: SampleSlices<'a, T>,
    skip: SampleSlices<'a, T>,
    v: Vec<f32>,
    affine: &'a Affine,
}

/// One sample of [`OperandSlices`].
struct Sample<'a, T> {
    h: &'a [[T; LANES]],
    shortcut: &'a [[T; LANES]],
    skip: &'a [[T; LANES]],
    v: f32,
    affine: &'a Affine,
}

/// Runs the variant of a kernel for an epilogue. Its three flags: whether it adds a shortcut, blends, has a skip of its own.
macro_rules! dispatch {
    ($epilogue:expr, $kernel:ident { $($field:tt)* }) => {
        match $epilogue {
            EpilogueKind::Relu => Arch::new().dispatch($kernel::<_, false, false, false> { $($field)* }),
            EpilogueKind::AddRelu => Arch::new().dispatch($kernel::<_, true, false, false> { $($field)* }),
            EpilogueKind::Blend => Arch::new().dispatch($kernel::<_, true, true, false> { $($field)* }),
            EpilogueKind::BlendWithSkip => Arch::new().dispatch($kernel::<_, true, true, true> { $($field)* }),
        }
    };
}

impl Kernel for CpuKernel {
    type SavedForBackward = Affine;

    fn forward(&self, norm: &NormTensors) -> (Affine, Tensor, Tensor) {
        match self.operands.h.kind() {
            Kind::BFloat16 => self.forward_typed::<Bf16>(norm),
            _ => self.forward_typed::<f32>(norm),
        }
    }

    fn backward(
        &self,
        affine: &Affine,
        out_gradient: Option<Tensor>,
        mean_gradient: Option<Tensor>,
    ) -> [Option<Tensor>; 6] {
        match self.operands.h.kind() {
            Kind::BFloat16 => self.backward_typed::<Bf16>(affine, out_gradient, mean_gradient),
            _ => self.backward_typed::<f32>(affine, out_gradient, mean_gradient),
        }
    }
}

impl CpuKernel {
    pub fn new(operands: Operands) -> Self {
        let (samples, channels, height, width) = operands.h.size4().expect("[N, C, H, W]");
        Self {
            operands,
            samples: samples as usize,
            pixels: (height * width) as usize,
            chunks: channels as usize / LANES,
        }
    }

    fn forward_typed<T: Element>(&self, norm: &NormTensors) -> (Affine, Tensor, Tensor) {
        let affine = self.affine::<T>(norm);
        let h = &self.operands.h;
        let out = h.empty_like();
        let channels = (self.chunks * LANES) as i64;
        let mean = Tensor::empty([self.samples as i64, channels], (Kind::Float, h.device()));
        let outs = SampleSlices::<T>::from_tensor(&out, self.samples);
        let means = SampleSlices::<f32>::from_tensor(&mean, self.samples);
        let epilogue = self.operands.epilogue;
        let operands = self.operand_slices::<T>(&affine);
        parallel_for(self.samples, |n| {
            let sample = operands.sample(n);
            // SAFETY: tensors of this function's own, one sample per task.
            let (out, mean) = unsafe { (outs.get_mut(n), means.get_mut(n)) };
            dispatch!(epilogue, Forward { sample, out, mean });
        });
        (affine, out, mean)
    }

    /// Computes the normalisation from the batch's statistics, and updates the running ones.
    fn affine<T: Element>(&self, norm: &NormTensors) -> Affine {
        let chunks = self.chunks;
        let count = (self.samples * self.pixels) as f64;
        let h = SampleSlices::<T>::from_tensor(&self.operands.h, self.samples);
        let moments = self.sums(2, |n, sums| Arch::new().dispatch(Moments { h: h.get(n), sums }));
        let moment = |which: usize, n: usize, c: usize| {
            f64::from(moments[(2 * n + which) * chunks + c / LANES][c % LANES])
        };
        let sum_over_samples = |term: &dyn Fn(usize) -> f64| (0..self.samples).map(term).sum::<f64>();
        let zeros = || vec![[0.0; LANES]; chunks];
        let mut affine = Affine { scale: zeros(), shift: zeros(), mean: zeros(), rstd: zeros() };
        let running =
            norm.running.map(|(mean, var)| [mean, var].map(|x| SampleSlices::<f32>::from_tensor(x, 1)));
        let weight = SampleSlices::<f32>::from_tensor(norm.weight, 1).get(0);
        let bias = SampleSlices::<f32>::from_tensor(norm.bias, 1).get(0);
        for c in 0..chunks * LANES {
            let j = c / LANES;
            let lane = c % LANES;
            let mean = sum_over_samples(&|n| moment(0, n, c)) / self.samples as f64;
            let squares = sum_over_samples(&|n| {
                moment(1, n, c) + self.pixels as f64 * (moment(0, n, c) - mean).powi(2)
            });
            let rstd = 1.0 / (squares / count + norm.epsilon).sqrt();
            let scale = f64::from(weight[j][lane]) * rstd;
            affine.mean[j][lane] = mean as f32;
            affine.rstd[j][lane] = rstd as f32;
            affine.scale[j][lane] = scale as f32;
            affine.shift[j][lane] = (f64::from(bias[j][lane]) - mean * scale) as f32;
            let batch = [mean, squares / (count - 1.0).max(1.0)]; // the unbiased variance, as in PyTorch
            for (running, batch) in running.iter().flatten().zip(batch) {
                // SAFETY: no task reads or writes running statistics.
                let running = unsafe { &mut running.get_mut(0)[j][lane] };
                *running += (norm.momentum * (batch - f64::from(*running))) as f32;
            }
        }
        affine
    }

    fn backward_typed<T: Element>(
        &self,
        affine: &Affine,
        out_gradient: Option<Tensor>,
        mean_gradient: Option<Tensor>,
    ) -> [Option<Tensor>; 6] {
        let samples = self.samples;
        let chunks = self.chunks;
        let h = &self.operands.h;
        let float = (Kind::Float, h.device());
        let out_gradient = out_gradient.unwrap_or_else(|| h.zeros_like());
        let zeros = || Tensor::zeros([samples as i64, (chunks * LANES) as i64], float);
        let pixel_gradient = mean_gradient.unwrap_or_else(zeros) / self.pixels as f64;
        let out_gradients = SampleSlices::<T>::from_tensor(&out_gradient, samples);
        let pixel_gradients = SampleSlices::<f32>::from_tensor(&pixel_gradient, samples);
        let epilogue = self.operands.epilogue;
        let operands = self.operand_slices::<T>(affine);
        let sums = self.sums(3, |n, sums| {
            let sample = operands.sample(n);
            let gradient = OutputGradient { out: out_gradients.get(n), pixel: pixel_gradients.get(n) };
            dispatch!(epilogue, Reduce { sample, gradient, sums });
        });
        let sum = |which: usize, n: usize, j: usize| sums[(3 * n + which) * chunks + j];
        let total = |which: usize| -> Vec<[f64; LANES]> {
            let add = |a: [f64; LANES], b: Lanes| from_fn(|i| a[i] + f64::from(b[i]));
            (0..chunks)
                .map(|j| (0..samples).fold([0.0; LANES], |total, n| add(total, sum(which, n, j))))
                .collect()
        };
        let dz_sum = total(0); // Σ dz
        let scaled_sum = total(1); // Σ dz·(h − mean)
        let count = (samples * self.pixels) as f64;
        let rstd = |j: usize, i: usize| f64::from(affine.rstd[j][i]);
        let lanes = |of: &dyn Fn(usize, usize) -> f64| -> Vec<Lanes> {
            (0..chunks).map(|j| from_fn(|i| of(j, i) as f32)).collect()
        };
        let offset = lanes(&|j, i| dz_sum[j][i] / count);
        let slope = lanes(&|j, i| scaled_sum[j][i] * rstd(j, i).powi(2) / count);
        let empty = || h.empty_like();
        let h_gradient = empty();
        let shortcut_gradient = epilogue.adds_shortcut().then(empty);
        let skip_gradient = (epilogue == EpilogueKind::BlendWithSkip).then(empty);
        {
            let none = Tensor::empty([0], float);
            let [h, shortcut, skip] = [Some(&h_gradient), shortcut_gradient.as_ref(), skip_gradient.as_ref()]
                .map(|x| SampleSlices::<T>::from_tensor(x.unwrap_or(&none), samples));
            parallel_for(samples, |n| {
                let sample = operands.sample(n);
                let gradient = OutputGradient { out: out_gradients.get(n), pixel: pixel_gradients.get(n) };
                let offset = &offset[..];
                let slope = &slope[..];
                // SAFETY: tensors of this function's own, one sample per task.
                let (h, shortcut, skip) = unsafe { (h.get_mut(n), shortcut.get_mut(n), skip.get_mut(n)) };
                dispatch!(epilogue, Backward { sample, gradient, offset, slope, h, shortcut, skip });
            });
        }
        let vector = |values: Vec<Lanes>| Tensor::from_slice(values.as_flattened());
        let weight = vector(lanes(&|j, i| scaled_sum[j][i] * rstd(j, i)));
        let bias = vector(lanes(&|j, i| dz_sum[j][i]));
        let v = epilogue.blends().then(|| {
            let of_sample =
                |n: usize| (0..chunks).flat_map(|j| sum(2, n, j)).map(f64::from).sum::<f64>() as f32;
            Tensor::from_slice(&(0..samples).map(of_sample).collect::<Vec<_>>())
        });
        [Some(h_gradient), Some(weight), Some(bias), shortcut_gradient, skip_gradient, v]
    }

    fn operand_slices<'a, T: Element>(&'a self, affine: &'a Affine) -> OperandSlices<'a, T> {
        let Operands { h, shortcut, skip, v, .. } = &self.operands;
        let slices = |x| SampleSlices::from_tensor(x, self.samples);
        let v = Vec::try_from(v).expect("f32");
        OperandSlices { h: slices(h), shortcut: slices(shortcut), skip: slices(skip), v, affine }
    }

    /// `kinds` sums per channel and sample, `[N, kinds, C]`, which `task` computes sample by sample, in parallel.
    fn sums(&self, kinds: usize, task: impl Fn(usize, &mut [Lanes]) + Sync) -> Vec<Lanes> {
        let mut sums = vec![[0.0; LANES]; self.samples * kinds * self.chunks];
        let slices = SampleSlices::from_lanes(&mut sums, self.samples);
        // SAFETY: a vector of this function's own, one sample per task.
        parallel_for(self.samples, |n| task(n, unsafe { slices.get_mut(n) }));
        sums
    }
}

impl<'a, T: Element> OperandSlices<'a, T> {
    fn sample(&self, n: usize) -> Sample<'a, T> {
        Sample {
            h: self.h.get(n),
            shortcut: self.shortcut.get(n),
            skip: self.skip.get(n),
            v: self.v.get(n).copied().unwrap_or(1.0),
            affine: self.affine,
        }
    }
}

#[inline(always)]
fn lanes(lane: impl Fn(usize) -> f32) -> Lanes {
    from_fn(lane)
}

/// Mean and Σ (h − mean)² of each channel, from sums of differences from the first pixel.
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
                let h = T::load(h);
                let first = T::load(first);
                for i in 0..LANES {
                    let difference = h[i] - first[i];
                    sum[i] += difference;
                    square[i] += difference * difference;
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

/// The values from which an output is computed: z = y + shortcut.
struct Point {
    h: Lanes,
    z: Lanes,
    skip: Lanes,
}

impl<T: Element> Sample<'_, T> {
    /// Chunk `j` of a pixel's channels, which is chunk `at` of the sample.
    #[inline(always)]
    fn point<const ADD: bool, const SKIP: bool>(&self, at: usize, j: usize) -> Point {
        let scale = &self.affine.scale[j];
        let shift = &self.affine.shift[j];
        let h = T::load(&self.h[at]);
        let shortcut = if ADD { T::load(&self.shortcut[at]) } else { [0.0; LANES] };
        let z = lanes(|i| scale[i] * h[i] + shift[i] + shortcut[i]);
        Point { h, z, skip: if SKIP { T::load(&self.skip[at]) } else { shortcut } }
    }
}

/// max(z, 0); NaN for NaN.
#[inline(always)]
fn relu(z: f32) -> f32 {
    if z <= 0.0 { 0.0 } else { z }
}

/// The output and its mean over pixels.
struct Forward<'a, T, const ADD: bool, const BLEND: bool, const SKIP: bool> {
    sample: Sample<'a, T>,
    out: &'a mut [[T; LANES]],
    mean: &'a mut [Lanes],
}

impl<T: Element, const ADD: bool, const BLEND: bool, const SKIP: bool> WithSimd
    for Forward<'_, T, ADD, BLEND, SKIP>
{
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let chunks = self.mean.len();
        let v = self.sample.v;
        self.mean.fill([0.0; LANES]);
        for (pixel, row) in self.out.chunks_exact_mut(chunks).enumerate() {
            for (j, (out, mean)) in row.iter_mut().zip(&mut *self.mean).enumerate() {
                let Point { z, skip, .. } = self.sample.point::<ADD, SKIP>(pixel * chunks + j, j);
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

/// One sample's gradients of the output, and, as the same for every pixel, from the output's mean.
struct OutputGradient<'a, T> {
    out: &'a [[T; LANES]],
    pixel: &'a [Lanes],
}

/// For each channel Σ dz, Σ dz·(h − mean) and the terms of v's gradient, where dz is the gradient of z.
struct Reduce<'a, T, const ADD: bool, const BLEND: bool, const SKIP: bool> {
    sample: Sample<'a, T>,
    gradient: OutputGradient<'a, T>,
    sums: &'a mut [Lanes],
}

impl<T: Element, const ADD: bool, const BLEND: bool, const SKIP: bool> WithSimd
    for Reduce<'_, T, ADD, BLEND, SKIP>
{
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let chunks = self.gradient.pixel.len();
        let v = self.sample.v;
        let (bias, sums) = self.sums.split_at_mut(chunks);
        let (scaled, blend) = sums.split_at_mut(chunks);
        for (pixel, row) in self.gradient.out.chunks_exact(chunks).enumerate() {
            for (j, out) in row.iter().enumerate() {
                let Point { h, z, skip } = self.sample.point::<ADD, SKIP>(pixel * chunks + j, j);
                let out = T::load(out);
                let pixel_gradient = &self.gradient.pixel[j];
                let mean = &self.sample.affine.mean[j];
                let bias = &mut bias[j];
                let scaled = &mut scaled[j];
                let blend = &mut blend[j];
                for i in 0..LANES {
                    let mut g = out[i] + pixel_gradient[i];
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
struct Backward<'a, T, const ADD: bool, const BLEND: bool, const SKIP: bool> {
    sample: Sample<'a, T>,
    gradient: OutputGradient<'a, T>,
    offset: &'a [Lanes],
    slope: &'a [Lanes],
    h: &'a mut [[T; LANES]],
    shortcut: &'a mut [[T; LANES]],
    skip: &'a mut [[T; LANES]],
}

impl<T: Element, const ADD: bool, const BLEND: bool, const SKIP: bool> WithSimd
    for Backward<'_, T, ADD, BLEND, SKIP>
{
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let chunks = self.gradient.pixel.len();
        let v = self.sample.v;
        let affine = self.sample.affine;
        for (pixel, row) in self.gradient.out.chunks_exact(chunks).enumerate() {
            for (j, out) in row.iter().enumerate() {
                let at = pixel * chunks + j;
                let Point { h, z, .. } = self.sample.point::<ADD, SKIP>(at, j);
                let out = T::load(out);
                let pixel_gradient = &self.gradient.pixel[j];
                let offset = &self.offset[j];
                let slope = &self.slope[j];
                let mean = &affine.mean[j];
                let scale = &affine.scale[j];
                let g = lanes(|i| out[i] + pixel_gradient[i]);
                let dz = lanes(|i| {
                    let run = if BLEND { v * g[i] } else { g[i] };
                    if z[i] <= 0.0 { 0.0 } else { run }
                });
                T::store(
                    &mut self.h[at],
                    lanes(|i| scale[i] * (dz[i] - offset[i] - slope[i] * (h[i] - mean[i]))),
                );
                if ADD {
                    let shortcut = lanes(|i| if BLEND && !SKIP { dz[i] + (1.0 - v) * g[i] } else { dz[i] });
                    T::store(&mut self.shortcut[at], shortcut);
                }
                if SKIP {
                    T::store(&mut self.skip[at], lanes(|i| (1.0 - v) * g[i]));
                }
            }
        }
    }
}
