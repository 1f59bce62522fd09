//! Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28×28, 10 classes, in four IDX files.

use std::path::Path;

use crate::encode::Encoding;
use crate::error::Result;
use crate::import::entry::{Entry, Importer, PixelImporter};
use crate::import::formats::mnist;
use crate::import::pixel_source::PixelSource;
use crate::import::pixels::PIXEL_JPEG_QUALITY;

pub(super) const ENTRY: Entry = Entry {
    name: "fashion-mnist",
    about: "Fashion-MNIST: 70,000 grey 28x28 images of clothing in 10 classes",
    source: "Folder of the four IDX files, each plain or with .gz; nothing in it is changed",
    published: None,
    importer: Importer::Pixels(PixelImporter {
        encoding: Encoding::Jpeg { quality: PIXEL_JPEG_QUALITY },
        open,
    }),
};

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

fn open(folder: &Path) -> Result<PixelSource> {
    Ok(mnist::open_files(folder, ENTRY.name, &CLASSES))
}
