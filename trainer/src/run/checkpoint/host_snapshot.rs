//! Copies of flat buffers on the host, and the named tensors in them as a `.safetensors` file holds them. The thread that
//! writes a checkpoint computes nothing with torch, so it starts no compute threads; from a GPU it copies.

use crate::sys::{Event, SideStream, set_device, set_side_stream};
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use tch::{Device, Kind, Tensor};

/// A tensor's name and shape.
#[derive(Clone, Debug)]
pub(super) struct TensorShape {
    name: String,
    sizes: Vec<usize>,
}

impl TensorShape {
    pub fn new(name: &str, tensor: &Tensor) -> Self {
        Self { name: name.into(), sizes: tensor.size().iter().map(|&size| size as usize).collect() }
    }

    fn numel(&self) -> usize {
        self.sizes.iter().product()
    }
}

/// The host's copy of neighbouring tensors in a flat buffer.
#[derive(Debug)]
pub(super) struct HostSnapshot {
    shapes: Vec<TensorShape>,
    /// Where the first of them starts in the flat buffer.
    start: usize,
    values: Vec<f32>,
    /// From a GPU: a copy on the device, to be copied to `values`, and its end.
    on_device: Option<(Tensor, Event)>,
}

impl HostSnapshot {
    /// Room for all tensors of a flat buffer.
    pub fn whole(shapes: &[TensorShape]) -> Self {
        Self::shard(shapes, 0, 1)
    }

    /// Room for shard `index` of `count`: neighbouring tensors, of about as many elements as in any other shard.
    pub fn shard(shapes: &[TensorShape], index: usize, count: usize) -> Self {
        let total: usize = shapes.iter().map(TensorShape::numel).sum();
        let mut end = 0;
        let mut start = None;
        let mut own = Vec::new();
        for shape in shapes {
            if end * count / total == index {
                start = start.or(Some(end));
                own.push(shape.clone());
            }
            end += shape.numel();
        }
        let values = vec![0.0; own.iter().map(TensorShape::numel).sum()];
        Self { shapes: own, start: start.unwrap_or(0), values, on_device: None }
    }

    /// Copies the tensors from the flat buffer. On a GPU they stay on the device, and the host does not wait, until
    /// [`HostSnapshot::fetch`].
    pub fn copy_from(&mut self, flat: &Tensor) {
        let count = self.values.len();
        let part = flat.detach().narrow(0, self.start as i64, count as i64);
        match flat.device() {
            Device::Cpu => part.copy_data(&mut self.values, count),
            device => {
                let copy = part.copy();
                self.on_device = Event::record(device).map(|copied| (copy, copied));
            }
        }
    }

    /// Any thread, before [`HostSnapshot::tensors`]: waits until the tensors are on the host.
    pub fn fetch(&mut self) {
        if let Some((copy, copied)) = self.on_device.take() {
            let device = copy.device();
            set_device(device);
            set_side_stream(device, SideStream::Checkpoints);
            copied.block();
            let pinned = copy.internal_to_copy((Kind::Float, Device::Cpu), true);
            Event::record(device).expect("a GPU's event").synchronize();
            let count = self.values.len();
            pinned.copy_data(&mut self.values, count);
        }
    }

    /// The tensors by their names.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, HostTensor<'_>)> {
        let mut rest = &self.values[..];
        self.shapes.iter().map(move |shape| {
            let (values, after) = rest.split_at(shape.numel());
            rest = after;
            (shape.name.as_str(), HostTensor { sizes: &shape.sizes, values })
        })
    }
}

/// A tensor in a snapshot.
#[derive(Debug)]
pub(super) struct HostTensor<'a> {
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

    /// The values in row-major order: a convolution's weights are `[O, H, W, I]` in memory and `[O, I, H, W]` in the file.
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        let mut push = |value: &f32| bytes.extend_from_slice(&value.to_le_bytes());
        match *self.sizes {
            [_, inputs, h, w] => {
                for filter in self.values.chunks_exact(inputs * h * w) {
                    (0..inputs).for_each(|i| filter[i..].iter().step_by(inputs).for_each(&mut push));
                }
            }
            _ => self.values.iter().for_each(push),
        }
        bytes.into()
    }
}
