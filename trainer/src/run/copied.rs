//! Flat buffers on the host, and the named tensors in them as a `.safetensors` file holds them. Nothing here computes with
//! torch once the copy is made: the thread that writes starts no compute threads of its own.

use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use tch::Tensor;

/// A tensor's name and shape.
#[derive(Clone, Debug)]
pub struct Shape {
    name: String,
    sizes: Vec<usize>,
}

impl Shape {
    /// Those of `tensor`.
    pub fn of(name: &str, tensor: &Tensor) -> Self {
        Self { name: name.into(), sizes: tensor.size().iter().map(|&size| size as usize).collect() }
    }

    fn count(&self) -> usize {
        self.sizes.iter().product()
    }
}

/// Tensors that lie side by side in a flat buffer, to be copied to the host in one go.
#[derive(Debug)]
pub struct Copied {
    shapes: Vec<Shape>,
    /// Where the first of them begins.
    start: usize,
    values: Vec<f32>,
}

impl Copied {
    /// Room for all tensors of a flat buffer.
    pub fn all(shapes: &[Shape]) -> Self {
        Self::share(shapes, 0, 1)
    }

    /// Room for rank `rank`'s of `ranks` shares of them: neighbours, of about as many elements as any other share.
    pub fn share(shapes: &[Shape], rank: usize, ranks: usize) -> Self {
        let total: usize = shapes.iter().map(Shape::count).sum();
        let (mut end, mut start, mut mine) = (0, None, Vec::new());
        for shape in shapes {
            if end * ranks / total == rank {
                start = start.or(Some(end));
                mine.push(shape.clone());
            }
            end += shape.count();
        }
        let values = vec![0.0; mine.iter().map(Shape::count).sum()];
        Self { shapes: mine, start: start.unwrap_or(0), values }
    }

    /// Copies them from `flat`.
    pub fn take(&mut self, flat: &Tensor) {
        let count = self.values.len();
        flat.detach().narrow(0, self.start as i64, count as i64).copy_data(&mut self.values, count);
    }

    /// The tensors by their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, HostTensor<'_>)> {
        let mut rest = &self.values[..];
        self.shapes.iter().map(move |shape| {
            let (values, after) = rest.split_at(shape.count());
            rest = after;
            (shape.name.as_str(), HostTensor { sizes: &shape.sizes, values })
        })
    }
}

/// A tensor as it lies in a flat buffer, to be written as others expect it.
#[derive(Debug)]
pub struct HostTensor<'a> {
    sizes: &'a [usize],
    values: &'a [f32],
}

impl View for HostTensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.sizes
    }

    fn data_len(&self) -> usize {
        size_of_val(self.values)
    }

    /// The values in the order of the shape: a convolution's weights lie as `[O, H, W, I]` and are written as
    /// `[O, I, H, W]`.
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        let mut put = |value: &f32| bytes.extend_from_slice(&value.to_le_bytes());
        match *self.sizes {
            [_, inputs, h, w] => {
                for filter in self.values.chunks_exact(inputs * h * w) {
                    (0..inputs).for_each(|i| filter[i..].iter().step_by(inputs).for_each(&mut put));
                }
            }
            _ => self.values.iter().for_each(put),
        }
        bytes.into()
    }
}
