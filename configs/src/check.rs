//! What values a config takes. Each key's range stands on its field, as an attribute that schemars makes a part of the JSON
//! schema; values are checked against that schema. Rules between keys are listed here.

use crate::{
    Config, Gates, ImageSize, LossKind, Optim, OptimizerKind, ProgressiveSize, Routers, Routing, Schedule,
    Skip, TrainData,
};
use codinet_dataloader::transform::{Augment, Transform};
use serde_json::Value;
use std::sync::LazyLock;

/// The JSON schema of a config.
pub static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(Config).to_value());

/// What a key with this schema takes, if that is less than its type allows: "1 to 1024, or null".
pub fn takes(schema: &Value) -> Option<String> {
    let text = schema["x-takes"].as_str().map(str::to_owned).or_else(|| range(schema))?;
    let null = schema["type"].as_array().is_some_and(|types| types.iter().any(|kind| kind == "null"));
    Some(if null { text + ", or null" } else { text })
}

fn range(schema: &Value) -> Option<String> {
    if let Some(allowed) = schema["enum"].as_array().filter(|allowed| allowed.iter().all(Value::is_number)) {
        return Some(allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or "));
    }
    let bound = |name: &str| schema[name].as_f64();
    let unsigned = schema["format"].as_str().is_some_and(|format| format.starts_with("uint"));
    match (bound("minimum"), bound("exclusiveMinimum"), bound("maximum"), bound("exclusiveMaximum")) {
        (Some(low), _, Some(high), _) => Some(format!("{low} to {high}")),
        (Some(low), _, _, Some(high)) => Some(format!("{low} to {high}, {high} excluded")),
        (_, Some(low), Some(high), _) => Some(format!("above {low}, up to {high}")),
        (_, Some(low), _, Some(high)) => Some(format!("between {low} and {high}")),
        (Some(0.0), ..) if unsigned => None,
        (Some(low), ..) => Some(format!("at least {low}")),
        (_, Some(low), ..) => Some(format!("above {low}")),
        _ => None,
    }
}

/// Whether a value by itself, not what is in it, is within the bounds of its schema.
fn within(schema: &Value, value: &Value) -> bool {
    let bound = |name: &str| schema[name].as_f64();
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            bound("minimum").is_none_or(|low| number >= low)
                && bound("exclusiveMinimum").is_none_or(|low| number > low)
                && bound("maximum").is_none_or(|high| number <= high)
                && bound("exclusiveMaximum").is_none_or(|high| number < high)
                && schema["enum"].as_array().is_none_or(|allowed| allowed.contains(value))
        }
        Value::String(text) => bound("minLength").is_none_or(|least| text.len() as f64 >= least),
        Value::Array(items) => bound("minItems").is_none_or(|least| items.len() as f64 >= least),
        _ => true,
    }
}

/// Adds every value in `value` that is out of range: its key, and what that takes.
fn out_of_range(schema: &Value, value: &Value, key: &str, found: &mut Vec<(String, String)>) {
    if value.is_null() {
        return;
    }
    if let Some(reference) = schema["$ref"].as_str() {
        let defined =
            SCHEMA.pointer(reference.trim_start_matches('#')).expect("a schema defines what it refers to");
        return out_of_range(defined, value, key, found);
    }
    if let Some(takes) = takes(schema).filter(|_| !within(schema, value)) {
        found.push((key.to_owned(), takes));
    }
    let alternatives = ["anyOf", "oneOf"].into_iter().filter_map(|name| schema[name].as_array()).flatten();
    for alternative in alternatives.filter(|alternative| alternative["type"] != "null") {
        out_of_range(alternative, value, key, found);
    }
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let path = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
        out_of_range(inner, &value[name], &path, found);
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        out_of_range(&schema["items"], item, &format!("{key}.{index}"), found);
    }
}

/// A rule that a range cannot state.
pub struct Rule {
    /// Whether the config keeps it.
    holds: bool,
    /// The key that is named if it does not.
    pub key: String,
    /// What the key takes.
    pub takes: &'static str,
}

impl Config {
    /// Every value that is refused: its key, and what is wrong with it.
    pub(crate) fn refused(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let tree = serde_json::to_value(self).expect("a config is a JSON tree");
        out_of_range(&SCHEMA, &tree, "", &mut found);
        let broken = self.rules().into_iter().filter(|rule| !rule.holds);
        found.extend(broken.map(|rule| (rule.key, rule.takes.to_owned())));
        let own = found.into_iter().map(|(key, takes)| (key, format!("is out of range; it takes {takes}")));
        own.chain(self.refused_by_loader()).chain(self.refused_paths()).collect()
    }

