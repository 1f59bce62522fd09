//! Whether a tree of values has the keys and types of a config, by the JSON schema; what does not, in plain words.

use crate::check::{SCHEMA, takes};
use crate::text::nearest;
use serde_json::{Map, Value};

/// A value that a key does not take.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    /// The key, such as `stages.0.lr`.
    pub key: String,
    /// What is wrong with it, and how to fix it.
    pub what: String,
    /// Whether there is no such key.
    pub unknown: bool,
}

/// How much of a config a tree holds.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// A part: other keys come from the config that it extends.
    Part,
    /// All keys of each section that it has.
    Whole,
}

/// The first value in `value`, which `key` would take, that is of another type or of an unknown key.
pub(crate) fn mismatch(key: &str, value: &Value, extent: Extent) -> Option<Mismatch> {
    find(schema_of(key)?, value, key, extent)
}

/// The schema of `key`, such as `stages.0.lr`; of the whole config if it is empty.
pub(crate) fn schema_of(key: &str) -> Option<&'static Value> {
    let parts = key.split('.').filter(|part| !part.is_empty());
    parts.into_iter().try_fold(&*SCHEMA, |schema, part| {
        alternatives(schema).into_iter().find_map(|schema| {
            let item = part.parse::<usize>().ok().and_then(|_| schema.get("items"));
            schema["properties"].get(part).or(item)
        })
    })
}

/// Whether a key takes any text, not only some names.
pub(crate) fn takes_text(schema: &'static Value) -> bool {
    alternatives(schema).into_iter().any(is_text)
}

/// Whether a key takes a section.
pub(crate) fn takes_section(schema: &'static Value) -> bool {
    alternatives(schema).into_iter().any(|form| types(form).contains(&"object"))
}

fn is_text(form: &Value) -> bool {
    form["enum"].is_null() && form["const"].is_null() && types(form).contains(&"string")
}

/// Whether a key may be null.
pub(crate) fn takes_null(schema: &Value) -> bool {
    let nullable = |schema: &Value| types(schema).contains(&"null");
    nullable(schema) || schema["anyOf"].as_array().into_iter().flatten().any(nullable)
}

/// Every key of `tree` that is called `name`, in full.
pub(crate) fn keys_named(tree: &Value, name: &str) -> Vec<String> {
    let mut keys = Vec::new();
    collect_keys(tree, "", &mut |key| {
        if key.rsplit('.').next() == Some(name) {
            keys.push(key.to_owned());
        }
    });
    keys
}

/// What a person may have meant by `name`, which the section `section` of `tree` does not have.
pub(crate) fn suggest(tree: &Value, section: &str, name: &str) -> String {
    let inside = |name: &str| if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
    let same = keys_named(tree, name);
    if !same.is_empty() {
        return format!("did you mean {}?", same.join(" or "));
    }
    let forms = schema_of(section).map(alternatives).unwrap_or_default();
    let properties = forms.iter().filter_map(|form| form["properties"].as_object());
    let siblings: Vec<&str> = properties.flat_map(Map::keys).map(String::as_str).collect();
    if let Some(near) = nearest(name, &siblings) {
        return format!("did you mean {}?", inside(near));
    }
    let mut all = Vec::new();
    collect_keys(tree, "", &mut |key| all.push(key.to_owned()));
    let names: Vec<&str> = all.iter().filter_map(|key| key.rsplit('.').next()).collect();
    match nearest(name, &names) {
        Some(near) => format!("did you mean {}?", keys_named(tree, near).join(" or ")),
        None if siblings.is_empty() => format!("{section} has no keys"),
        None => format!("known here: {}", siblings.join(", ")),
    }
}

fn collect_keys(tree: &Value, key: &str, visit: &mut impl FnMut(&str)) {
    let mut step = |name: &str, value: &Value| {
        let key = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        visit(&key);
        collect_keys(value, &key, visit);
    };
    match tree {
        Value::Object(map) => map.iter().for_each(|(name, value)| step(name, value)),
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().enumerate().for_each(|(index, item)| step(&index.to_string(), item));
        }
        _ => {}
    }
}

