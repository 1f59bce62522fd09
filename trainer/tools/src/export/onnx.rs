//! ONNX: the network with batch norm folded in. Each gate is a `Where` between a block and its skip branch, both of them computed for
//! every image, or for one image at a time an `If`, which computes one of them.

use super::proto::{
    Attribute, Dimension, Entry, Graph, Initializer, Model, Node, Opset, Shape, Size, TensorType, Type, Value,
};
use super::weights::{bytes_of, description};
use crate::trained::TrainedNet;
use codinet_trainer::config::{HiddenActivation, Skip};
use codinet_trainer::model::{Block, Conv, ConvNorm, Linear, Recurrent, ResNet, Router, Shortcut};
use prost::Message;
use tch::Tensor;

/// The version of the operators.
const OPSET: i64 = 17;
/// The version of the file format that belongs to it.
const IR_VERSION: i64 = 8;

/// An ONNX file: `images` f32 `[N, C, H, W]`, normalised → `logits` `[N, classes]`, and for a gated network `gates`
/// (U[1] − U[0]) and `path` (1: the block runs), both f32 `[N, n]`. If skipped blocks are not computed, N is 1.
pub fn onnx(network: &TrainedNet, skip: Skip) -> Vec<u8> {
    let net = network.net.layers.map(ConvNorm::fold, |router| router);
    let data = &network.config.data;
    let mut writer = Writer { skip, nodes: Vec::new(), names: 0, initializers: Vec::new(), lstm_state: None };
    let gates = writer.network(&net);
    let size = i64::from(data.eval_size());
    let value = |name: &str, sizes: &[i64]| {
        let images = match skip {
            Skip::Masked => Size::Named("N".into()),
            Skip::Real => Size::Fixed(1),
        };
        let sizes = std::iter::once(images).chain(sizes.iter().map(|&size| Size::Fixed(size)));
        let dim = sizes.map(|size| Dimension { size: Some(size) }).collect();
        float_tensor(name, Some(Shape { dim }))
    };
    let mut output = vec![value("logits", &[data.classes])];
    if gates > 0 {
        output.extend([value("gates", &[gates]), value("path", &[gates])]);
    }
    let graph = Graph {
        node: writer.nodes,
        name: "codinet".into(),
        initializer: writer.initializers,
        input: vec![value("images", &[data.channels.into(), size, size])],
        output,
    };
    let entry = |key: &str, value: String| Entry { key: key.into(), value };
    let model = Model {
        ir_version: IR_VERSION,
        opset_import: vec![Opset { domain: String::new(), version: OPSET }],
        producer_name: "codinet-export".into(),
        producer_version: env!("CARGO_PKG_VERSION").into(),
        doc_string: match skip {
            Skip::Masked => "Every block is computed for every image; path says which count.".into(),
            Skip::Real => "For one image at a time; path says which blocks were computed.".into(),
        },
        graph: Some(graph),
        metadata_props: vec![entry("codinet", description(network).to_string())],
    };
    model.encode_to_vec()
}

/// An f32 tensor of this shape, if it is known.
fn float_tensor(name: &str, shape: Option<Shape>) -> Value {
    Value { name: name.into(), kind: Some(Type { tensor: Some(TensorType { element: 1, shape }) }) }
}

/// The name and value of an operation's attribute.
enum Attr<'a> {
    Int(&'a str, i64),
    Ints(&'a str, &'a [i64]),
    Branch(&'a str, &'a Graph),
}
use Attr::{Branch, Int, Ints};

/// The name of a value in the graph.
type Name = String;

struct Writer {
    skip: Skip,
    /// Of the graph or branch that is being written.
    nodes: Vec<Node>,
    /// How many names were given.
    names: usize,
    initializers: Vec<Initializer>,
    /// h and c of `rnn` routers.
    lstm_state: Option<(Name, Name)>,
}

impl Writer {
    /// Adds the whole network; returns the number of its gates.
    fn network(&mut self, net: &ResNet<Conv, &Router>) -> i64 {
        let mut x = self.conv(&net.stem, "images");
        x = self.op("Relu", &[&x], &[]);
        if net.pool {
            let pads = Ints("pads", &[1, 1, 1, 1]);
            x = self.op("MaxPool", &[&x], &[Ints("kernel_shape", &[3, 3]), pads, Ints("strides", &[2, 2])]);
        }
        let mut gates = Vec::new();
        let mut path = Vec::new();
        for block in &net.blocks {
            x = self.block(block, &x, &mut gates, &mut path);
        }
        let mean = self.mean(&x);
        let logits = self.linear(&net.head, &mean);
        self.rename(&logits, "logits");
        if !gates.is_empty() {
            for (columns, name) in [(&gates, "gates"), (&path, "path")] {
                let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
                let all = self.op("Concat", &columns, &[Int("axis", 1)]);
                self.rename(&all, name);
            }
        }
        gates.len() as i64
    }

