//! Batch normalisation over `[N, H, W]`, with the batch's statistics, those of all ranks' batches, or the running ones.

use super::activation::Activation;
use crate::model::kernels::{self, Epilogue, NormTensors};
use crate::sys::attach_backward;
use std::fmt;
use std::sync::Arc;
use tch::{Kind, Tensor};

/// Weight of a batch's statistics in the update of the running ones.
const MOMENTUM: f64 = 0.1;
/// Added to variances.
const EPSILON: f64 = 1e-5;

/// The statistics that batch norm normalises with.
#[derive(Clone, Copy, Debug)]
pub enum BnMode<'a> {
    /// The batch's.
    Batch {
        /// Whether the running statistics move towards the batch's.
        update_running: bool,
        /// Averages statistics over ranks; `None`: each rank has those of its own batch.
        sync: Option<&'a RankMean>,
    },
    /// The running ones.
    Running,
}

impl BnMode<'_> {
    /// The statistics of this rank's batch, which update the running ones.
    pub const BATCH: Self = Self::Batch { update_running: true, sync: None };
}

/// y = γ·(x − μ)/√(σ² + ε) + β for each channel. Tensors are f32 `[C]`.
#[derive(Debug)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
}

impl BatchNorm {
    /// γ, β and running statistics, `[C]` each.
    pub(crate) fn new(weight: Tensor, bias: Tensor, running_mean: Tensor, running_var: Tensor) -> Self {
        Self { weight, bias, running_mean, running_var }
    }

    /// `[N, C, H, W]` → the same shape and kind. Statistics are computed in fp32 for every kind of `x`. One value per channel
    /// has none: the running ones normalise it, and stay as they are.
    pub fn forward(&self, x: &Tensor, mode: BnMode) -> Tensor {
        let (update_running, from_batch) = match mode {
            BnMode::Batch { update_running, sync: Some(mean) } => {
                return self.forward_synced(x, mean, update_running);
            }
            BnMode::Batch { update_running, sync: None } => (update_running, self.values_per_channel(x) != 1),
            BnMode::Running => (true, false),
        };
        let running_mean = update_running.then_some(&self.running_mean);
        let running_var = update_running.then_some(&self.running_var);
        Tensor::batch_norm(
            x,
            Some(&self.weight),
            Some(&self.bias),
            running_mean,
            running_var,
            from_batch,
            MOMENTUM,
            EPSILON,
            true,
        )
    }

    /// [`BatchNorm::forward`] followed by `epilogue`, in one operation if there is a kernel for it.
    pub(crate) fn forward_with(&self, x: &Tensor, mode: BnMode, epilogue: Epilogue) -> Activation {
        if let BnMode::Batch { update_running, sync: None } = mode
            && kernels::has_kernel(x)
            && self.values_per_channel(x) > 1
        {
            let norm = NormTensors {
                weight: &self.weight,
                bias: &self.bias,
                running: update_running.then_some((&self.running_mean, &self.running_var)),
                momentum: MOMENTUM,
                epsilon: EPSILON,
            };
            let (out, mean) = kernels::fused_norm(x, &norm, epilogue);
            return if mean.numel() > 0 { Activation::with_mean(out, mean) } else { out.into() };
        }
        let mut y = self.forward(x, mode);
        let out = match epilogue {
            Epilogue::Relu { .. } => y.relu_(),
            Epilogue::AddRelu { shortcut } => y.g_add_(shortcut).relu_(),
            Epilogue::Blend { shortcut, skip, v } => {
                let run = y.g_add_(shortcut).relu_();
                // In fp32, as v is: bf16 has 8 bits of it.
                let float = |x: &Tensor| x.to_kind(Kind::Float);
                float(skip.unwrap_or(shortcut))
                    .lerp_tensor(&float(&run), &v.view([-1, 1, 1, 1]))
                    .to_kind(run.kind())
            }
        };
        out.into()
    }

    /// N·H·W.
    fn values_per_channel(&self, x: &Tensor) -> usize {
        x.numel() / self.weight.numel()
    }

    /// Normalises with the statistics of all ranks' inputs; a rank may have none. One collective forward, one backward.
    fn forward_synced(&self, x: &Tensor, rank_mean: &RankMean, update_running: bool) -> Tensor {
        let by_channel = |x: &Tensor| x.view([1, -1, 1, 1]);
        // Means are taken relative to the running mean, which is equal on all ranks: squares of small numbers lose less.
        let offsets = x.to_kind(Kind::Float) - by_channel(&self.running_mean);
        let sum = |x: &Tensor| x.sum_dim_intlist([0, 2, 3].as_slice(), false, None);
        let own_count = self.running_mean.full_like(self.values_per_channel(x) as f64);
        let own_sums = Tensor::stack(&[&sum(&offsets), &sum(&offsets.square()), &own_count], 0); // [3, C]
        let sums = rank_mean.forward(&own_sums);
        let count = sums.get(2) * rank_mean.ranks as f64; // values per channel
        let has_statistics = count.gt(1.0);
        let mean_count = sums.get(2).clamp_min(1.0 / rank_mean.ranks as f64);
        let zero = self.running_mean.zeros_like();
        let offset = (sums.get(0) / &mean_count).where_self(&has_statistics, &zero);
        let var = (sums.get(1) / &mean_count - offset.square()).clamp_min(0.0);
        let var = var.where_self(&has_statistics, &self.running_var);
        let scale = &self.weight * (&var + EPSILON).rsqrt();
        let y = (offsets - by_channel(&offset)) * by_channel(&scale) + by_channel(&self.bias);
        if update_running {
            tch::no_grad(|| {
                let unbiased_var = &var * (&count / (&count - 1.0).clamp_min(1.0));
                let momentum = has_statistics.to_kind(Kind::Float) * MOMENTUM;
                let mean = offset + &self.running_mean;
                let _ = self.running_mean.shallow_clone().lerp_tensor_(&mean, &momentum);
                let _ = self.running_var.shallow_clone().lerp_tensor_(&unbiased_var, &momentum);
            });
        }
        y.to_kind(x.kind())
    }

