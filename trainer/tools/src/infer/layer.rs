//! A folded convolution and the operation that follows it: one operation of oneDNN on a CPU, libtorch's own elsewhere.

use codinet_trainer::model::Conv;
use codinet_trainer::sys::PackedConv;
use std::cell::OnceCell;
use tch::{Device, Tensor};

#[derive(Debug)]
pub struct Layer {
    conv: Conv,
    /// Packed for inputs of the first input's shape; `None` without oneDNN.
    packed: OnceCell<Option<PackedConv>>,
}

impl Layer {
    /// `conv` has a bias.
    pub fn new(conv: Conv) -> Self {
        Self { conv, packed: OnceCell::new() }
    }

    /// The convolution of `x`, followed by ReLU if `relu`.
    pub fn forward(&self, x: &Tensor, relu: bool) -> Tensor {
        match self.packed(x) {
            Some(packed) => packed.forward(x, relu),
            None => {
                let mut y = self.conv.forward(x);
                if relu { y.relu_() } else { y }
            }
        }
    }

    /// Replaces `sum` by ReLU(sum + the convolution of `x`).
    pub fn add_to(&self, sum: &Tensor, x: &Tensor) {
        match self.packed(x) {
            Some(packed) => packed.forward_add(sum, x),
            None => {
                let _ = sum.shallow_clone().g_add_(&self.conv.forward(x)).relu_();
            }
        }
    }

    fn packed(&self, x: &Tensor) -> Option<&PackedConv> {
        let Conv { weight, bias, stride, padding, .. } = &self.conv;
        let pack = || {
            let bias = bias.as_ref().expect("a folded convolution has one");
            (x.device() == Device::Cpu).then(|| PackedConv::new(weight, bias, *stride, *padding, x))?
        };
        self.packed.get_or_init(pack).as_ref()
    }
}
