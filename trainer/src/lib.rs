//! Distributed training of CoDiNet (Wang et al., "CoDiNet: Path Distribution Modeling with Consistency and
//! Diversity for Dynamic Routing"): ResNets whose blocks a router may skip, with routing paths that are
//! alike for the views of one sample and unlike for different samples.
//!
//! Follow the data: `upload` takes a batch of bytes to the device, `input` makes it a tensor of numbers, [`model`] decides
//! and computes, [`loss`] has the paper's equations, [`step`] puts them together, [`gradients`] leave for other ranks
//! meanwhile, [`optim`] makes the update, `train` is the loop, [`collective`] is where ranks meet, `run` where files are
//! written. What was trained is opened by [`trained`], for [`infer`], [`export`] and [`analyze`].

pub mod analyze;
mod bad_samples;
mod budget;
pub mod cli;
pub mod collective;
mod colour;
#[cfg(test)]
mod compiled;
mod device;
mod driver;
mod dry_run;
pub mod error;
mod evaluate;
pub mod export;
mod find_batch;
mod fused;
pub mod gradients;
pub mod infer;
mod input;
#[cfg(test)]
mod layouts;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod model;
mod native;
pub mod optim;
mod paths;
mod probe;
mod profile;
pub mod program;
mod ranges;
pub mod replicas;
mod run;
pub mod step;
mod train;
pub mod trained;
mod upload;

pub use codinet_config::{self as config, env};