/// The forms that a value of this schema may have: itself, or what it refers to.
fn alternatives(schema: &'static Value) -> Vec<&'static Value> {
    if let Some(reference) = schema["$ref"].as_str() {
        let defined = SCHEMA.pointer(reference.trim_start_matches('#'));
        return alternatives(defined.expect("a schema defines what it refers to"));
    }
    let several = ["anyOf", "oneOf"].into_iter().find_map(|name| schema[name].as_array());
    several.map_or_else(|| vec![schema], |several| several.iter().flat_map(alternatives).collect())
}

fn types(schema: &Value) -> Vec<&str> {
    match &schema["type"] {
        Value::String(name) => vec![name],
        Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn find(schema: &'static Value, value: &Value, key: &str, extent: Extent) -> Option<Mismatch> {
    let forms = alternatives(schema);
    let expected = || {
        let what = format!("is {}; {}", shown(value), expectation(&forms, schema, value));
        Some(Mismatch { key: key.to_owned(), what, unknown: false })
    };
    match value {
        Value::Null if takes_null(schema) => None,
        Value::Object(map) => {
            let sections: Vec<&Value> =
                forms.iter().copied().filter(|form| types(form).contains(&"object")).collect();
            let known = |section: &&&Value| map.keys().all(|name| section["properties"].get(name).is_some());
            // Of several kinds of a section, such as kinds of crops, the one that is named.
            let section = match &sections[..] {
                [] => return expected(),
                [section] => section,
                several => match several.iter().find(known) {
                    Some(section) => section,
                    None => return expected(),
                },
            };
            find_in_section(section, map, key, extent)
        }
        Value::Array(items) => {
            let Some(list) = forms.iter().find(|form| types(form).contains(&"array")) else {
                return expected();
            };
            let places = list["prefixItems"].as_array();
            let count = list["maxItems"].as_u64();
            if count.is_some_and(|count| count != items.len() as u64) {
                return expected();
            }
            items.iter().enumerate().find_map(|(index, item)| {
                let of_item = places.and_then(|places| places.get(index)).unwrap_or(&list["items"]);
                find(of_item, item, &format!("{key}.{index}"), extent)
            })
        }
        value if forms.iter().any(|form| takes_scalar(form, value)) => None,
        _ => expected(),
    }
}

fn find_in_section(
    section: &'static Value,
    map: &Map<String, Value>,
    key: &str,
    extent: Extent,
) -> Option<Mismatch> {
    let inside = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    for (name, value) in map {
        let key = inside(name);
        let Some(schema) = section["properties"].get(name) else {
            return Some(Mismatch { key, what: String::new(), unknown: true });
        };
        if let Some(found) = find(schema, value, &key, extent) {
            return Some(found);
        }
    }
    let required = section["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let missing = required.into_iter().find(|name| extent == Extent::Whole && !map.contains_key(*name))?;
    Some(Mismatch { key: key.to_owned(), what: format!("lacks the key {missing}"), unknown: false })
}

fn takes_scalar(form: &Value, value: &Value) -> bool {
    let names = names(form);
    if !names.is_empty() {
        return value.as_str().is_some_and(|name| names.contains(&name));
    }
    types(form).into_iter().any(|name| match name {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64() && !is_unsigned(form),
        _ => false,
    })
}

fn is_unsigned(form: &Value) -> bool {
    form["format"].as_str().is_some_and(|format| format.starts_with("uint"))
}

/// What a key with these forms takes instead of `value`.
fn expectation(forms: &[&Value], schema: &Value, value: &Value) -> String {
    let names: Vec<&str> = forms.iter().flat_map(|form| names(form)).collect();
    if let Some(near) = value.as_str().and_then(|typed| nearest(typed, &names)) {
        return format!("did you mean {near}?");
    }
    let mut kinds = Vec::new();
    let mut sections = Vec::new();
    for form in forms.iter().filter(|form| self::names(form).is_empty()) {
        let required: Vec<&str> =
            form["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if required.is_empty() {
            kinds.extend(types(form).into_iter().filter_map(|name| describe_type(form, name)));
        } else {
            let keys: Vec<String> = required.iter().map(|key| format!("{key}: …")).collect();
            sections.push(format!("{{{}}}", keys.join(", ")));
        }
    }
    kinds.extend(names.iter().map(ToString::to_string));
    kinds.extend(sections);
    kinds.extend(takes_null(schema).then(|| "null".to_owned()));
    let last = kinds.pop().unwrap_or_default();
    let list = if kinds.is_empty() { last } else { format!("{} or {last}", kinds.join(", ")) };
    let scalar = value.is_number() || value.is_boolean();
    let quotes = if scalar && forms.iter().copied().any(is_text) { ": put quotes around it" } else { "" };
    format!("it takes {list}{quotes}")
}

/// The names that a value of this form may be.
fn names(form: &Value) -> Vec<&str> {
    match form["enum"].as_array() {
        Some(list) => list.iter().filter_map(Value::as_str).collect(),
        None => form["const"].as_str().into_iter().collect(),
    }
}

fn describe_type(form: &Value, name: &str) -> Option<String> {
    let count = form["prefixItems"].as_array().map(Vec::len);
    let text = match name {
        "string" => "text",
        "boolean" => "true or false",
        "number" => "a number",
        "integer" => {
            let range = takes(form).map(|takes| format!(", {}", takes.trim_end_matches(", or null")));
            return Some(format!("a whole number{}", range.unwrap_or_default()));
        }
        "array" => return Some(count.map_or("a list".into(), |count| format!("a list of {count} numbers"))),
        "object" => "a section of keys",
        _ => return None,
    };
    Some(text.to_owned())
}

/// A value in a message.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Null => "empty".to_owned(),
        Value::Object(_) => "a section of keys".to_owned(),
        value => value.to_string(),
    };
    if text.chars().count() > 60 { format!("{}…", text.chars().take(60).collect::<String>()) } else { text }
}
