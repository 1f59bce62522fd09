//! Partial decoding of JPEGs. A crop needs only a part of the picture, but a JPEG's bits can be read only from the start:
//! the lower right corner takes all bits before it. A *tiled* JPEG has restart markers every few blocks, from which
//! decoding can start; see [`tile`].

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
