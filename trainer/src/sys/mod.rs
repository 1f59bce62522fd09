//! What the trainer needs of libtorch, CUDA and the operating system that tch and std lack.

pub(crate) mod driver;
pub mod error;
pub mod memory;
pub(crate) mod native;
pub(crate) mod span;

pub use native::{Convolution, channels_last, parallel};
