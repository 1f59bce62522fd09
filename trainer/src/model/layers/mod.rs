//! Layers: convolution, batch norm, linear, LSTM. Each has its equation and shapes, and computes its multiply-accumulates
//! (MACs) from the shape of its input.

mod activation;
mod batch_norm;
mod conv;
mod conv_norm;
mod linear;

pub use activation::{Activation, Shape};
pub use batch_norm::{BatchNorm, BnMode, RankMean};
pub use conv::Conv;
pub use conv_norm::ConvNorm;
pub use linear::{Linear, Lstm};
