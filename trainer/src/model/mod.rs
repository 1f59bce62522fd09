//! The network: a ResNet whose blocks a router may skip.

mod block;
mod builder;
mod costs;
mod drop_path;
mod gate;
mod kernels;
mod layers;
mod params;
mod partition;
mod path_vector;
mod resnet;
mod router;
#[cfg(test)]
mod tests;

pub use block::{Block, Gate, Shortcut};
pub use costs::{BlockCost, Costs};
pub use drop_path::drop_path_factors;
pub use gate::{Decisions, evaluation_noise, gumbel_noise, hard_decisions, relaxed_decisions};
pub(crate) use kernels::{GpuKernels, normalise_pixels};
pub use kernels::{LANES, Lanes, SampleSlices};
pub use layers::{Activation, BatchNorm, BnMode, Conv, ConvNorm, Linear, Lstm, RankMean, Shape};
pub use params::{Group, Parameter, Params, Role};
pub use path_vector::PathVectors;
pub use resnet::{Net, NetOutput, ResNet};
pub use router::{LstmState, Recurrent, Router};
