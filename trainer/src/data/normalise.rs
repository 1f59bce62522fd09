//! Bytes to normalised images.

use crate::config::{Data, Precision};
use crate::data::prefetch::copy_to_device;
use crate::model::normalise_pixels;
use codinet_dataloader::Batch;
use tch::{Device, Kind, Tensor};

/// Converts pixels to the network's input.
#[derive(Debug)]
pub struct Normalise {
    mean: Tensor,
    std: Tensor,
    kind: Kind,
    device: Device,
}

impl Normalise {
    /// For images of `data`'s mean and standard deviation; returns tensors of `precision` on `device`.
    pub fn new(data: &Data, precision: Precision, device: Device) -> Self {
        let per_channel = |values: &[f64]| {
            let values: Vec<f32> =
                (0..data.channels as usize).map(|c| values[c % values.len()] as f32).collect();
            Tensor::from_slice(&values).view([1, -1, 1, 1]).to_device(device)
        };
        let kind = match precision {
            Precision::Fp32 => Kind::Float,
            Precision::Bf16 => Kind::BFloat16,
        };
        Self { mean: per_channel(&data.mean), std: per_channel(&data.std), kind, device }
    }

    /// u8 `[L, M, H, W, C]` → normalised `[L·M, C, H, W]` channels last, and the labels
    /// `[L]`, both on the device.
    pub fn tensors(&self, batch: &Batch) -> (Tensor, Tensor) {
        let images = (batch.samples.len() * batch.views) as i64;
        let size = i64::from(batch.image_size);
        let shape = [images, size, size, self.mean.size()[1]];
        let bytes = copy_to_device(&batch.images, self.device).view(shape);
        (self.images(&bytes), copy_to_device(&batch.labels, self.device))
    }

    /// u8 `[L·M, H, W, C]` on the device → normalised `[L·M, C, H, W]`, channels last.
    pub fn images(&self, bytes: &Tensor) -> Tensor {
        if let Some(images) = normalise_pixels(bytes, &self.mean, &self.std, self.kind) {
            return images;
        }
        let pixels = bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0;
        ((pixels - &self.mean) / &self.std).to_kind(self.kind)
    }
}
