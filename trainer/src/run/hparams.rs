//! A run's settings for TensorBoard's HParams tab: the messages of its `plugin_data.proto` and `api.proto`, without the fields
//! that are not used.

use super::tensorboard::EventFile;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// The measurements that the tab compares.
const METRICS: [&str; 4] =
    ["accuracy/top1_eval", "routing/gmacs_eval", "routing/paths_eval", "routing/path_entropy_eval"];
/// What varies most between runs: the table has these keys first, and the others after them.
const FIRST: [&str; 9] = [
    "model.arch",
    "cost.budget_gmacs",
    "cost.gamma",
    "consistency.weight",
    "diversity.weight",
    "diversity.margin",
    "stages.0.lr",
    "optim.batch_size",
    "run.seed",
];
/// Prefixes of keys that do not affect what is trained.
const NOT_COMPARED: [&str; 2] = ["run.", "collective."];
const PLUGIN: &str = "hparams";
/// `tensorboard.hparams.Status`.
const SUCCESS: i32 = 1;

/// `tensorboard.hparams.HParamsPluginData`.
#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(int32, tag = "1")]
    version: i32,
    #[prost(oneof = "Content", tags = "2, 3, 4")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(message, tag = "2")]
    Experiment(Experiment),
    #[prost(message, tag = "3")]
    Start(SessionStartInfo),
    #[prost(message, tag = "4")]
    End(SessionEndInfo),
}

#[derive(Clone, PartialEq, Message)]
struct Experiment {
    #[prost(message, repeated, tag = "4")]
    hparam_infos: Vec<HParamInfo>,
    #[prost(message, repeated, tag = "5")]
    metric_infos: Vec<MetricInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct HParamInfo {
    #[prost(string, tag = "1")]
    name: String,
    /// 1: text, 2: boolean, 3: number.
    #[prost(int32, tag = "4")]
    kind: i32,
    /// TensorBoard shows these first.
    #[prost(bool, tag = "7")]
    differs: bool,
}

#[derive(Clone, PartialEq, Message)]
struct MetricInfo {
    #[prost(message, optional, tag = "1")]
    name: Option<MetricName>,
}

#[derive(Clone, PartialEq, Message)]
struct MetricName {
    #[prost(string, tag = "1")]
    group: String,
    #[prost(string, tag = "2")]
    tag: String,
}

#[derive(Clone, PartialEq, Message)]
struct SessionStartInfo {
    #[prost(btree_map = "string, message", tag = "1")]
    hparams: BTreeMap<String, Setting>,
    #[prost(double, tag = "5")]
    start_time_secs: f64,
}

#[derive(Clone, PartialEq, Message)]
struct SessionEndInfo {
    #[prost(int32, tag = "1")]
    status: i32,
    #[prost(double, tag = "2")]
    end_time_secs: f64,
}

/// `google.protobuf.Value`.
#[derive(Clone, PartialEq, Message)]
struct Setting {
    #[prost(oneof = "SettingValue", tags = "2, 3, 4")]
    value: Option<SettingValue>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum SettingValue {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
}

/// Writes the settings of `config`, a JSON tree, and the measurements to compare.
pub(super) fn write_start(events: &mut EventFile, config: &Value) {
    let mut settings = BTreeMap::new();
    flatten(config, String::new(), &mut settings);
    settings
        .retain(|name, _| name == "run.seed" || !NOT_COMPARED.iter().any(|prefix| name.starts_with(prefix)));
    let kind = |setting: &Setting| match setting.value {
        Some(SettingValue::Text(_)) | None => 1,
        Some(SettingValue::Bool(_)) => 2,
        Some(SettingValue::Number(_)) => 3,
    };
    let info = |(name, value): (&String, &Setting)| HParamInfo {
        name: name.clone(),
        kind: kind(value),
        differs: FIRST.contains(&name.as_str()),
    };
    let metric = |tag: &str| MetricInfo { name: Some(MetricName { group: String::new(), tag: tag.into() }) };
    let experiment = Experiment {
        hparam_infos: settings.iter().map(info).collect(),
        metric_infos: METRICS.map(metric).into(),
    };
    write(events, "_hparams_/experiment", Content::Experiment(experiment));
    let start = SessionStartInfo { hparams: settings, start_time_secs: now() };
    write(events, "_hparams_/session_start_info", Content::Start(start));
}

/// Marks the run as ended.
pub(super) fn write_end(events: &mut EventFile) {
    let end = SessionEndInfo { status: SUCCESS, end_time_secs: now() };
    write(events, "_hparams_/session_end_info", Content::End(end));
}

fn write(events: &mut EventFile, tag: &str, content: Content) {
    events.plugin(tag, PLUGIN, PluginData { version: 0, content: Some(content) }.encode_to_vec());
}

/// Adds every leaf of the tree under its key, such as `stages.0.lr`; null values are left out.
fn flatten(value: &Value, key: String, settings: &mut BTreeMap<String, Setting>) {
    let child = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let value = match value {
        Value::Null => return,
        Value::Object(map) => {
            return map.iter().for_each(|(name, value)| flatten(value, child(name), settings));
        }
        Value::Array(items) => {
            return items
                .iter()
                .enumerate()
                .for_each(|(i, item)| flatten(item, child(&i.to_string()), settings));
        }
        Value::Bool(value) => SettingValue::Bool(*value),
        Value::Number(number) => SettingValue::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => SettingValue::Text(text.clone()),
    };
    settings.insert(key, Setting { value: Some(value) });
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_the_leaves_under_their_keys() {
        let mut settings = BTreeMap::new();
        let tree = json!({"optim": {"lr": 0.1, "clip": null}, "stages": [{"name": "hard"}], "on": true});
        flatten(&tree, String::new(), &mut settings);
        let value = |key: &str| settings[key].value.clone().unwrap();
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["on", "optim.lr", "stages.0.name"]);
        assert_eq!(
            [value("on"), value("optim.lr"), value("stages.0.name")],
            [SettingValue::Bool(true), SettingValue::Number(0.1), SettingValue::Text("hard".into())]
        );
    }
}
