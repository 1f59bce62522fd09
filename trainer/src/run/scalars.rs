//! TensorBoard's names for the numbers of `metrics.jsonl`, grouped for reading, with a description and a unit each.

/// The names in TensorBoard's tags.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The gated blocks', in the order of a path.
    pub blocks: Vec<String>,
    /// The classes'.
    pub classes: Vec<String>,
}

/// A curve of TensorBoard.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    pub tag: String,
    /// What it is, and its unit.
    pub description: &'static str,
    pub value: f64,
}

/// Numbers that tell when a line was written, not what was measured: TensorBoard shows no curves of them.
const POSITIONS: [&str; 3] = ["epoch", "samples", "images"];

/// Curves that start once they are not zero: zero is what a reader expects.
const ABSENT_WHILE_ZERO: [&str; 5] =
    ["bad_images", "collective_wait", "collective_busy", "collective_bytes", "grad_norm_routers"];

/// Kind of a line, name in it, tag, description.
const CURVES: &[(&str, &str, &str, &str)] = &[
    (
        "train",
        "loss",
        "loss/train",
        "The whole objective (Eq. 12), mean over the steps since the last point. No unit.",
    ),
    ("train", "ce", "loss/ce_train", "Cross entropy L_cls on training views. Nats."),
    ("eval", "ce", "loss/ce_eval", "Cross entropy on the validation images, with hard decisions. Nats."),
    ("eval", "ema_ce", "loss/ce_eval_average", "The same with averaged weights. Nats."),
    ("eval", "train_loss", "loss/train_epoch", "The whole objective, mean over an epoch. No unit."),
    ("train", "con", "loss/consistency", "L_con (Eq. 8), unweighted. Squared distance of paths."),
    ("train", "div", "loss/diversity", "L_div (Eq. 9), unweighted. Squared distance of paths."),
    ("train", "cost", "loss/cost", "L_cost (Eq. 11): expected cost of the paths. In cost.unit."),
    (
        "train",
        "distill",
        "loss/distillation",
        "T² KL of the teacher's classes and the network's, unweighted. Nats.",
    ),
    ("train", "lr", "loss/lr", "Learning rate. No unit."),
    ("train", "temperature", "routing/temperature", "T of the gates (Eq. 6), if it is scheduled. No unit."),
    (
        "eval",
        "noise_top1",
        "accuracy/top1_eval_noise",
        "Top-1 with Gumbel noise on the gates. Share, 0 to 1.",
    ),
    ("eval", "noise_gmacs", "routing/gmacs_eval_noise", "The cost with Gumbel noise on the gates. GMACs."),
    (
        "eval",
        "noise_distinct_paths",
        "routing/paths_eval_noise",
        "Distinct paths of the validation images with Gumbel noise on the gates. A count.",
    ),
    ("train", "grad_norm", "loss/grad_norm", "L2 norm of the averaged gradient. No unit."),
    (
        "train",
        "grad_norm_routers",
        "loss/grad_norm_routers",
        "L2 norm of the routers' part of the averaged gradient. No unit.",
    ),
    (
        "train",
        "grad_norm_head",
        "loss/grad_norm_head",
        "L2 norm of the classifier's part of the averaged gradient. No unit.",
    ),
    (
        "train",
        "grad_norm_rest",
        "loss/grad_norm_rest",
        "L2 norm of the averaged gradient without routers and classifier. No unit.",
    ),
    (
        "train",
        "top1",
        "accuracy/top1_train",
        "Training views classified correctly, with the decisions used in training. Share, 0 to 1.",
    ),
    (
        "eval",
        "top1",
        "accuracy/top1_eval",
        "Validation images classified correctly, with hard decisions. Share, 0 to 1.",
    ),
    (
        "eval",
        "top5",
        "accuracy/top5_eval",
        "Validation images whose class is among the five most probable. Share, 0 to 1.",
    ),
    (
        "eval",
        "worst_class_accuracy",
        "accuracy/worst_class",
        "The lowest accuracy of a class, on the validation images. Share, 0 to 1.",
    ),
    ("eval", "ema_top1", "accuracy/top1_eval_average", "Top-1 with averaged weights. Share, 0 to 1."),
    (
        "train",
        "gmacs",
        "routing/gmacs_train",
        "Mean cost of a training view with hard decisions. GMACs: 1e9 multiply-accumulates.",
    ),
    ("eval", "gmacs", "routing/gmacs_eval", "Mean cost of a validation image with hard decisions. GMACs."),
    ("eval", "ema_gmacs", "routing/gmacs_eval_average", "The same with averaged weights. GMACs."),
    ("train", "budget_gmacs", "routing/gmacs_budget", "The budget, cost.budget_gmacs. GMACs."),
    (
        "train",
        "gamma",
        "routing/gamma",
        "The price of the expected cost; follows the budget if there is one. Per block.",
    ),
    (
        "train",
        "distinct_paths",
        "routing/paths_train",
        "Distinct hard paths of the last step's views. A count.",
    ),
    (
        "eval",
        "distinct_paths",
        "routing/paths_eval",
        "Distinct hard paths of the validation images. A count.",
    ),
    (
        "train",
        "path_entropy",
        "routing/path_entropy_train",
        "Entropy of the last step's hard paths. Bits; near 0 is a collapse.",
    ),
    (
        "eval",
        "path_entropy",
        "routing/path_entropy_eval",
        "Entropy of the validation images' hard paths. Bits.",
    ),
    ("train", "spread", "routing/spread", "Mean distance of a view's path from its sample's centre. Blocks."),
    (
        "train",
        "spread_margin",
        "routing/spread_margin",
        "m_c: below this spread, consistency costs nothing. Blocks.",
    ),
    (
        "train",
        "centre_distance",
        "routing/centre_distance",
        "Mean distance between two samples' centres. Blocks.",
    ),
    (
        "train",
        "centre_distance_margin",
        "routing/centre_distance_margin",
        "m_d: above this distance, diversity costs nothing. Blocks.",
    ),
    (
        "train",
        "views_outside",
        "routing/views_outside",
        "Share of views farther than m_c from their sample's centre: those on which consistency acts. 0 to 1.",
    ),
    (
        "train",
        "pairs_inside",
        "routing/pairs_inside",
        "Share of pairs of samples nearer than m_d: those on which diversity acts. 0 to 1.",
    ),
    (
        "train",
        "saturated",
        "routing/saturated",
        "Share of decisions whose probability is below 1 % or above 99 %: they hardly change. 0 to 1.",
    ),
    (
        "train",
        "images_per_second",
        "speed/images_per_second",
        "Views trained on per second, over all ranks. 1/s.",
    ),
    ("train", "loader_wait", "speed/loader_wait", "Share of the time in which no batch was ready, 0 to 1."),
    (
        "train",
        "collective_wait",
        "speed/collective_wait",
        "Share of the time in which computation waited for other ranks, 0 to 1.",
    ),
    (
        "train",
        "collective_busy",
        "speed/collective_busy",
        "Share of the time in which ranks communicated, hidden or not, 0 to 1.",
    ),
    (
        "train",
        "collective_bytes",
        "speed/collective_bytes",
        "What a rank passes to collectives. Bytes per step.",
    ),
    (
        "event",
        "blocked_s",
        "system/checkpoint_blocked",
        "Time for which training stopped to copy a checkpoint. Seconds.",
    ),
    (
        "event",
        "skipped",
        "system/skipped_steps",
        "Steps skipped so far because they were not finite. A count.",
    ),
    (
        "eval",
        "bad_images",
        "system/bad_images",
        "Validation images left out because they cannot be read. A count.",
    ),
    (
        "train",
        "memory_bytes",
        "system/memory",
        "What rank 0 holds: on a GPU, tensors and libtorch's cache; on a CPU, RAM. Bytes.",
    ),
];

