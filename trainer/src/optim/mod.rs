//! What moves the weights: SGD, the learning rate's schedule, the moving average of weights, and the controller of γ.

pub mod calibration;
mod ema;
mod gamma;
pub mod schedule;
mod sgd;
#[cfg(test)]
mod tests;

pub use ema::Ema;
pub use gamma::GammaController;
pub use sgd::Sgd;
