//! Makes layers: registers their tensors by name and draws initial values.

use super::layers::{BatchNorm, Conv, ConvNorm, Linear, Lstm};
use super::params::{Params, Role};
use codinet_dataloader::random::{self, Domain};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use tch::{Kind, Tensor};

const CPU_FLOAT: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

/// Makes a network's layers in the order of their use.
#[derive(Debug)]
pub struct Builder {
    /// The tensors made so far.
    pub params: Params,
    /// Whether the layers made next belong to a router.
    pub in_router: bool,
    /// Whether they belong to the head.
    pub in_head: bool,
    seed: u64,
    draws: u64,
}

/// The form of a convolution with padding k/2.
#[derive(Clone, Copy, Debug)]
pub struct ConvSpec {
    /// k.
    pub kernel: i64,
    /// C'.
    pub channels: i64,
    /// Of height and width.
    pub stride: i64,
}

impl Builder {
    /// An empty network whose initial values depend only on `seed`.
    pub fn new(seed: u64) -> Self {
        Self { params: Params::default(), in_router: false, in_head: false, seed, draws: 0 }
    }

    /// A convolution of `inputs` channels. Initial values: normal with He et al.'s fan-out variance 2/(C'·k²)
    /// (arXiv 1502.01852), as torchvision's.
    pub fn conv(&mut self, name: &str, inputs: i64, spec: ConvSpec) -> Conv {
        let ConvSpec { kernel, channels, stride } = spec;
        let deviation = (2.0 / (channels * kernel * kernel) as f64).sqrt() as f32;
        let values = self.draw(channels * inputs * kernel * kernel, |rng| {
            let x: f32 = StandardNormal.sample(rng);
            x * deviation
        });
        let value = Tensor::from_slice(&values).view([channels, inputs, kernel, kernel]);
        let weight = self.register(name, "weight", value, false);
        let bf16 = Some(self.params.register_bf16());
        Conv { weight, bf16, bias: None, stride, padding: kernel / 2 }
    }

    /// A convolution with a bias, which starts at 0.
    pub fn conv_with_bias(&mut self, name: &str, inputs: i64, spec: ConvSpec) -> Conv {
        let conv = self.conv(name, inputs, spec);
        let zeros = Tensor::zeros([spec.channels], CPU_FLOAT);
        Conv { bias: Some(self.register(name, "bias", zeros, true)), ..conv }
    }

    /// A convolution `names[0]` and its batch norm `names[1]`, whose γ starts at `scale`.
    pub fn conv_norm(&mut self, names: [&str; 2], inputs: i64, spec: ConvSpec, scale: f64) -> ConvNorm {
        let conv = self.conv(names[0], inputs, spec);
        let norm = self.norm(names[1], spec.channels, scale);
        ConvNorm { conv, norm }
    }

    /// Batch norm of `channels` channels: γ starts at `scale`, β and the running mean at 0, the running variance at 1.
    pub fn norm(&mut self, name: &str, channels: i64, scale: f64) -> BatchNorm {
        let zeros = || Tensor::zeros([channels], CPU_FLOAT);
        let weight = self.register(name, "weight", Tensor::full([channels], scale, CPU_FLOAT), true);
        let bias = self.register(name, "bias", zeros(), true);
        let running_mean = self.params.register_buffer(format!("{name}.running_mean"), zeros());
        let ones = Tensor::ones([channels], CPU_FLOAT);
        let running_var = self.params.register_buffer(format!("{name}.running_var"), ones);
        BatchNorm::new(weight, bias, running_mean, running_var)
    }

    /// A linear layer. Initial values: uniform in ±1/√inputs, as PyTorch's.
    pub fn linear(&mut self, name: &str, inputs: i64, outputs: i64) -> Linear {
        let uniform = uniform_within_inverse_root(inputs);
        let weight = self.draw(inputs * outputs, |rng| uniform.sample(rng));
        let bias = self.draw(outputs, |rng| uniform.sample(rng));
        let weight = Tensor::from_slice(&weight).view([outputs, inputs]);
        Linear {
            weight: self.register(name, "weight", weight, false),
            bias: self.register(name, "bias", Tensor::from_slice(&bias), true),
        }
    }

    /// An LSTM cell of `hidden` units. Initial values: uniform in ±1/√hidden, as PyTorch's.
    pub fn lstm(&mut self, name: &str, inputs: i64, hidden: i64) -> Lstm {
        let uniform = uniform_within_inverse_root(hidden);
        let mut tensor = |part: &str, shape: &[i64]| {
            let values = self.draw(shape.iter().product(), |rng| uniform.sample(rng));
            self.register(name, part, Tensor::from_slice(&values).view(shape), shape.len() == 1)
        };
        Lstm {
            weights: [
                tensor("weight_ih", &[4 * hidden, inputs]),
                tensor("weight_hh", &[4 * hidden, hidden]),
                tensor("bias_ih", &[4 * hidden]),
                tensor("bias_hh", &[4 * hidden]),
            ],
        }
    }

    fn register(&mut self, layer: &str, name: &str, value: Tensor, norm_or_bias: bool) -> Tensor {
        let role = Role { router: self.in_router, norm_or_bias, head: self.in_head };
        self.params.register_parameter(format!("{layer}.{name}"), value, role)
    }

    /// `count` values, from a generator of their own.
    fn draw(&mut self, count: i64, mut value: impl FnMut(&mut ChaCha8Rng) -> f32) -> Vec<f32> {
        let mut rng = random::stream(Domain::Init, self.seed, self.draws, 0, 0);
        self.draws += 1;
        (0..count).map(|_| value(&mut rng)).collect()
    }
}

fn uniform_within_inverse_root(n: i64) -> Uniform<f32> {
    let bound = 1.0 / (n as f32).sqrt();
    Uniform::new(-bound, bound).expect("a bound above zero")
}
