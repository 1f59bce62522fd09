//! Tiled JPEGs.

use crate::error::BadImage;

/// The same picture as a tiled JPEG; `None` where it is best left as it is.
pub fn transcode(_bytes: &[u8]) -> Result<Option<Vec<u8>>, BadImage> {
    Ok(None)
}
