//! docs/config.md and docs/config.schema.json are generated from the types that a config is read into.

use codinet_config::{Config, SCHEMA, Stage, takes};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use std::fmt::{self, Write};
use std::fs;
use std::path::Path;

const DOCS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");

const HEAD: &str = "# Every key of a config

<!-- Generated from the types in configs/src/ and dataloader/ by tests/docs/keys.rs: edit the comments there. -->

A config is a YAML file of the keys below. A key that it leaves out has its default. `codinet-train my.yaml --dry-run` prints all
keys with the values of a run. `--set KEY=VALUE` overrides one of them: `--set optim.batch_size=64 --set stages.0.lr=0.2`. An
unknown key, a wrong type or a value out of range is an error that names the line in the file and the nearest valid name.

`extends: NAME` starts from another config: a file next to this one, a shipped config, or a row of a table (`FILE:ROW`, see
[recipes](recipes.md)). Sections are merged key by key; `stages` is replaced as a whole.

Editors that support JSON schemas complete and check configs with this first line, and the path of
[config.schema.json](config.schema.json) in it:

    # yaml-language-server: $schema=docs/config.schema.json

## The defaults

Every key with its default; `data.train` and `data.val` have to be set. `stages` is empty by default and needs at least one
stage, shown here with a stage's defaults.

";

/// The keys of a config in the order of their definition.
fn order() -> Keys {
    let text = serde_json::to_string(&defaults()).expect("a config is JSON");
    serde_json::from_str(&text).expect("what was just written")
}

/// The defaults, with one stage.
fn defaults() -> Config {
    Config { stages: vec![Stage::default()], ..Config::default() }
}

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
    fn find(&self, key: &str) -> Option<(usize, &Keys)> {
        let at = self.0.iter().position(|(name, _)| name == key)?;
        Some((at, &self.0[at].1))
    }
}

/// The page in the making.
struct Page<'a> {
    schema: &'a Value,
    /// Rules between keys: the key, and what it takes.
    rules: Vec<(String, &'static str)>,
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

/// The first sentence of a comment, or the part of it that comes before an explanation.
fn summary(schema: &Value) -> String {
    let text = prose(schema);
    let cuts = [". ", "; ", ": ", "\n"].into_iter().filter_map(|mark| {
        let cut =
            text.match_indices(mark).map(|(at, _)| at).find(|&at| at > 8 && !text[..at].ends_with("Eq"))?;
        Some(cut)
    });
    let end = cuts.min().unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_owned()
}

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace("\n\n", "<br>").replace('\n', " ").replace('|', "\\|")
}

