//! SkipNet's penalty, a baseline: the share of blocks that run.

use super::{Term, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "run_rate",
    diagnostics: &[],
    weight: |config, stage, _| while_routers_train(stage, config.run_rate.weight),
    evaluate: |_, inputs| run_rate(inputs.decisions).into(),
};

/// SkipNet's penalty (Wang et al., ECCV 2018): the mean of v over inputs and blocks, `[N, n]` → `[]`; 0 without blocks.
pub fn run_rate(paths: &Tensor) -> Tensor {
    if paths.size()[1] == 0 { paths.sum(None) } else { paths.mean(None) }
}
