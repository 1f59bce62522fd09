//! Convolution, batch norm, linear and LSTM layers, and the builder that names them, draws their first values
//! and counts their multiply-accumulates.

use super::params::{Params, Role};
use crate::model::kernels::{self, Then};
use crate::sys::attach_backward;
use codinet_dataloader::random::{self, Domain};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use std::fmt;
use std::sync::Arc;
use tch::{Kind, Tensor};

/// How far running statistics move towards a batch's.
const MOMENTUM: f64 = 0.1;
/// What is added to variances.
const EPSILON: f64 = 1e-5;

/// Makes layers and keeps the books: names, first values, shapes, MACs.
#[derive(Debug)]
pub struct Builder {
    /// The tensors made so far.
    pub params: Params,
    /// Multiply-accumulates of the layers made so far, for one image.
    pub macs: i64,
    /// Whether what is made next belongs to a router.
    pub router: bool,
    seed: u64,
    drawn: u64,
}

/// The shape of one image's activation, `[channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Channels.
    pub c: i64,
    /// Height in pixels.
    pub h: i64,
    /// Width in pixels.
    pub w: i64,
}

/// A convolution; its weight is cast to the kind of its input.
#[derive(Debug)]
pub struct Conv {
    /// `[C', C, k, k]`.
    pub weight: Tensor,
    /// `[C']`.
    pub bias: Option<Tensor>,
    /// Of height and width.
    pub stride: i64,
    /// At every edge.
    pub padding: i64,
}

/// What batch norm normalises with.
#[derive(Clone, Copy, Debug)]
pub enum Statistics<'a> {
    /// The batch's.
    Batch {
        /// Whether the running ones move by 0.1 towards them.
        seen: bool,
        /// What makes them those of all ranks' batches, where they are to be.
        over: Option<&'a RankMean>,
    },
    /// The running ones.
    Running,
}

impl Statistics<'_> {
    /// This rank's batch's own, seen by the running ones.
    pub const BATCH: Self = Self::Batch { seen: true, over: None };
}

/// Batch normalisation over `[N, H, W]`.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
}

/// An activation, `[N, C, H, W]`, and what routers see of it.
#[derive(Debug)]
pub struct Features {
    /// The activation.
    pub x: Tensor,
    mean: Option<Tensor>,
}

/// `x·Wᵀ + b`.
#[derive(Debug)]
pub struct Linear {
    /// W, `[outputs, inputs]`.
    pub weight: Tensor,
    /// b.
    pub bias: Tensor,
}

/// A long short-term memory cell, as PyTorch's `LSTMCell`.
#[derive(Debug)]
pub struct Lstm {
    /// Those of the input and of h, `[4·hidden, …]`, and their biases; gates in the order i, f, g, o.
    pub weights: [Tensor; 4],
    hidden: i64,
}