    fn block(
        &mut self,
        block: &Block<Conv, &Router>,
        x: &str,
        gates: &mut Vec<Name>,
        path: &mut Vec<Name>,
    ) -> Name {
        let Some(gate) = &block.gate else {
            let shortcut = self.shortcut(&block.shortcut, x);
            return self.run(block, x, &shortcut);
        };
        let logit = self.router(gate.router, x); // [N, 1]
        let zero = self.floats(&Tensor::from_slice(&[0f32]));
        let runs = self.op("GreaterOrEqual", &[&logit, &zero], &[]); // Eq. 13
        path.push(self.op("Cast", &[&runs], &[Int("to", 1)]));
        gates.push(logit);
        // Without a projection of its own, the skip branch needs the shortcut, too.
        let shared = gate.skip.is_none().then(|| self.shortcut(&block.shortcut, x));
        let run = |writer: &mut Self| {
            let shortcut = shared.clone().unwrap_or_else(|| writer.shortcut(&block.shortcut, x));
            writer.run(block, x, &shortcut)
        };
        let skip = |writer: &mut Self| match (&gate.skip, &block.shortcut) {
            (Some(conv), _) => {
                let projected = writer.conv(conv, x);
                writer.op("Relu", &[&projected], &[])
            }
            (None, Shortcut::Identity) => x.to_owned(),
            (None, _) => writer.op("Relu", &[shared.as_deref().expect("the shortcut is shared")], &[]),
        };
        match self.skip {
            Skip::Masked => {
                let branches = [run(self), skip(self)];
                let shape = self.integers(&[-1, 1, 1, 1]);
                let mask = self.op("Reshape", &[&runs, &shape], &[]);
                self.op("Where", &[&mask, &branches[0], &branches[1]], &[])
            }
            Skip::Real => {
                let shape = self.integers(&[1]);
                let condition = self.op("Reshape", &[&runs, &shape], &[]);
                let run = self.branch(run);
                let skip = self.branch(skip);
                self.op("If", &[&condition], &[Branch("then_branch", &run), Branch("else_branch", &skip)])
            }
        }
    }

    /// F(x), for the residual connection of x.
    fn run(&mut self, block: &Block<Conv, &Router>, x: &str, shortcut: &str) -> Name {
        let Some((last, others)) = block.convs.split_last() else {
            return self.op("Relu", &[shortcut], &[]);
        };
        let mut h = x.to_owned();
        for conv in others {
            h = self.conv(conv, &h);
            h = self.op("Relu", &[&h], &[]);
        }
        h = self.conv(last, &h);
        let sum = self.op("Add", &[&h, shortcut], &[]);
        self.op("Relu", &[&sum], &[])
    }

    /// A branch of an `If`, which reads the values and constants around it.
    fn branch(&mut self, write: impl FnOnce(&mut Self) -> Name) -> Graph {
        let around = std::mem::take(&mut self.nodes);
        let result = write(self);
        let output = self.op("Identity", &[&result], &[]); // a value of the branch's own
        let node = std::mem::replace(&mut self.nodes, around);
        let name = format!("branch_{output}");
        Graph { node, name, output: vec![float_tensor(&output, None)], ..Graph::default() }
    }

    fn shortcut(&mut self, shortcut: &Shortcut<Conv>, x: &str) -> Name {
        match shortcut {
            Shortcut::Identity => x.to_owned(),
            Shortcut::Conv(conv) => self.conv(conv, x),
            Shortcut::Pad { stride, before, after } => {
                let [starts, ends] = [[0, 0], [i64::MAX, i64::MAX]].map(|at| self.integers(&at));
                let axes = self.integers(&[2, 3]);
                let steps = self.integers(&[*stride, *stride]);
                let pixels = self.op("Slice", &[x, &starts, &ends, &axes, &steps], &[]);
                let pads = self.integers(&[0, *before, 0, 0, 0, *after, 0, 0]);
                self.op("Pad", &[&pixels, &pads], &[])
            }
        }
    }

    /// U[1] − U[0], `[N, 1]`.
    fn router(&mut self, router: &Router, x: &str) -> Name {
        let u = match router {
            Router::Fc(fc1, activation, fc2) => {
                let mean = self.mean(x);
                let h = self.linear(fc1, &mean);
                let h = self.activate(h, *activation);
                self.linear(fc2, &h)
            }
            Router::Cnn(conv, activation, fc) => {
                let h = self.conv(conv, x);
                let h = self.activate(h, *activation);
                let mean = self.mean(&h);
                self.linear(fc, &mean)
            }
            Router::Random(_) => unreachable!("TrainedNet refuses random paths"),
            Router::Rnn(input, shared) => {
                let mean = self.mean(x);
                let projected = self.linear(input, &mean);
                let h = self.lstm(shared, &projected);
                self.linear(&shared.fc, &h)
            }
        };
        let difference = self.floats(&Tensor::from_slice(&[-1f32, 1.0]).view([2, 1]));
        self.op("MatMul", &[&u, &difference], &[])
    }

