//! Image data for training: tar shards in, batches of augmented views out.
//!
//! ```text
//! *.tar shards ─► Dataset (reads one sample's bytes) ─► Decoder (JPEG, PNG to u8 pixels)
//!     ─► Transform (draws M views; crops, resizes, flips, augments) ─► Loader: batches u8 or f32 [L, M, H, W, C]
//! ```
//!
//! Two properties hold throughout. *Order*: the samples of a batch and their crops are a pure function of
//! (seed, epoch, position, view), see [`random`] and [`EpochOrder`]. They don't depend on the number of threads or
//! ranks, nor on timing. *Honesty*: bad data is an [`Error`] that names the shard and the key; nothing is skipped or
//! padded in silence.

pub mod contact_sheet;
pub mod encode;
pub mod import;
pub mod jpeg;
pub mod random;
pub mod transform;
pub mod verify;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

mod buffer;
mod dataset;
mod decode;
mod error;
mod files;
mod left_out;
mod loader;
mod parallel;
mod region;
mod resize;
mod shard;
mod source;

pub use dataset::{Dataset, DatasetInfo, SampleInfo, ShardInfo};
pub use decode::{Channels, DEFAULT_MAX_PIXELS, Decoder, Format, Header};
pub use error::{BadImage, Error, Result};
pub use files::sync_folder;
pub use left_out::{LeftOut, LeftOutKind};
pub use loader::{
    BadSample, Batch, BatchPlan, DrawGroup, EpochOrder, Lanes, Loader, LoaderMonitor, LoaderSpec, Mix,
    MixTargets, OnBadSample, Replacements, Stall, apportion, describe_view_fit, eval_samples,
};
pub use region::Region;
pub use shard::{IndexState, IndexedSample, ShardIndex, ShardWriter};
pub use source::{Cache, CopyFolder, Options};
pub use transform::{Augment, Crop, Normalization, Transform};
