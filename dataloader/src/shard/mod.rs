//! The shard format: how samples lie in a tar archive, how they are indexed and written.
//!
//! A shard is a tar archive by the convention of WebDataset. A sample is an image member `KEY.jpg`, `KEY.jpeg`
//! or `KEY.png` and, right before or after it, a label member `KEY.cls` that holds the class number in ASCII
//! decimal. The key is the member's path up to the first dot of its file name, so it may contain folders.
//! Members with other names are counted, and not read. `NAME.tar` has its [index](ShardIndex) in `NAME.idx`.

mod index;
mod tar_names;
mod tar_walk;
mod writer;

pub use index::{IndexState, IndexedSample, ShardIndex};
pub use writer::ShardWriter;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use index::parse_index;
pub(crate) use index::{HEADER, MAX_IMAGE_BYTES, header_crc};
pub(crate) use tar_names::{is_image, last_extension, split_key};
pub(crate) use tar_walk::{MemberKind, TarMember, WalkError, walk_members};
pub(crate) use writer::shard_name;
