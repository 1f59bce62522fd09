//! Copies of device tensors to the host.

use crate::sys::Event;
use tch::{Device, Kind, Tensor};

/// An asynchronous copy of a tensor to the host.
pub struct HostCopy {
    copy: Tensor,
    copied: Option<Event>,
}

impl HostCopy {
    /// Starts the copy.
    pub fn start(tensor: &Tensor) -> Self {
        let copy = tensor.detach().internal_to_copy((Kind::Double, Device::Cpu), true);
        Self { copy, copied: Event::record(tensor.device()) }
    }

    /// Whether the numbers are on the host.
    pub fn is_complete(&self) -> bool {
        self.copied.as_ref().is_none_or(Event::is_complete)
    }

    /// Waits for the copy, on a GPU also for the work that produced the tensor, and returns its numbers.
    pub fn wait(&self) -> Vec<f64> {
        if let Some(copied) = self.copied.as_ref().filter(|copied| !copied.is_complete()) {
            copied.synchronize();
        }
        Vec::try_from(self.copy.view(-1)).expect("a vector of numbers")
    }
}
