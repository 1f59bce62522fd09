//! Distributed training of CoDiNet (Wang et al., "CoDiNet: Path Distribution Modeling with Consistency and
//! Diversity for Dynamic Routing"): ResNets whose blocks a router may skip, with routing paths that are
//! alike for the views of one sample and unlike for different samples.
//!
//! In the order of a step: [`data`] takes a batch to the device, [`model`] computes logits and routing paths, [`loss`] has
//! the paper's equations, [`dist`] connects the ranks, [`optim`] updates the weights, [`metrics`] holds what a step
//! measured, `train` is the loop, `run` writes the run directory.

pub mod cli;
pub mod data;
pub mod dist;
pub mod loss;
pub mod metrics;
pub mod model;
pub mod optim;
mod profile;
pub mod run;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod train;

pub use codinet_config::{self as config, env, eprint_line, host, run_dir, text};
