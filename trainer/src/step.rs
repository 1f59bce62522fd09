//! One training step up to the update: forward, objective, backward, and the mean over ranks.

use crate::collective::{self, Collective};
use crate::config::Routers;
use crate::error::{Error, Result};
use crate::loss::{self, Parts, Weights};
use crate::model::{Decisions, Net};
use tch::{Kind, Tensor};

/// What a step needs beside its batch.
pub struct Step<'a> {
    /// The ranks that share the global batch.
    pub world: &'a dyn Collective,
    /// The network.
    pub net: &'a Net,
    /// c_k of Eq. 11, `[n]`.
    pub costs: &'a Tensor,
    /// α, β, γ and the margins.
    pub weights: Weights,
    /// Whether routers train; the gradient of frozen ones is zero.
    pub routers: Routers,
    /// M.
    pub views: i64,
    /// Whether batch norm takes the batch's statistics, as training does; a test that compares world sizes
    /// fixes them instead, for each rank has its own.
    pub batch_statistics: bool,
}

/// What a step measured: means over all ranks.
#[derive(Clone, Debug)]
pub struct Measured {
    /// L_cls.
    pub ce: f64,
    /// L_con.
    pub con: f64,
    /// L_div of the global batch.
    pub div: f64,
    /// L_cost.
    pub cost: f64,
    /// Share of views whose class came first.
    pub top1: f64,
    /// L² norm of the averaged gradient.
    pub grad_norm: f64,
    /// Whether any rank was asked to stop.
    pub stop: bool,
    /// Mean decision of each gate, `[n]`.
    pub rates: Vec<f64>,
}

impl Step<'_> {
    /// All ranks: the gradient of Eq. 12 over the global batch, laid out as the flat parameters, and what was
    /// measured on the way; the same to the bit on every rank.
    ///
    /// `images` `[L·M, C, H, W]` and `labels` `[L]` are this rank's share; `stop` is this rank's wish to stop.
    pub fn gradient(
        &self,
        images: &Tensor,
        labels: &Tensor,
        decisions: Decisions,
        stop: bool,
    ) -> Result<(Tensor, Measured)> {
        // Forward: logits, and relaxed paths (Eqs. 6 and 7) or hard ones.
        let out = self.net.forward(images, decisions, self.batch_statistics);

        // The objective (Eqs. 8 to 12): this rank's centres meet those of all ranks.
        let centres = loss::centres(&out.path, self.views); // [L, n]
        let keys = self.world.all_gather(&centres)?.flatten(0, 1); // [G, n]
        let first = self.world.rank() as i64 * centres.size()[0];
        let parts = Parts {
            ce: loss::classification(&out.logits, labels, self.views),
            con: loss::consistency(&out.path, &centres, self.views, self.weights.consistency_margin),
            div: loss::diversity(&centres, &keys, first, self.weights.diversity_margin),
            cost: loss::cost(&out.path, self.costs),
        };

        // Backward, then the mean over ranks of gradient and measurements in one go.
        let gradient = self.backward(&parts.total(&self.weights, self.world.world()));
        let measured = self.measure(&parts, &out.logits, labels, &out.path, stop);
        let flat = Tensor::cat(&[&gradient, &measured], 0);
        collective::all_reduce_mean(self.world, &flat)?;
        let (gradient, measured) =
            (flat.narrow(0, 0, gradient.size()[0]), flat.slice(0, gradient.size()[0], None, 1));
        let measured = Measured::read(&measured, &gradient);
        Ok((gradient, measured))
    }

    /// The gradient of `loss`, laid out as the flat parameters; zero for what does not train.
    fn backward(&self, loss: &Tensor) -> Tensor {
        let trains = |router: bool| !(router && self.routers == Routers::Freeze);
        let trained = &self.net.params.trained;
        let inputs: Vec<&Tensor> =
            trained.iter().filter(|p| trains(p.role.router)).map(|p| &p.tensor).collect();
        let mut gradients = Tensor::run_backward(&[loss], &inputs, false, false).into_iter();
        let flat: Vec<Tensor> = trained
            .iter()
            .map(|parameter| match trains(parameter.role.router).then(|| gradients.next()).flatten() {
                Some(gradient) if gradient.defined() => gradient.reshape([-1]),
                _ => parameter.tensor.detach().zeros_like().view([-1]),
            })
            .collect();
        Tensor::cat(&flat, 0)
    }

    /// What this rank measured, in a form whose mean over ranks is the global batch's: see [`Measured::read`].
    fn measure(&self, parts: &Parts, logits: &Tensor, labels: &Tensor, paths: &Tensor, stop: bool) -> Tensor {
        let labels = loss::by_view(labels, self.views);
        let top1 = logits.argmax(1, false).eq_tensor(&labels).to_kind(Kind::Float).mean(None);
        let stop = Tensor::from(f32::from(u8::from(stop))).to_device(logits.device());
        let div = &parts.div * self.world.world() as f64; // L_div is a sum over ranks
        let scalars = Tensor::stack(&[&parts.ce, &parts.con, &div, &parts.cost, &top1, &stop], 0);
        Tensor::cat(&[scalars, paths.mean_dim([0].as_slice(), false, None)], 0).detach()
    }
}

impl Measured {
    /// Reads what [`Step::measure`] wrote, after the mean over ranks.
    fn read(values: &Tensor, gradient: &Tensor) -> Self {
        let values = Vec::<f64>::try_from(values.to_kind(Kind::Double)).expect("a vector of numbers");
        let grad_norm = f64::try_from(gradient.norm()).expect("one number");
        let [ce, con, div, cost, top1, stop, ref rates @ ..] = values[..] else {
            unreachable!("measure writes six numbers and the rates")
        };
        Self { ce, con, div, cost, top1, grad_norm, stop: stop > 0.0, rates: rates.to_vec() }
    }

    /// Eq. 12.
    pub fn loss(&self, weights: &Weights) -> f64 {
        self.ce + weights.alpha * self.con + weights.beta * self.div + weights.gamma * self.cost
    }

    /// An error where the loss or the gradient is not finite: what is not finite on one rank is not finite in
    /// the mean over all, so that every rank has this same error.
    pub fn check(&self, step: u64) -> Result<()> {
        let Self { ce, con, div, cost, grad_norm, .. } = self;
        if [ce, con, div, cost, grad_norm].into_iter().all(|value| value.is_finite()) {
            return Ok(());
        }
        let what =
            format!("not finite: ce {ce}, con {con}, div {div}, cost {cost}, gradient norm {grad_norm}");
        Err(Error::diverged(step, &what))
    }
}
