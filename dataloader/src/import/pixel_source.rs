//! Raw pixels of a published data set, before they are encoded.

use std::path::Path;

use super::broken_source;
use crate::decode::Channels;
use crate::error::Result;

/// The published files of a data set, found and ready to be read.
pub(super) struct PixelSource {
    pub(super) name: &'static str,
    pub(super) classes: usize,
    pub(super) class_names: Option<Vec<String>>,
    /// Width and height of every image.
    pub(super) image_size: usize,
    pub(super) channels: Channels,
    pub(super) splits: Vec<PixelSplit>,
}

/// One split of a [`PixelSource`].
pub(super) struct PixelSplit {
    pub(super) name: &'static str,
    /// Passes every sample to the sink in the order of the files, at least one, its label checked. It is called
    /// twice. So a broken file is found before anything is written, and memory holds no more than one file.
    pub(super) read: Box<ReadSamples>,
}

type ReadSamples = dyn Fn(&mut SampleSink) -> Result<()>;

/// Takes one sample: its pixels, u8 [H, W, C], and its label.
pub(super) type SampleSink<'a> = dyn FnMut(&[u8], u8) -> Result<()> + 'a;

/// Checks that a label is one of the classes.
pub(super) fn check_label(source: &Path, position: usize, label: u8, classes: usize) -> Result<()> {
    if usize::from(label) < classes {
        return Ok(());
    }
    Err(broken_source(source, &format!("label {position} is {label}, outside the {classes} classes")))
}

/// Turns three square planes, one after the other, into [row, column, channel]. In a plane the next row is `down` bytes
/// further on, the next column `right`.
pub(super) fn interleave_planes(planes: &[u8], down: usize, right: usize) -> Vec<u8> {
    let plane = planes.len() / 3;
    let side = plane.isqrt();
    let offsets = (0..side).flat_map(|row| (0..side).map(move |column| row * down + column * right));
    offsets.flat_map(|at| [planes[at], planes[at + plane], planes[at + 2 * plane]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_by_rows_and_by_columns_are_interleaved() {
        let planes = [1, 2, 3, 4, 10, 20, 30, 40, 100, 200, 103, 104];
        assert_eq!(interleave_planes(&planes, 2, 1), [1, 10, 100, 2, 20, 200, 3, 30, 103, 4, 40, 104]);
        assert_eq!(interleave_planes(&planes, 1, 2), [1, 10, 100, 3, 30, 103, 2, 20, 200, 4, 40, 104]);
    }
}
