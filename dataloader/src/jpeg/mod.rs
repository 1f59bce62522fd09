//! JPEGs decoded in part. A crop needs a part of the picture only, and most of a decoder's time goes into bits that
//! follow one another without a mark between them: to come to the lower right corner, all before it has to be read. A
//! *tiled* JPEG has restart markers every few blocks, at which reading can begin; see [`tile`].

mod bits;
mod segment;
pub mod tile;
pub(crate) mod turbo;

pub use turbo::entropy_decode;

#[cfg(test)]
mod tests;
