//! Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28×28, 10 classes, in four IDX files.

use std::path::Path;

use super::{Each, Source, SourceSplit, check_label, idx};
use crate::decode::Channels;
use crate::error::{Error, Result};

const CLASSES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
];

const SIZE: usize = 28;

/// The split's name here, and its files' prefix.
const SPLITS: [(&str, &str); 2] = [("train", "train"), ("test", "t10k")];

pub(super) fn source(folder: &Path) -> Source {
    let split = |(name, prefix)| {
        let folder = folder.to_owned();
        SourceSplit { name, read: Box::new(move |each| read(&folder, prefix, each)) }
    };
    Source {
        name: "fashion-mnist",
        classes: CLASSES.len(),
        class_names: Some(CLASSES.map(String::from).to_vec()),
        image_size: SIZE,
        channels: Channels::Grey,
        splits: SPLITS.map(split).into(),
    }
}

fn read(folder: &Path, prefix: &str, each: &mut Each) -> Result<()> {
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
        check_label(&labels.path, position, label, CLASSES.len())?;
        each(image, label)?;
    }
    Ok(())
}
