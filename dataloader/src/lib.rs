//! Image data for training: tar shards in, batches of augmented views out.
//!
//! ```text
//! *.tar shards ─► Dataset (read one sample's bytes) ─► Decoder (JPEG, PNG to u8 pixels)
//!     ─► Transform (draw M views, cut, resize, flip, augment) ─► Loader: batches u8 [L, M, H, W, C]
//! ```
//!
//! Two properties hold throughout. *Order*: which samples a batch holds and how each is cropped is a pure
//! function of (seed, epoch, position, view), see [`random`] and [`EpochOrder`]; the number of threads, the number
//! of ranks and timing have no part in it. *Honesty*: whatever is wrong with the data is an [`Error`] that
//! names the shard and the key; nothing is skipped or padded in silence.

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

mod dataset;
mod decode;
mod error;
mod files;
mod loader;
mod parallel;
mod region;
mod resize;
mod shard;
mod source;

pub use dataset::{Dataset, DatasetInfo, SampleInfo, ShardInfo};
pub use decode::{Channels, Decoder, Format, Header};
pub use error::{BadImage, Error, Result};
pub use loader::{
    BadSample, Batch, BatchPlan, EpochOrder, Lanes, Loader, LoaderSpec, Mix, MixTargets, OnBadSample,
    Replacements, eval_samples,
};
pub use region::Region;
pub use shard::{IndexState, IndexedSample, ShardIndex, ShardWriter};
pub use source::{Cache, Options};
pub use transform::{Augment, Crop, Transform};
