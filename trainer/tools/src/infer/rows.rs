//! Gathers, scatters and averages images of a batch, which are its rows. libtorch's own operations convert channels-last
//! activations first, which for one image takes as long as a block.
#![expect(unsafe_code, reason = "several threads write to tensors' memory")]

use codinet_trainer::model::{LANES, Lanes, SampleSlices};
use codinet_trainer::sys::{channels_last, parallel_for};
use pulp::{Arch, Simd, WithSimd};
use tch::{Device, Kind, Tensor};

/// The number of pixels that stay in the nearest cache while one group of channels after the other is summed.
const NEAR: usize = 32;

/// The images at `rows` of `x`, `[N, C, H, W]`, in that order.
pub fn gather(x: &Tensor, rows: &[usize]) -> Tensor {
    if !readable(x) {
        return channels_last(&x.index_select(0, &index(x, rows)));
    }
    let (_, c, h, w) = x.size4().expect("[N, C, H, W]");
    let y = Tensor::empty([rows.len() as i64, h, w, c], (x.kind(), x.device())).permute([0, 3, 1, 2]);
    let from = slices(x);
    let to = slices(&y);
    for_each_row(rows, |i| {
        // SAFETY: this function's own tensor, and each task has its own image.
        unsafe { to.get_mut(i) }.copy_from_slice(from.get(rows[i]));
    });
    y
}

/// Copies the images of `y` to `rows` of `x`, in that order; all rows differ.
pub fn scatter(x: &Tensor, rows: &[usize], y: &Tensor) {
    assert_eq!((x.size()[1..].to_vec(), rows.len()), (y.size()[1..].to_vec(), y.size()[0] as usize));
    if !(readable(x) && readable(y)) {
        let _ = x.shallow_clone().index_copy_(0, &index(x, rows), y);
        return;
    }
    let from = slices(y);
    let to = slices(x);
    for_each_row(rows, |i| {
        // SAFETY: rows differ, so each task has its own image; `y` is another tensor.
        unsafe { to.get_mut(rows[i]) }.copy_from_slice(from.get(i));
    });
}

/// Writes the means over H and W of the images at `rows` of `x` to the same rows of `means`, `[N, C]`. Rows ascend; `x` is
/// [`readable`].
pub fn means(x: &Tensor, rows: &[usize], means: &mut [f32]) {
    let from = slices(x);
    let to = mean_slices(means, x);
    for_each_row(rows, |i| {
        // SAFETY: rows differ, so each task has its own image; `means` is borrowed mutably.
        let mean = unsafe { to.get_mut(rows[i]) };
        Arch::new().dispatch(Average { pixels: from.get(rows[i]), mean });
    });
}

/// Replaces the images at `rows` of `x` by ReLU(images + `y`), and writes their means to the same rows of `means`, `[N, C]`.
/// Rows ascend; `x` and `y` are [`readable`] and share no memory.
pub fn add_relu(x: &Tensor, rows: &[usize], y: &Tensor, means: &mut [f32]) {
    assert_eq!((x.size()[1..].to_vec(), rows.len()), (y.size()[1..].to_vec(), y.size()[0] as usize));
    let sums = slices(x);
    let terms = slices(y);
    let to = mean_slices(means, x);
    for_each_row(rows, |i| {
        // SAFETY: rows differ, so each task has its own image; `y` is another tensor, and `means` is borrowed mutably.
        let (sum, mean) = unsafe { (sums.get_mut(rows[i]), to.get_mut(rows[i])) };
        Arch::new().dispatch(AddRelu { sum, term: terms.get(i), mean });
    });
}

/// A slice for each image of `x`, which is [`readable`].
fn slices(x: &Tensor) -> SampleSlices<'_, f32> {
    SampleSlices::from_tensor(x, x.size()[0] as usize)
}

/// As many slices of `values` as `x` has images.
fn mean_slices<'a>(values: &'a mut [f32], x: &Tensor) -> SampleSlices<'a, f32> {
    let (lanes, rest) = values.as_chunks_mut();
    assert!(rest.is_empty());
    SampleSlices::from_lanes(lanes, x.size()[0] as usize)
}

/// Calls `task` with each index of `rows`, on all threads; a single one does not wake another thread.
fn for_each_row(rows: &[usize], task: impl Fn(usize) + Sync) {
    assert!(rows.is_sorted_by(|a, b| a < b), "rows ascend, each once");
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
                // Four sums, so that an addition does not wait for the previous one.
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

/// Replaces an image's pixels by ReLU(sum + term), and averages them while they are in the cache.
struct AddRelu<'a> {
    sum: &'a mut [Lanes],
    term: &'a [Lanes],
    mean: &'a mut [Lanes],
}

impl WithSimd for AddRelu<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for (sum, term) in self.sum.as_flattened_mut().iter_mut().zip(self.term.as_flattened()) {
            *sum = (*sum + term).max(0.0);
        }
        Average { pixels: self.sum, mean: self.mean }.with_simd(simd);
    }
}

/// Whether this module can read the memory of `x`, `[N, C, H, W]`: f32 on a CPU, contiguous with channels innermost, a multiple
/// of 16 channels.
pub fn readable(x: &Tensor) -> bool {
    x.device() == Device::Cpu
        && x.kind() == Kind::Float
        && x.size()[1] % LANES as i64 == 0
        && x.permute([0, 2, 3, 1]).is_contiguous()
}

fn index(x: &Tensor, rows: &[usize]) -> Tensor {
    Tensor::from_slice(&rows.iter().map(|&row| row as i64).collect::<Vec<_>>()).to_device(x.device())
}
