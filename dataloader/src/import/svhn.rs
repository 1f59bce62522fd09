//! SVHN, the cropped digits: colour photographs of house numbers, 32×32, 10 classes, in one MAT-file a split.
//!
//! `X`, 32×32×3×N, holds the images by columns; `y`, N×1, their digits, where 10 stands for 0.

use std::path::Path;

use super::mat::Array;
use super::{Each, Source, SourceSplit, broken, interleave};
use crate::decode::Channels;
use crate::error::{Error, Result};

const SIZE: usize = 32;

pub(super) fn source(folder: &Path) -> Source {
    let split = |name| {
        let path = folder.join(format!("{name}_32x32.mat"));
        // The extra images are more than all others, and few want them.
        (name != "extra" || path.exists())
            .then(|| SourceSplit { name, read: Box::new(move |each| read(&path, each)) })
    };
    Source {
        name: "svhn",
        classes: 10,
        class_names: Some((0..10).map(|digit: u8| digit.to_string()).collect()),
        image_size: SIZE,
        channels: Channels::Rgb,
        splits: ["train", "test", "extra"].into_iter().filter_map(split).collect(),
    }
}

fn read(path: &Path, each: &mut Each) -> Result<()> {
    let digits = digits(path)?;
    let mut images = Array::open(path, "X")?;
    if images.dimensions() != [SIZE, SIZE, 3, digits.len()] || !images.is_bytes() {
        let what = format!("{images}; expected 32x32x3x{} uint8, an image a label", digits.len());
        return Err(Error::malformed(path, what));
    }
    let mut image = [0; 3 * SIZE * SIZE];
    for digit in digits {
        images.read(&mut image)?;
        each(&interleave(&image, 1, SIZE), digit)?;
    }
    images.finish()
}

fn digits(path: &Path) -> Result<Vec<u8>> {
    let labels = Array::open(path, "y")?;
    if !matches!(labels.dimensions(), [count, 1] if *count > 0) {
        return Err(Error::malformed(path, format!("{labels}; expected Nx1, N at least 1")));
    }
    let digit = |(position, label): (usize, f64)| {
        let valid = (1.0..=10.0).contains(&label) && label.fract() == 0.0;
        let what = || format!("label {position} is {label}, not one of 1 to 10 (which stands for 0)");
        if valid { Ok(label as u8 % 10) } else { Err(broken(path, &what())) }
    };
    labels.numbers()?.into_iter().enumerate().map(digit).collect()
}
