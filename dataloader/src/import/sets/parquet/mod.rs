//! Parquet files of encoded images, as Hugging Face distributes them.

#[cfg(feature = "parquet")]
mod rows;

use crate::import::entry::{Entry, ImageImporter, Importer};

pub(super) const ENTRY: Entry = Entry {
    name: "parquet",
    about: "Parquet files of images as Hugging Face distributes them, with columns image.bytes and label",
    source: "Files of one split, or folders or quoted globs of them; nothing in them is changed",
    published: None,
    importer: Importer::Images(ImageImporter {
        several_sources: true,
        split_folders: false,
        options: &[],
        find: find_images,
    }),
};

#[cfg(feature = "parquet")]
use rows::find_images;

#[cfg(not(feature = "parquet"))]
fn find_images(
    _: &crate::import::entry::ImageRequest,
) -> crate::error::Result<Vec<crate::import::image_set::ImageSet>> {
    let what = "this program was built without Parquet; build it with --features parquet";
    Err(crate::error::Error::InvalidArgument(what.into()))
}
