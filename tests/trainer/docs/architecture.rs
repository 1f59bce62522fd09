//! The code against docs/architecture.md: who knows whom, and that the places it names are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn page() -> String {
    fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).unwrap()
}

/// The indented lines that follow `In `folder`` in the page: modules, those of a line by name.
fn layers(folder: &str) -> Vec<Vec<String>> {
    let page = page();
    let (_, list) = page.split_once(&format!("In `{folder}/`")).expect("the page has the list");
    let lines = list.lines().skip_while(|line| !line.starts_with("    "));
    let lines = lines.take_while(|line| line.starts_with("    "));
    lines.map(|line| line.split_whitespace().map(Into::into).collect()).collect()
}

/// Every file below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Those of them that are Rust.
fn sources(folder: &Path) -> impl Iterator<Item = PathBuf> {
    files(folder).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs"))
}

/// The modules of this crate that `code` uses, but for its tests and comments.
fn used(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let of = |after: &str| match after.strip_prefix('{').and_then(|list| list.split_once("};")) {
        None => vec![name(after)],
        Some((list, _)) => {
            let mut depth = 0;
            let flat = list.chars().filter(|c| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth == 0 && !c.is_whitespace()
            });
            flat.collect::<String>().split(',').map(name).filter(|name| !name.is_empty()).collect()
        }
    };
    code.split("crate::").skip(1).flat_map(of).collect()
}

/// Modules that are built for tests alone.
fn of_tests(root: &Path) -> BTreeSet<String> {
    let code: String = sources(root).map(|path| fs::read_to_string(path).unwrap()).collect();
    let named = code.split("#[cfg(test)]\nmod ").skip(1).filter_map(|after| after.split_once(';'));
    named.map(|(name, _)| name.to_owned()).filter(|name| !name.contains(char::is_whitespace)).collect()
}

#[test]
fn modules_use_those_above_them() {
    for folder in ["dataloader/src", "trainer/src", "trainer/tools/src", "launcher/src", "configs/src"] {
        let (root, layers) = (Path::new(ROOT).join(folder), layers(folder));
        let line = |module: &str| layers.iter().position(|line| line.iter().any(|known| known == module));
        let mut met = BTreeSet::new();
        let tests = of_tests(&root);
        for path in sources(&root) {
            if path.with_extension("").iter().any(|part| tests.contains(part.to_str().unwrap())) {
                continue;
            }
            let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
            let module = Path::new(&first).file_stem().unwrap().to_string_lossy().into_owned();
            if ["lib", "main", "bin"].contains(&module.as_str()) {
                continue;
            }
            let own = line(&module).unwrap_or_else(|| panic!("{folder}: {module} is not in the page's list"));
            for other in used(&fs::read_to_string(&path).unwrap()).iter().filter(|other| **other != module) {
                let Some(theirs) = line(other) else { continue }; // a function of the crate's root
                assert!(theirs < own, "{}: {module} may not use {other}", path.display());
            }
            met.insert(module);
        }
        let listed: BTreeSet<String> = layers.into_iter().flatten().collect();
        assert_eq!(met, listed, "{folder}");
    }
}

#[test]
fn crates_know_those_below_them() {
    let dependencies = |name: &str| {
        let manifest = fs::read_to_string(Path::new(ROOT).join(name).join("Cargo.toml")).unwrap();
        let (_, rest) = manifest.split_once("[dependencies]").unwrap();
        let own = rest.split("\n[").next().unwrap().lines().filter(|line| line.starts_with("codinet-"));
        own.map(|line| line.split(' ').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(dependencies("trainer"), ["codinet-config", "codinet-dataloader"]);
    assert_eq!(dependencies("trainer/tools"), ["codinet-dataloader", "codinet-trainer"]);
    assert_eq!(dependencies("configs"), ["codinet-dataloader"]);
    assert_eq!(dependencies("dataloader/cli"), ["codinet-config", "codinet-dataloader"]);
    assert_eq!(dependencies("launcher"), ["codinet-config"]);
    assert!(dependencies("dataloader").is_empty());
    for path in sources(&Path::new(ROOT).join("dataloader/src")) {
        let code = fs::read_to_string(&path).unwrap();
        assert!(!["tch::", "mpi::"].iter().any(|word| code.contains(word)), "{}", path.display());
    }
}

/// Files and folders that the page names, wherever they lie.
#[test]
fn what_the_page_names_is_there() {
    let page = page();
    let code = page.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = code
        .filter(|name| !name.contains([' ', '<']))
        .filter(|name| {
            name.ends_with('/') || [".rs", ".cpp", ".c", ".json"].iter().any(|end| name.ends_with(end))
        })
        .collect();
    let all: Vec<String> = ["trainer", "dataloader", "launcher", "configs", "tests"]
        .iter()
        .flat_map(|folder| files(&Path::new(ROOT).join(folder)))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let there = |name: &str| {
        let below = format!("/{name}");
        all.iter().any(|path| match name.ends_with('/') {
            true => path.contains(&below),
            false => path.ends_with(&below),
        })
    };
    let missing: Vec<&&str> = named.iter().filter(|name| !there(name)).collect();
    assert!(missing.is_empty() && named.len() > 50, "{missing:?} of {}", named.len());
}
