//! The network: a ResNet whose blocks a router may skip.

pub mod gate;
pub(crate) mod kernels;
pub mod layers;
pub mod params;
mod resnet;
pub mod router;

pub use gate::{Decisions, gumbel_noise, hard, relaxed};
pub use kernels::parts;
pub use layers::{RankMean, Statistics};
pub use params::{Params, Role};
pub use resnet::{BlockCost, Costs, Folded, FoldedBlock, FoldedGate, Net, Output, Way};
