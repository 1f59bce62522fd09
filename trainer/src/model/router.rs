//! Routers: from a block's input to U, two numbers; the larger decides (Section 3.1.2, Appendix A.2).

use super::builder::{Builder, ConvSpec};
use super::layers::{Activation, Conv, Linear, Lstm, Shape};
use crate::config::{self, HiddenActivation, RouterKind, Routing};
use crate::sys::attach_backward;
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::{Kind, Tensor, no_grad};

/// Width of the `rnn` router's LSTM and of its input.
const RNN_SIZE: i64 = 10;

/// A block's router: `[N, C, H, W]` → U, `[N, 2]`.
#[derive(Debug)]
pub enum Router {
    /// GAP → linear → activation → linear (Eqs. 3 and 4).
    Fc(Linear, HiddenActivation, Linear),
    /// 3×3 convolution → activation → GAP → linear.
    Cnn(Conv, HiddenActivation, Linear),
    /// GAP → linear, shared by blocks of equal width → LSTM → linear, shared by all blocks.
    Rnn(Rc<Linear>, Rc<Recurrent>),
    /// No layers: the logit of `model.routing: {random: …}`, to which the noise that decides is added.
    Random(f64),
}

/// The layers that all `rnn` routers share.
#[derive(Debug)]
pub struct Recurrent {
    /// Steps from block to block.
    pub lstm: Lstm,
    /// From the LSTM's h to U.
    pub fc: Linear,
}

/// The LSTM's (h, c) between two blocks; `None` before the first.
pub type LstmState = Option<(Tensor, Tensor)>;

/// Makes a network's routers.
#[derive(Debug)]
pub struct RouterBuilder<'a> {
    options: &'a config::Router,
    routing: &'a Routing,
    recurrent: Option<Rc<Recurrent>>,
    inputs: BTreeMap<i64, Rc<Linear>>,
    /// The bias of each last layer, `[2]`, once.
    pub biases: Vec<Tensor>,
}

impl<'a> RouterBuilder<'a> {
    pub fn new(model: &'a config::Model) -> Self {
        let config::Model { router: options, routing, .. } = model;
        Self { options, routing, recurrent: None, inputs: BTreeMap::new(), biases: Vec::new() }
    }

    /// The router of block `name`, whose input has `channels` channels.
    pub fn build(&mut self, builder: &mut Builder, name: &str, channels: i64) -> Router {
        if let &Routing::Random(probability) = self.routing {
            return Router::Random((probability / (1.0 - probability)).ln());
        }
        let hidden = self.options.hidden.width(channels);
        let activation = self.options.activation;
        builder.in_router = true;
        let router = match self.options.kind {
            RouterKind::Fc => {
                let fc1 = builder.linear(&format!("{name}.router.fc1"), channels, hidden);
                let fc2 = builder.linear(&format!("{name}.router.fc2"), hidden, 2);
                Router::Fc(fc1, activation, self.open(fc2))
            }
            RouterKind::Cnn => {
                let spec = ConvSpec { kernel: 3, channels: hidden, stride: 1 };
                let conv = builder.conv_with_bias(&format!("{name}.router.conv"), channels, spec);
                let fc = builder.linear(&format!("{name}.router.fc"), hidden, 2);
                Router::Cnn(conv, activation, self.open(fc))
            }
            RouterKind::Rnn => {
                let input = self.inputs.entry(channels).or_insert_with(|| {
                    Rc::new(builder.linear(&format!("router.input{channels}"), channels, RNN_SIZE))
                });
                let input = input.clone();
                let recurrent = match &self.recurrent {
                    Some(recurrent) => recurrent.clone(),
                    None => {
                        let lstm = builder.lstm("router.lstm", RNN_SIZE, RNN_SIZE);
                        let fc = builder.linear("router.fc", RNN_SIZE, 2);
                        Rc::new(Recurrent { lstm, fc: self.open(fc) })
                    }
                };
                self.recurrent = Some(recurrent.clone());
                Router::Rnn(input, recurrent)
            }
        };
        builder.in_router = false;
        router
    }

    /// Biases a last layer towards running its block.
    fn open(&mut self, last: Linear) -> Linear {
        last.set_bias(&[0.0, self.options.open_bias as f32]);
        self.biases.push(last.bias.shallow_clone());
        last
    }
}

impl Router {
    /// The gate's logit U[1] − U[0], f32 `[N]`.
    pub fn logit(&self, x: &Activation, lstm: &mut LstmState) -> Tensor {
        let u = match self {
            Self::Random(logit) => {
                return Tensor::full([x.values.size()[0]], *logit, (Kind::Float, x.values.device()));
            }
            Self::Fc(fc1, activation, fc2) => fc2.forward(&activate(fc1.forward(&x.mean()), *activation)),
            Self::Cnn(conv, activation, fc) => {
                fc.forward(&Activation::from(activate(conv.forward(&x.values), *activation)).mean())
            }
            Self::Rnn(input, shared) => {
                let (h, c) = shared.lstm.forward(&input.forward(&x.mean()), lstm.take());
                let u = shared.fc.forward(&h);
                *lstm = Some((h, c));
                u
            }
        };
        difference(&u)
    }

    /// MACs of one image. Each block computes the layers it shares with others.
    pub(super) fn macs(&self, input: Shape) -> i64 {
        match self {
            Self::Fc(fc1, _, fc2) => fc1.macs() + fc2.macs(),
            Self::Cnn(conv, _, fc) => conv.macs(input) + fc.macs(),
            Self::Rnn(input, shared) => input.macs() + shared.lstm.macs() + shared.fc.macs(),
            Self::Random(_) => 0,
        }
    }
}

/// U[1] − U[0]. Autograd would add the gradients of both parts, each padded with zeros.
fn difference(u: &Tensor) -> Tensor {
    let logit = no_grad(|| u.select(1, 1) - u.select(1, 0));
    attach_backward([u], [&logit], |[gradient]| {
        [gradient.map(|gradient| Tensor::stack(&[gradient.neg(), gradient], 1))]
    });
    logit
}

/// The hidden layer's output after its activation.
fn activate(hidden: Tensor, activation: HiddenActivation) -> Tensor {
    match activation {
        HiddenActivation::Relu => hidden.relu(),
        HiddenActivation::None => hidden,
    }
}
