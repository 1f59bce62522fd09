//! Routers: from a block's input to the two outputs U whose larger one decides (Section 3.1.2, Appendix A.2).

use super::layers::{Builder, Conv, Features, Linear, Lstm, Shape};
use crate::config::{self, RouterKind};
use std::collections::BTreeMap;
use std::rc::Rc;
use tch::Tensor;

/// Hidden size of the `rnn` router's LSTM, and width of its input.
const RNN_SIZE: i64 = 10;

/// A block's router.
#[derive(Debug)]
pub enum Router {
    /// GAP → linear → ReLU → linear (Eqs. 3 and 4).
    Fc(Linear, Linear),
    /// 3×3 convolution → ReLU → GAP → linear.
    Cnn(Conv, Linear),
    /// GAP → linear, shared by blocks of like width → LSTM and linear, shared by all.
    Rnn(Rc<Linear>, Rc<Recurrent>),
}

/// What all `rnn` routers share.
#[derive(Debug)]
pub struct Recurrent {
    /// Over the blocks.
    pub lstm: Lstm,
    /// From its h to U.
    pub fc: Linear,
}

/// What routers hand on from block to block: the LSTM's state.
pub type Memory = Option<(Tensor, Tensor)>;

/// Makes the routers of a network.
#[derive(Debug)]
pub struct RouterBuilder<'a> {
    options: &'a config::Router,
    recurrent: Option<Rc<Recurrent>>,
    inputs: BTreeMap<i64, Rc<Linear>>,
    /// The bias of each last layer, `[2]`, once.
    pub biases: Vec<Tensor>,
}

impl<'a> RouterBuilder<'a> {
    /// Makes no router yet.
    pub fn new(options: &'a config::Router) -> Self {
        Self { options, recurrent: None, inputs: BTreeMap::new(), biases: Vec::new() }
    }

    /// The router of block `name`, whose input has shape `from`; its MACs are added to the builder's.
    pub fn build(&mut self, builder: &mut Builder, name: &str, from: Shape) -> Router {
        let hidden = self.options.hidden.of(from.c);
        builder.router = true;
        let router = match self.options.kind {
            RouterKind::Fc => {
                let fc1 = builder.linear(&format!("{name}.router.fc1"), from.c, hidden);
                let fc2 = builder.linear(&format!("{name}.router.fc2"), hidden, 2);
                Router::Fc(fc1, self.open(fc2))
            }
            RouterKind::Cnn => {
                let (conv, _) = builder.conv(&format!("{name}.router.conv"), from, hidden, 3, 1);
                let conv = builder.bias(conv, &format!("{name}.router.conv"), hidden);
                let fc = builder.linear(&format!("{name}.router.fc"), hidden, 2);
                Router::Cnn(conv, self.open(fc))
            }
            RouterKind::Rnn => {
                let before = builder.macs;
                let input = self.inputs.entry(from.c).or_insert_with_key(|width| {
                    Rc::new(builder.linear(&format!("router.input{width}"), from.c, RNN_SIZE))
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
                // What is shared is computed for every block.
                builder.macs = before + from.c * RNN_SIZE + 8 * RNN_SIZE * RNN_SIZE + 2 * RNN_SIZE;
                Router::Rnn(input, recurrent)
            }
        };
        builder.router = false;
        router
    }

    /// Makes a last layer lean towards "run".
    fn open(&mut self, last: Linear) -> Linear {
        last.set_bias(&[0.0, self.options.open_bias as f32]);
        self.biases.push(last.bias.shallow_clone());
        last
    }
}

impl Router {
    /// U[1] − U[0], `[N]`, in fp32: the gate's logit.
    pub fn logit(&self, x: &Features, memory: &mut Memory) -> Tensor {
        let u = match self {
            Self::Fc(fc1, fc2) => fc2.forward(&fc1.forward(&x.mean()).relu()),
            Self::Cnn(conv, fc) => fc.forward(&Features::from(conv.forward(&x.x).relu()).mean()),
            Self::Rnn(input, shared) => {
                let (h, c) = shared.lstm.forward(&input.forward(&x.mean()), memory.take());
                let u = shared.fc.forward(&h);
                *memory = Some((h, c));
                u
            }
        };
        u.select(1, 1) - u.select(1, 0)
    }
}
