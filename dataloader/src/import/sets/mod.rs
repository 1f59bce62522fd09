//! The data sets that can be imported, each in its own file. A new one is a file here, and its name in the two lists
//! below; `codinet-data import` has its subcommand then.

mod cifar;
mod fashion_mnist;
mod image_folder;
mod imagenet;
mod parquet;
mod svhn;

use super::entry::Entry;

/// All data sets, in the order of the help.
pub const ENTRIES: &[Entry] = &[
    fashion_mnist::ENTRY,
    cifar::CIFAR10,
    cifar::CIFAR100,
    svhn::ENTRY,
    imagenet::ENTRY,
    image_folder::ENTRY,
    parquet::ENTRY,
];

/// Reads the CIFAR files in `folder`, for [`read_as_any`](super::read_as_any).
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn read_cifar(folder: &std::path::Path) -> crate::error::Result<()> {
    let source = cifar::open_cifar10(folder)?;
    source.splits.iter().try_for_each(|split| (split.read)(&mut |_, _| Ok(())))
}
