//! A trained network as a file for other programs: `.safetensors` for PyTorch and torchvision, ONNX for the rest.

pub mod cli;
mod onnx;
pub mod proto;
mod weights;

pub use onnx::onnx;
pub use weights::{safetensors, torchvision};
