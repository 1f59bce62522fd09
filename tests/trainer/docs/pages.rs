//! The documentation is held to the programs: links and anchors lead somewhere, commands are taken by the programs that they
//! name, settings by the loader of configs, and files that are named are there.

use codinet_trainer::config::{built_in, load};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PROGRAMS: [&str; 6] =
    ["codinet-train", "codinet-infer", "codinet-analyze", "codinet-export", "codinet-data", "codinet-launch"];
/// The config that a placeholder (`my.yaml`, `CONFIG`) stands for: it has two stages.
const STAND_IN: &str = "imagenet_r50.yaml";
const SECTIONS: [&str; 11] = [
    "run",
    "data",
    "model",
    "consistency",
    "diversity",
    "cost",
    "target_rate",
    "run_rate",
    "optim",
    "collective",
    "stages",
];
/// Folders of the repository, files in which may be named.
const FOLDERS: [&str; 9] =
    ["trainer/", "dataloader/", "launcher/", "tests/", "configs/", "cluster/", "docs/", "examples/", ".ci/"];

/// A page as a reader meets it.
#[derive(Default)]
struct Page {
    /// From the repository's root.
    path: PathBuf,
    links: Vec<String>,
    anchors: BTreeSet<String>,
    /// Lines of code blocks, continued ones joined.
    lines: Vec<String>,
    /// Code within a line.
    spans: Vec<String>,
    /// Configs: code blocks that extend one.
    configs: Vec<String>,
}

/// A heading's anchor, as mdBook and GitHub make it.
fn anchor(heading: &str) -> String {
    let kept = |c: char| match c {
        c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c.to_lowercase().collect::<String>()),
        c if c.is_whitespace() => Some("-".into()),
        _ => None,
    };
    heading.trim().chars().filter_map(kept).collect()
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
        let mut page = Self { path: path.to_owned(), ..Self::default() };
        let (mut heading, mut block) = (None::<String>, None::<String>);
        for event in Parser::new_ext(&text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    page.anchors.extend(heading.take().map(|text| anchor(&text)));
                }
                Event::Start(Tag::CodeBlock(_)) => block = Some(String::new()),
                Event::End(TagEnd::CodeBlock) => {
                    let block = block.take().unwrap_or_default();
                    if block.starts_with("extends: ") {
                        page.configs.push(block.clone());
                    }
                    let block = block.replace("\\\n", " ");
                    page.lines.extend(block.lines().map(str::to_owned));
                }
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    page.links.push(dest_url.to_string())
                }
                Event::Code(code) => {
                    heading.iter_mut().for_each(|heading| heading.push_str(&code));
                    page.spans.push(code.to_string());
                }
                Event::Text(text) => {
                    [&mut heading, &mut block].into_iter().flatten().for_each(|of| of.push_str(&text))
                }
                _ => {}
            }
        }
        page
    }

    /// The page's commands, word by word; what follows a comment sign is left out.
    fn commands(&self) -> impl Iterator<Item = Vec<String>> {
        self.lines
            .iter()
            .chain(&self.spans)
            .filter_map(|line| shlex::split(line.trim().trim_start_matches("$ ")))
    }
}

/// README, CHANGELOG and the book's pages.
fn pages() -> BTreeMap<PathBuf, Page> {
    let docs = fs::read_dir(Path::new(ROOT).join("docs")).unwrap();
    let docs = docs.map(|entry| Path::new("docs").join(entry.unwrap().file_name()));
    let docs = docs.filter(|path| path.extension().is_some_and(|kind| kind == "md"));
    let all = ["README.md", "CHANGELOG.md"].map(PathBuf::from).into_iter().chain(docs);
    all.map(|path| (path.clone(), Page::read(&path))).collect()
}

/// Where a link of a page leads: a path from the root.
fn target(page: &Path, link: &str) -> PathBuf {
    let mut place = page.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => drop(place.pop()),
            Component::Normal(part) => place.push(part),
            _ => {}
        }
    }
    place
}

