//! Reading a config: the file (or a shipped one), `--set`, and the one line that says what is wrong.

use crate::exit::{Error, Exit, Result};
use crate::table::{self, Table};
use crate::{BUILT_IN, Config, built_in};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;

/// Reads `name` (a path, or the bare name of a shipped config) over what it extends, applies `--set` overrides in
/// order, and checks every value.
pub fn load(name: &str, overrides: &[String]) -> Result<Config> {
    let mut tree = with_bases(name, None, &mut Vec::new())?;
    // The override that set a key, or the section it is in.
    let set_by = |key: &str| {
        let sets = |setting: &&String| {
            let rest = setting.split_once('=').and_then(|(path, _)| key.strip_prefix(path));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        overrides.iter().rfind(sets)
    };
    for setting in overrides {
        apply(&mut tree, setting)?;
        let complaint =
            |error: serde_json::Error| wrong(format!("--set {setting}: {}", plainly(&error.to_string())));
        tree = as_tree(&serde_json::from_value::<Config>(tree).map_err(complaint)?);
    }
    let config: Config = serde_json::from_value(tree).expect("a config's own tree");
    match config.refused().into_iter().next() {
        None => Ok(config),
        Some((key, what)) => {
            let place = set_by(&key).map_or_else(|| name.to_owned(), |setting| format!("--set {setting}"));
            Err(wrong(format!("{place}: {key} {what}")))
        }
    }
}

fn as_tree(config: &Config) -> Value {
    serde_json::to_value(config).expect("a config is a JSON tree")
}

/// A file, or a row of a table.
struct Source {
    /// The file's path or name.
    file: String,
    /// The file and the row.
    name: String,
    /// The file's text.
    text: String,
    /// The keys that it sets.
    own: Value,
    /// The config that it extends.
    extends: Option<String>,
    /// Where its keys stand in the file: empty, or `rows.2.set.`.
    prefix: String,
}

/// The values of `name` over those that it extends, over the defaults: every key of a config. `from` is the file that extends
/// it, `chain` the names that led here.
fn with_bases(name: &str, from: Option<&str>, chain: &mut Vec<String>) -> Result<Value> {
    let Source { file, name, text, own, extends, prefix } = read(name, from)?;
    if chain.contains(&name) || chain.len() > 16 {
        return Err(wrong(format!("{name}: extends goes in a circle: {} → {name}", chain.join(" → "))));
    }
    chain.push(name.clone());
    let mut tree = match extends {
        None => as_tree(&Config::default()),
        Some(base) => with_bases(&base, Some(&file), chain)?,
    };
    merge(&mut tree, own.clone());
    if let Value::Object(map) = &mut tree {
        map.remove("extends");
    }
    let merged: Config = serde_json::from_value(tree)
        .map_err(|error| wrong(format!("{name}: {}", plainly(&error.to_string()))))?;
    let sets = |key: &str| key.split('.').try_fold(&own, |place, part| step_into(place, part)).is_some();
    match merged.refused().into_iter().find(|(key, _)| sets(key)) {
        Some((key, what)) => {
            Err(wrong(format!("{file}:{}: {key} {what}", line_of(&text, &format!("{prefix}{key}")))))
        }
        None => Ok(as_tree(&merged)),
    }
}

/// Reads a file, or a row of a table; `from` is the file that extends it.
fn read(name: &str, from: Option<&str>) -> Result<Source> {
    let (file, row) = match find(name, from) {
        Some(_) => (name, None), // a file may have such a name itself
        None => table::split(name),
    };
    let (file, text) = find(file, from).ok_or_else(|| not_found(file, from))??;
    let tree = parse::<Option<Value>>(&text).map_err(|error| explain(&file, &text, &error))?;
    let tree = tree.unwrap_or_else(|| Value::Object(Default::default()));
    if tree.get("rows").is_none() {
        return match row {
            Some(row) => Err(wrong(format!("{file}:{row}: the file has no rows"))),
            None => {
                let own = checked(tree, parse::<Config>(&text), |config| as_tree(&config))
                    .map_err(|error| explain(&file, &text, &error))?;
                let extends = own.get("extends").and_then(Value::as_str).map(str::to_owned);
                Ok(Source { name: file.clone(), file, text, own, extends, prefix: String::new() })
            }
        };
    }
    let table: Table<Value> = parse(&text).map_err(|error| explain(&file, &text, &error))?;
    let (index, row) = table.row(&file, row)?;
    let own = row.set.clone().unwrap_or_else(|| Value::Object(Default::default()));
    let set = |table: Table<Config>| as_tree(&table.rows[index].set.clone().unwrap_or_default());
    let own =
        checked(own, parse::<Table<Config>>(&text), set).map_err(|error| explain(&file, &text, &error))?;
    let name = format!("{file}:{}", row.name);
    let extends = Some(row.extends.as_ref().unwrap_or(&table.extends).clone());
    Ok(Source { file, name, own, extends, prefix: format!("rows.{index}.set."), text })
}

/// A table, from a file or a shipped one.
///
/// # Errors
/// A file that is not there, or no table.
pub fn load_table(name: &str) -> Result<Table<Config>> {
    let (file, text) = find(name, None).ok_or_else(|| not_found(name, None))??;
    let tree = parse::<Value>(&text).map_err(|error| explain(&file, &text, &error))?;
    if tree.get("rows").is_none() {
        return Err(wrong(format!("{file}: not a table of configs: it has no rows")));
    }
    parse(&text).map_err(|error| explain(&file, &text, &error))
}

/// Whether `name` is a table's.
pub fn is_table(name: &str) -> bool {
    let text = find(name, None).and_then(Result::ok).map(|(_, text)| text);
    text.and_then(|text| parse::<Value>(&text).ok()).is_some_and(|tree| tree.get("rows").is_some())
}

/// Every shipped config: files, and rows of tables.
pub fn shipped() -> Vec<String> {
    let names = |(file, text): &(&str, &str)| match parse::<Table<Value>>(text) {
        Ok(table) => table.rows.iter().map(|row| format!("{file}:{}", row.name)).collect(),
        Err(_) => vec![(*file).to_owned()],
    };
    BUILT_IN.iter().flat_map(names).collect()
}

/// `own`, the keys that a file sets, with values of the types that a config has, as in `parsed`.
fn checked<T>(
    own: Value,
    parsed: std::result::Result<T, serde_saphyr::Error>,
    tree: impl Fn(T) -> Value,
) -> std::result::Result<Value, serde_saphyr::Error> {
    match parsed {
        Ok(parsed) => Ok(typed(own, &tree(parsed))),
        // The rest of a section may come from what the file extends.
        Err(error) if error.to_string().contains("missing field") => Ok(own),
        Err(error) => Err(error),
    }
}

/// `own` with the values that the same places have in `said`.
fn typed(own: Value, said: &Value) -> Value {
    match (own, said) {
        (Value::Object(own), Value::Object(said)) => {
            let known = |key: &str, value: Value| match said.get(key) {
                Some(said) => typed(value, said),
                None => value,
            };
            Value::Object(own.into_iter().map(|(key, value)| (key.clone(), known(&key, value))).collect())
        }
        (_, said) => said.clone(),
    }
}

fn step_into<'a>(place: &'a Value, part: &str) -> Option<&'a Value> {
    match place {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        place => place.get(part),
    }
}