/// The curves that open the page, with those of [`CURVES`] that they repeat. TensorBoard sorts groups by name.
const OVERVIEW: [(&str, &str); 5] = [
    ("loss/train", "_overview/1_loss"),
    ("accuracy/top1_eval", "_overview/2_top1"),
    ("loss/lr", "_overview/3_lr"),
    ("speed/images_per_second", "_overview/4_images_per_second"),
    ("routing/gmacs_eval", "_overview/5_gmacs"),
];

/// The image of all blocks' rates.
pub(super) const RATES_IMAGE: &str = "routing/rates_over_time";

/// The image of an evaluation's confusion matrix.
pub(super) const CONFUSION_IMAGE: &str = "accuracy/confusion";
/// The image of what is most confidently wrong at the end of a run.
pub(super) const MISTAKES_IMAGE: &str = "accuracy/mistakes";

/// Charts of several curves: category, title, regular expressions of tags.
pub(super) const CHARTS: &[(&str, &str, &[&str])] = &[
    ("accuracy", "top-1: training, validation, averaged weights", &["accuracy/top1_.*"]),
    ("loss", "cross entropy: training and validation", &["loss/ce_.*"]),
    ("loss", "norms of the gradient and its parts", &["loss/grad_norm.*"]),
    ("routing", "GMACs: training, validation, budget", &["routing/gmacs_.*"]),
    ("routing", "distinct paths", &["routing/paths_.*"]),
    ("routing", "path entropy in bits", &["routing/path_entropy_.*"]),
    ("routing", "spread and its margin", &["routing/spread.*"]),
    ("routing", "distance of centres and its margin", &["routing/centre_distance.*"]),
    (
        "routing",
        "shares on which the losses act, and of saturated decisions",
        &["routing/(views_outside|pairs_inside|saturated)"],
    ),
    (
        "speed",
        "shares of the time: loader, collectives",
        &["speed/loader_wait", "speed/collective_(wait|busy)"],
    ),
];

