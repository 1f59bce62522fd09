//! What goes from block to block: the activation, and its mean over H and W, which the next router sees. Where an image
//! skips a block its mean stays what it was.

use super::rows;
use tch::{Kind, Tensor};

/// An activation, channels last.
pub struct State {
    x: Tensor,
    /// Whether `x` has memory that [`rows`] can read.
    readable: bool,
    /// Means of each image, `[N, C]`, where `known`; used where `x` is readable.
    means: Vec<f32>,
    known: Vec<bool>,
}

impl State {
    pub fn new(x: Tensor) -> Self {
        let mut state = Self { x: x.shallow_clone(), readable: false, means: Vec::new(), known: Vec::new() };
        state.set(x);
        state
    }

    /// `[N, C, H, W]`.
    pub fn x(&self) -> &Tensor {
        &self.x
    }

    /// How many images there are: N.
    pub fn images(&self) -> usize {
        self.known.len()
    }

    /// The images at `rows` have other values in the same memory.
    pub fn changed(&mut self, rows: &[usize]) {
        rows.iter().for_each(|&row| self.known[row] = false);
    }

    /// Another activation takes this one's place.
    pub fn set(&mut self, x: Tensor) {
        self.readable = rows::readable(&x);
        let images = x.size()[0] as usize;
        let channels = x.size()[1] as usize;
        self.means.resize(images * channels, 0.0);
        self.known.clear();
        self.known.resize(images, false);
        self.x = x;
    }

    /// The images at `rows` become ReLU(they + `y`), in place.
    pub fn add(&mut self, rows: &[usize], y: &Tensor) {
        if self.readable && rows::readable(y) {
            rows::add_relu(&self.x, rows, y, &mut self.means);
            rows.iter().for_each(|&row| self.known[row] = true);
        } else {
            let sum = (rows::gather(&self.x, rows) + y).relu();
            rows::scatter(&self.x, rows, &sum);
            rows.iter().for_each(|&row| self.known[row] = false);
        }
    }

    /// The mean over H and W of each image, `[N·C]`; `None` where it is not to be had without libtorch.
    pub fn means(&mut self) -> Option<&[f32]> {
        if !self.readable {
            return None;
        }
        let stale: Vec<usize> = (0..self.known.len()).filter(|&row| !self.known[row]).collect();
        if !stale.is_empty() {
            rows::means(&self.x, &stale, &mut self.means);
            self.known.fill(true);
        }
        Some(&self.means)
    }

    /// The same as a tensor, f32 `[N, C]`.
    pub fn mean(&mut self) -> Tensor {
        let size = [self.x.size()[0], self.x.size()[1]];
        match self.means() {
            Some(means) => Tensor::from_slice(means).view(size),
            None => self.x.mean_dim([2, 3].as_slice(), false, Kind::Float),
        }
    }
}
