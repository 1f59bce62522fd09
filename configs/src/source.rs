//! A file of keys, shipped or the user's, or a row of a table: found, read, with the line of each key.

use crate::exit::{Error, Exit, Result};
use crate::set::step_into;
use crate::table::{self, Table};
use crate::text::nearest;
use crate::types::{Extent, Mismatch, mismatch, suggest};
use crate::yaml::{self, parse};
use crate::{BUILT_IN, Config, built_in};
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::path::Path;

/// A file, or a row of a table.
pub(crate) struct Source {
    /// The file's path or name.
    pub file: String,
    /// The file and the row.
    pub name: String,
    /// The file's text.
    text: String,
    /// The keys that it sets.
    pub own: Value,
    /// The config that it extends.
    pub extends: Option<String>,
    /// Where its keys stand in the file: empty, or `rows.2.set.`.
    prefix: String,
}

impl Source {
    pub fn sets(&self, key: &str) -> bool {
        key.split('.').try_fold(&self.own, |place, part| step_into(place, part)).is_some()
    }

    /// The file and the line of `key`.
    pub fn place(&self, key: &str) -> String {
        place_in(&self.file, &self.text, &format!("{}{key}", self.prefix))
    }
}

fn place_in(file: &str, text: &str, key: &str) -> String {
    format!("{file}:{}", line_of(text, key))
}

/// Reads a file, or a row of a table; `from` is the file that extends it.
pub(crate) fn read(name: &str, from: Option<&str>) -> Result<Source> {
    let (file, row) = match find(name, from) {
        Some(_) => (name, None), // a file may have such a name itself
        None => table::split(name),
    };
    let (file, text) = find(file, from).ok_or_else(|| not_found(file, from))??;
    let tree = parse::<Option<Value>>(&text).map_err(|error| not_yaml(&file, &text, &error))?;
    let tree = tree.unwrap_or_else(|| Value::Object(Map::new()));
    if tree.get("rows").is_none() {
        if let Some(row) = row {
            return Err(wrong(format!("{file}:{row}: the file has no rows")));
        }
        let parsed = parse::<Config>(&text).ok().map(|config| as_tree(&config));
        let own = own_keys(&file, &text, "", tree, parsed)?;
        let extends = own.get("extends").and_then(Value::as_str).map(str::to_owned);
        return Ok(Source { name: file.clone(), file, text, own, extends, prefix: String::new() });
    }
    let table = parse_table::<Value>(&file, &text)?;
    let typed = parse::<Table<Config>>(&text).ok();
    let mut sets = Vec::new();
    for (index, row) in table.rows.iter().enumerate() {
        let set = row.set.clone().unwrap_or_else(|| Value::Object(Map::new()));
        let parsed = typed.as_ref().map(|table| as_tree(&table.rows[index].set.clone().unwrap_or_default()));
        sets.push(own_keys(&file, &text, &row_prefix(index), set, parsed)?);
    }
    let (index, row) = table.row(&file, row)?;
    let own = sets.swap_remove(index);
    let name = format!("{file}:{}", row.name);
    let extends = Some(row.extends.as_ref().unwrap_or(&table.extends).clone());
    Ok(Source { file, name, own, extends, prefix: row_prefix(index), text })
}

fn row_prefix(index: usize) -> String {
    format!("rows.{index}.set.")
}

/// The keys that a file or a row sets, with values of the types that a config has, as in `parsed`; none of those is there if a
/// value is of another type, or if the rest of a section comes from what the file extends.
fn own_keys(file: &str, text: &str, prefix: &str, mut own: Value, parsed: Option<Value>) -> Result<Value> {
    drop_empty_sections(&mut own, &as_tree(&Config::default()));
    if let Some(parsed) = parsed {
        return Ok(with_types(own, &parsed));
    }
    match mismatch("", &own, Extent::Part) {
        Some(found) => Err(wrong(explain(&place_in(file, text, &format!("{prefix}{}", found.key)), &found))),
        None => Ok(own),
    }
}

/// Removes the sections of `own` whose keys are all commented out: they set nothing.
fn drop_empty_sections(own: &mut Value, defaults: &Value) {
    let (Value::Object(own), Value::Object(defaults)) = (own, defaults) else { return };
    own.retain(|key, value| {
        let is_section = defaults.get(key).is_some_and(|default| default.is_object() || default.is_array());
        !(value.is_null() && is_section)
    });
    for (key, value) in own {
        drop_empty_sections(value, defaults.get(key).unwrap_or(&Value::Null));
    }
}

/// A mismatch in a file as one line.
pub(crate) fn explain(place: &str, found: &Mismatch) -> String {
    let Mismatch { key, what, unknown } = found;
    if *unknown {
        let (section, name) = key.rsplit_once('.').unwrap_or(("", key));
        let example = as_tree(&Config { stages: vec![Default::default()], ..Config::default() });
        return format!("{place}: unknown key {key}; {}", suggest(&example, section, name));
    }
    if key.is_empty() {
        format!("{place}: the file {what}, such as data:")
    } else {
        format!("{place}: {key} {what}")
    }
}

