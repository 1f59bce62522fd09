//! What training and evaluation measure: a step's numbers, on the device until a log line needs them, the statistics of
//! routing paths, and accuracy by class.

pub mod classes;
mod host_copy;
pub mod routing;
mod step_metrics;

pub use host_copy::HostCopy;
pub use step_metrics::{MetricsBuffer, MetricsSum, StepMetrics};