    fn activate(&mut self, hidden: Name, activation: HiddenActivation) -> Name {
        match activation {
            HiddenActivation::Relu => self.op("Relu", &[&hidden], &[]),
            HiddenActivation::None => hidden,
        }
    }

    /// One step of the LSTM; returns h.
    fn lstm(&mut self, shared: &Recurrent, x: &str) -> Name {
        let [w_ih, w_hh, b_ih, b_hh] = &shared.lstm.weights;
        let mut gates = self.gemm(w_ih, b_ih, x);
        let state = self.lstm_state.take();
        match &state {
            Some((h, _)) => {
                let recurrent = self.gemm(w_hh, b_hh, h);
                gates = self.op("Add", &[&gates, &recurrent], &[]);
            }
            None => {
                let bias = self.floats(b_hh); // h is zero
                gates = self.op("Add", &[&gates, &bias], &[]);
            }
        }
        let parts: [Name; 4] = std::array::from_fn(|i| self.fresh(&format!("gate{i}_")));
        let node = self.node("Split", &[&gates], &parts.each_ref().map(String::as_str), &[Int("axis", 1)]);
        self.nodes.push(node);
        let [i, f, g, o] = &parts;
        let [i, f, o] = [i, f, o].map(|part| self.op("Sigmoid", &[part], &[]));
        let g = self.op("Tanh", &[g], &[]);
        let mut c = self.op("Mul", &[&i, &g], &[]);
        if let Some((_, previous)) = &state {
            let remembered = self.op("Mul", &[&f, previous], &[]);
            c = self.op("Add", &[&remembered, &c], &[]);
        }
        let activated = self.op("Tanh", &[&c], &[]);
        let h = self.op("Mul", &[&o, &activated], &[]);
        self.lstm_state = Some((h.clone(), c));
        h
    }

    fn conv(&mut self, conv: &Conv, x: &str) -> Name {
        let weight = self.floats(&conv.weight);
        let bias = conv.bias.as_ref().map(|bias| self.floats(bias));
        let inputs: Vec<&str> = [x, &weight].into_iter().chain(bias.as_deref()).collect();
        let pads = Ints("pads", &[conv.padding; 4]);
        self.op("Conv", &inputs, &[pads, Ints("strides", &[conv.stride; 2])])
    }

    fn linear(&mut self, linear: &Linear, x: &str) -> Name {
        self.gemm(&linear.weight, &linear.bias, x)
    }

    /// x·Wᵀ + b.
    fn gemm(&mut self, weight: &Tensor, bias: &Tensor, x: &str) -> Name {
        let weight = self.floats(weight);
        let bias = self.floats(bias);
        self.op("Gemm", &[x, &weight, &bias], &[Int("transB", 1)])
    }

    /// The mean over H and W, `[N, C]`.
    fn mean(&mut self, x: &str) -> Name {
        self.op("ReduceMean", &[x], &[Ints("axes", &[2, 3]), Int("keepdims", 0)])
    }

    /// Adds an operation with one output; returns the output's name.
    fn op(&mut self, op: &str, inputs: &[&str], attributes: &[Attr]) -> Name {
        let output = self.fresh(&op.to_lowercase());
        let node = self.node(op, inputs, &[&output], attributes);
        self.nodes.push(node);
        output
    }

    /// Gives a value another name, that of an output of the graph.
    fn rename(&mut self, from: &str, to: &str) {
        let node = self.node("Identity", &[from], &[to], &[]);
        self.nodes.push(node);
    }

    fn node(&self, op: &str, inputs: &[&str], outputs: &[&str], attributes: &[Attr]) -> Node {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let attribute = attributes
            .iter()
            .map(|attribute| match *attribute {
                Int(name, i) => Attribute { name: name.into(), i, kind: 2, ..Attribute::default() },
                Ints(name, ints) => {
                    Attribute { name: name.into(), ints: ints.to_vec(), kind: 7, ..Attribute::default() }
                }
                Branch(name, graph) => {
                    Attribute { name: name.into(), g: Some(graph.clone()), kind: 5, ..Attribute::default() }
                }
            })
            .collect();
        let name = format!("{op}_{}", outputs[0]);
        Node { input: owned(inputs), output: owned(outputs), name, op_type: op.into(), attribute }
    }

    /// A constant tensor of f32.
    fn floats(&mut self, tensor: &Tensor) -> Name {
        self.constant(tensor.size(), 1, bytes_of(tensor))
    }

    /// A constant list of integers.
    fn integers(&mut self, values: &[i64]) -> Name {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(vec![values.len() as i64], 7, bytes)
    }

    fn constant(&mut self, dims: Vec<i64>, data_type: i32, raw_data: Vec<u8>) -> Name {
        let name = self.fresh("constant");
        self.initializers.push(Initializer { dims, data_type, name: name.clone(), raw_data });
        name
    }

    /// A name that no value has yet.
    fn fresh(&mut self, stem: &str) -> Name {
        self.names += 1;
        format!("{stem}{}", self.names)
    }
}