impl Builder {
    /// An empty network whose first values follow from `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self { params: Params::default(), macs: 0, router: false, seed, drawn: 0 }
    }

    /// A k×k convolution with padding k/2; returns it and the shape that it gives. First values: normal with
    /// the fan-out variance of He et al. (arXiv 1502.01852), as torchvision's.
    pub fn conv(&mut self, name: &str, from: Shape, c: i64, k: i64, stride: i64) -> (Conv, Shape) {
        let padding = k / 2;
        let out = |size: i64| (size + 2 * padding - k) / stride + 1;
        let shape = Shape { c, h: out(from.h), w: out(from.w) };
        self.macs += shape.h * shape.w * shape.c * from.c * k * k;
        let deviation = (2.0 / (c * k * k) as f64).sqrt() as f32;
        let values = self.draw(c * from.c * k * k, |rng| {
            let x: f32 = StandardNormal.sample(rng);
            x * deviation
        });
        let value = Tensor::from_slice(&values).view([c, from.c, k, k]);
        let weight = self.train(name, "weight", value, false);
        (Conv { weight, bias: None, stride, padding }, shape)
    }

    /// Gives a convolution to `c` channels a bias, at first 0.
    pub fn bias(&mut self, conv: Conv, name: &str, c: i64) -> Conv {
        let zeros = Tensor::zeros([c], (Kind::Float, tch::Device::Cpu));
        Conv { bias: Some(self.train(name, "bias", zeros, true)), ..conv }
    }

    /// Batch normalisation of `c` channels, whose scale starts at `scale`.
    pub fn norm(&mut self, name: &str, c: i64, scale: f64) -> BatchNorm {
        let options = (Kind::Float, tch::Device::Cpu);
        BatchNorm {
            weight: self.train(name, "weight", Tensor::full([c], scale, options), true),
            bias: self.train(name, "bias", Tensor::zeros([c], options), true),
            mean: self.params.keep(format!("{name}.running_mean"), Tensor::zeros([c], options)),
            var: self.params.keep(format!("{name}.running_var"), Tensor::ones([c], options)),
        }
    }

    /// A linear layer; first values uniform in ±1/√inputs, as PyTorch's.
    pub fn linear(&mut self, name: &str, inputs: i64, outputs: i64) -> Linear {
        self.macs += inputs * outputs;
        let bound = 1.0 / (inputs as f32).sqrt();
        let uniform = Uniform::new(-bound, bound).expect("a bound above zero");
        let weight = self.draw(inputs * outputs, |rng| uniform.sample(rng));
        let bias = self.draw(outputs, |rng| uniform.sample(rng));
        let weight = Tensor::from_slice(&weight).view([outputs, inputs]);
        Linear {
            weight: self.train(name, "weight", weight, false),
            bias: self.train(name, "bias", Tensor::from_slice(&bias), true),
        }
    }

    /// An LSTM cell of `hidden` units; first values uniform in ±1/√hidden, as PyTorch's.
    pub fn lstm(&mut self, name: &str, inputs: i64, hidden: i64) -> Lstm {
        self.macs += 4 * hidden * (inputs + hidden);
        let bound = 1.0 / (hidden as f32).sqrt();
        let uniform = Uniform::new(-bound, bound).expect("a bound above zero");
        let mut tensor = |part: &str, shape: &[i64]| {
            let values = self.draw(shape.iter().product(), |rng| uniform.sample(rng));
            self.train(name, part, Tensor::from_slice(&values).view(shape), shape.len() == 1)
        };
        Lstm {
            weights: [
                tensor("weight_ih", &[4 * hidden, inputs]),
                tensor("weight_hh", &[4 * hidden, hidden]),
                tensor("bias_ih", &[4 * hidden]),
                tensor("bias_hh", &[4 * hidden]),
            ],
            hidden,
        }
    }

    fn train(&mut self, layer: &str, name: &str, value: Tensor, norm_or_bias: bool) -> Tensor {
        let role = Role { router: self.router, norm_or_bias };
        self.params.train(format!("{layer}.{name}"), value, role)
    }

    fn draw(&mut self, n: i64, mut one: impl FnMut(&mut ChaCha8Rng) -> f32) -> Vec<f32> {
        let mut rng = random::stream(Domain::Init, self.seed, self.drawn, 0, 0);
        self.drawn += 1;
        (0..n).map(|_| one(&mut rng)).collect()
    }
}

impl Conv {
    /// `[N, C, H, W]` → `[N, C', H', W']`, in the kind of `x`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (stride, padding, kind) = ([self.stride; 2], [self.padding; 2], x.kind());
        let bias = self.bias.as_ref().map(|bias| bias.to_kind(kind));
        x.conv2d(&self.weight.to_kind(kind), bias.as_ref(), stride, padding, [1, 1], 1)
    }

    /// This convolution and `norm` with its running statistics, as one convolution.
    pub fn folded(&self, norm: &BatchNorm) -> Self {
        let [weight, bias, mean, var] =
            [&norm.weight, &norm.bias, &norm.mean, &norm.var].map(|x| x.detach().to_kind(Kind::Double));
        let scale = weight / (var + EPSILON).sqrt(); // [C']
        let shift = match &self.bias {
            None => bias - mean * &scale,
            Some(own) => bias + (own.detach() - mean) * &scale,
        };
        let weight = self.weight.detach().to_kind(Kind::Double) * scale.view([-1, 1, 1, 1]);
        let (weight, bias) = (weight.to_kind(Kind::Float), Some(shift.to_kind(Kind::Float)));
        Self { weight, bias, stride: self.stride, padding: self.padding }
    }
}

