//! The network: a ResNet whose blocks a router may skip.

pub mod gate;
pub mod layers;
pub mod params;
mod resnet;

pub use gate::{Decisions, gumbel_noise};
pub use params::Params;
pub use resnet::{BlockCost, Costs, Net, Output};
