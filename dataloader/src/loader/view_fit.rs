//! Whether views show enough of their images.

use crate::dataset::Dataset;
use crate::decode::Decoder;
use crate::error::Result;
use crate::transform::{Crop, Transform};

/// Views that show less than this share of a typical image are a likely mistake.
const MIN_SHARE: f64 = 0.25;

/// Images whose size is read: evenly spaced in the first shard, so that few shards are opened.
const SAMPLES: usize = 16;

/// Describes, in one line, a transform that cuts small views from large images: `None` where views fit. For instance,
/// CIFAR's settings cut 32×32 pixels from photographs of 500×375. Images that can't be read don't count.
///
/// # Errors
/// A shard that can't be read.
pub fn describe_view_fit(
    dataset: &Dataset,
    transform: &Transform,
    image_size: u32,
) -> Result<Option<String>> {
    let (resize, fix, key) = match transform {
        Transform::Train { crop: Crop::RandomResized { .. }, .. } => return Ok(None),
        Transform::Train { .. } => (None, "set data.crop to random_resized", "data.image_size"),
        Transform::Eval { resize } => {
            (*resize, "set data.eval_resize to a little more than the image size", "data.eval_size")
        }
    };
    let mut sizes = read_sizes(dataset)?;
    let share = |&(width, height): &(u32, u32)| {
        let area = f64::from(width) * f64::from(height);
        let scale = resize.map_or(1.0, |shorter| f64::from(shorter) / f64::from(width.min(height)));
        f64::from(image_size) * f64::from(image_size) / (area * scale * scale)
    };
    sizes.sort_by(|a, b| share(a).total_cmp(&share(b)));
    let Some(typical) = sizes.get(sizes.len() / 2) else { return Ok(None) };
    let shown = share(typical);
    let (width, height) = typical;
    Ok((shown < MIN_SHARE).then(|| {
        format!(
            "views of {image_size}x{image_size} pixels show {:.1} % of a typical image ({width}x{height}); {fix}, or \
             raise {key}",
            100.0 * shown
        )
    }))
}

fn read_sizes(dataset: &Dataset) -> Result<Vec<(u32, u32)>> {
    let first_shard = dataset.shards().next().map_or(0, |shard| shard.samples);
    let count = first_shard.min(SAMPLES);
    let mut decoder = Decoder::new();
    let mut encoded = Vec::new();
    let mut sizes = Vec::with_capacity(count);
    for sample in (0..count).map(|step| step * first_shard / count) {
        dataset.read(sample, &mut encoded)?;
        if let Ok(header) = decoder.header(&encoded) {
            sizes.push((header.width, header.height));
        }
    }
    Ok(sizes)
}
