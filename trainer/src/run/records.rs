//! The lines of `metrics.jsonl`, and `summary.json`, as types with one field per key. docs/tensorboard.md describes the
//! numbers.

use super::ClassSummary;
use super::checkpoint::StageResult;
use serde::Serialize;
use std::collections::BTreeMap;

/// Something that happened at a step: a line of kind `event`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event")]
pub(crate) enum Event {
    /// A checkpoint was copied to the host; a thread writes it while training continues.
    #[serde(rename = "checkpoint")]
    Checkpoint {
        /// Seconds for which training waited.
        blocked_s: f64,
    },
    /// A loss or a gradient was not finite, and `optim.on_nonfinite` lets the run continue.
    #[serde(rename = "step not finite")]
    StepNotFinite {
        /// Which terms, on which ranks.
        why: String,
        /// Updates skipped since the start of the run.
        skipped: u64,
    },
    /// Ranks whose tensors differed from rank 0's received rank 0's.
    #[serde(rename = "replicas repaired")]
    ReplicasRepaired { ranks: Vec<usize> },
}

/// Means over the steps since the last such line: a line of kind `train`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct TrainRecord<'a> {
    pub epoch: u64,
    pub stage: &'a str,
    pub samples: u64,
    pub gamma: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_gmacs: Option<f64>,
    pub gmacs: f64,
    pub lr: f64,
    /// T, if it is scheduled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    pub images_per_second: f64,
    pub loader_wait: f64,
    pub collective_wait: f64,
    pub collective_busy: f64,
    /// Bytes per step.
    pub collective_bytes: u64,
    /// What this rank holds.
    pub memory_bytes: u64,
    pub rates: &'a [f64],
    pub rates_as_trained: &'a [f64],
    pub distinct_paths: usize,
    pub path_entropy: f64,
    pub spread_margin: f64,
    pub centre_distance_margin: f64,
    /// The loss and its terms, the gradient's norm, top-1 and the terms' diagnostics, by name.
    #[serde(flatten)]
    pub scalars: BTreeMap<&'static str, f64>,
}

/// The results of an evaluation: a line of kind `eval`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct EvaluationRecord<'a> {
    pub epoch: u64,
    pub stage: &'a str,
    pub samples: u64,
    pub images: u64,
    pub bad_images: u64,
    pub top1: f64,
    pub top5: f64,
    pub ce: f64,
    pub gmacs: f64,
    pub rates: &'a [f64],
    pub distinct_paths: usize,
    pub path_entropy: f64,
    pub train_loss: Option<f64>,
    /// The lowest accuracy of a class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst_class_accuracy: Option<f64>,
    /// The accuracy of each class; empty if there are too many for a line.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub class_accuracy: Vec<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_top1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_ce: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema_gmacs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_top1: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_gmacs: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_distinct_paths: Option<usize>,
}

/// `summary.json`: the results of a run that has ended.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Summary<'a> {
    pub top1: f64,
    pub top5: f64,
    pub ce: f64,
    pub gmacs: f64,
    pub gmacs_static: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget_gmacs: Option<f64>,
    pub distinct_paths: usize,
    pub path_entropy: f64,
    pub rates: &'a [f64],
    pub validation_images: u64,
    pub images_per_second: f64,
    pub world_size: usize,
    pub seconds: f64,
    pub train_loss: Option<f64>,
    pub parameters: i64,
    /// The share of a training step's MACs that are the teacher's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_share: Option<f64>,
    pub stages: &'a [StageResult],
    #[serde(flatten)]
    pub classes: ClassSummary,
    /// The same network with the running mean of its weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<EvaluationSummary>,
    /// The same network with Gumbel noise on the gates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_noise: Option<EvaluationSummary>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct EvaluationSummary {
    pub top1: f64,
    pub top5: f64,
    pub ce: f64,
    pub gmacs: f64,
    pub distinct_paths: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn each_event_keeps_its_name_and_keys() {
        let events = [
            Event::Checkpoint { blocked_s: 0.5 },
            Event::StepNotFinite { why: "not finite: div of rank 1".into(), skipped: 2 },
            Event::ReplicasRepaired { ranks: vec![1, 3] },
        ];
        let expected = [
            json!({"event": "checkpoint", "blocked_s": 0.5}),
            json!({"event": "step not finite", "why": "not finite: div of rank 1", "skipped": 2}),
            json!({"event": "replicas repaired", "ranks": [1, 3]}),
        ];
        assert_eq!(events.map(|event| to_value(event).unwrap()), expected);
    }

    #[test]
    fn scalars_are_keys_of_the_train_line_and_an_absent_budget_is_none() {
        let record = TrainRecord {
            epoch: 1,
            stage: "relaxed",
            samples: 64,
            gamma: 0.01,
            budget_gmacs: None,
            gmacs: 0.02,
            lr: 0.1,
            temperature: None,
            images_per_second: 100.0,
            loader_wait: 0.0,
            collective_wait: 0.0,
            collective_busy: 0.0,
            collective_bytes: 8,
            memory_bytes: 9,
            rates: &[1.0, 0.5],
            rates_as_trained: &[0.9, 0.4],
            distinct_paths: 2,
            path_entropy: 1.0,
            spread_margin: 0.2,
            centre_distance_margin: 0.5,
            scalars: BTreeMap::from([("loss", 2.5), ("div", f64::NAN)]),
        };
        let line = to_value(record).unwrap();
        assert_eq!((&line["loss"], &line["rates"]), (&json!(2.5), &json!([1.0, 0.5])));
        assert!(line["div"].is_null(), "JSON has no NaN");
        assert!(line.get("budget_gmacs").is_none());
    }
}