impl BatchNorm {
    /// Normalises; sums are fp32 whatever the kind of `x`.
    pub fn forward(&self, x: &Tensor, statistics: Statistics) -> Tensor {
        let (seen, train) = match statistics {
            Statistics::Batch { seen, over: Some(mean) } => return self.over_ranks(x, mean, seen),
            Statistics::Batch { seen, over: None } => (seen, true),
            Statistics::Running => (true, false),
        };
        let running = if seen { (Some(&self.mean), Some(&self.var)) } else { (None, None) };
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        Tensor::batch_norm(x, weight, bias, running.0, running.1, train, MOMENTUM, EPSILON, true)
    }

    /// Normalises `h` and goes on as `then` says: in one operation where there is a kernel for it.
    pub fn forward_then(&self, h: &Tensor, statistics: Statistics, then: Then) -> Features {
        if let Statistics::Batch { seen, over: None } = statistics
            && kernels::has_kernel(h)
        {
            let running = seen.then_some((&self.mean, &self.var));
            let (weight, bias) = (&self.weight, &self.bias);
            let norm = kernels::Norm { weight, bias, running, momentum: MOMENTUM, epsilon: EPSILON };
            let (x, mean) = kernels::norm_then(h, &norm, then);
            return Features { x, mean: Some(mean) };
        }
        let mut y = self.forward(h, statistics);
        let x = match then {
            Then::Relu => y.relu_(),
            Then::AddRelu { shortcut } => y.g_add_(shortcut).relu_(),
            Then::Blend { shortcut, skip, v } => {
                let run = y.g_add_(shortcut).relu_();
                skip.unwrap_or(shortcut).lerp_tensor(&run, &v.view([-1, 1, 1, 1]).to_kind(run.kind()))
            }
        };
        x.into()
    }

    /// The same with the statistics of all ranks' batches, all of one size: one collective forward, one backward.
    fn over_ranks(&self, x: &Tensor, mean: &RankMean, seen: bool) -> Tensor {
        let values = x.to_kind(Kind::Float);
        let (own_var, own_mean) = values.var_mean_dim([0, 2, 3].as_slice(), false, false);
        // As distances from the running mean, which is the same on all ranks: squares of small numbers lose less.
        let off = own_mean - &self.mean;
        let moments = mean.forward(&Tensor::stack(&[&off, &(own_var + off.square())], 0)); // [2, C]
        let off = moments.get(0);
        let var = (moments.get(1) - off.square()).clamp_min(0.0);
        let (mean, ranks) = (off + &self.mean, mean.ranks);
        let by_channel = |x: &Tensor| x.view([1, -1, 1, 1]);
        let scale = &self.weight * (&var + EPSILON).rsqrt();
        let y = (values - by_channel(&mean)) * by_channel(&scale) + by_channel(&self.bias);
        if seen {
            tch::no_grad(|| {
                let count = (x.numel() as f64 / var.numel() as f64) * ranks as f64; // values a channel
                let _ = self.mean.shallow_clone().lerp_(&mean, MOMENTUM);
                let _ = self.var.shallow_clone().lerp_(&(var * (count / (count - 1.0).max(1.0))), MOMENTUM);
            });
        }
        y.to_kind(x.kind())
    }
}

/// The mean over ranks, as an operation of autograd's.
pub struct RankMean {
    average: Arc<dyn Fn(&Tensor) + Send + Sync>,
    ranks: usize,
}

impl RankMean {
    /// `average` replaces a tensor by its mean over `ranks` ranks. All ranks call it in the same order: in forward passes, and
    /// on an autograd thread in backward passes.
    pub fn new(ranks: usize, average: impl Fn(&Tensor) + Send + Sync + 'static) -> Self {
        Self { average: Arc::new(average), ranks }
    }

    /// All ranks: the mean of `x` over ranks. The operation is linear and gradients are averaged over ranks at the end of a
    /// step, so the gradient of `x` is the mean over ranks of the output's gradients.
    fn forward(&self, x: &Tensor) -> Tensor {
        let mean = |average: &dyn Fn(&Tensor), x: &Tensor| {
            let y = x.detach().contiguous().copy();
            average(&y);
            y
        };
        let y = mean(&*self.average, x);
        let average = self.average.clone();
        attach_backward([x], [&y], move |[gradient]| [gradient.map(|gradient| mean(&*average, &gradient))]);
        y
    }
}

