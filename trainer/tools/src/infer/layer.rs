//! A folded convolution with what follows it: one operation of oneDNN's on a CPU, libtorch's own elsewhere.

use codinet_trainer::model::layers::Conv;
use codinet_trainer::sys::PackedConv;
use std::cell::OnceCell;
use tch::{Device, Tensor};

#[derive(Debug)]
pub struct Layer {
    conv: Conv,
    /// Laid out for inputs like the first that came; `None` where there is no oneDNN.
    packed: OnceCell<Option<PackedConv>>,
}

impl Layer {
    /// `conv` has a bias.
    pub fn new(conv: Conv) -> Self {
        Self { conv, packed: OnceCell::new() }
    }

    /// The convolution, and ReLU where asked for.
    pub fn forward(&self, x: &Tensor, relu: bool) -> Tensor {
        match self.packed(x) {
            Some(packed) => packed.forward(x, relu),
            None => {
                let mut y = self.conv.forward(x);
                if relu { y.relu_() } else { y }
            }
        }
    }

    /// `onto` becomes ReLU(onto + the convolution of `x`), in place.
    pub fn add_to(&self, onto: &Tensor, x: &Tensor) {
        match self.packed(x) {
            Some(packed) => packed.forward_add(onto, x),
            None => {
                let _ = onto.shallow_clone().g_add_(&self.conv.forward(x)).relu_();
            }
        }
    }

    fn packed(&self, x: &Tensor) -> Option<&PackedConv> {
        let Conv { weight, bias, stride, padding } = &self.conv;
        let pack = || {
            let bias = bias.as_ref().expect("a folded convolution has one");
            (x.device() == Device::Cpu).then(|| PackedConv::new(weight, bias, *stride, *padding, x))?
        };
        self.packed.get_or_init(pack).as_ref()
    }
}