impl<'a> Page<'a> {
    fn resolved(&self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(name) => &self.schema["$defs"][name.trim_start_matches("#/$defs/")],
            None => schema,
        }
    }

    /// The keys of a section, in the order of their definition, each with its schema.
    fn keys(&self, schema: &'a Value, order: &Keys) -> Vec<(&'a String, &'a Value)> {
        let mut keys: Vec<_> = schema["properties"].as_object().into_iter().flatten().collect();
        keys.sort_by_key(|(key, _)| order.find(key).map_or(usize::MAX, |(at, _)| at));
        keys
    }

    /// The type of a key, and what it takes.
    fn kind(&self, value: &'a Value) -> String {
        let (optional, schema) = not_null(value);
        let schema = self.resolved(schema);
        let one = |name: &Value| match name.as_str() {
            Some("integer") => "integer",
            Some("number") => "number",
            Some("string") => "text",
            Some("boolean") => "`true` or `false`",
            Some("object") => "section",
            _ => "",
        };
        let named =
            schema["oneOf"].is_array() || schema["enum"].as_array().is_some_and(|names| names[0].is_string());
        let items = |schema: &'a Value| one(&self.resolved(schema)["type"]).to_owned();
        let what = match (&schema["type"], schema["prefixItems"].as_array(), schema["minItems"].as_u64()) {
            _ if named => String::new(),
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
        let range = takes(value).map(|takes| takes.trim_end_matches(", or null").to_owned());
        let mut parts: Vec<String> =
            [Some(what), range].into_iter().flatten().filter(|part| !part.is_empty()).collect();
        if optional && !named {
            parts.push("or `null`".into());
        }
        parts.join(", ")
    }

    /// The names that a key takes, each with its meaning and its own keys.
    fn names(&self, value: &'a Value) -> Vec<String> {
        let (optional, schema) = not_null(value);
        let schema = self.resolved(schema);
        let mut lines = Vec::new();
        let choices = ["oneOf", "anyOf"].into_iter().filter_map(|forms| schema[forms].as_array());
        for choice in choices.flatten().chain([schema]) {
            let meaning = prose(choice);
            let names = choice["enum"].as_array().into_iter().flatten().chain(choice.get("const"));
            let names: Vec<String> =
                names.filter(|name| name.is_string()).map(|name| format!("`{}`", shown(name))).collect();
            let is_scalar = choice["type"] == "number" || choice["type"] == "string" && names.is_empty();
            if choice == schema || meaning.is_empty() {
                lines.extend((!names.is_empty()).then(|| names.join(", ")));
            } else {
                lines.extend(names.into_iter().map(|name| format!("{name}: {meaning}")));
            }
            if is_scalar && choice != schema {
                lines.push(format!("{}: {meaning}", self.kind(choice)));
            }
            let variants = choice["properties"].as_object().filter(|_| choice != schema);
            for (name, inner) in variants.into_iter().flatten() {
                let own = takes(inner).map(|takes| format!(" ({takes})")).unwrap_or_default();
                let default = inner.get("default").map(|value| format!(" Default `{}`.", shown(value)));
                let is_only = variants.is_some_and(|variants| variants.len() == 1);
                let meaning = if is_only { meaning.clone() } else { prose(inner) };
                lines.push(format!("`{name}:`{own} {meaning}{}", default.unwrap_or_default()));
                let section = if inner["type"] == "array" { &inner["items"] } else { inner };
                for (key, value) in self.resolved(section)["properties"].as_object().into_iter().flatten() {
                    let default = value.get("default").map(|value| format!(", default `{}`", shown(value)));
                    let default = default.unwrap_or_default();
                    lines.push(format!("– `{key}` ({}{default}): {}", self.kind(value), prose(value)));
                }
            }
        }
        if optional && !lines.is_empty() {
            lines.push("or `null`".into());
        }
        lines
    }

    /// A line of the table for each key of a section, and for the keys in it.
    fn rows(&mut self, path: &str, schema: &'a Value, order: &Keys) {
        for (key, value) in self.keys(schema, order) {
            let path = format!("{path}.{key}");
            let inner = self.resolved(not_null(value).1);
            let mut values: Vec<String> =
                Some(self.kind(value)).filter(|kind| !kind.is_empty()).into_iter().collect();
            values.extend(self.names(value));
            values.extend(
                self.rules.iter().filter(|(of, _)| *of == path).map(|(_, takes)| (*takes).to_owned()),
            );
            let is_section = inner["properties"].is_object();
            let needed =
                schema["required"].as_array().is_some_and(|keys| keys.iter().any(|name| name == key));
            let default = match value.get("default") {
                Some(_) if is_section && !not_null(value).0 => String::new(), // its keys have their own
                Some(default) => format!("`{}`", shown(default)),
                None if needed => "required".into(),
                None => String::new(),
            };
            let cells = [format!("`{path}`"), values.join("<br>"), default, prose(value)];
            let _ = writeln!(self.text, "| {} |", cells.map(|text| cell(&text)).join(" | "));
            if is_section {
                let nothing = Keys::default();
                self.rows(&path, inner, order.find(key).map_or(&nothing, |(_, keys)| keys));
            }
        }
    }

    /// The lines of the default file for the keys of a section; `lead` comes before the first key of a list's item.
    fn default_file(&mut self, values: &Value, schema: &'a Value, order: &Keys, indent: usize) {
        for (key, value) in self.keys(schema, order) {
            let Some(default) = values.get(key) else { continue };
            let inner = self.resolved(not_null(value).1);
            let nothing = Keys::default();
            let own_order = order.find(key).map_or(&nothing, |(_, keys)| keys);
            let pad = " ".repeat(indent);
            let (text, nested) = if default.is_object() && inner["properties"].is_object() {
                (format!("{pad}{key}:"), Some((default, inner)))
            } else if inner["type"] == "array" && self.resolved(&inner["items"])["properties"].is_object() {
                (format!("{pad}{key}:"), Some((&default[0], self.resolved(&inner["items"]))))
            } else {
                (format!("{pad}{key}: {}", shown(default)), None)
            };
            let _ = writeln!(self.text, "{text:<34} # {}", summary(value));
            if let Some((values, schema)) = nested {
                let start = self.text.len();
                self.default_file(values, schema, own_order, indent + if default.is_array() { 4 } else { 2 });
                if default.is_array() {
                    self.text.replace_range(start + indent..start + indent + 4, "  - ");
                }
            }
        }
    }
}