    /// Scale γ/√(σ² + ε) and shift β − μ·scale, f64 `[C]` each, with which the running statistics normalise: y = scale·x + shift.
    pub fn scale_and_shift(&self) -> (Tensor, Tensor) {
        let double = |x: &Tensor| x.detach().to_kind(Kind::Double);
        let scale = double(&self.weight) / (double(&self.running_var) + EPSILON).sqrt();
        let shift = double(&self.bias) - double(&self.running_mean) * &scale;
        (scale, shift)
    }
}

/// The mean over ranks, as an autograd operation. The ranks' collectives implement it.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::builder::Builder;
    use tch::Device;

    /// In a world of one, statistics over all ranks are the batch's. Holds for any running mean.
    #[test]
    fn synced_batch_norm_equals_libtorchs_in_outputs_gradients_and_running_statistics() {
        tch::manual_seed(2);
        let x = Tensor::randn([6, 3, 5, 4], (Kind::Float, Device::Cpu)) * 1.5 + 2.0;
        let slope = Tensor::randn([6, 3, 5, 4], (Kind::Float, Device::Cpu));
        let one_rank = RankMean::new(1, |_| {});
        let run = |sync: Option<&RankMean>| {
            let mut builder = Builder::new(1);
            let norm = builder.norm("norm", 3, 1.0);
            tch::no_grad(|| {
                norm.weight.shallow_clone().copy_(&Tensor::from_slice(&[0.5f32, 1.0, -2.0]));
                norm.bias.shallow_clone().copy_(&Tensor::from_slice(&[0.1f32, -0.3, 0.0]));
                norm.running_mean.shallow_clone().copy_(&Tensor::from_slice(&[0.0f32, 1.0, -3.0]));
            });
            let x = x.copy().set_requires_grad(true);
            let y = norm.forward(&x, BnMode::Batch { update_running: true, sync });
            (&y * &slope).sum(Kind::Float).backward();
            let BatchNorm { weight, bias, running_mean, running_var } = norm;
            [y, x.grad(), weight.grad(), bias.grad(), running_mean, running_var]
        };
        let synced = run(Some(&one_rank));
        let libtorchs = run(None);
        for (i, (ours, theirs)) in synced.iter().zip(&libtorchs).enumerate() {
            assert!(ours.allclose(theirs, 1e-4, 1e-5, false), "{i}: {ours:?} {theirs:?}");
        }
    }

    /// 16 channels have a kernel, 3 do not; with statistics over ranks and without.
    #[test]
    fn one_value_per_channel_is_normalised_by_the_running_statistics() {
        let one_rank = RankMean::new(1, |_| {});
        for channels in [3, 16] {
            for sync in [None, Some(&one_rank)] {
                let mut builder = Builder::new(1);
                let norm = builder.norm("norm", channels, 1.0);
                let _ = tch::no_grad(|| norm.running_mean.shallow_clone().fill_(2.0));
                let x = Tensor::full([1, channels, 1, 1], 5.0, (Kind::Float, Device::Cpu));
                let mode = BnMode::Batch { update_running: true, sync };
                let y = norm.forward_with(&x, mode, Epilogue::Relu { pool: true }).values;
                assert!(y.allclose(&norm.forward(&x, BnMode::Running), 1e-5, 1e-6, false));
                assert!(y.allclose(&Tensor::from(3f32), 1e-4, 0.0, false));
                assert!(norm.running_mean.eq(2.0).all().int64_value(&[]) == 1);
                assert!(norm.running_var.eq(1.0).all().int64_value(&[]) == 1);
                // No value at all has gradients of 0.
                let none = Tensor::zeros([0, channels, 4, 4], (Kind::Float, Device::Cpu));
                norm.forward_with(&none, mode, Epilogue::Relu { pool: true })
                    .values
                    .sum(Kind::Float)
                    .backward();
                assert!(norm.weight.grad().eq(0.0).all().int64_value(&[]) == 1);
                assert!(norm.running_mean.eq(2.0).all().int64_value(&[]) == 1);
            }
        }
    }
}
