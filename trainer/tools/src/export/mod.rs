//! A trained network for other programs: `.safetensors` for PyTorch and torchvision, ONNX for everything else.

pub mod cli;
mod onnx;
pub mod proto;
mod weights;

pub use onnx::model as onnx;
pub use weights::{gated, torchvision};