    /// What the loader refuses of its own settings.
    fn refused_by_loader(&self) -> Vec<(String, String)> {
        let data = &self.data;
        let crop = Transform::Train { crop: data.crop.clone(), flip: 0.0, augment: Augment::default() };
        let of_size = self.image_sizes().into_iter().map(|size| ("data.crop", crop.check(size)));
        let checks = of_size.chain([
            ("data.augment", data.augment.check()),
            ("data.mix", data.mix.check()),
            ("data.eval_resize", self.evaluation().check(data.eval_size())),
        ]);
        let refused = checks.filter_map(|(key, checked)| Some((key, checked.err()?)));
        refused.map(|(key, error)| (key.to_owned(), format!("is refused: {error}"))).collect()
    }

    /// The rules between keys.
    pub fn rules(&self) -> Vec<Rule> {
        let data = &self.data;
        let batch_size = self.optim.batch_size;
        let one_or_each = |list: &[f64]| list.len() == 1 || list.len() == data.channels as usize;
        let is_path = matches!(data.train, TrainData::Path(_));
        let rule = |key: &str, holds: bool, takes| Rule { holds, key: key.to_owned(), takes };
        let list = "a list of one number, or one a channel";
        let optim = &self.optim;
        let default = Optim::default();
        let sgd = optim.optimizer == OptimizerKind::Sgd;
        let (beta_1, beta_2) = optim.betas;
        let below_one = |beta: f64| (0.0..1.0).contains(&beta);
        let mut rules = vec![
            rule("data.train", data.train.weights_agree(), "a weight for each of its sets, or for none"),
            rule(
                "data.train_samples",
                data.train_samples.is_none() || is_path,
                "null, if data.train is a section, which has epoch_samples",
            ),
            rule("data.lanes", data.lanes.is_none() || is_path, "null, if data.train is a section"),
            rule("data.mean", one_or_each(&data.mean), list),
            rule("data.std", one_or_each(&data.std), list),
            rule("data.std", data.std.iter().all(|&std| std > 0.0), "above 0"),
            rule(
                "data.lanes",
                data.lanes.is_none_or(|lanes| {
                    lanes.window > 0 && lanes.count > 0 && batch_size.is_multiple_of(lanes.count)
                }),
                "a window of at least 1 and a count that divides optim.batch_size, or null",
            ),
            rule(
                "optim.accumulate",
                self.optim.accumulate > 0 && batch_size.is_multiple_of(self.optim.accumulate.max(1)),
                "a divisor of optim.batch_size",
            ),
            rule(
                "optim.momentum",
                sgd || optim.momentum == default.momentum,
                "0.9, its default, with adamw and lamb: they have betas instead",
            ),
            rule("optim.nesterov", sgd || !optim.nesterov, "false, with adamw and lamb"),
            rule(
                "optim.betas",
                below_one(beta_1) && below_one(beta_2) && (!sgd || optim.betas == default.betas),
                "two numbers, 0 to 1, 1 excluded; with sgd, which has momentum instead, their defaults",
            ),
            rule("optim.eps", !sgd || optim.eps.is_none(), "null, with sgd"),
            rule(
                "optim.bce_threshold",
                optim.loss == LossKind::BinaryCrossEntropy || optim.bce_threshold.is_none(),
                "null, with cross_entropy",
            ),
            rule(
                "model.drop_path",
                self.model.drop_path == 0.0 || self.model.gates == Gates::None,
                "0, with gates: stochastic depth is for static networks, with model.gates none",
            ),
            rule(
                "model.routing",
                self.model.routing == Routing::Routers || self.model.gates != Gates::None,
                "routers, without gates",
            ),
            rule(
                "model.routing",
                match &self.model.routing {
                    Routing::Fixed(gates) => gates.is_sorted_by(|a, b| a < b),
                    Routing::Routers | Routing::Random(_) => true,
                },
                "numbers of gates in rising order",
            ),
            rule(
                "cost.calibrate",
                !self.cost.calibrate || self.cost.budget_gmacs.is_some(),
                "false, without a budget_gmacs",
            ),
        ];
        for (index, stage) in self.stages.iter().enumerate() {
            let key = |name: &str| format!("stages.{index}.{name}");
            let warm_up = (0.0..=stage.epochs as f64).contains(&stage.warmup_epochs);
            rules.push(rule(&key("warmup_epochs"), warm_up, "0 to epochs"));
            let sorted = match &stage.schedule {
                Schedule::MultiStep { milestones, .. } => milestones.is_sorted(),
                _ => true,
            };
            rules.push(rule(&key("schedule"), sorted, "milestones in rising order"));
            if let Some(ImageSize::Progressive(size)) = &stage.image_size {
                let ProgressiveSize { from, to, from_epoch, to_epoch, multiple } = *size;
                let last = to_epoch.unwrap_or(stage.epochs.saturating_sub(1));
                let multiples = multiple > 0 && from.is_multiple_of(multiple) && to.is_multiple_of(multiple);
                let takes = "from and to that are multiples of multiple, and a from_epoch before to_epoch and the stage's last epoch";
                rules.push(rule(
                    &key("image_size"),
                    multiples && from_epoch < last && last < stage.epochs,
                    takes,
                ));
            }
            let trains = stage.routers == Routers::Train && self.gated();
            rules.push(rule(
                &key("skip"),
                stage.skip == Skip::Masked || !trains,
                "masked, while routers train",
            ));
        }
        rules
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges_are_read_from_the_schema() {
        for (schema, text) in [
            (json!({"minimum": 1, "maximum": 1024, "type": ["integer", "null"]}), Some("1 to 1024, or null")),
            (json!({"minimum": 0, "exclusiveMaximum": 1.0}), Some("0 to 1, 1 excluded")),
            (json!({"exclusiveMinimum": 0.0, "exclusiveMaximum": 1.0}), Some("between 0 and 1")),
            (json!({"exclusiveMinimum": 0, "maximum": 16}), Some("above 0, up to 16")),
            (json!({"exclusiveMinimum": 0}), Some("above 0")),
            (json!({"minimum": 2, "format": "uint64"}), Some("at least 2")),
            (json!({"minimum": 0, "format": "uint64"}), None),
            (json!({"minimum": 0, "format": "double"}), Some("at least 0")),
            (json!({"enum": [1, 3]}), Some("1 or 3")),
            (json!({"minLength": 1, "x-takes": "a folder"}), Some("a folder")),
        ] {
            assert_eq!(takes(&schema).as_deref(), text, "{schema}");
        }
    }

    /// Values just outside each key's range.
    #[test]
    fn every_range_is_checked() {
        for (key, value) in [
            ("run.log_every", json!(0)),
            ("run.evaluate_every", json!(0)),
            ("run.keep_last", json!(1)),
            ("run.threads", json!(0)),
            ("run.threads", json!(1025)),
            ("run.dir", json!("")),
            ("data.train", json!("")),
            ("data.val", json!("")),
            ("data.train", json!({"sets": []})),
            ("data.train", json!({"sets": [{"path": ""}]})),
            ("data.train", json!({"sets": [{"path": "a", "weight": 0.0}]})),
            ("data.train", json!({"sets": [{"path": "a", "weight": 1.0}, {"path": "b"}]})),
            ("data.train", json!({"sets": [{"path": "a"}], "epoch_samples": 0})),
            ("data.cache", json!({"folder": "a", "limit_gb": 0.0})),
            ("data.classes", json!(1)),
            ("data.classes", json!(1_000_001)),
            ("data.channels", json!(2)),
            ("data.image_size", json!(7)),
            ("data.image_size", json!(2049)),
            ("data.mean", json!([0.5, 0.5])),
            ("data.std", json!([])),
            ("data.std", json!([0.0])),
            ("data.views", json!(0)),
            ("data.views", json!(65)),
            ("data.flip", json!(1.01)),
            ("data.train_samples", json!(0)),
            ("data.decode_threads", json!(0)),
            ("data.lanes", json!({"count": 3, "window": 1})),
            ("data.prefetch", json!(0)),
            ("data.max_bad_fraction", json!(1.01)),
            ("model.routing", json!({"fixed": [3, 3]})),
            ("model.routing", json!({"random": 1.0})),
            ("model.router.hidden", json!({"ratio": 0.0})),
            ("model.router.hidden", json!({"ratio": 16.1})),
            ("model.router.hidden", json!({"units": 0})),
            ("model.router.temperature", json!(0.0)),
            ("model.router.temperature", json!({"exponential": {"from": 0.0, "to": 1.0}})),
            ("model.router.temperature", json!({"linear": {"from": 1.0, "to": -1.0}})),
            ("consistency.weight", json!(-0.1)),
            ("consistency.margin", json!(-0.1)),
            ("diversity.weight", json!(-0.1)),
            ("diversity.margin", json!(-0.1)),
            ("cost.gamma", json!(-0.1)),
            ("cost.budget_gmacs", json!(0.0)),
            ("cost.budget_ramp", json!(1.1)),
            ("cost.penalty", json!(-0.1)),
            ("cost.gamma_step", json!(0.0)),
            ("cost.calibrate", json!(true)),
            ("cost.calibration_samples", json!(0)),
            ("target_rate.weight", json!(-0.1)),
            ("target_rate.rate", json!(1.01)),
            ("run_rate.weight", json!(-0.1)),
            ("distill.temperature", json!(0.0)),
            ("distill.weight", json!(1.01)),
            ("optim.batch_size", json!(0)),
            ("optim.eval_batch_size", json!(1_048_577)),
            ("optim.momentum", json!(1.0)),
            ("optim.weight_decay", json!(-0.1)),
            ("optim.betas", json!([0.9, 0.99])),
            ("optim.eps", json!(1e-8)),
            ("optim.lr_factors.routers", json!(-0.1)),
            ("optim.lr_factors.head", json!(-0.1)),
            ("optim.accumulate", json!(0)),
            ("optim.accumulate", json!(3)),
            ("optim.label_smoothing", json!(1.0)),
            ("optim.bce_threshold", json!(0.2)),
            ("model.drop_path", json!(0.1)),
            ("optim.clip_norm", json!(0.0)),
            ("optim.ema_decay", json!(0.0)),
            ("optim.ema_decay", json!(1.0)),
            ("optim.lr_batch_size", json!(0)),
            ("collective.timeout_s", json!(0)),
            ("collective.first_timeout_s", json!(0)),
            ("collective.bucket_mb", json!(0.0)),
            ("collective.first_bucket_mb", json!(0.0)),
            ("stages", json!([])),
            ("stages.0.epochs", json!(0)),
            ("stages.0.epochs", json!(1_000_001)),
            ("stages.0.lr", json!(0.0)),
            ("stages.0.warmup_epochs", json!(-1.0)),
            ("stages.0.warmup_epochs", json!(1.1)),
            ("stages.0.schedule", json!({"multi_step": {"milestones": [4, 2], "factor": 0.1}})),
            ("stages.0.schedule", json!({"multi_step": {"milestones": [2], "factor": 0.0}})),
            ("stages.0.schedule", json!({"one_cycle": {"rise": 1.0}})),
        ] {
            let mut config = Config { stages: vec![crate::Stage::default()], ..Config::default() };
            config.data.train = "a".into();
            config.data.val = "b".into();
            assert_eq!(config.refused(), []);
            let mut tree = serde_json::to_value(&config).unwrap();
            let place = tree.pointer_mut(&format!("/{}", key.replace('.', "/"))).unwrap();
            *place = value.clone();
            let config: Config = serde_json::from_value(tree).unwrap();
            let refused = config.refused();
            assert!(refused.len() == 1 && refused[0].0.starts_with(key), "{key}: {value}: {refused:?}");
        }
    }

    #[test]
    fn keys_of_another_optimizer_are_refused() {
        let refused = |settings: Value| {
            let optim: Optim = serde_json::from_value(settings).unwrap();
            let mut config = Config { stages: vec![crate::Stage::default()], optim, ..Config::default() };
            config.data.train = "a".into();
            config.data.val = "b".into();
            config.refused().into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for optimizer in ["adamw", "lamb"] {
            let settings = json!({"optimizer": optimizer, "betas": [0.9, 0.98], "eps": 1e-7});
            assert_eq!(refused(settings), [""; 0]);
            assert_eq!(refused(json!({"optimizer": optimizer, "momentum": 0.8})), ["optim.momentum"]);
            assert_eq!(refused(json!({"optimizer": optimizer, "nesterov": true})), ["optim.nesterov"]);
            assert_eq!(refused(json!({"optimizer": optimizer, "betas": [0.9, 1.0]})), ["optim.betas"]);
            assert_eq!(refused(json!({"optimizer": optimizer, "eps": 0.0})), ["optim.eps"]);
        }
        for threshold in [-0.1, 1.0] {
            let settings = json!({"loss": "binary_cross_entropy", "bce_threshold": threshold});
            assert_eq!(refused(settings), ["optim.bce_threshold"]);
        }
    }
}
