//! The files of MNIST and its descendants: two IDX files for each of two splits, 28×28 grey pixels.

use std::path::Path;

use super::idx;
use crate::decode::Channels;
use crate::error::{Error, Result};
use crate::import::pixel_source::{PixelSource, PixelSplit, SampleSink, check_label};

const SIZE: usize = 28;

/// Each split's name here, and the prefix of its files.
const SPLITS: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];

/// The data set `name` in `folder`, whose classes have these names.
pub(in crate::import) fn open_files(
    folder: &Path,
    name: &'static str,
    classes: &'static [&str],
) -> PixelSource {
    let split = |(name, prefix)| {
        let folder = folder.to_owned();
        PixelSplit { name, read: Box::new(move |sink| read_split(&folder, prefix, classes.len(), sink)) }
    };
    PixelSource {
        name,
        classes: classes.len(),
        class_names: Some(classes.iter().map(|&name| name.to_owned()).collect()),
        image_size: SIZE,
        channels: Channels::Grey,
        splits: SPLITS.map(split).into(),
    }
}

fn read_split(folder: &Path, prefix: &str, classes: usize, sink: &mut SampleSink) -> Result<()> {
    let images = idx::read(folder, &format!("{prefix}-images-idx3-ubyte"), 3)?;
    let labels = idx::read(folder, &format!("{prefix}-labels-idx1-ubyte"), 1)?;
    let count = labels.bytes.len();
    if count == 0 || images.dimensions != [count, SIZE, SIZE] {
        let what = format!(
            "holds {:?} images by rows and columns, for {count} labels; expected {count} of 28x28, at least 1",
            images.dimensions
        );
        return Err(Error::malformed(&images.path, what));
    }
    let images = images.bytes.chunks_exact(SIZE * SIZE);
    for (position, (image, &label)) in images.zip(&labels.bytes).enumerate() {
        check_label(&labels.path, position, label, classes)?;
        sink(image, label)?;
    }
    Ok(())
}
