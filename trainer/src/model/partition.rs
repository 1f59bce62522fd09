//! A batch divided by a gate's hard decisions, so that each image computes only the branch that it takes.

use super::layers::Activation;
use crate::sys::attach_backward;
use tch::{Kind, Tensor};

/// The rows of a batch that run a block, and those that skip it.
#[derive(Debug)]
pub(super) struct Partition {
    run: Tensor,
    skip: Tensor,
}

impl Partition {
    /// By the decisions u, `[N]`. On a GPU the host waits for them.
    pub fn new(decisions: &Tensor) -> Self {
        let runs = decisions.detach().to_kind(Kind::Bool);
        Self { run: runs.nonzero().squeeze_dim(1), skip: runs.logical_not().nonzero().squeeze_dim(1) }
    }

    /// The inputs that run, and those that skip. Either may have no row.
    pub fn split(&self, x: &Activation) -> [Activation; 2] {
        let [run, skip] = self.split_rows(&x.values);
        match x.computed_mean() {
            Some(mean) => {
                let [run_mean, skip_mean] = self.split_rows(mean);
                [Activation::with_mean(run, run_mean), Activation::with_mean(skip, skip_mean)]
            }
            None => [run.into(), skip.into()],
        }
    }

    /// The reverse of [`Partition::split`].
    pub fn join(&self, run: &Activation, skip: &Activation) -> Activation {
        let values = self.join_rows(&run.values, &skip.values);
        match (run.computed_mean(), skip.computed_mean()) {
            (Some(run), Some(skip)) => Activation::with_mean(values, self.join_rows(run, skip)),
            _ => values.into(),
        }
    }

    fn split_rows(&self, x: &Tensor) -> [Tensor; 2] {
        let parts = tch::no_grad(|| [take_rows(x, &self.run), take_rows(x, &self.skip)]);
        let whole = self.shallow_clone();
        attach_backward([x], parts.each_ref(), move |[run, skip]| {
            let Some(known) = run.as_ref().or(skip.as_ref()) else { return [None] };
            let zeros = |rows: &Tensor| {
                let mut shape = known.size();
                shape[0] = rows.size()[0];
                known.new_zeros(shape, (known.kind(), known.device()))
            };
            let run = run.as_ref().map_or_else(|| zeros(&whole.run), Tensor::shallow_clone);
            let skip = skip.as_ref().map_or_else(|| zeros(&whole.skip), Tensor::shallow_clone);
            [Some(whole.put_rows(&run, &skip))]
        });
        parts
    }

    fn join_rows(&self, run: &Tensor, skip: &Tensor) -> Tensor {
        let joined = tch::no_grad(|| self.put_rows(run, skip));
        let parts = self.shallow_clone();
        attach_backward([run, skip], [&joined], move |[gradient]| {
            let gradient = gradient.as_ref();
            [&parts.run, &parts.skip].map(|rows| gradient.map(|gradient| take_rows(gradient, rows)))
        });
        joined
    }

    fn put_rows(&self, run: &Tensor, skip: &Tensor) -> Tensor {
        let mut shape = rows_first(run).size();
        shape[0] += skip.size()[0];
        let mut whole = run.new_empty(shape, (run.kind(), run.device()));
        let _ = whole.index_copy_(0, &self.run, &rows_first(run));
        let _ = whole.index_copy_(0, &self.skip, &rows_first(skip));
        channels_second(&whole)
    }

    fn shallow_clone(&self) -> Self {
        Self { run: self.run.shallow_clone(), skip: self.skip.shallow_clone() }
    }
}

fn take_rows(x: &Tensor, rows: &Tensor) -> Tensor {
    channels_second(&rows_first(x).index_select(0, rows))
}

/// `[N, C, H, W]` as `[N, H, W, C]`, the order in memory; `[N, C]` as it is.
fn rows_first(x: &Tensor) -> Tensor {
    if x.dim() == 4 { x.permute([0, 2, 3, 1]) } else { x.shallow_clone() }
}

/// The reverse of [`rows_first`].
fn channels_second(x: &Tensor) -> Tensor {
    if x.dim() == 4 { x.permute([0, 3, 1, 2]) } else { x.shallow_clone() }
}
