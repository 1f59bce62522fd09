//! The path vectors r of Eqs. 8 and 9, as the config defines them.

use super::NetOutput;
use super::gate::relaxed_decisions;
use crate::config::{Config, PathOutputs, PathValue};
use tch::Tensor;

/// How path vectors follow from a forward pass.
#[derive(Clone, Copy, Debug)]
pub struct PathVectors {
    value: PathValue,
    outputs: PathOutputs,
}

impl PathVectors {
    /// As `config` sets them.
    pub fn new(config: &Config) -> Self {
        Self { value: config.path_value(), outputs: config.paths.outputs }
    }

    /// The gates' decisions, `[N, n]`, and after them the columns of r that are not among them. Means over views and lists over
    /// ranks are those of one matrix.
    pub fn with_decisions(self, output: &NetOutput) -> Tensor {
        let decisions = &output.path;
        let mut columns = vec![decisions.shallow_clone()];
        if self.value == PathValue::Probability {
            columns.push(relaxed_decisions(&output.gate_logits, 1.0));
        }
        if self.outputs == PathOutputs::Both {
            columns.push(1.0 - &columns[columns.len() - 1]);
        }
        if columns.len() == 1 { columns.remove(0) } else { Tensor::cat(&columns, 1) }
    }

    /// r in rows of [`PathVectors::with_decisions`] for `gates` gates.
    pub fn select(self, rows: &Tensor, gates: i64) -> Tensor {
        match self.value {
            PathValue::Decision => rows.shallow_clone(),
            PathValue::Probability => rows.slice(1, gates, None, 1),
        }
    }
}