impl fmt::Debug for RankMean {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("RankMean").field("ranks", &self.ranks).finish_non_exhaustive()
    }
}

impl From<Tensor> for Features {
    fn from(x: Tensor) -> Self {
        Self { x, mean: None }
    }
}

impl Features {
    /// An activation whose mean over H and W is known.
    pub fn with_mean(x: Tensor, mean: Tensor) -> Self {
        Self { x, mean: Some(mean) }
    }

    /// The mean over H and W, f32 `[N, C]`.
    pub fn mean(&self) -> Tensor {
        self.mean.as_ref().map_or_else(|| mean_over_area(&self.x), Tensor::shallow_clone)
    }
}

/// The mean of `x` over H and W, f32 `[N, C]`, whose gradient is a view of a number per channel. That of libtorch's own mean is
/// as large as `x`, with channels first.
fn mean_over_area(x: &Tensor) -> Tensor {
    let mean = tch::no_grad(|| x.mean_dim([2, 3].as_slice(), false, Kind::Float));
    let (shape, kind) = (x.size(), x.kind());
    let area: i64 = shape[2..].iter().product();
    attach_backward([x], [&mean], move |[gradient]| {
        let by_channel = gradient.map(|gradient| (gradient / area as f64).to_kind(kind));
        [by_channel.map(|gradient| gradient.unsqueeze(2).unsqueeze(3).expand(&shape, false))]
    });
    mean
}

impl Lstm {
    /// `x` `[N, inputs]` and the state (h, c), at first zero → the next state.
    pub fn forward(&self, x: &Tensor, state: Option<(Tensor, Tensor)>) -> (Tensor, Tensor) {
        let zeros = || Tensor::zeros([x.size()[0], self.hidden], (x.kind(), x.device()));
        let (h, c) = state.unwrap_or_else(|| (zeros(), zeros()));
        let [w_ih, w_hh, b_ih, b_hh] = &self.weights;
        x.lstm_cell(&[h, c], w_ih, w_hh, Some(b_ih.shallow_clone()), Some(b_hh.shallow_clone()))
    }
}

impl Linear {
    /// `[N, inputs]` → `[N, outputs]`.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }

    /// Sets the bias.
    pub fn set_bias(&self, values: &[f32]) {
        tch::no_grad(|| self.bias.shallow_clone().copy_(&Tensor::from_slice(values)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    /// With a world of one, statistics over all ranks are the batch's: outputs, gradients and running statistics are those
    /// of libtorch's own batch norm, from whatever running mean.
    #[test]
    fn batch_norm_over_ranks_is_libtorchs() {
        tch::manual_seed(2);
        let x = Tensor::randn([6, 3, 5, 4], (Kind::Float, Device::Cpu)) * 1.5 + 2.0;
        let slope = Tensor::randn([6, 3, 5, 4], (Kind::Float, Device::Cpu));
        let over_ranks = RankMean::new(1, |_| {});
        let run = |over: Option<&RankMean>| {
            let mut builder = Builder::new(1);
            let norm = builder.norm("norm", 3, 1.0);
            tch::no_grad(|| {
                norm.weight.shallow_clone().copy_(&Tensor::from_slice(&[0.5f32, 1.0, -2.0]));
                norm.bias.shallow_clone().copy_(&Tensor::from_slice(&[0.1f32, -0.3, 0.0]));
                norm.mean.shallow_clone().copy_(&Tensor::from_slice(&[0.0f32, 1.0, -3.0]));
            });
            let x = x.copy().set_requires_grad(true);
            let y = norm.forward(&x, Statistics::Batch { seen: true, over });
            (&y * &slope).sum(Kind::Float).backward();
            let BatchNorm { weight, bias, mean, var } = norm;
            [y, x.grad(), weight.grad(), bias.grad(), mean, var]
        };
        for (i, (ours, theirs)) in run(Some(&over_ranks)).iter().zip(&run(None)).enumerate() {
            assert!(ours.allclose(theirs, 1e-4, 1e-5, false), "{i}: {ours:?} {theirs:?}");
        }
    }
}
