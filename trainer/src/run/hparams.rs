//! The settings of a run as TensorBoard's HParams tab compares them: the messages of its `plugin_data.proto` and
//! `api.proto`, as far as they are needed here.

use super::tensorboard::EventFile;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

/// What is compared between runs, from evaluations.
const METRICS: [&str; 4] = ["eval/top1", "eval/gmacs", "eval/distinct_paths", "eval/path_entropy"];
/// Keys that say how a run goes, not what is trained.
const NOT_COMPARED: [&str; 2] = ["run.", "collective."];
const PLUGIN: &str = "hparams";
/// `tensorboard.hparams.Status`.
const SUCCESS: i32 = 1;

/// `tensorboard.hparams.HParamsPluginData`.
#[derive(Clone, PartialEq, Message)]
struct PluginData {
    #[prost(int32, tag = "1")]
    version: i32,
    #[prost(oneof = "Data", tags = "2, 3, 4")]
    data: Option<Data>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Data {
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
    /// 1: text, 2: yes or no, 3: a number.
    #[prost(int32, tag = "4")]
    kind: i32,
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
    #[prost(oneof = "Is", tags = "2, 3, 4")]
    is: Option<Is>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Is {
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(string, tag = "3")]
    Text(String),
    #[prost(bool, tag = "4")]
    Bool(bool),
}

/// Writes the config's settings, as a JSON tree, and which measurements belong to them.
pub fn start(events: &mut EventFile, config: &Value) {
    let mut settings = BTreeMap::new();
    flatten(config, String::new(), &mut settings);
    settings.retain(|name, _| name == "run.seed" || !NOT_COMPARED.iter().any(|not| name.starts_with(not)));
    let kind = |setting: &Setting| match setting.is {
        Some(Is::Text(_)) | None => 1,
        Some(Is::Bool(_)) => 2,
        Some(Is::Number(_)) => 3,
    };
    let info = |(name, value): (&String, &Setting)| HParamInfo { name: name.clone(), kind: kind(value) };
    let metric = |tag: &str| MetricInfo { name: Some(MetricName { group: String::new(), tag: tag.into() }) };
    let experiment = Experiment {
        hparam_infos: settings.iter().map(info).collect(),
        metric_infos: METRICS.map(metric).into(),
    };
    write(events, "_hparams_/experiment", Data::Experiment(experiment));
    let start = SessionStartInfo { hparams: settings, start_time_secs: now() };
    write(events, "_hparams_/session_start_info", Data::Start(start));
}

/// Writes that the run came to its end.
pub fn end(events: &mut EventFile) {
    let end = SessionEndInfo { status: SUCCESS, end_time_secs: now() };
    write(events, "_hparams_/session_end_info", Data::End(end));
}

fn write(events: &mut EventFile, tag: &str, data: Data) {
    events.plugin(tag, PLUGIN, PluginData { version: 0, data: Some(data) }.encode_to_vec());
}

/// Every leaf by its key, such as `stages.0.lr`; what is not set is left out.
fn flatten(value: &Value, key: String, into: &mut BTreeMap<String, Setting>) {
    let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let is = match value {
        Value::Null => return,
        Value::Object(map) => return map.iter().for_each(|(name, value)| flatten(value, below(name), into)),
        Value::Array(items) => {
            return items.iter().enumerate().for_each(|(i, item)| flatten(item, below(&i.to_string()), into));
        }
        Value::Bool(value) => Is::Bool(*value),
        Value::Number(number) => Is::Number(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Is::Text(text.clone()),
    };
    into.insert(key, Setting { is: Some(is) });
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_are_leaves_by_their_keys() {
        let mut settings = BTreeMap::new();
        let tree = json!({"optim": {"lr": 0.1, "clip": null}, "stages": [{"name": "hard"}], "on": true});
        flatten(&tree, String::new(), &mut settings);
        let is = |key: &str| settings[key].is.clone().unwrap();
        assert_eq!(settings.keys().collect::<Vec<_>>(), ["on", "optim.lr", "stages.0.name"]);
        assert_eq!(
            [is("on"), is("optim.lr"), is("stages.0.name")],
            [Is::Bool(true), Is::Number(0.1), Is::Text("hard".into())]
        );
    }
}
