//! Routers for small batches: on a CPU the paper's two linear layers are too small for libtorch, whose five operations take
//! longer than some blocks.

use super::activation::CachedActivation;
use codinet_trainer::config::HiddenActivation;
use codinet_trainer::model::{Activation, LANES, Linear, LstmState, Router};
use pulp::{Arch, Simd, WithSimd};
use tch::Tensor;

/// The most MACs of a router on a batch that one thread computes here.
const FEW: usize = 1 << 19;

#[derive(Debug)]
pub struct FastRouter<'a> {
    router: &'a Router,
    /// `fc` routers only.
    layers: Option<Layers>,
}

/// U[1] − U[0] = w2·max(W1·x + b1, floor) + b2.
#[derive(Debug)]
struct Layers {
    inputs: usize,
    w1: Vec<f32>,
    b1: Vec<f32>,
    /// 0 for a ReLU, −∞ without one.
    floor: f32,
    w2: Vec<f32>,
    b2: f32,
}

impl<'a> FastRouter<'a> {
    pub fn new(router: &'a Router) -> Self {
        let layers = match router {
            Router::Fc(fc1, activation, fc2) => Layers::new(fc1, *activation, fc2),
            _ => None,
        };
        Self { router, layers }
    }

    /// U[1] − U[0] of every image.
    pub fn logits(&self, x: &mut CachedActivation, lstm: &mut LstmState) -> Vec<f32> {
        if let Some(layers) = &self.layers
            && x.images() * layers.w1.len() <= FEW
            && let Some(means) = x.means()
        {
            return Arch::new().dispatch(Logits { layers, means });
        }
        let activation = match self.router {
            Router::Cnn(..) => x.x().shallow_clone().into(),
            _ => Activation::with_mean(x.x().shallow_clone(), x.mean_tensor()),
        };
        Vec::try_from(&self.logit(&activation, lstm)).expect("a logit for each image")
    }

    /// The same as a tensor, f32 `[N]`, by libtorch's operations.
    pub fn logit(&self, x: &Activation, lstm: &mut LstmState) -> Tensor {
        self.router.logit(x, lstm)
    }
}

/// The logits of images with these means, `[N, C]`.
struct Logits<'a> {
    layers: &'a Layers,
    means: &'a [f32],
}

impl WithSimd for Logits<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Vec<f32> {
        let Self { layers, means } = self;
        let mut logits = Vec::with_capacity(means.len() / layers.inputs);
        for x in means.chunks_exact(layers.inputs) {
            logits.push(layers.logit(x)); // a closure's body would not be compiled for these instructions
        }
        logits
    }
}

impl Layers {
    /// `None` if the number of inputs is no multiple of [`LANES`].
    fn new(fc1: &Linear, activation: HiddenActivation, fc2: &Linear) -> Option<Self> {
        let w2 = fc2.weight.detach();
        let b2 = fc2.bias.detach();
        let numbers = |x: Tensor| Vec::<f32>::try_from(&x.contiguous().view([-1])).expect("f32");
        let inputs = fc1.weight.size()[1] as usize;
        inputs.is_multiple_of(LANES).then(|| Self {
            inputs,
            w1: numbers(fc1.weight.detach()),
            b1: numbers(fc1.bias.detach()),
            floor: match activation {
                HiddenActivation::Relu => 0.0,
                HiddenActivation::None => f32::NEG_INFINITY,
            },
            w2: numbers(w2.get(1) - w2.get(0)),
            b2: (b2.get(1) - b2.get(0)).double_value(&[]) as f32,
        })
    }

    #[inline(always)]
    fn logit(&self, x: &[f32]) -> f32 {
        let (x, _) = x.as_chunks::<LANES>();
        let mut logit = self.b2;
        for ((row, b1), w2) in self.w1.chunks_exact(self.inputs).zip(&self.b1).zip(&self.w2) {
            let mut sums = [0f32; LANES];
            for (w, x) in row.as_chunks::<LANES>().0.iter().zip(x) {
                for i in 0..LANES {
                    sums[i] += w[i] * x[i];
                }
            }
            logit += w2 * (b1 + sums.iter().sum::<f32>()).max(self.floor);
        }
        logit
    }
}