/// Puts `over` into `tree`, key by key wherever `tree` has all of the keys; what is of another form, as another
/// kind of crop or a list, is replaced.
fn merge(tree: &mut Value, over: Value) {
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

fn parse<T: serde::de::DeserializeOwned>(text: &str) -> std::result::Result<T, serde_saphyr::Error> {
    let options = serde_saphyr::options! { strict_booleans: true, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options)
}

/// The name among `known` that `typed` comes nearest to, where one comes near.
fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let scored = known.iter().map(|name| (strsim::normalized_damerau_levenshtein(typed, name), *name));
    scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.5).map(|(_, name)| name)
}

fn wrong(message: String) -> Error {
    Error::new(Exit::Config, message)
}

/// The path and text of the file `name`: next to the file `from` that extends it, or a shipped one. What a shipped config
/// extends is shipped.
fn find(name: &str, from: Option<&str>) -> Option<Result<(String, String)>> {
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
fn not_found(name: &str, from: Option<&str>) -> Error {
    let shipped: Vec<&str> = BUILT_IN.iter().map(|(name, _)| *name).collect();
    let by = from.map(|from| format!(", which {from} extends")).unwrap_or_default();
    if let Some((table, row)) = table::moved(name, |text| parse(text).ok()) {
        return wrong(format!("{name}{by}: this config is now a row of {table:?}: {row}"));
    }
    let hint = if let Some(near) = nearest(name, &shipped) {
        format!("did you mean {near}?")
    } else {
        let families: BTreeSet<&str> = shipped.iter().filter_map(|name| name.split('_').next()).collect();
        let families: Vec<String> = families.iter().map(|family| format!("{family}_*.yaml")).collect();
        format!("those are {}, see docs/recipes.md", families.join(", "))
    };
    wrong(format!("{name}{by}: no such file, nor a shipped config; {hint}"))
}

/// A parser's complaint as one line: file, line, key, what, the nearest valid name.
fn explain(file: &str, text: &str, error: &serde_saphyr::Error) -> Error {
    let error = error.without_snippet();
    let line = error.location().map_or(1, |location| location.line() as usize);
    let key = text.lines().nth(line.saturating_sub(1)).and_then(|line| line.split_once(':'));
    let key = key.map_or("", |(key, _)| key.trim().trim_start_matches("- "));
    let what = plainly(&error.to_string());
    let what = if what.starts_with("unknown") || key.is_empty() { what } else { format!("{key}: {what}") };
    wrong(format!("{file}:{line}: {what}"))
}

/// serde's words on one line, with the nearest name instead of a list, and without a place that is told already.
fn plainly(message: &str) -> String {
    let message = message.replace('\n', " ");
    let message = message.split(" at line ").next().unwrap_or_default();
    let (Some((unknown, expected)), Some(typed)) =
        (message.split_once(", expected "), message.split('`').nth(1))
    else {
        return message.to_owned();
    };
    if !unknown.starts_with("unknown") {
        return message.to_owned();
    }
    let names = expected.trim_start_matches("one of ").replace('`', "");
    let known: Vec<&str> = names.split([',', ' ']).filter(|name| !name.is_empty() && *name != "or").collect();
    match nearest(typed, &known) {
        Some(near) => format!("{unknown}; did you mean `{near}`?"),
        None => format!("{unknown}; known: {}", known.join(", ")),
    }
}

/// Sets one `a.b=value`; the value is read as YAML.
fn apply(tree: &mut Value, setting: &str) -> Result<()> {
    let Some((path, text)) = setting.split_once('=') else {
        return Err(wrong(format!("--set {setting}: expected key=value, such as --set optim.batch_size=64")));
    };
    let mut place = tree;
    for key in path.split('.') {
        let index = key.parse::<usize>();
        let next = match (&mut *place, index) {
            (Value::Object(map), _) => {
                let known: Vec<String> = map.keys().cloned().collect();
                map.get_mut(key).ok_or(known)
            }
            (Value::Array(items), Ok(index)) => {
                let known = (0..items.len()).map(|i| i.to_string()).collect();
                items.get_mut(index).ok_or(known)
            }
            _ => Err(Vec::new()),
        };
        place = next.map_err(|known| {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint = match nearest(key, &names) {
                Some(near) => format!("did you mean {near:?}?"),
                None => format!("known here: {}", names.join(", ")),
            };
            wrong(format!("--set {setting}: unknown key {key:?}; {hint}"))
        })?;
    }
    let value = match place {
        Value::String(_) if text.is_empty() => Value::String(String::new()),
        _ => {
            parse(text).map_err(|error| wrong(format!("--set {setting}: {}", plainly(&error.to_string()))))?
        }
    };
    merge(place, value);
    Ok(())
}

/// The line (from 1) on which the file says `key` (such as `stages.0.lr`), or the nearest section above it.
fn line_of(text: &str, key: &str) -> usize {
    let mut found = 1;
    let mut from = 0;
    let lines: Vec<&str> = text.lines().collect();
    for part in key.split('.') {
        let items = part.parse::<usize>().ok();
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

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::with_suffix(".yaml").unwrap();
        std::fs::write(file.path(), text).unwrap();
        let name = file.path().to_str().unwrap().to_owned();
        (file, name)
    }

    const FINE: &str =
        "data:\n  train: a\n  val: b\ncost:\n  gamma: 0.02\nstages:\n  - epochs: 2\n    lr: 0.1\n";

    fn complaint(text: &str, set: &[&str]) -> String {
        let (_file, name) = file(text);
        let set: Vec<String> = set.iter().map(|s| s.to_string()).collect();
        let error = load(&name, &set).unwrap_err();
        assert_eq!(error.exit, Exit::Config);
        assert!(!error.message.contains('\n'), "one line: {}", error.message);
        error.message.replace(&name, "FILE")
    }

    #[test]
    fn values_come_from_the_file_the_defaults_and_set() {
        let (_file, name) = file(FINE);
        let set =
            ["consistency.weight=0.5", "stages.0.schedule=cosine", "run.dir=/tmp/a b"].map(String::from);
        let config = load(&name, &set).unwrap();
        assert_eq!((config.cost.gamma, config.consistency.weight, config.diversity.weight), (0.02, 0.5, 0.2));
        assert_eq!(config.stages[0].schedule, crate::Schedule::Cosine);
        assert_eq!(config.run.dir.as_deref(), Some("/tmp/a b"));
        assert_eq!(config.optim.momentum, 0.9);
    }

    #[test]
    fn a_wrong_key_is_named_with_its_line_and_its_neighbour() {
        let text = FINE.replace("gamma", "gama");
        assert_eq!(complaint(&text, &[]), "FILE:5: unknown field `gama`; did you mean `gamma`?");
        let nested = FINE.replace("    lr: 0.1", "    lr: 0.1\n    schedul: cosine");
        assert_eq!(complaint(&nested, &[]), "FILE:9: unknown field `schedul`; did you mean `schedule`?");
        assert!(complaint(FINE, &["consistency.weigth=1"]).contains("did you mean \"weight\"?"));
        assert!(complaint(FINE, &["cost"]).contains("expected key=value"));
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line() {
        let said = complaint(&FINE.replace("0.02", "much"), &[]);
        assert!(said.starts_with("FILE:5: gamma: "), "{said}");
        let said = complaint(FINE, &["cost.gamma=much"]);
        assert!(said.starts_with("--set cost.gamma=much: "), "{said}");
        let said = complaint(FINE, &["cost.gamma=1", "cost={gama: 2}"]);
        assert_eq!(said, "--set cost={gama: 2}: unknown field `gama`; did you mean `gamma`?");
        let said = complaint(FINE, &["stages.0.schedule=cosin"]);
        assert_eq!(said, "--set stages.0.schedule=cosin: unknown variant `cosin`; did you mean `cosine`?");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_line() {
        assert!(
            complaint(&FINE.replace("0.02", "-1"), &[]).starts_with("FILE:5: cost.gamma is out of range")
        );
        assert!(complaint(&FINE.replace("0.02", ".nan"), &[]).starts_with("FILE:5: gamma: non-finite"));
        assert!(
            complaint(&FINE.replace("lr: 0.1", "lr: 0"), &[]).starts_with("FILE:8: stages.0.lr is out of")
        );
        let said = complaint(FINE, &["data.augment={color_jitter: {hue: 2}}"]);
        let wanted = "data.augment is refused: color_jitter.hue must be 0 to 0.5, not 2";
        assert_eq!(said, format!("--set data.augment={{color_jitter: {{hue: 2}}}}: {wanted}"));
        let said = complaint(FINE, &["model.arch=resnet21"]);
        assert_eq!(said, "--set model.arch=resnet21: unknown variant `resnet21`; did you mean `resnet20`?");
        assert!(complaint("data: {train: a, val: b}\n", &[]).contains("stages is out of range"));
    }

    #[test]
    fn a_name_that_is_not_there_brings_the_nearest_shipped_one() {
        let error = load("fashion_quik.yaml", &[]).unwrap_err();
        assert!(error.message.contains("did you mean fashion_quick.yaml?"), "{}", error.message);
    }

    #[test]
    fn a_config_extends_another_key_by_key() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        write("base.yaml", &format!("{FINE}  - epochs: 1\n    lr: 0.3\nrun: {{seed: 4}}\n"));
        write("mid/mid.yaml", "extends: ../base.yaml\ndata: {views: 3, crop: {pad: {pixels: 2}}}\n");
        let crop = "data: {crop: {random_resized: {scale: [0.5, 1.0], ratio: [1.0, 1.0]}}}";
        let top = write("mid/top.yaml", &format!("extends: mid.yaml\ncost: {{unit: gmacs}}\n{crop}\n"));
        let config = load(&top, &["cost={gamma: 3}".to_owned()]).unwrap();
        assert_eq!((config.data.views, config.data.train.as_str(), config.run.seed), (3, "a", 4));
        assert_eq!((config.cost.gamma, config.cost.unit), (3.0, crate::CostUnit::Gmacs));
        assert!(matches!(config.data.crop, codinet_dataloader::Crop::RandomResized { .. }));
        assert_eq!((config.stages.len(), config.extends), (2, None));

        // A rule that spans two keys is judged by what holds in the end; the rest of a section comes from the base.
        write("budget.yaml", &format!("{FINE}optim: {{batch_size: 96, accumulate: 4}}\n"));
        let text = "extends: budget.yaml\noptim: {accumulate: 3}\ndata: {crop: {random_resized: {scale: [0.2, 1.0]}}}\n";
        let said = load(&write("part.yaml", text), &[]).unwrap_err().message;
        assert!(said.contains("missing field `ratio`"), "{said}");
        let text = "extends: budget.yaml\noptim: {accumulate: 3}\nstages: [{name: 1}]\n";
        let config = load(&write("three.yaml", text), &[]).unwrap();
        assert_eq!((config.optim.accumulate, config.stages[0].name.as_str()), (3, "1"));
        let said =
            load(&write("five.yaml", "extends: budget.yaml\noptim:\n  accumulate: 5\n"), &[]).unwrap_err();
        assert!(said.message.contains("five.yaml:3: optim.accumulate is out of range"), "{}", said.message);
        assert!(load(&write("empty.yaml", "# nothing\n"), &[]).unwrap_err().message.contains("data.train"));

        let lost = write("lost.yaml", "extends: bass.yaml\n");
        let said = load(&lost, &[]).unwrap_err().message;
        assert!(said.starts_with(&format!("bass.yaml, which {lost} extends: no such file")), "{said}");
        write("mid/mid.yaml", "extends: top.yaml\n");
        assert!(load(&top, &[]).unwrap_err().message.contains("goes in a circle"));
        write("mid/mid.yaml", "extends: ../base.yaml\ndata: {views: 0}\n");
        let said = load(&top, &[]).unwrap_err().message;
        assert!(said.contains("mid.yaml:2: data.views is out of range"), "{said}");
    }

    #[test]
    fn a_row_of_a_table_is_a_config() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        write("base.yaml", FINE);
        let rows = "  - {name: low, set: {cost: {gamma: 0.001}}}\n  - {name: same}\n";
        let head = "table: a table\nextends: base.yaml\nrows:\n";
        let table = write("table.yaml", &format!("{head}{rows}"));
        assert_eq!(load(&format!("{table}:low"), &[]).unwrap().cost.gamma, 0.001);
        assert_eq!(load(&format!("{table}:same"), &["cost.gamma=3".into()]).unwrap().cost.gamma, 3.0);
        let top = write("top.yaml", "extends: table.yaml:low\ndata: {views: 3}\n");
        let config = load(&top, &[]).unwrap();
        assert_eq!((config.cost.gamma, config.data.views), (0.001, 3));

        let message = |name: &str| load(name, &[]).unwrap_err().message.replace(&table, "TABLE");
        assert_eq!(
            message(&table),
            "TABLE: a table of configs; name a row, such as TABLE:low; rows: low, same"
        );
        assert_eq!(message(&format!("{table}:lo")), "TABLE: has no row \"lo\"; rows: low, same");
        assert!(message(&format!("{top}:low")).ends_with("top.yaml:low: the file has no rows"));
        let high = "  - name: high\n    set:\n      cost:\n";
        write("table.yaml", &format!("{head}{rows}{high}        gamma: -1\n"));
        assert!(message(&format!("{table}:high")).starts_with("TABLE:9: cost.gamma is out of range"));
        assert!(load(&format!("{table}:low"), &[]).is_ok());
        write("table.yaml", &format!("{head}{rows}{high}        gama: 1\n"));
        assert_eq!(message(&format!("{table}:low")), "TABLE:9: unknown field `gama`; did you mean `gamma`?");
    }

    #[test]
    fn configs_of_0_1_0_are_files_or_name_their_rows() {
        let names = include_str!("../../tests/docs/configs_0_1_0.txt");
        let mut rows = 0;
        for name in names.lines() {
            if built_in(name).is_some() {
                load(name, &[]).unwrap();
                continue;
            }
            let message = load(name, &[]).unwrap_err().message;
            assert!(message.contains("this config is now a row of "), "{message}");
            let row = message.rsplit(' ').next().unwrap();
            load(row, &[]).unwrap_or_else(|error| panic!("{name}: {row}: {error}"));
            rows += 1;
        }
        assert_eq!((names.lines().count(), rows), (51, 40));
        let message = |name: &str| load(name, &[]).unwrap_err().message;
        assert!(message("cifar10_r110_vanilla.yaml").ends_with(" cifar10_table3.yaml:vanilla"));
        assert!(message("cifar10_r32_static.yaml").ends_with(" cifar10_table5.yaml:r32_static"));
    }
}
