//! SVHN, the cropped digits: colour photographs of house numbers, 32×32, 10 classes, in one MAT-file a split.
//!
//! `X`, 32×32×3×N, holds the images by columns; `y`, N×1, their digits, where 10 stands for 0.

use std::path::Path;

use crate::decode::Channels;
use crate::encode::Encoding;
use crate::error::{Error, Result};
use crate::import::broken_source;
use crate::import::entry::{Access, Entry, Importer, PixelImporter, Published, PublishedFile};
use crate::import::formats::mat::Array;
use crate::import::pixel_source::{PixelSource, PixelSplit, SampleSink, interleave_planes};

pub(super) const ENTRY: Entry = Entry {
    name: "svhn",
    about: "SVHN: 99,289 colour 32x32 digits (630,420 with extra_32x32.mat), from the .mat files of cropped digits",
    source: "Folder of train_32x32.mat, test_32x32.mat and, if wanted, extra_32x32.mat; nothing in it is changed",
    published: Some(&Published {
        page: "http://ufldl.stanford.edu/housenumbers/",
        terms: "for non-commercial use only; cite Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature \
                Learning, 2011",
        access: Access::Download {
            base: "http://ufldl.stanford.edu/housenumbers/",
            files: &[
                PublishedFile {
                    name: "train_32x32.mat",
                    bytes: 182_040_794,
                    md5: "e26dedcc434d2e4c54c9b2d4a06d8373",
                    sha256: "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
                    optional: false,
                },
                PublishedFile {
                    name: "test_32x32.mat",
                    bytes: 64_275_384,
                    md5: "eb5a983be6a315427106f1b164d9cef3",
                    sha256: "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
                    optional: false,
                },
                PublishedFile {
                    name: "extra_32x32.mat",
                    bytes: 1_329_278_602,
                    md5: "a93ce644f1a588dc4d68dda5feec44a7",
                    sha256: "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3",
                    optional: true,
                },
            ],
        },
    }),
    importer: Importer::Pixels(PixelImporter { encoding: Encoding::Png, open: open_files }),
};

const SIZE: usize = 32;

fn open_files(folder: &Path) -> Result<PixelSource> {
    let split = |name| {
        let path = folder.join(format!("{name}_32x32.mat"));
        // The extra images outnumber all others, and most runs don't use them.
        (name != "extra" || path.exists())
            .then(|| PixelSplit { name, read: Box::new(move |sink| read_split(&path, sink)) })
    };
    Ok(PixelSource {
        name: ENTRY.name,
        classes: 10,
        class_names: Some((0..10).map(|digit: u8| digit.to_string()).collect()),
        image_size: SIZE,
        channels: Channels::Rgb,
        splits: ["train", "test", "extra"].into_iter().filter_map(split).collect(),
    })
}

fn read_split(path: &Path, sink: &mut SampleSink) -> Result<()> {
    let digits = read_digits(path)?;
    let mut images = Array::open(path, "X")?;
    if images.dimensions() != [SIZE, SIZE, 3, digits.len()] || !images.is_bytes() {
        let what = format!("{images}; expected 32x32x3x{} uint8, an image a label", digits.len());
        return Err(Error::malformed(path, what));
    }
    let mut image = [0; 3 * SIZE * SIZE];
    for digit in digits {
        images.read(&mut image)?;
        sink(&interleave_planes(&image, 1, SIZE), digit)?;
    }
    images.check_end()
}

fn read_digits(path: &Path) -> Result<Vec<u8>> {
    let labels = Array::open(path, "y")?;
    if !matches!(labels.dimensions(), [count, 1] if *count > 0) {
        return Err(Error::malformed(path, format!("{labels}; expected Nx1, N at least 1")));
    }
    let digit = |(position, label): (usize, f64)| {
        let valid = (1.0..=10.0).contains(&label) && label.fract() == 0.0;
        let what = || format!("label {position} is {label}, not one of 1 to 10 (which stands for 0)");
        if valid { Ok(label as u8 % 10) } else { Err(broken_source(path, &what())) }
    };
    labels.read_numbers()?.into_iter().enumerate().map(digit).collect()
}