fn assert_none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut wrong = Vec::new();
    for page in pages.values() {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, wanted) =
                link.split_once('#').map_or((&link[..], None), |(file, at)| (file, Some(at)));
            let to = if file.is_empty() { page.path.clone() } else { target(&page.path, file) };
            let why = match pages.get(&to) {
                Some(other) if wanted.is_some_and(|at| !other.anchors.contains(at)) => "no such heading",
                None if !Path::new(ROOT).join(&to).exists() => "no such file",
                // The book is docs/ alone: there such a link would be dead.
                _ if page.path.starts_with("docs") && !to.starts_with("docs") => "leads out of the book",
                _ => continue,
            };
            wrong.push(format!("{}: {link}: {why}", page.path.display()));
        }
    }
    assert_none(wrong);
}

#[test]
fn every_page_is_in_the_book() {
    let pages = pages();
    let summary: BTreeSet<&str> =
        pages[Path::new("docs/SUMMARY.md")].links.iter().map(String::as_str).collect();
    let in_docs = pages.keys().filter_map(|path| path.strip_prefix("docs").ok()?.to_str());
    let lost: Vec<String> =
        in_docs.filter(|name| *name != "SUMMARY.md" && !summary.contains(name)).map(str::to_owned).collect();
    assert_none(lost);
}

/// A program of ours as the workspace has built it.
fn built(program: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_codinet-train")).with_file_name(program);
    assert!(path.exists(), "{} is not built: run make build", path.display());
    path
}

