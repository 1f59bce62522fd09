//! SkipNet's penalty, for comparison: blocks shall run for few inputs.

use super::{Found, Over, Term, while_routers_train};
use tch::Tensor;

pub(super) const TERM: Term = Term {
    name: "run_rate",
    beside: None,
    over: Over::Mean,
    weight: |config, stage, _| while_routers_train(stage, config.run_rate.weight),
    find: |_, outcome| Found::loss(run_rate(outcome.paths)),
};

/// SkipNet's penalty (Wang et al., ECCV 2018): the mean of v over inputs and blocks; 0 without blocks.
pub fn run_rate(paths: &Tensor) -> Tensor {
    match paths.size()[1] {
        0 => paths.sum(None),
        _ => paths.mean(None),
    }
}
