//! The activation between blocks, with its means over H and W, which routers take. An image that skips a block keeps its
//! mean.

use super::rows;
use tch::{Kind, Tensor};

/// An activation, channels last, with the means that are known.
pub struct CachedActivation {
    x: Tensor,
    /// Whether [`rows`] can read the memory of `x`.
    readable: bool,
    /// `[N, C]`; valid for images that are `known`, and used only if `readable`.
    means: Vec<f32>,
    known: Vec<bool>,
}

impl CachedActivation {
    pub fn new(x: Tensor) -> Self {
        let mut activation =
            Self { x: x.shallow_clone(), readable: false, means: Vec::new(), known: Vec::new() };
        activation.set(x);
        activation
    }

    /// `[N, C, H, W]`.
    pub fn x(&self) -> &Tensor {
        &self.x
    }

    /// N.
    pub fn images(&self) -> usize {
        self.known.len()
    }

    /// Marks the images at `rows` as changed in place.
    pub fn mark_changed(&mut self, rows: &[usize]) {
        rows.iter().for_each(|&row| self.known[row] = false);
    }

    /// Replaces the activation.
    pub fn set(&mut self, x: Tensor) {
        let images = x.size()[0] as usize;
        let channels = x.size()[1] as usize;
        self.readable = rows::readable(&x);
        self.means.resize(images * channels, 0.0);
        self.known.clear();
        self.known.resize(images, false);
        self.x = x;
    }

    /// Replaces the images at `rows` by ReLU(images + `y`), in place.
    pub fn add_relu(&mut self, rows: &[usize], y: &Tensor) {
        if self.readable && rows::readable(y) {
            rows::add_relu(&self.x, rows, y, &mut self.means);
            rows.iter().for_each(|&row| self.known[row] = true);
        } else {
            let sum = (rows::gather(&self.x, rows) + y).relu();
            rows::scatter(&self.x, rows, &sum);
            self.mark_changed(rows);
        }
    }

    /// The mean over H and W of each image, `[N·C]`; `None` if only libtorch can compute it.
    pub fn means(&mut self) -> Option<&[f32]> {
        if !self.readable {
            return None;
        }
        let unknown: Vec<usize> = (0..self.known.len()).filter(|&row| !self.known[row]).collect();
        if !unknown.is_empty() {
            rows::means(&self.x, &unknown, &mut self.means);
            self.known.fill(true);
        }
        Some(&self.means)
    }

    /// The same as a tensor, f32 `[N, C]`.
    pub fn mean_tensor(&mut self) -> Tensor {
        let size = [self.x.size()[0], self.x.size()[1]];
        match self.means() {
            Some(means) => Tensor::from_slice(means).view(size),
            None => self.x.mean_dim([2, 3].as_slice(), false, Kind::Float),
        }
    }
}