/// Whether the program takes these words: with `--help` behind them it does nothing else, but what it does not know before
/// that is refused.
fn taken(program: &str, words: &[String]) -> Result<(), String> {
    let output = Command::new(built(program)).args(words).arg("--help").output().expect("the program runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let why = said.lines().find(|line| !line.is_empty()).unwrap_or("it ended oddly");
    if output.status.success() { Ok(()) } else { Err(why.to_owned()) }
}

/// Whether a word only stands for a config.
fn stand_in(word: &str) -> bool {
    matches!(word, "my.yaml" | "CONFIG" | "NAME" | "YOURS.yaml")
}

/// Whether codinet-train takes these words, and the loader what is set by them.
fn trains(words: &[String]) -> Result<(), String> {
    taken("codinet-train", words)?;
    let config = words.first().filter(|word| !word.starts_with('-')).map_or(STAND_IN, String::as_str);
    let mut sets = Vec::new();
    for (at, word) in words.iter().enumerate() {
        let value =
            if word == "--set" { words.get(at + 1).map(String::as_str) } else { word.strip_prefix("--set=") };
        sets.extend(value.filter(|value| *value != "KEY=VALUE").map(str::to_owned));
    }
    set(config, &sets)
}

/// Whether the loader takes the settings over a config.
fn set(config: &str, sets: &[String]) -> Result<(), String> {
    let config = if stand_in(config) { STAND_IN } else { config };
    if built_in(config).is_none() {
        return Err(format!("{config} is not shipped"));
    }
    load(config, sets).map(drop).map_err(|error| error.to_string())
}

/// A program of ours at the start of a command, behind mpirun and variables at most, and its words.
fn ours(words: &[String]) -> Option<(&'static str, &[String])> {
    let launchers = ["mpirun", "mpirun.mpich", "srun", "taskset", "sudo"];
    let before = |word: &str| {
        let variable = word.contains('=') && !word.ends_with(';');
        variable || word.starts_with('-') || word.parse::<u32>().is_ok() || launchers.contains(&word)
    };
    let start = words.iter().position(|word| !before(word))?;
    let name = words[start].rsplit('/').next()?;
    Some((PROGRAMS.iter().find(|program| **program == name)?, &words[start + 1..]))
}

fn check_command(words: &[String]) -> Result<(), String> {
    if let Some((program, words)) = ours(words) {
        let number = |word: &String| if matches!(&word[..], "N" | "K") { "1".into() } else { word.clone() };
        let words: Vec<String> = words.iter().filter(|word| *word != "…").map(number).collect();
        let redirected = words.iter().position(|word| ["|", ">", "&&", "&"].contains(&&word[..]));
        let words = &words[..redirected.unwrap_or(words.len())];
        let is_config = |word: &String| word.ends_with(".yaml") || stand_in(word);
        return match (program, words.first().map(String::as_str)) {
            ("codinet-train", _) => trains(words),
            ("codinet-launch", Some(tool @ ("plan" | "doctor"))) => {
                taken(program, words)?;
                let sets = words.iter().zip(&words[1..]).filter(|(flag, _)| *flag == "--set");
                let sets: Vec<String> = sets.map(|(_, setting)| setting.clone()).collect();
                let config = words.iter().find(|word| is_config(word)).map_or(STAND_IN, String::as_str);
                set(config, &sets).map_err(|error| format!("{tool}: {error}"))
            }
            ("codinet-launch", _) => {
                // What follows the config is codinet-train's.
                let config = words.iter().position(is_config).unwrap_or(words.len());
                taken(program, &words[..config])?;
                if config < words.len() { trains(&words[config..]) } else { Ok(()) }
            }
            _ => taken(program, words),
        };
    }
    match words.first().map(String::as_str) {
        Some("make") => {
            let makefile = fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
            let known = |target: &str| makefile.lines().any(|line| line.split(':').next() == Some(target));
            let targets = words[1..].iter().filter(|word| !word.contains(['=', '-']));
            match targets.into_iter().find(|target| !known(target)) {
                Some(target) => Err(format!("make has no target {target}")),
                None => Ok(()),
            }
        }
        Some(script) if script.ends_with("sweep.py") => {
            let (own, sets) = match words.iter().position(|word| word == "--") {
                Some(at) => (&words[1..at], &words[at + 1..]),
                None => (&words[1..], &[][..]),
            };
            let shipped = |word: &String| built_in(&format!("{word}.yaml")).is_some();
            let names = own.iter().filter(|word| word.contains('_') && !word.contains('/'));
            if let Some(name) = names.clone().find(|name| !shipped(name)) {
                return Err(format!("{name} is not shipped"));
            }
            let config = names.clone().next().map_or(STAND_IN.to_owned(), |name| format!("{name}.yaml"));
            let words: Vec<String> = std::iter::once(config).chain(sets.iter().cloned()).collect();
            trains(&words)
        }
        _ => Ok(()),
    }
}

#[test]
fn commands_are_taken() {
    // Each command once, with the pages that it stands on.
    let mut commands: BTreeMap<Vec<String>, BTreeSet<PathBuf>> = BTreeMap::new();
    for page in pages().into_values() {
        for words in page.commands() {
            commands.entry(words).or_default().insert(page.path.clone());
        }
    }
    let ours_in_all = commands.keys().filter(|words| ours(words).is_some()).count();
    assert!(ours_in_all > 40, "only {ours_in_all} commands were found");
    let complaint = |(words, pages): &(Vec<String>, BTreeSet<PathBuf>)| {
        let why = check_command(words).err()?;
        Some(format!("{}: {}: {why}", pages.first()?.display(), words.join(" ")))
    };
    // Programs that load libtorch take their time to say what they take.
    let commands: Vec<_> = commands.into_iter().collect();
    let wrong = std::thread::scope(|scope| {
        let parts = commands.chunks(commands.len().div_ceil(4));
        let parts: Vec<_> =
            parts.map(|part| scope.spawn(|| part.iter().filter_map(complaint).collect::<Vec<_>>())).collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    });
    assert_none(wrong);
}

/// `optim.batch_size`, `optim.batch_size=64`, `run.precision: bf16` and `--set run.dir=runs/a` in a sentence are a config's.
#[test]
fn keys_are_those_of_a_config() {
    let manual = Page::read(Path::new("docs/config.md"));
    let mut wrong = Vec::new();
    for page in pages().into_values().filter(|page| page.path != manual.path) {
        for span in &page.spans {
            let span = span.trim_start_matches("--set ");
            let end = span
                .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))
                .unwrap_or(span.len());
            let (key, value) = span.split_at(end);
            let a_key = key
                .split_once('.')
                .is_some_and(|(section, rest)| SECTIONS.contains(&section) && !rest.is_empty());
            let a_file = ["yaml", "rs", "md", "safetensors", "json", "sh", "py"]
                .iter()
                .any(|kind| key.ends_with(&format!(".{kind}")));
            if !a_key || a_file || key.ends_with('.') {
                continue;
            }
            let numbered: Vec<&str> =
                key.split('.').map(|part| if part.parse::<u32>().is_ok() { "N" } else { part }).collect();
            let why = match value.strip_prefix('=').or_else(|| value.strip_prefix(": ")) {
                Some(value) if !value.is_empty() && !value.contains(['…', '<']) => {
                    set(STAND_IN, &[format!("{key}={value}")]).err()
                }
                _ if !manual.anchors.contains(&anchor(&numbered.join("."))) => Some("no such key".into()),
                _ => None,
            };
            wrong.extend(why.map(|why| format!("{}: `{span}`: {why}", page.path.display())));
        }
    }
    assert_none(wrong);
}

