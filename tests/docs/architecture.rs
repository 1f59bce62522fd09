//! docs/architecture.md against the code: module dependencies, and the files that the page names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

fn page() -> String {
    fs::read_to_string(Path::new(ROOT).join("docs/architecture.md")).unwrap()
}

/// The layers of modules that the page lists for a folder, the lowest first: the indented lines after "In `folder/`".
fn layers(folder: &str) -> Vec<Vec<String>> {
    let page = page();
    let (_, list) = page.split_once(&format!("In `{folder}/`")).expect("the page has a list for each folder");
    let lines = list.lines().skip_while(|line| !line.starts_with("    "));
    let lines = lines.take_while(|line| line.starts_with("    "));
    lines.map(|line| line.split_whitespace().map(Into::into).collect()).collect()
}

/// Every file below `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Every file of Rust below `folder`.
fn sources(folder: &Path) -> impl Iterator<Item = PathBuf> {
    files(folder).into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "rs"))
}

/// The modules of its own crate that `code` imports, outside tests and comments.
fn imported_modules(code: &str) -> BTreeSet<String> {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let names = |path: &str| match path.strip_prefix('{').and_then(|list| list.split_once("};")) {
        None => vec![name(path)],
        Some((list, _)) => {
            let mut depth = 0;
            let outermost = list.chars().filter(|c| {
                depth += i32::from(*c == '{') - i32::from(*c == '}');
                depth == 0 && !c.is_whitespace()
            });
            let names = outermost.collect::<String>();
            names.split(',').map(name).filter(|name| !name.is_empty()).collect()
        }
    };
    code.split("crate::").skip(1).flat_map(names).collect()
}

/// Modules that are compiled only for tests.
fn test_modules(root: &Path) -> BTreeSet<String> {
    let code: String = sources(root).map(|path| fs::read_to_string(path).unwrap()).collect();
    let names = code.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.split_once(';'));
    names.map(|(name, _)| name.to_owned()).filter(|name| !name.contains(char::is_whitespace)).collect()
}

#[test]
fn modules_import_only_modules_of_lower_layers() {
    for folder in ["dataloader/src", "trainer/src", "trainer/tools/src", "launcher/src", "configs/src"] {
        let root = Path::new(ROOT).join(folder);
        let layers = layers(folder);
        let layer = |module: &str| layers.iter().position(|layer| layer.iter().any(|name| name == module));
        let mut modules = BTreeSet::new();
        let tests = test_modules(&root);
        for path in sources(&root) {
            if path.with_extension("").iter().any(|part| tests.contains(part.to_str().unwrap())) {
                continue;
            }
            let first = path.strip_prefix(&root).unwrap().components().next().unwrap();
            let module = Path::new(&first).file_stem().unwrap().to_string_lossy().into_owned();
            if ["lib", "main", "bin"].contains(&module.as_str()) {
                continue;
            }
            let own =
                layer(&module).unwrap_or_else(|| panic!("{folder}: {module} is not in the page's list"));
            let imported = imported_modules(&fs::read_to_string(&path).unwrap());
            for other in imported.iter().filter(|other| **other != module) {
                let Some(theirs) = layer(other) else { continue }; // a function of the crate's root
                assert!(theirs < own, "{}: {module} may not import {other}", path.display());
            }
            modules.insert(module);
        }
        let listed: BTreeSet<String> = layers.into_iter().flatten().collect();
        assert_eq!(modules, listed, "{folder}");
    }
}

#[test]
fn crates_depend_only_on_lower_crates() {
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

/// Files and folders that the page names, in whatever folder they are.
#[test]
fn named_files_exist() {
    let page = page();
    let code = page.split('`').skip(1).step_by(2).filter(|span| !span.contains([' ', '<']));
    let is_path = |span: &&str| {
        span.ends_with('/')
            || [".rs", ".cpp", ".c", ".json"].iter().any(|extension| span.ends_with(extension))
    };
    let named: BTreeSet<&str> = code.filter(is_path).collect();
    let all: Vec<String> = ["trainer", "dataloader", "launcher", "configs", "tests"]
        .iter()
        .flat_map(|folder| files(&Path::new(ROOT).join(folder)))
        .map(|path| path.to_string_lossy().into_owned())
        .collect();
    let exists = |name: &str| {
        let suffix = format!("/{name}");
        all.iter()
            .any(|path| if name.ends_with('/') { path.contains(&suffix) } else { path.ends_with(&suffix) })
    };
    let missing: Vec<&&str> = named.iter().filter(|name| !exists(name)).collect();
    assert!(missing.is_empty() && named.len() > 50, "{missing:?} of {}", named.len());
}
