//! Distributed training of CoDiNet (Wang et al., "CoDiNet: Path Distribution Modeling with Consistency and
//! Diversity for Dynamic Routing"): ResNets whose blocks a router may skip, with routing paths that are
//! alike for the views of one sample and unlike for different samples.
//!
//! Follow the data: [`upload`] takes a batch of bytes to the device, [`input`] makes it a tensor of numbers, [`model`] decides and computes, [`loss`]
//! has the paper's equations, [`step`] puts them together, [`gradients`] leave for other ranks meanwhile, [`optim`] takes the
//! step, [`train`] is the loop, [`collective`] is where ranks meet, [`run`] where files are written.

pub mod analyze;
pub mod budget;
pub mod cli;
pub mod collective;
#[cfg(test)]
mod compiled;
mod colour;
pub mod config;
mod device;
pub mod dry_run;
pub mod env;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod find_batch;
mod fused;
pub mod gradients;
pub mod infer;
pub mod input;
#[cfg(test)]
mod layouts;
pub mod loss;
pub mod memory;
pub mod metrics;
pub mod model;
mod native;
pub mod optim;
pub mod paths;
pub mod probe;
pub mod profile;
pub mod program;
pub mod ranges;
pub mod replicas;
pub mod run;
pub mod step;
pub mod train;
pub mod trained;
pub mod upload;