/// Configs that a page shows are read.
#[test]
fn configs_are_taken() {
    let mut wrong = Vec::new();
    for page in pages().into_values() {
        for config in &page.configs {
            let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
            fs::write(file.path(), config).unwrap();
            let read = load(file.path().to_str().unwrap(), &[]);
            wrong.extend(read.err().map(|error| format!("{}: {error}", page.path.display())));
        }
    }
    assert_none(wrong);
}

/// Files of the repository that a page names are there.
#[test]
fn files_are_there() {
    let mut wrong = Vec::new();
    for page in pages().into_values() {
        for words in page.commands() {
            for word in words {
                let word = word.trim_start_matches("./").split("::").next().unwrap_or_default().to_owned();
                let ours = FOLDERS.iter().any(|folder| word.starts_with(folder) && word.len() > folder.len());
                let pattern = word.contains(['*', '{', '<', '…', '=', '|', '$']);
                if ours && !pattern && !Path::new(ROOT).join(&word).exists() {
                    wrong.push(format!("{}: {word} is not there", page.path.display()));
                }
            }
        }
    }
    assert_none(wrong);
}

/// The error lines of docs/troubleshooting.md are in the code; what differs from time to time stands there as `…`.
#[test]
fn messages_are_those_of_the_code() {
    let mut code = String::new();
    let crates = ["trainer", "trainer/tools", "launcher", "dataloader", "dataloader/cli", "configs"];
    let mut folders = crates.map(|name| Path::new(ROOT).join(name).join("src")).to_vec();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            match path.is_dir() {
                true => folders.push(path),
                false => code += &fs::read_to_string(&path).unwrap_or_default(),
            }
        }
    }
    // Texts that are broken over lines.
    let broken: Vec<&str> = code.split("\\\n").collect();
    let code = broken.iter().enumerate().map(|(at, part)| if at == 0 { part } else { part.trim_start() });
    let code = code.collect::<String>();
    let page = fs::read_to_string(Path::new(ROOT).join("docs/troubleshooting.md")).unwrap();
    let (mut wrong, mut found) = (Vec::new(), 0);
    let mut lines = false;
    for line in page.lines() {
        lines =
            line.starts_with("| Line |") || line.starts_with("| It says |") || lines && line.starts_with('|');
        let Some(cell) = line.split('|').nth(1).filter(|_| lines) else { continue };
        for message in cell.split('`').skip(1).step_by(2) {
            let parts =
                message.split(|c: char| c == '…' || c.is_ascii_digit()).filter(|part| part.trim().len() > 8);
            for part in parts {
                found += 1;
                if !code.contains(part.trim()) {
                    wrong.push(format!("{message}: {part:?} is not in the code"));
                }
            }
        }
    }
    assert!(found > 30, "only {found} pieces were found");
    assert_none(wrong);
}

/// The checks can fail.
#[test]
fn what_is_wrong_is_found() {
    let said = |command: &str| check_command(&shlex::split(command).unwrap()).err().unwrap_or_default();
    for (command, why) in [
        ("codinet-train my.yaml --dry-runn", "unexpected argument"),
        ("mpirun -n 8 codinet-train my.yaml --set optim.bach_size=64", "did you mean"),
        ("target/release/codinet-train my.yaml --set optim.batch_size=0", "out of range"),
        ("codinet-train imagenet_r51.yaml", "not shipped"),
        ("codinet-train my.yaml --profile 0", "invalid value"),
        ("codinet-launch -n 8 my.yaml --resme auto", "unexpected argument"),
        ("codinet-launch --max-restart 3 my.yaml", "unexpected argument"),
        ("codinet-launch plan my.yaml --links token-ring", "invalid value"),
        ("codinet-data import mnist --src a --output b", "unrecognized subcommand"),
        ("codinet-export --checkpoint runs/a --format gguf", "invalid value"),
        ("cluster/sweep.py --seeds 1 fashion_r21", "not shipped"),
        ("make dinner", "no target"),
    ] {
        assert!(said(command).contains(why), "{command}: {}", said(command));
    }
    for command in ["codinet-train my.yaml --set optim.batch_size=64 --resume auto", "make test", "ls"] {
        assert_eq!(said(command), "", "{command}");
    }
}
