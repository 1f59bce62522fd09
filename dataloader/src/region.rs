//! Regions of images.

/// A rectangle of pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Number of columns to its left.
    pub left: u32,
    /// Number of rows above it.
    pub top: u32,
    /// Number of its columns.
    pub width: u32,
    /// Number of its rows.
    pub height: u32,
}

impl Region {
    /// All of an image of this size.
    pub fn whole(width: u32, height: u32) -> Region {
        Region { left: 0, top: 0, width, height }
    }

    /// The smallest region that contains both.
    pub fn union(&self, other: &Region) -> Region {
        let left = self.left.min(other.left);
        let top = self.top.min(other.top);
        let right = (self.left + self.width).max(other.left + other.width);
        let bottom = (self.top + self.height).max(other.top + other.height);
        Region { left, top, width: right - left, height: bottom - top }
    }
}
