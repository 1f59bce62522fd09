//! docs/architecture.md against the code: module dependencies, and the files that the page names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const CRATES: [&str; 5] =
    ["dataloader/src", "trainer/src", "trainer/tools/src", "launcher/src", "configs/src"];

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

/// The paths from `crate::` or `super::` in `code`, outside tests and comments, such as `super::gate::Decisions`.
fn paths(code: &str) -> Vec<String> {
    let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in code.match_indices(start) {
            if !code[..at].ends_with("::") {
                expand("", &code[at..], &mut found);
            }
        }
    }
    found
}

/// Adds the paths that `text` begins with, each after `prefix`; a list in braces has several. Returns the text after them.
fn expand<'a>(prefix: &str, text: &'a str, found: &mut Vec<String>) -> &'a str {
    let is_path = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
    let end = text.find(|c| !is_path(c)).unwrap_or(text.len());
    let path = format!("{prefix}{}", &text[..end]);
    let Some(mut list) = text[end..].strip_prefix('{') else {
        found.push(path);
        return &text[end..];
    };
    while !list.is_empty() && !list.starts_with('}') {
        list = expand(&path, list.trim_start(), found);
        let next = list.find([',', '}']).unwrap_or(list.len()); // past `as name`
        list = list[next..].trim_start_matches([',', ' ']);
    }
    list.strip_prefix('}').unwrap_or(list)
}

/// The modules of a crate, outside tests: path and file of each. The crate's root has an empty path.
fn modules(root: &Path) -> BTreeMap<Vec<String>, PathBuf> {
    let tests = test_modules(root);
    let module = |file: PathBuf| {
        let path = file.strip_prefix(root).unwrap().with_extension("");
        let mut path: Vec<String> = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        path.pop_if(|last| ["lib", "main", "mod"].contains(&last.as_str()));
        (path, file)
    };
    let is_own = |path: &[String]| path.first().is_none_or(|first| first != "bin");
    let modules = sources(root).map(module);
    modules.filter(|(path, _)| is_own(path) && !path.iter().any(|part| tests.contains(part))).collect()
}

/// The modules that `module` imports; the module itself is not one of them.
fn imports(
    module: &[String],
    file: &Path,
    modules: &BTreeMap<Vec<String>, PathBuf>,
) -> BTreeSet<Vec<String>> {
    let mut imported = BTreeSet::new();
    for path in paths(&fs::read_to_string(file).unwrap()) {
        let mut base = Vec::new();
        let mut names = path.split("::").skip_while(|name| *name == "crate").peekable();
        if names.peek() == Some(&"super") {
            base = module.to_vec();
        }
        while names.next_if_eq(&"super").is_some() {
            base.pop();
        }
        for name in names {
            base.push(name.to_owned());
            if !modules.contains_key(&base) {
                base.pop();
                base.extend(reexports(&modules[&base]).remove(name));
                break;
            }
        }
        imported.insert(base);
    }
    imported.remove(module);
    imported
}

/// The names that a file re-exports from files next to it, and the module of each.
fn reexports(file: &Path) -> BTreeMap<String, String> {
    let code = fs::read_to_string(file).unwrap();
    let mut names = BTreeMap::new();
    for start in ["\npub use ", "\npub(crate) use "] {
        for (at, _) in code.match_indices(start) {
            let mut found = Vec::new();
            expand("", &code[at + start.len()..], &mut found);
            for path in found {
                if let Some((module, name)) = path.split_once("::") {
                    names.insert(name.to_owned(), module.to_owned());
                }
            }
        }
    }
    names
}

/// Modules that are compiled only for tests.
fn test_modules(root: &Path) -> BTreeSet<String> {
    let code: String = sources(root).map(|path| fs::read_to_string(path).unwrap()).collect();
    let names = code.split("#[cfg(test)]\nmod ").skip(1).filter_map(|rest| rest.split_once(';'));
    names.map(|(name, _)| name.to_owned()).filter(|name| !name.contains(char::is_whitespace)).collect()
}

#[test]
fn modules_import_only_modules_of_lower_layers() {
    for folder in CRATES {
        let layers = layers(folder);
        let layer = |module: &str| layers.iter().position(|layer| layer.iter().any(|name| name == module));
        let all = modules(&Path::new(ROOT).join(folder));
        let mut found = BTreeSet::new();
        for (path, file) in &all {
            let Some(module) = path.first() else { continue };
            let own = layer(module).unwrap_or_else(|| panic!("{folder}: {module} is not in the page's list"));
            for other in imports(path, file, &all).iter().filter_map(|path| path.first()) {
                let lower = layer(other).is_some_and(|other| other < own);
                assert!(lower || other == module, "{}: {module} may not import {other}", file.display());
            }
            found.insert(module.clone());
        }
        let listed: BTreeSet<String> = layers.into_iter().flatten().collect();
        assert_eq!(found, listed, "{folder}");
    }
}

/// Files and folders next to each other.
#[test]
fn neighbours_do_not_import_each_other_in_circles() {
    for folder in CRATES {
        let all = modules(&Path::new(ROOT).join(folder));
        let mut imported: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
        for (path, file) in &all {
            for other in imports(path, file, &all) {
                let shared = path.iter().zip(&other).take_while(|(one, other)| one == other).count();
                if shared < path.len().min(other.len()) {
                    imported.entry(path[..=shared].to_vec()).or_default().insert(other[..=shared].to_vec());
                }
            }
        }
        assert!(!imported.is_empty(), "{folder}");
        // A module that imports only modules outside of all circles is itself outside.
        let mut count = imported.len() + 1;
        while imported.len() < count {
            count = imported.len();
            let inside: BTreeSet<_> = imported.keys().cloned().collect();
            imported.retain(|_, others| others.iter().any(|other| inside.contains(other)));
        }
        assert!(imported.is_empty(), "{folder}: circles, or imports of modules in one: {imported:?}");
    }
}

#[test]
fn imports_are_found_in_lists_and_by_parents() {
    let code =
        "use crate::{a::{self, B}, c};\nuse super::super::d as e;\n// crate::f\nfn g(_: &super::H) {}\n";
    assert_eq!(paths(code), ["crate::a::self", "crate::a::B", "crate::c", "super::super::d", "super::H"]);
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