pub(crate) fn parse_table<C: serde::de::DeserializeOwned>(file: &str, text: &str) -> Result<Table<C>> {
    parse(text).map_err(|error| {
        let what = "is no table of configs; it has the keys table, extends and rows, and each row a name, \
                    extends, set and paper (top1, gmaccs, paths)";
        wrong(format!("{file}:{}: {what}", yaml::line(text, &error)))
    })
}

/// `own` with the values that the same places have in `parsed`.
fn with_types(own: Value, parsed: &Value) -> Value {
    match (own, parsed) {
        (Value::Object(own), Value::Object(parsed)) => {
            let known = |key: &str, value: Value| match parsed.get(key) {
                Some(parsed) => with_types(value, parsed),
                None => value,
            };
            Value::Object(own.into_iter().map(|(key, value)| (key.clone(), known(&key, value))).collect())
        }
        (_, parsed) => parsed.clone(),
    }
}

/// The path and text of the file `name`: next to the file `from` that extends it, or a shipped one. What a shipped config
/// extends is shipped.
pub(crate) fn find(name: &str, from: Option<&str>) -> Option<Result<(String, String)>> {
    let from_shipped = from.is_some_and(|from| !Path::new(from).exists());
    let path = from.and_then(|from| Path::new(from).parent()).unwrap_or(Path::new("")).join(name);
    if path.exists() && !from_shipped {
        let text = std::fs::read_to_string(&path)
            .map_err(|error| wrong(format!("cannot read {}: {error}", path.display())));
        return Some(text.map(|text| (path.display().to_string(), text)));
    }
    built_in(name).map(|text| Ok((name.to_owned(), text.to_owned())))
}

/// The error for a config that does not exist, with the nearest one that does.
pub(crate) fn not_found(name: &str, from: Option<&str>) -> Error {
    let shipped: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    let by = from.map(|from| format!(", which {from} extends")).unwrap_or_default();
    if let Some((table, row)) = table::moved(name, |text| parse(text).ok()) {
        return wrong(format!("{name}{by}: this config is now a row of {table:?}: {row}"));
    }
    let hint = if name == "help" {
        "--help is the help".to_owned()
    } else if let Some(near) = nearest(name, &shipped) {
        format!("did you mean {near}?")
    } else {
        let families: BTreeSet<&str> = shipped.iter().filter_map(|name| name.split('_').next()).collect();
        let families: Vec<String> = families.iter().map(|family| format!("{family}_*.yaml")).collect();
        format!("those are {}, see docs/recipes.md", families.join(", "))
    };
    wrong(format!("{name}{by}: no such file, nor a shipped config; {hint}"))
}

/// A file that is not YAML, as one line: file, line, key, what.
pub(crate) fn not_yaml(file: &str, text: &str, error: &serde_saphyr::Error) -> Error {
    let line = yaml::line(text, error);
    let key = text.lines().nth(line.saturating_sub(1)).and_then(|line| line.split_once(':'));
    let key = key.map_or("", |(key, _)| key.trim().trim_start_matches("- "));
    let key = if key.is_empty() || key.contains(' ') { String::new() } else { format!("{key}: ") };
    wrong(format!("{file}:{line}: {key}{}", yaml::describe(error)))
}

/// The line (from 1) on which the file says `key` (such as `stages.0.lr`), or the nearest section above it.
fn line_of(text: &str, key: &str) -> usize {
    let mut found = 1;
    let mut from = 0;
    let lines: Vec<&str> = text.lines().collect();
    // A key with a dot, which is no section and its key.
    if let Some(line) =
        lines.iter().position(|line| key.contains('.') && line.starts_with(&format!("{key}:")))
    {
        return line + 1;
    }
    for (depth, part) in key.split('.').enumerate() {
        let items = part.parse::<usize>().ok().filter(|_| depth > 0);
        let mut seen = 0;
        let mut indent = None;
        let hit = lines.iter().enumerate().skip(from).find(|(_, line)| {
            let width = line.len() - line.trim_start().len();
            let line = line.trim_start();
            match items {
                // Items of this list are indented like its first one.
                Some(index) => {
                    let is_item = line.starts_with("- ") && *indent.get_or_insert(width) == width;
                    seen += usize::from(is_item);
                    is_item && seen == index + 1
                }
                None => line.strip_prefix("- ").unwrap_or(line).starts_with(&format!("{part}:")),
            }
        });
        let Some((line, _)) = hit else { break };
        (found, from) = (line + 1, line + usize::from(items.is_none()));
    }
    found
}

pub(crate) fn as_tree(config: &Config) -> Value {
    serde_json::to_value(config).expect("a config is a JSON tree")
}

pub(crate) fn wrong(message: String) -> Error {
    Error::new(Exit::Config, message)
}
