//! docs/config.md and docs/config.schema.json are made from the types that a config is read into:
//! `UPDATE=1 cargo test --release --workspace --test docs`.

use codinet_config::{Config, Stage, takes};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

const HEAD: &str = "# Every key of a config

<!-- Made from the types in configs/src/ and dataloader/ by tests/docs/keys.rs: edit the comments there. -->

A config is a YAML file of these keys; what it leaves out has the default shown here. `codinet-train my.yaml --dry-run`
prints all keys with the values that a run would have, and `--set KEY=VALUE` replaces one of them, with the names used here
(`--set optim.batch_size=64 --set stages.0.lr=0.2`). A key, type or value that is not one of these is refused, with its line
in the file and the nearest valid name.

An editor that knows JSON schemas completes and checks configs with this line at their top, and the path of
[config.schema.json](config.schema.json) in it:

    # yaml-language-server: $schema=docs/config.schema.json
";

/// The keys of a JSON text, in the order in which they stand there.
#[derive(Default)]
struct Keys(Vec<(String, Keys)>);

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Keys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    keys.push(entry);
                }
                Ok(Keys(keys))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Keys, A::Error> {
                let first = items.next_element()?.unwrap_or_default();
                while items.next_element::<IgnoredAny>()?.is_some() {}
                Ok(first)
            }
            fn visit_unit<E>(self) -> Result<Keys, E> {
                Ok(Keys::default())
            }
            fn visit_bool<E>(self, _: bool) -> Result<Keys, E> {
                Ok(Keys::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Keys, E> {
                Ok(Keys::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Keys, E> {
                Ok(Keys::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Keys, E> {
                Ok(Keys::default())
            }
            fn visit_str<E>(self, _: &str) -> Result<Keys, E> {
                Ok(Keys::default())
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl Keys {
    fn of(&self, key: &str) -> Option<(usize, &Keys)> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some((at, &self.0[at].1))
    }
}

/// The page, in the making.
struct Page<'a> {
    schema: &'a Value,
    takes: Vec<(String, String)>,
    text: String,
}

/// A comment's paragraphs, each on a line.
fn prose(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

/// Whether a value may be left empty, and what it is otherwise.
fn not_null(schema: &Value) -> (bool, &Value) {
    let variants = schema["anyOf"].as_array().into_iter().flatten();
    let (null, other): (Vec<&Value>, Vec<&Value>) = variants.partition(|variant| variant["type"] == "null");
    match (null.is_empty(), other[..].first()) {
        (false, Some(other)) => (true, other),
        _ => (schema["type"].as_array().is_some_and(|types| types.iter().any(|t| t == "null")), schema),
    }
}

/// A value as one writes it in a config.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let one = |(key, value): (&String, &Value)| format!("{key}: {}", shown(value));
            format!("{{{}}}", map.iter().map(one).collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

impl<'a> Page<'a> {
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(name) => &self.schema["$defs"][name.trim_start_matches("#/$defs/")],
            None => schema,
        }
    }

    /// What a key holds, in words.
    fn kind(&self, schema: &'a Value) -> String {
        let (optional, schema) = not_null(schema);
        let schema = self.resolved(schema);
        let one = |name: &Value| match name.as_str() {
            Some("integer") => "whole number",
            Some("number") => "number",
            Some("string") => "text",
            Some("boolean") => "`true` or `false`",
            Some("object") => "section",
            _ => "one of the values below",
        };
        let items = |schema: &'a Value| one(&self.resolved(schema)["type"]).trim_end_matches('s').to_owned();
        let what = match (&schema["type"], schema["prefixItems"].as_array(), schema["minItems"].as_u64()) {
            _ if schema["oneOf"].is_array() || schema["enum"].is_array() => "one of the values below".into(),
            (Value::String(name), Some(places), _) if name == "array" => {
                format!("list of {} {}s", places.len(), items(&places[0]))
            }
            (Value::String(name), None, Some(count)) if name == "array" => {
                format!("list of {count} {}s", items(&schema["items"]))
            }
            (Value::String(name), ..) if name == "array" => format!("list of {}s", items(&schema["items"])),
            (Value::Array(names), ..) => {
                one(names.iter().find(|name| *name != "null").expect("a type")).into()
            }
            (name, ..) => one(name).into(),
        };
        if optional { what + ", or `null`" } else { what }
    }

    /// The keys of a section, each with a heading of its own.
    fn section(&mut self, path: &str, schema: &'a Value, order: &Keys) {
        let Some(keys) = schema["properties"].as_object() else { return };
        let mut keys: Vec<(&String, &Value)> = keys.iter().collect();
        keys.sort_by_key(|(key, _)| order.of(key).map_or(usize::MAX, |(at, _)| at));
        for (key, value) in keys {
            let (path, inner) = (format!("{path}.{key}"), self.resolved(not_null(value).1));
            let kind = self.kind(value);
            let (nested, nothing) = (inner["properties"].is_object(), Keys::default());
            let said = if nested && !kind.ends_with("null`") {
                String::new() // its keys have their own
            } else {
                let default = value.get("default").map(|value| format!(", by default `{}`", shown(value)));
                let default = default.unwrap_or_else(|| match schema["required"].as_array() {
                    Some(needed) if needed.iter().any(|name| name == key) => "; has to be given".into(),
                    _ => String::new(),
                });
                let ranges: Vec<&str> =
                    self.takes.iter().filter(|(of, _)| *of == path).map(|(_, what)| &what[..]).collect();
                let ranges =
                    if ranges.is_empty() { String::new() } else { format!("; takes {}", ranges.join("; ")) };
                format!("*{kind}{default}{ranges}*\n\n")
            };
            let _ = write!(self.text, "\n### `{path}`\n\n{said}{}\n", prose(value));
            self.values(inner);
            if nested {
                self.section(&path, inner, order.of(key).map_or(&nothing, |(_, keys)| keys));
            }
        }
    }

    /// The values that a key takes, where they have names, and what belongs to each.
    fn values(&mut self, schema: &'a Value) {
        let (mut lines, mut bare) = (Vec::new(), Vec::new());
        for value in schema["oneOf"].as_array().into_iter().flatten().chain([schema]) {
            let (said, names) = (prose(value), value["enum"].as_array().into_iter().flatten());
            for name in names.chain(value.get("const")) {
                match value == schema || said.is_empty() {
                    true => bare.push(format!("`{}`", shown(name))),
                    false => lines.push(format!("- `{}`: {said}", shown(name))),
                }
            }
            if value == schema {
                continue;
            }
            for (name, inner) in value["properties"].as_object().into_iter().flatten() {
                lines.push(format!("- `{name}:` {said}"));
                for (key, value) in self.resolved(inner)["properties"].as_object().into_iter().flatten() {
                    let default =
                        value.get("default").map(|value| format!(", by default `{}`", shown(value)));
                    let (kind, default) = (self.kind(value), default.unwrap_or_default());
                    lines.push(format!("  - `{key}` ({kind}{default}): {}", prose(value)));
                }
            }
        }
        if !bare.is_empty() {
            lines.push(format!("- {}", bare.join(", ")));
        }
        if !lines.is_empty() {
            let _ = write!(self.text, "\n{}\n", lines.join("\n"));
        }
    }
}

fn schema() -> Value {
    schemars::schema_for!(Config).to_value()
}

fn page(schema: &Value) -> String {
    let config = Config { stages: vec![Stage::default()], ..Config::default() };
    let order: Keys = serde_json::from_str(&serde_json::to_string(&config).expect("JSON")).expect("JSON");
    let mut page = Page { schema, takes: takes(), text: HEAD.into() };
    let keys = schema["properties"].as_object().expect("sections");
    let extends = &keys["extends"];
    let _ = write!(page.text, "\n## `extends`\n\n*text; the name of a config*\n\n{}\n", prose(extends));
    for (name, keys_of) in &order.0 {
        let section = &keys[name];
        let _ = write!(page.text, "\n## `{name}`\n\n{}\n", prose(section));
        match section["type"] == "array" {
            true => {
                let _ = write!(
                    page.text,
                    "\nA list: stage N, counted from 0, has the keys `stages.N.…`. Sections of a file that extends another are \
                     merged key by key; this list is replaced as a whole.\n"
                );
                page.section(&format!("{name}.N"), page.resolved(&section["items"]), keys_of);
            }
            false => page.section(name, page.resolved(section), keys_of),
        }
    }
    page.text
}

/// Writes the file where it is asked for, and compares it.
fn hold(name: &str, made: &str) {
    let path = Path::new(DOCS).join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, made).unwrap();
    }
    let there = fs::read_to_string(path).unwrap_or_default();
    assert!(there == made, "docs/{name} is old: run this test with UPDATE=1");
}

#[test]
fn the_page_is_that_of_the_types() {
    hold("config.md", &page(&schema()));
}

#[test]
fn the_schema_is_that_of_the_types() {
    hold("config.schema.json", &(serde_json::to_string_pretty(&schema()).expect("JSON") + "\n"));
}

/// Every key is explained: a type without a comment would leave a hole in the page.
#[test]
fn every_key_has_its_words() {
    let page = page(&schema());
    let lines: Vec<&str> = page.lines().collect();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.starts_with("### ")) {
        let words = lines[at + 1..].iter().take_while(|line| !line.starts_with('#'));
        let words: usize =
            words.filter(|line| !line.starts_with('*')).map(|line| line.split_whitespace().count()).sum();
        assert!(words > 1, "{line} has no words");
    }
    for key in ["run.dir", "data.crop", "model.router.kind", "optim.lr_batch_size", "stages.N.schedule"] {
        assert!(page.contains(&format!("### `{key}`")), "{key}");
    }
}
