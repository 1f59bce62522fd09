//! JPEGs decoded in part. A crop needs a part of the picture only, and most of a decoder's time goes into bits that
//! follow one another without a mark between them: to come to the lower right corner, all before it has to be read. A
//! *tiled* JPEG has restart markers every few blocks, at which reading can begin; see [`tile`].

mod bits;
pub(crate) mod libjpeg;
mod segment;
pub mod tile;

pub use libjpeg::entropy_decode;

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod synthetic;
#[cfg(test)]
mod tests;