fn page(schema: &Value) -> String {
    let order = order();
    let rules =
        defaults().rules().into_iter().map(|rule| (rule.key.replace("stages.0.", "stages.N."), rule.takes));
    let mut page = Page { schema, rules: rules.collect(), text: HEAD.into() };
    let values = serde_json::to_value(defaults()).expect("a config is JSON");
    page.text += "```yaml\n";
    page.default_file(&values, schema, &order, 0);
    page.text += "```\n";
    let keys = schema["properties"].as_object().expect("sections");
    for (name, keys_of) in &order.0 {
        let section = &keys[name];
        let is_list = section["type"] == "array";
        let note = if is_list { " Stage N, counted from 0, has the keys `stages.N.…`." } else { "" };
        let _ = write!(page.text, "\n## `{name}`\n\n{}{note}\n\n", prose(section));
        page.text += "| Key | Type and values | Default | Meaning |\n|---|---|---|---|\n";
        if is_list {
            page.rows(&format!("{name}.N"), page.resolved(&section["items"]), keys_of);
        } else {
            page.rows(name, page.resolved(section), keys_of);
        }
    }
    page.text
}

/// Writes the file if `UPDATE` is set, and compares it.
fn hold(name: &str, generated: &str) {
    let path = Path::new(DOCS).join(name);
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, generated).unwrap();
    }
    let text = fs::read_to_string(path).unwrap_or_default();
    assert!(text == generated, "docs/{name} is old: run this test with UPDATE=1");
}

#[test]
fn the_page_is_up_to_date() {
    hold("config.md", &page(&SCHEMA));
}

#[test]
fn the_schema_is_up_to_date() {
    hold("config.schema.json", &(serde_json::to_string_pretty(&*SCHEMA).expect("JSON") + "\n"));
}

/// A type without a comment would leave a hole in the page.
#[test]
fn every_key_has_a_meaning() {
    let page = page(&SCHEMA);
    let rows: Vec<Vec<&str>> =
        page.lines().filter(|line| line.starts_with("| `")).map(|line| line.split(" | ").collect()).collect();
    assert!(rows.len() > 90, "{}", rows.len());
    for row in &rows {
        assert!(row.len() == 4 && row[3].split_whitespace().count() > 2, "{row:?} has no meaning");
    }
    for key in ["run.dir", "data.crop", "model.router.kind", "optim.lr_batch_size", "stages.N.schedule"] {
        assert!(rows.iter().any(|row| row[0] == format!("| `{key}`")), "{key}");
    }
}

#[test]
fn the_default_file_is_the_default_config() {
    let page = page(&SCHEMA);
    let (_, block) = page.split_once("```yaml\n").unwrap();
    let (file, _) = block.split_once("```").unwrap();
    let config: Config = serde_saphyr::from_str(file).unwrap();
    assert_eq!(config, defaults());
}
