//! Linear layers and the LSTM cell.

use tch::Tensor;

/// `x·Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    /// W, `[outputs, inputs]`.
    pub weight: Tensor,
    /// b, `[outputs]`.
    pub bias: Tensor,
}

/// A long short-term memory cell, as PyTorch's `LSTMCell`.
#[derive(Debug)]
pub struct Lstm {
    /// W_ih `[4·hidden, inputs]`, W_hh `[4·hidden, hidden]`, b_ih and b_hh `[4·hidden]`; gates in the order i, f, g, o.
    pub weights: [Tensor; 4],
}

impl Linear {
    /// `[N, inputs]` → `[N, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// MACs of one image: inputs·outputs.
    pub fn macs(&self) -> i64 {
        self.weight.numel() as i64
    }

    /// Another handle on the same weight and bias.
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone() }
    }

    pub(crate) fn set_bias(&self, values: &[f32]) {
        tch::no_grad(|| self.bias.shallow_clone().copy_(&Tensor::from_slice(values)));
    }
}

impl Lstm {
    /// `x` `[N, inputs]` and the state (h, c), `[N, hidden]` each, → the next state. `None` is the zero state.
    pub fn forward(&self, x: &Tensor, state: Option<(Tensor, Tensor)>) -> (Tensor, Tensor) {
        let [w_ih, w_hh, b_ih, b_hh] = &self.weights;
        let hidden = w_hh.size()[1];
        let zeros = || Tensor::zeros([x.size()[0], hidden], (x.kind(), x.device()));
        let (h, c) = state.unwrap_or_else(|| (zeros(), zeros()));
        x.lstm_cell(&[h, c], w_ih, w_hh, Some(b_ih.shallow_clone()), Some(b_hh.shallow_clone()))
    }

    /// MACs of one step for one image: 4·hidden·(inputs + hidden).
    pub fn macs(&self) -> i64 {
        (self.weights[0].numel() + self.weights[1].numel()) as i64
    }
}
