//! The programs for a trained network: [`infer`] classifies images and skips blocks, [`export`] writes the network for other
//! programs, [`analyze`] analyzes its routing paths. [`trained`] loads the weights for all three.

pub mod analyze;
pub mod export;
pub mod hardware;
pub mod infer;
mod plot;
mod progress;
pub mod trained;
