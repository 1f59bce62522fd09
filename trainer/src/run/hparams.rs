//! A run's settings for TensorBoard's HParams tab: the messages of its `plugin_data.proto`, without the fields that are not used.
//!
//! There is no message about the experiment: TensorBoard then compares all runs of a folder, and shows the settings that differ
//! first. Of the measurements it shows the first five by name, which are those of the overview.

use super::tensorboard::EventFile;
use prost::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

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
    #[prost(oneof = "Content", tags = "3, 4")]
    content: Option<Content>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Content {
    #[prost(message, tag = "3")]
    Start(SessionStartInfo),
    #[prost(message, tag = "4")]
    End(SessionEndInfo),
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

/// Writes the settings of `config`, a JSON tree.
pub(super) fn write_start(events: &mut EventFile, config: &Value) {
    let mut settings = BTreeMap::new();
    flatten(config, String::new(), &mut settings);
    settings
        .retain(|name, _| name == "run.seed" || !NOT_COMPARED.iter().any(|prefix| name.starts_with(prefix)));
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