/// The curves of the number `name` of a line of `kind`.
pub(super) fn of_number(kind: &str, name: &str, value: f64) -> Vec<Curve> {
    if POSITIONS.contains(&name) || (value == 0.0 && ABSENT_WHILE_ZERO.contains(&name)) {
        return Vec::new();
    }
    let known = CURVES.iter().find(|(of, known, ..)| (*of, *known) == (kind, name));
    // A loss term without a line above.
    let (tag, description) =
        known.map_or_else(|| (format!("loss/{name}"), ""), |(_, _, tag, text)| ((*tag).to_owned(), *text));
    let repeated = OVERVIEW.iter().find(|(of, _)| *of == tag).map(|(_, first)| (*first).to_owned());
    let curve = |tag| Curve { tag, description, value };
    repeated.into_iter().chain([tag]).map(curve).collect()
}

/// The curves of the list `name` of a line of `kind`, which has a number for each block or class; NaN where there is none.
pub(super) fn of_list(kind: &str, name: &str, values: &[f64], names: &Names) -> Vec<Curve> {
    let (group, description) = match (kind, name) {
        ("eval", "class_accuracy") => (
            "accuracy_by_class",
            "Validation images of the class that are classified correctly. Share, 0 to 1.",
        ),
        ("train", "rates") => {
            ("routing_rates", "Training views that would run the block in inference. Share, 0 to 1.")
        }
        ("train", "rates_as_trained") => {
            ("routing_rates_as_trained", "Mean decision of the block's gate in training, 0 to 1.")
        }
        ("eval", "rates") => ("routing_rates_eval", "Validation images that run the block. Share, 0 to 1."),
        _ => return Vec::new(), // such as the ranks of an event
    };
    let names = if name == "class_accuracy" { &names.classes } else { &names.blocks };
    let curve =
        |(name, value): (&String, &f64)| Curve { tag: format!("{group}/{name}"), description, value: *value };
    names.iter().zip(values).filter(|(_, value)| !value.is_nan()).map(curve).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn tags_are_grouped_described_and_unique() {
        let groups = ["accuracy", "loss", "routing", "speed", "system"];
        let mut tags = BTreeSet::new();
        for (_, name, tag, description) in CURVES {
            let group = tag.split_once('/').unwrap().0;
            assert!(groups.contains(&group) && tags.insert(tag), "{name}: {tag}");
            assert!(description.ends_with('.') && description.len() > 15, "{tag}: {description}");
        }
        for (tag, first) in OVERVIEW {
            assert!(tags.contains(&tag), "{tag}");
            assert!(first < groups[0], "{first} comes first");
        }
    }

    #[test]
    fn numbers_become_curves_under_their_group() {
        let tags = |kind: &str, name: &str, value: f64| -> Vec<String> {
            of_number(kind, name, value).into_iter().map(|curve| curve.tag).collect()
        };
        assert_eq!(tags("train", "loss", 1.0), ["_overview/1_loss", "loss/train"]);
        assert_eq!(tags("eval", "gmacs", 1.0), ["_overview/5_gmacs", "routing/gmacs_eval"]);
        assert_eq!(tags("train", "target", 1.0), ["loss/target"]);
        assert!(tags("train", "samples", 1.0).is_empty() && tags("eval", "bad_images", 0.0).is_empty());
        assert_eq!(tags("eval", "bad_images", 2.0), ["system/bad_images"]);
        let names = |names: [&str; 2]| names.map(String::from).into();
        let names = Names { blocks: names(["layer1.0", "layer1.1"]), classes: names(["cat", "dog"]) };
        let rates = of_list("train", "rates", &[0.5, 1.0], &names);
        assert_eq!(rates[1].tag, "routing_rates/layer1.1");
        let accuracies = of_list("eval", "class_accuracy", &[f64::NAN, 0.5], &names);
        assert_eq!((accuracies.len(), accuracies[0].tag.as_str()), (1, "accuracy_by_class/dog"));
        assert!(of_list("event", "ranks", &[1.0], &names).is_empty());
    }

    #[test]
    fn charts_show_curves_that_exist() {
        let tags: Vec<&str> = CURVES.iter().map(|(_, _, tag, _)| *tag).collect();
        for (_, title, patterns) in CHARTS {
            let prefix = |pattern: &str| pattern.split(['.', '(']).next().unwrap().to_owned();
            let shown =
                patterns.iter().all(|pattern| tags.iter().any(|tag| tag.starts_with(&prefix(pattern))));
            assert!(shown, "{title}");
        }
    }
}
