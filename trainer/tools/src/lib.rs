//! What is done with a trained network: [`infer`] classifies images and really skips blocks, [`export`] writes the network
//! for other programs, [`analyze`] looks at its routing paths. [`trained`] opens a run's weights for all three.

pub mod analyze;
pub mod export;
pub mod hardware;
pub mod infer;
mod plot;
pub mod trained;
