//! Images of a batch, by their places in it: taken out, put back, averaged over H and W. libtorch does the same, but on
//! channels-last activations by way of a conversion, and for one image at the price of a whole block.
#![expect(unsafe_code, reason = "several threads write to tensors' memory")]

use codinet_trainer::model::{LANES, Lanes, SampleSlices};
use codinet_trainer::sys::{channels_last, parallel_for};
use pulp::{Arch, Simd, WithSimd};
use tch::{Device, Kind, Tensor};

/// Pixels that are gone through for one group of channels after the other, and stay in the nearest cache meanwhile.
const NEAR: usize = 32;

/// The images of `x`, `[N, C, H, W]`, at `rows`, in their order.
pub fn gather(x: &Tensor, rows: &[usize]) -> Tensor {
    if !readable(x) {
        return channels_last(&x.index_select(0, &index(x, rows)));
    }
    let (_, c, h, w) = x.size4().expect("[N, C, H, W]");
    let y = Tensor::empty([rows.len() as i64, h, w, c], (x.kind(), x.device())).permute([0, 3, 1, 2]);
    let from = parts(x);
    let to = parts(&y);
    each(rows, |i| {
        // SAFETY: a tensor of this function's own, one image a task.
        unsafe { to.get_mut(i) }.copy_from_slice(from.get(rows[i]));
    });
    y
}

/// Puts the images of `y` in their order at `rows` of `x`, which are all different.
pub fn scatter(x: &Tensor, rows: &[usize], y: &Tensor) {
    assert_eq!((x.size()[1..].to_vec(), rows.len()), (y.size()[1..].to_vec(), y.size()[0] as usize));
    if !(readable(x) && readable(y)) {
        let _ = x.shallow_clone().index_copy_(0, &index(x, rows), y);
        return;
    }
    let to = parts(x);
    let from = parts(y);
    each(rows, |i| {
        // SAFETY: one image a task, for rows are different; `y` is another tensor.
        unsafe { to.get_mut(rows[i]) }.copy_from_slice(from.get(i));
    });
}

/// The means over H and W of the images of `x` at `rows`, in rising order, into those rows of `means`, `[N, C]`; `x` is
/// readable.
pub fn means(x: &Tensor, rows: &[usize], means: &mut [f32]) {
    let from = parts(x);
    let to = cut(means, x);
    each(rows, |i| {
        // SAFETY: one image a task, for rows are different; nobody else has `means`.
        let mean = unsafe { to.get_mut(rows[i]) };
        Arch::new().dispatch(Average { pixels: from.get(rows[i]), mean });
    });
}

/// The images of `x` at `rows`, in rising order, become max(they + those of `y`, 0); their means go into those rows of
/// `means`, `[N, C]`. Both are readable, and not the same.
pub fn add_relu(x: &Tensor, rows: &[usize], y: &Tensor, means: &mut [f32]) {
    assert_eq!((x.size()[1..].to_vec(), rows.len()), (y.size()[1..].to_vec(), y.size()[0] as usize));
    let onto = parts(x);
    let from = parts(y);
    let to = cut(means, x);
    each(rows, |i| {
        // SAFETY: one image a task, for rows are different; `y` is another tensor, and nobody else has `means`.
        let (onto, mean) = unsafe { (onto.get_mut(rows[i]), to.get_mut(rows[i])) };
        Arch::new().dispatch(AddRelu { onto, from: from.get(i), mean });
    });
}

/// The images of `x`, which is readable.
fn parts(x: &Tensor) -> SampleSlices<'_, f32> {
    SampleSlices::from_tensor(x, x.size()[0] as usize)
}

/// As many parts of `values` as `x` has images.
fn cut<'a>(values: &'a mut [f32], x: &Tensor) -> SampleSlices<'a, f32> {
    let (lanes, rest) = values.as_chunks_mut();
    assert!(rest.is_empty());
    SampleSlices::from_lanes(lanes, x.size()[0] as usize)
}

/// Calls `task` for every row's place in `rows`, on all threads; no other thread is woken for a single one.
fn each(rows: &[usize], task: impl Fn(usize) + Sync) {
    assert!(rows.is_sorted_by(|a, b| a < b), "places in rising order, each once");
    match rows.len() {
        1 => task(0),
        rows => parallel_for(rows, task),
    }
}

/// The mean of an image's pixels.
struct Average<'a> {
    pixels: &'a [Lanes],
    mean: &'a mut [Lanes],
}

impl WithSimd for Average<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { pixels, mean: means } = self;
        means.fill([0.0; LANES]);
        let chunks = means.len();
        for pixels in pixels.chunks(NEAR * chunks) {
            for (j, mean) in means.iter_mut().enumerate() {
                // Four sums, so that an addition need not wait for the one before.
                let [mut a, mut b, mut c, mut d] = [[0f32; LANES]; 4];
                let mut four = pixels.chunks_exact(4 * chunks);
                for pixels in &mut four {
                    for i in 0..LANES {
                        a[i] += pixels[j][i];
                        b[i] += pixels[j + chunks][i];
                        c[i] += pixels[j + 2 * chunks][i];
                        d[i] += pixels[j + 3 * chunks][i];
                    }
                }
                for pixel in four.remainder().chunks_exact(chunks) {
                    for i in 0..LANES {
                        a[i] += pixel[j][i];
                    }
                }
                for i in 0..LANES {
                    mean[i] += a[i] + b[i] + (c[i] + d[i]);
                }
            }
        }
        let count = (pixels.len() / chunks) as f32;
        means.as_flattened_mut().iter_mut().for_each(|sum| *sum /= count);
    }
}

/// An image's pixels become max(they + others, 0), and are averaged while they are in the cache.
struct AddRelu<'a> {
    onto: &'a mut [Lanes],
    from: &'a [Lanes],
    mean: &'a mut [Lanes],
}

impl WithSimd for AddRelu<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (onto, from) in self.onto.as_flattened_mut().iter_mut().zip(self.from.as_flattened()) {
            *onto = (*onto + from).max(0.0);
        }
        Average { pixels: self.onto, mean: self.mean }.with_simd(simd);
    }
}

/// Whether this module can read `x`, `[N, C, H, W]`: f32 on a CPU, channels innermost and a multiple of 16, without gaps.
pub fn readable(x: &Tensor) -> bool {
    x.device() == Device::Cpu
        && x.kind() == Kind::Float
        && x.size()[1] % LANES as i64 == 0
        && x.permute([0, 2, 3, 1]).is_contiguous()
}

fn index(x: &Tensor, rows: &[usize]) -> Tensor {
    Tensor::from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>()).to_device(x.device())
}
