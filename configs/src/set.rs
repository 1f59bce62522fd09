//! `--set KEY=VALUE`: the key's type decides how the text is read.

use crate::exit::{Error, Exit, Result};
use crate::types::{Extent, Mismatch, mismatch, schema_of, suggest, takes_null, takes_section, takes_text};
use crate::yaml;
use serde_json::Value;

/// Applies one override to the tree of a whole config.
pub(crate) fn apply(tree: &mut Value, setting: &str) -> Result<()> {
    let refuse = |what: String| Err(Error::new(Exit::Config, format!("--set {setting}: {what}")));
    let Some((key, text)) = setting.split_once('=').filter(|(key, _)| !key.is_empty()) else {
        return refuse("expected key=value, such as --set optim.batch_size=64".into());
    };
    let parts: Vec<&str> = key.split('.').collect();
    for (depth, part) in parts.iter().enumerate() {
        let section = parts[..depth].join(".");
        let place = value_at(tree, &parts[..depth]).expect("a key that was found");
        if step_into(place, part).is_some() {
            continue;
        }
        if schema_of(key).is_some() && !section.is_empty() && !place.is_array() {
            let value = if place.is_null() { "null".into() } else { place.to_string() };
            return refuse(format!("{section} is {value}; set all of it: --set '{section}={{{part}: …}}'"));
        }
        if let Value::Array(items) = place
            && part.parse::<usize>().is_ok()
        {
            return refuse(format!("{section} has {} entries, from 0 on", items.len()));
        }
        return refuse(format!("unknown key {key}; {}", suggest(tree, &section, parts[parts.len() - 1])));
    }
    let value = match read(key, text) {
        Ok(value) => value,
        Err(what) => return refuse(what),
    };
    match mismatch(key, &value, Extent::Part) {
        Some(Mismatch { key: inner, unknown: true, .. }) => {
            let (section, name) = inner.rsplit_once('.').unwrap_or(("", &inner));
            return refuse(format!("unknown key {inner}; {}", suggest(tree, section, name)));
        }
        Some(Mismatch { key: inner, what, .. }) if inner != key => return refuse(format!("{inner} {what}")),
        Some(Mismatch { what, .. }) => return refuse(what),
        None => {}
    }
    let mut place = tree;
    for part in parts {
        place = match place {
            Value::Array(items) => &mut items[part.parse::<usize>().expect("checked above")],
            place => &mut place[part],
        };
    }
    merge(place, value);
    Ok(())
}

/// The value that `text` stands for. Text keys take it as it is, without quotes around it; others read YAML.
fn read(key: &str, text: &str) -> std::result::Result<Value, String> {
    let schema = schema_of(key);
    let free_text = schema.is_some_and(takes_text);
    let nullable = schema.is_some_and(takes_null);
    let quoted =
        ['"', '\''].iter().any(|&quote| text.len() > 1 && text.starts_with(quote) && text.ends_with(quote));
    if free_text && !quoted {
        // Some keys that take text take a section, too.
        if schema.is_some_and(takes_section)
            && text.starts_with('{')
            && let Ok(section @ Value::Object(_)) = yaml::parse::<Value>(text)
        {
            return Ok(section);
        }
        let null = nullable && matches!(text, "" | "null" | "~");
        return Ok(if null { Value::Null } else { Value::String(text.to_owned()) });
    }
    match yaml::parse::<Value>(text) {
        Ok(value) => Ok(value),
        Err(error) if text.starts_with(['[', '{', '"', '\'']) => Err(yaml::describe(&error)),
        Err(_) => Ok(Value::String(text.to_owned())),
    }
}

fn value_at<'a>(tree: &'a Value, parts: &[&str]) -> Option<&'a Value> {
    parts.iter().try_fold(tree, |place, part| step_into(place, part))
}

/// The value of a key, or of an index, in `place`.
pub(crate) fn step_into<'a>(place: &'a Value, part: &str) -> Option<&'a Value> {
    match place {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        place => place.get(part),
    }
}

/// Puts `over` into `tree`, key by key wherever `tree` has all of the keys; what is of another form, as another
/// kind of crop or a list, is replaced.
pub(crate) fn merge(tree: &mut Value, over: Value) {
    match (tree, over) {
        (Value::Object(tree), Value::Object(over))
            if over.keys().all(|key| tree.contains_key(key) || key == "extends") =>
        {
            for (key, value) in over {
                merge(tree.entry(key).or_insert(Value::Null), value);
            }
        }
        (tree, over) => *tree = over,
    }
}
