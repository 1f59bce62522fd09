//! Reading a config: the file (or a shipped one), `--set`, and a line for each thing that is wrong.

use crate::exit::Result;
use crate::set::{apply, merge};
use crate::source::{as_tree, explain, find, not_found, not_yaml, parse_table, read, wrong};
use crate::table::Table;
use crate::types::{Extent, mismatch};
use crate::yaml::parse;
use crate::{BUILT_IN, Config};
use serde_json::Value;

/// Reads `name` (a path, or the bare name of a shipped config) over what it extends, applies `--set` overrides in
/// order, and checks every value. An error has a line for each value that is refused.
pub fn load(name: &str, overrides: &[String]) -> Result<Config> {
    let mut tree = with_bases(name, None, &mut Vec::new())?;
    for setting in overrides {
        apply(&mut tree, setting)?;
        if let Some(found) = mismatch("", &tree, Extent::Whole) {
            return Err(wrong(format!("--set {setting}: {} {}", found.key, found.what)));
        }
        tree = as_tree(&from_tree(tree));
    }
    let mut config = from_tree(tree);
    refuse(config.refused(), |key| place_of(name, overrides, key).unwrap_or_else(|| name.to_owned()))?;
    config.expand_home();
    Ok(config)
}

/// Where the config `name` sets `key`: `--set …`, or the file and line; none if the key has its default.
pub fn place_of(name: &str, overrides: &[String], key: &str) -> Option<String> {
    // The override that set the key, or the section it is in.
    let sets_key = |setting: &&String| {
        let rest = setting.split_once('=').and_then(|(path, _)| key.strip_prefix(path));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if let Some(setting) = overrides.iter().rfind(sets_key) {
        return Some(format!("--set {setting}"));
    }
    let mut next = Some((name.to_owned(), None::<String>));
    for _ in 0..MAX_BASES {
        let (name, from) = next?;
        let source = read(&name, from.as_deref()).ok()?;
        if source.sets(key) {
            return Some(source.place(key));
        }
        next = source.extends.map(|base| (base, Some(source.file)));
    }
    None
}

/// The error for refused values, each a key and why, with a line for each; `place` is where a key is set.
fn refuse(refused: Vec<(String, String)>, place: impl Fn(&str) -> String) -> Result<()> {
    let lines: Vec<String> =
        refused.into_iter().map(|(key, what)| format!("{}: {key} {what}", place(&key))).collect();
    if lines.is_empty() { Ok(()) } else { Err(wrong(lines.join("\n"))) }
}

fn from_tree(tree: Value) -> Config {
    serde_json::from_value(tree).expect("a tree of the schema is a config")
}

/// The most configs that extend each other.
const MAX_BASES: usize = 16;

/// The values of `name` over those that it extends, over the defaults: every key of a config. `from` is the file that extends
/// it, `chain` the names that led here.
fn with_bases(name: &str, from: Option<&str>, chain: &mut Vec<String>) -> Result<Value> {
    let source = read(name, from)?;
    let name = &source.name;
    if chain.contains(name) || chain.len() > MAX_BASES {
        return Err(wrong(format!("{name}: extends goes in a circle: {} → {name}", chain.join(" → "))));
    }
    chain.push(name.clone());
    let mut tree = match &source.extends {
        None => as_tree(&Config::default()),
        Some(base) => with_bases(base, Some(&source.file), chain)?,
    };
    merge(&mut tree, source.own.clone());
    if let Value::Object(map) = &mut tree {
        map.remove("extends");
    }
    if let Some(found) = mismatch("", &tree, Extent::Whole) {
        return Err(wrong(explain(&source.place(&found.key), &found)));
    }
    let merged = from_tree(tree);
    let own = merged.refused().into_iter().filter(|(key, _)| source.sets(key)).collect();
    refuse(own, |key| source.place(key))?;
    Ok(as_tree(&merged))
}

/// A table, from a file or a shipped one.
///
/// # Errors
/// A file that is not there, or no table.
pub fn load_table(name: &str) -> Result<Table<Config>> {
    let (file, text) = find(name, None).ok_or_else(|| not_found(name, None))??;
    let tree = parse::<Value>(&text).map_err(|error| not_yaml(&file, &text, &error))?;
    if tree.get("rows").is_none() {
        return Err(wrong(format!("{file}: not a table of configs: it has no rows")));
    }
    parse_table(&file, &text)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::built_in;
    use crate::exit::Exit;

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
        assert_eq!(complaint(&text, &[]), "FILE:5: unknown key cost.gama; did you mean cost.gamma?");
        let nested = FINE.replace("    lr: 0.1", "    lr: 0.1\n    schedul: cosine");
        assert_eq!(
            complaint(&nested, &[]),
            "FILE:9: unknown key stages.0.schedul; did you mean stages.0.schedule?"
        );
        assert!(complaint(FINE, &["consistency.weigth=1"]).contains("did you mean consistency.weight?"));
        assert!(complaint(FINE, &["cost"]).contains("expected key=value"));
    }

    #[test]
    fn a_wrong_type_is_named_with_its_line() {
        let said = complaint(&FINE.replace("0.02", "much"), &[]);
        assert!(said == "FILE:5: cost.gamma is \"much\"; it takes a number", "{said}");
        let said = complaint(FINE, &["cost.gamma=much"]);
        assert!(said == "--set cost.gamma=much: is \"much\"; it takes a number", "{said}");
        let said = complaint(FINE, &["model.router.temperature=hot"]);
        let takes = "it takes a number, {exponential: …} or {linear: …}";
        assert_eq!(said, format!("--set model.router.temperature=hot: is \"hot\"; {takes}"));
        let said = complaint(FINE, &["model.router.temperature={linear: {from: 5}}"]);
        assert!(said.ends_with("model.router.temperature.linear lacks the key to"), "{said}");
        let said = complaint(FINE, &["cost.gamma=1", "cost={gama: 2}"]);
        assert_eq!(said, "--set cost={gama: 2}: unknown key cost.gama; did you mean cost.gamma?");
        let said = complaint(FINE, &["stages.0.schedule=cosin"]);
        assert_eq!(said, "--set stages.0.schedule=cosin: is \"cosin\"; did you mean cosine?");
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_line() {
        assert!(
            complaint(&FINE.replace("0.02", "-1"), &[]).starts_with("FILE:5: cost.gamma is out of range")
        );
        assert!(
            complaint(&FINE.replace("0.02", ".nan"), &[])
                .starts_with("FILE:5: gamma: the number is not finite")
        );
        assert!(
            complaint(&FINE.replace("lr: 0.1", "lr: 0"), &[]).starts_with("FILE:8: stages.0.lr is out of")
        );
        let said = complaint(FINE, &["data.augment={color_jitter: {hue: 2}}"]);
        let wanted = "data.augment is refused: color_jitter.hue must be 0 to 0.5, not 2";
        assert_eq!(said, format!("--set data.augment={{color_jitter: {{hue: 2}}}}: {wanted}"));
        let said = complaint(FINE, &["model.arch=resnet21"]);
        assert_eq!(said, "--set model.arch=resnet21: is \"resnet21\"; did you mean resnet20?");
        assert!(complaint("data: {train: a, val: b}\n", &[]).contains("stages is out of range"));
    }

    #[test]
    fn a_key_without_its_section_names_the_whole_key() {
        let two = format!("{FINE}  - epochs: 1\n    lr: 0.3\n");
        for (set, meant) in [
            ("lr=0.1", "stages.0.lr or stages.1.lr"),
            ("optim.lr=0.1", "stages.0.lr or stages.1.lr"),
            ("stages.lr=0.1", "stages.0.lr or stages.1.lr"),
            ("batch_size=64", "optim.batch_size"),
            ("data.batch_size=64", "optim.batch_size"),
            ("batchsize=64", "optim.batch_size"),
        ] {
            let said = complaint(&two, &[set]);
            let key = set.split('=').next().unwrap();
            assert_eq!(said, format!("--set {set}: unknown key {key}; did you mean {meant}?"));
        }
        let said = complaint(&FINE.replace("  gamma", "  batch_size"), &[]);
        assert_eq!(said, "FILE:5: unknown key cost.batch_size; did you mean optim.batch_size?");
        let said = complaint(&two, &["stages.2.lr=1"]);
        assert_eq!(said, "--set stages.2.lr=1: stages has 2 entries, from 0 on");
        let said = complaint(&two, &["data.cache.folder=x"]);
        assert!(
            said.ends_with("data.cache is null; set all of it: --set 'data.cache={folder: …}'"),
            "{said}"
        );
    }

    #[test]
    fn the_type_of_a_key_decides_how_set_reads_its_text() {
        let (_file, name) = file(FINE);
        let value = |set: &str| {
            let key = set.split('=').next().unwrap().replace('.', "/");
            as_tree(&load(&name, &[set.to_owned()]).unwrap()).pointer(&format!("/{key}")).unwrap().clone()
        };
        for (set, text) in [
            ("run.dir=1234567", "1234567"),
            ("run.dir=runs/a #1", "runs/a #1"),
            ("run.dir=true", "true"),
            ("run.dir=\"a b\"", "a b"),
            ("data.train=*.tar", "*.tar"),
            ("data.train={000000..000003}.tar", "{000000..000003}.tar"),
            ("data.train=a: b", "a: b"),
            ("data.val=a: b", "a: b"),
            ("stages.0.name=1", "1"),
            ("model.arch=resnet32", "resnet32"),
        ] {
            assert_eq!(value(set), Value::String(text.into()), "{set}");
        }
        assert_eq!(
            [value("run.dir=null"), value("run.dir="), value("model.init_from=~")],
            [(); 3].map(|()| Value::Null)
        );
        let sets =
            value("data.train={sets: [{path: a, weight: 2}, {path: b, weight: 1}], balance_classes: true}");
        assert_eq!((&sets["sets"][1]["path"], &sets["balance_classes"]), (&"b".into(), &true.into()));
        assert_eq!((&sets["sets"][0]["weight"], &sets["epoch_samples"]), (&2.0.into(), &Value::Null));
        assert_eq!([value("run.seed=7"), value("optim.nesterov=true")], [Value::from(7), Value::from(true)]);
    }

    #[test]
    fn several_training_sets_are_a_section_of_data_train() {
        let several = FINE.replace("train: a", "train: {sets: [{path: ~/x}, {path: y}], epoch_samples: 50}");
        let (_file, name) = file(&several);
        let train = load(&name, &[]).unwrap().data.train;
        let home = std::env::home_dir().unwrap().join("x").display().to_string();
        assert_eq!((train.paths(), train.weights()), (vec![home.as_str(), "y"], None));
        assert_eq!((train.epoch_samples(), train.balances_classes()), (Some(50), false));
        let set = ["data.train.balance_classes=true".to_owned(), "data.train.sets.1.path=z".to_owned()];
        let train = load(&name, &set).unwrap().data.train;
        assert_eq!((train.paths()[1], train.balances_classes()), ("z", true));
        assert_eq!(load(&name, &["data.train=a".into()]).unwrap().data.train, "a".into());
        for (train, complaint_has) in [
            (
                "{sets: [{path: a, wieght: 2}]}",
                "data.train.sets.0.wieght; did you mean data.train.sets.0.weight?",
            ),
            ("{sets: a}", "data.train.sets is \"a\"; it takes a list"),
            ("{balance_classes: true}", "data.train lacks the key sets"),
            (
                "{sets: [{path: a, weight: 2}, {path: b}]}",
                "data.train is out of range; it takes a weight for each",
            ),
            ("{sets: [{path: 'ftp://a'}]}", "data.train.sets.0.path is ftp://a"),
        ] {
            let said = complaint(&FINE.replace("train: a", &format!("train: {train}")), &[]);
            assert!(said.contains(complaint_has), "{said}");
        }
        for (set, complaint_has) in [
            (
                "data.lanes={count: 1, window: 2}",
                "data.lanes is out of range; it takes null, if data.train is a section",
            ),
            ("data.train_samples=8", "data.train_samples is out of range; it takes null, if"),
        ] {
            let said = complaint(&several, &[set]);
            assert!(said.contains(complaint_has), "{said}");
        }
        let said = complaint(FINE, &["data.train.balance_classes=true"]);
        assert!(said.contains("data.train is \"a\"; set all of it"), "{said}");
    }

    #[test]
    fn every_refused_value_has_a_line_of_its_own() {
        let (_file, name) = file(&FINE.replace("0.02", "-1").replace("epochs: 2", "epochs: 0"));
        let error = load(&name, &[]).unwrap_err();
        let lines: Vec<String> = error.message.lines().map(|line| line.replace(&name, "FILE")).collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("FILE:5: cost.gamma is out of range"), "{lines:?}");
        assert!(lines[1].starts_with("FILE:7: stages.0.epochs is out of range"), "{lines:?}");
    }

    #[test]
    fn the_place_of_a_key_is_the_setting_or_the_line_that_wins() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let base = write("base.yaml", FINE);
        let top = write("top.yaml", "extends: base.yaml\ncost:\n  gamma: 3\n");
        let table = write(
            "table.yaml",
            "table: t\nextends: base.yaml\nrows:\n  - name: a\n    set:\n      run:\n        seed: 3\n",
        );
        let sets = ["cost={gamma: 2}".to_owned()];
        assert_eq!(place_of(&top, &sets, "cost.gamma").as_deref(), Some("--set cost={gamma: 2}"));
        assert_eq!(place_of(&top, &[], "cost.gamma"), Some(format!("{top}:3")));
        assert_eq!(place_of(&top, &[], "data.val"), Some(format!("{base}:3")));
        assert_eq!(place_of(&top, &[], "run.dir"), None);
        assert_eq!(place_of(&format!("{table}:a"), &[], "run.seed"), Some(format!("{table}:7")));
        let shipped = place_of("fashion_quick.yaml", &[], "data.train").unwrap();
        assert!(shipped.starts_with("fashion_r20.yaml:"), "{shipped}");
    }

    #[test]
    fn a_section_whose_keys_are_commented_out_is_empty() {
        let text = format!(
            "{FINE}optim:\n#  batch_size: 64\nmodel:\n  router:\n    # kind: rnn\nrun: {{dir: 007}}\n"
        );
        let (_file, name) = file(&text);
        let config = load(&name, &[]).unwrap();
        assert_eq!((config.optim, config.model), Default::default());
        assert_eq!(config.run.dir.as_deref(), Some("007"));
        // It does not reset what the base has set.
        let (top, top_name) = file("optim:\n");
        std::fs::write(top.path(), format!("extends: {name}\ncost:\ndata:\n  # train: x\n")).unwrap();
        let config = load(&top_name, &[]).unwrap();
        assert_eq!((config.cost.gamma, config.data.train.to_string().as_str()), (0.02, "a"));
        let (_file, name) = file("stages:\n");
        assert!(load(&name, &[]).unwrap_err().message.contains("a list of at least one stage"));
    }

    /// Words of Rust, of its libraries and of a parser, which mean nothing to who writes a config.
    const FOREIGN: [&str; 40] = [
        "usize",
        "u32",
        "u64",
        "i32",
        "i64",
        "f32",
        "f64",
        "isize",
        "struct",
        "enum",
        "variant",
        "Option",
        "Vec",
        "Some(",
        "None",
        "serde",
        "saphyr",
        "Deserialize",
        "deserialize",
        "DuplicateKeyPolicy",
        "Options",
        "from_str",
        "visitor",
        "sequence",
        "mapping",
        "scalar",
        "invalid type",
        "invalid value",
        "expected a",
        "expected one of",
        "missing field",
        "unknown field",
        "document start",
        "anchor",
        "alias",
        "flow ",
        "tuple",
        "unit ",
        "char ",
        "str ",
    ];

    #[test]
    fn no_message_has_a_word_of_rust_or_of_a_library() {
        let mut said = Vec::new();
        for (wrong, line) in [
            ("run: {device: cpu}\nrun: {threads: 1}\n", 10),
            ("---\nrun: {threads: 1}\n", 9),
            ("optim: {batch_size: 32.0}\n", 9),
            ("optim:\n  batch_size: many\n", 10),
            ("optim:\n  batch_size: -3\n", 10),
            ("optim:\n  batch_size: 99999999999999999999999\n", 10),
            ("optim:\n  nesterov: yes\n", 10),
            ("optim: 3\n", 9),
            ("optim: [3]\n", 9),
            ("run: {dir: [a]}\n", 9),
            ("data.x: 3\n", 9),
            ("3: 4\n", 9),
            ("model: {arch: 7}\n", 9),
            ("model: {router: {hidden: 3}}\n", 9),
            ("model: {router: {hidden: {ratio: 1, units: 2}}}\n", 9),
            ("optim: {clip_norm: {a: 1}}\n", 9),
            ("optim: {batch_size: 3\n", 9),
            ("optim:\n\tbatch_size: 3\n", 10),
            ("optim: *x\n", 9),
            ("optim: \"x\n", 9),
            ("extends: [a]\n", 9),
            ("  - epochs: many\n", 9),
            ("  - [epochs]\n", 9),
            ("  - epochs: 1\n    schedule: {multi_step: {milestones: 3, factor: 1}}\n", 10),
            ("  - epochs: 1\n    schedule: {multi_step: {factor: 1}}\n", 10),
            ("  - epochs: 1\n    schedule: {cosine: {}}\n", 10),
            ("  - epochs: 1\n    alpha: .nan\n", 10),
        ] {
            let message = complaint(&format!("{FINE}{wrong}"), &[]);
            let place = message.strip_prefix("FILE:").unwrap_or_else(|| panic!("{wrong:?}: {message}"));
            let named: usize = place.split(':').next().unwrap().parse().unwrap();
            // A bracket or quote that stays open is noticed where the file ends.
            assert!(named == line || named > line && message.contains("closed"), "{wrong:?}: {message}");
            said.push(message);
        }
        for text in [
            "3\n",
            "[a]\n",
            "text\n",
            "a: b: c\n",
            "table: a\nrows: 3\n",
            "table: a\nextends: b\nrows: [{nam: 3}]\n",
        ] {
            said.push(complaint(text, &[]));
        }
        for set in [
            "optim.batch_size=many",
            "optim.batch_size=1e3",
            "optim.batch_size=32.0",
            "optim.batch_size=",
            "optim.batch_size=-1",
            "optim.nesterov=yes",
            "optim.clip_norm=big",
            "optim=3",
            "optim=[1]",
            "optim={batch_size: x}",
            "data.mean=[a]",
            "data.mean=[0.5",
            "data.mean={a: 1}",
            "data.crop={pad: {pixel: 3}}",
            "data.crop={pad: 3}",
            "data.crop={random_resized: {scale: [1], ratio: [1, 1]}}",
            "data.crop=pad",
            "data.lanes={count: 3}",
            "data.cache=x",
            "model.router.hidden={ratio: a}",
            "model.router.temperature={exponential: 3}",
            "model.router.temperature={linear: {from: 5, to: 1}, exponential: {from: 5, to: 1}}",
            "paths.values=logits",
            "stages=3",
            "stages=[3]",
            "stages.0=3",
            "stages.x.lr=3",
            "stages.0.schedule={multi_step: {milestones: 3, factor: 1}}",
            "stages.0.schedule={multi_step: {milestones: [1]}}",
            "stages.0.schedule.factor=1",
            "cost",
            "=3",
            ".=3",
            "run.dir.x=3",
        ] {
            said.push(complaint(FINE, &[set]));
        }
        for message in said {
            for word in FOREIGN {
                assert!(!message.contains(word), "{word:?} in {message}");
            }
        }
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
        assert_eq!((config.data.views, config.data.train.to_string().as_str(), config.run.seed), (3, "a", 4));
        assert_eq!((config.cost.gamma, config.cost.unit), (3.0, crate::CostUnit::Gmacs));
        assert!(matches!(config.data.crop, codinet_dataloader::Crop::RandomResized { .. }));
        assert_eq!((config.stages.len(), config.extends), (2, None));

        // A rule that spans two keys is judged by what holds in the end; the rest of a section comes from the base.
        write("budget.yaml", &format!("{FINE}optim: {{batch_size: 96, accumulate: 4}}\n"));
        let text = "extends: budget.yaml\noptim: {accumulate: 3}\ndata: {crop: {random_resized: {scale: [0.2, 1.0]}}}\n";
        let said = load(&write("part.yaml", text), &[]).unwrap_err().message;
        assert!(said.contains("part.yaml:3: data.crop.random_resized lacks the key ratio"), "{said}");
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
        assert_eq!(
            message(&format!("{table}:low")),
            "TABLE:9: unknown key cost.gama; did you mean cost.gamma?"
        );
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
