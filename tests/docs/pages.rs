//! The pages against the programs: links and anchors resolve, programs accept the commands, configs accept the settings, and
//! named files exist.

use crate::common::{program, text};
use codinet_config::{SCHEMA, is_table, load, load_table, shipped};
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
const PROGRAMS: [&str; 6] =
    ["codinet-train", "codinet-infer", "codinet-analyze", "codinet-export", "codinet-data", "codinet-launch"];
/// Used for a placeholder (`my.yaml`, `CONFIG`). It has two stages.
const PLACEHOLDER_CONFIG: &str = "imagenet_r50.yaml";
/// Folders of the repository whose files pages may name.
const FOLDERS: [&str; 9] =
    ["trainer/", "dataloader/", "launcher/", "tests/", "configs/", "cluster/", "docs/", "examples/", ".ci/"];

/// What a page holds that can be checked.
#[derive(Default)]
struct Page {
    /// From the repository's root.
    path: PathBuf,
    links: Vec<String>,
    anchors: BTreeSet<String>,
    /// Lines of code blocks, continued ones joined.
    lines: Vec<String>,
    /// Code in a sentence.
    spans: Vec<String>,
    /// Code blocks that are configs: they extend one.
    configs: Vec<String>,
}

/// A heading's anchor, as mdBook and GitHub derive it.
fn anchor(heading: &str) -> String {
    let convert = |c: char| match c {
        c if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c.to_lowercase().collect::<String>()),
        c if c.is_whitespace() => Some("-".into()),
        _ => None,
    };
    heading.trim().chars().filter_map(convert).collect()
}

impl Page {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(Path::new(ROOT).join(path)).unwrap();
        let mut page = Self { path: path.to_owned(), ..Self::default() };
        let mut heading = None::<String>;
        let mut block = None::<String>;
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

    /// The page's commands as lists of words, without comments.
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

/// The target of a page's link: a path from the root.
fn resolve_link(page: &Path, link: &str) -> PathBuf {
    let mut target = page.parent().unwrap_or(Path::new("")).to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::ParentDir => drop(target.pop()),
            Component::Normal(part) => target.push(part),
            _ => {}
        }
    }
    target
}

fn assert_no_errors(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn links_and_anchors_resolve() {
    let pages = pages();
    let mut wrong = Vec::new();
    for page in pages.values() {
        for link in page.links.iter().filter(|link| !link.contains("://") && !link.starts_with("mailto:")) {
            let (file, heading) = match link.split_once('#') {
                Some((file, heading)) => (file, Some(heading)),
                None => (&link[..], None),
            };
            let target = if file.is_empty() { page.path.clone() } else { resolve_link(&page.path, file) };
            let error = match pages.get(&target) {
                Some(other) if heading.is_some_and(|heading| !other.anchors.contains(heading)) => {
                    "no such heading"
                }
                None if !Path::new(ROOT).join(&target).exists() => "no such file",
                // The book holds only docs/.
                _ if page.path.starts_with("docs") && !target.starts_with("docs") => "leads out of the book",
                _ => continue,
            };
            wrong.push(format!("{}: {link}: {error}", page.path.display()));
        }
    }
    assert_no_errors(wrong);
}

#[test]
fn every_page_is_in_the_summary() {
    let pages = pages();
    let summary: BTreeSet<&str> =
        pages[Path::new("docs/SUMMARY.md")].links.iter().map(String::as_str).collect();
    let in_docs = pages.keys().filter_map(|path| path.strip_prefix("docs").ok()?.to_str());
    let missing = in_docs.filter(|name| *name != "SUMMARY.md" && !summary.contains(name));
    assert_no_errors(missing.map(str::to_owned).collect());
}

/// Whether the program accepts these arguments. With `--help` after them it does nothing, but rejects unknown ones before it.
fn check_arguments(name: &str, args: &[String]) -> Result<(), String> {
    let output = Command::new(program(name)).args(args).arg("--help").output().expect("the program runs");
    if output.status.success() {
        return Ok(());
    }
    let stderr = text(&output.stderr);
    let message = stderr.lines().find(|line| !line.is_empty());
    Err(message.map_or_else(|| format!("{} without a message", output.status), str::to_owned))
}

/// Whether a word stands for the name of a config.
fn is_placeholder(word: &str) -> bool {
    matches!(word, "my.yaml" | "CONFIG" | "NAME" | "YOURS.yaml")
}

/// Whether codinet-train accepts these arguments, and the config its settings.
fn check_train(args: &[String]) -> Result<(), String> {
    check_arguments("codinet-train", args)?;
    let config = args.first().filter(|word| !word.starts_with('-'));
    let mut settings = Vec::new();
    for (at, word) in args.iter().enumerate() {
        let value =
            if word == "--set" { args.get(at + 1).map(String::as_str) } else { word.strip_prefix("--set=") };
        settings.extend(value.filter(|value| *value != "KEY=VALUE").map(str::to_owned));
    }
    check_settings(config.map_or(PLACEHOLDER_CONFIG, String::as_str), &settings)
}

/// Whether a shipped config accepts these settings.
fn check_settings(config: &str, settings: &[String]) -> Result<(), String> {
    let config = if is_placeholder(config) { PLACEHOLDER_CONFIG } else { config };
    if !shipped().iter().any(|known| known == config) {
        return Err(format!("{config} is not shipped"));
    }
    load(config, settings).map(drop).map_err(|error| error.to_string())
}

/// The program of this project that a command runs, after mpirun and variables at most, and its arguments.
fn find_program(words: &[String]) -> Option<(&'static str, &[String])> {
    let launchers = ["mpirun", "mpirun.mpich", "srun", "taskset", "sudo"];
    let may_precede = |word: &str| {
        let variable = word.contains('=') && !word.ends_with(';');
        variable || word.starts_with('-') || word.parse::<u32>().is_ok() || launchers.contains(&word)
    };
    let start = words.iter().position(|word| !may_precede(word))?;
    let name = words[start].rsplit('/').next()?;
    Some((PROGRAMS.iter().find(|program| **program == name)?, &words[start + 1..]))
}

fn check_command(words: &[String]) -> Result<(), String> {
    if let Some((program, args)) = find_program(words) {
        let number = |word: &String| if matches!(&word[..], "N" | "K") { "1".into() } else { word.clone() };
        let args: Vec<String> = args.iter().filter(|word| *word != "…").map(number).collect();
        let end = args.iter().position(|word| ["|", ">", "&&", "&"].contains(&&word[..]));
        return check_program(program, &args[..end.unwrap_or(args.len())]);
    }
    match words.first().map(String::as_str) {
        Some("make") => check_make(&words[1..]),
        Some(script) if script.ends_with("sweep.py") => check_sweep(&words[1..]),
        _ => Ok(()),
    }
}

fn check_program(program: &str, args: &[String]) -> Result<(), String> {
    let is_config =
        |word: &String| word.ends_with(".yaml") || word.contains(".yaml:") || is_placeholder(word);
    match (program, args.first().map(String::as_str)) {
        ("codinet-train", _) => check_train(args),
        ("codinet-launch", Some("table")) => {
            check_arguments(program, args)?;
            let table = args.get(1).map_or(Ok(()), |name| load_table(name).map(drop));
            table.map_err(|error| error.to_string())
        }
        ("codinet-launch", Some(tool @ ("plan" | "doctor"))) => {
            check_arguments(program, args)?;
            let settings = args.iter().zip(&args[1..]).filter(|(flag, _)| *flag == "--set");
            let settings: Vec<String> = settings.map(|(_, setting)| setting.clone()).collect();
            let config = args.iter().find(|word| is_config(word)).map_or(PLACEHOLDER_CONFIG, String::as_str);
            check_settings(config, &settings).map_err(|error| format!("{tool}: {error}"))
        }
        ("codinet-launch", _) => {
            // The config and what follows it are codinet-train's.
            let config = args.iter().position(is_config).unwrap_or(args.len());
            check_arguments(program, &args[..config])?;
            if config < args.len() { check_train(&args[config..]) } else { Ok(()) }
        }
        _ => check_arguments(program, args),
    }
}

fn check_make(args: &[String]) -> Result<(), String> {
    let makefile = fs::read_to_string(Path::new(ROOT).join("Makefile")).unwrap();
    let exists = |target: &str| makefile.lines().any(|line| line.split(':').next() == Some(target));
    let mut targets = args.iter().filter(|word| !word.contains(['=', '-']));
    targets
        .find(|target| !exists(target))
        .map_or(Ok(()), |target| Err(format!("make has no target {target}")))
}

/// Whether cluster/sweep.py's configs are shipped, and codinet-train accepts the settings after `--`.
fn check_sweep(args: &[String]) -> Result<(), String> {
    let (own, settings) = match args.iter().position(|word| word == "--") {
        Some(at) => (&args[..at], &args[at + 1..]),
        None => (args, &[][..]),
    };
    for name in own.iter().filter(|word| word.contains('_') && !word.contains('/')) {
        let name = if name.contains(".yaml") { name.clone() } else { format!("{name}.yaml") };
        let configs = if is_table(&name) {
            let table = load_table(&name).map_err(|error| error.to_string())?;
            table.rows.iter().map(|row| format!("{name}:{}", row.name)).collect()
        } else {
            vec![name]
        };
        for config in configs {
            let args: Vec<String> = std::iter::once(config).chain(settings.iter().cloned()).collect();
            check_train(&args)?;
        }
    }
    Ok(())
}

#[test]
fn commands_are_accepted_by_their_programs() {
    // Each command once, with the pages that show it.
    let mut commands: BTreeMap<Vec<String>, BTreeSet<PathBuf>> = BTreeMap::new();
    for page in pages().into_values() {
        for words in page.commands() {
            commands.entry(words).or_default().insert(page.path.clone());
        }
    }
    let count = commands.keys().filter(|words| find_program(words).is_some()).count();
    assert!(count > 40, "only {count} commands were found");
    let find_error = |(words, pages): &(Vec<String>, BTreeSet<PathBuf>)| {
        let error = check_command(words).err()?;
        Some(format!("{}: {}: {error}", pages.first()?.display(), words.join(" ")))
    };
    // In four threads, because programs that load libtorch are slow to start.
    let commands: Vec<_> = commands.into_iter().collect();
    let wrong = std::thread::scope(|scope| {
        let parts = commands.chunks(commands.len().div_ceil(4));
        let parts: Vec<_> = parts
            .map(|part| scope.spawn(|| part.iter().filter_map(find_error).collect::<Vec<_>>()))
            .collect();
        parts.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    });
    assert_no_errors(wrong);
}

/// In a sentence, `optim.batch_size`, `optim.batch_size=64`, `run.precision: bf16` and `--set run.dir=runs/a` refer to a config.
#[test]
fn config_keys_exist() {
    let manual = Page::read(Path::new("docs/config.md"));
    let mut wrong = Vec::new();
    for page in pages().into_values().filter(|page| page.path != manual.path) {
        for span in &page.spans {
            let span = span.trim_start_matches("--set ");
            let end = span
                .find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.')))
                .unwrap_or(span.len());
            let (key, value) = span.split_at(end);
            let is_key = key.split_once('.').is_some_and(|(section, rest)| {
                SCHEMA["properties"].get(section).is_some() && !rest.is_empty()
            });
            let is_file = ["yaml", "rs", "md", "safetensors", "json", "sh", "py"]
                .iter()
                .any(|kind| key.ends_with(&format!(".{kind}")));
            if !is_key || is_file || key.ends_with('.') {
                continue;
            }
            let numbered: Vec<&str> =
                key.split('.').map(|part| if part.parse::<u32>().is_ok() { "N" } else { part }).collect();
            let error = match value.strip_prefix('=').or_else(|| value.strip_prefix(": ")) {
                Some(value) if !value.is_empty() && !value.contains(['…', '<']) => {
                    check_settings(PLACEHOLDER_CONFIG, &[format!("{key}={value}")]).err()
                }
                _ if !manual.spans.contains(&numbered.join(".")) => Some("no such key".into()),
                _ => None,
            };
            wrong.extend(error.map(|error| format!("{}: `{span}`: {error}", page.path.display())));
        }
    }
    assert_no_errors(wrong);
}

/// Configs that a page shows are valid.
#[test]
fn shown_configs_load() {
    let mut wrong = Vec::new();
    for page in pages().into_values() {
        for config in &page.configs {
            let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
            fs::write(file.path(), config).unwrap();
            let loaded = load(file.path().to_str().unwrap(), &[]);
            wrong.extend(loaded.err().map(|error| format!("{}: {error}", page.path.display())));
        }
    }
    assert_no_errors(wrong);
}

/// Files of the repository that a page names exist.
#[test]
fn named_files_exist() {
    let mut wrong = Vec::new();
    for page in pages().into_values() {
        for words in page.commands() {
            for word in words {
                let word = word.trim_start_matches("./").split("::").next().unwrap_or_default().to_owned();
                let in_repository =
                    FOLDERS.iter().any(|folder| word.starts_with(folder) && word.len() > folder.len());
                let pattern = word.contains(['*', '{', '<', '…', '=', '|', '$']);
                if in_repository && !pattern && !Path::new(ROOT).join(&word).exists() {
                    wrong.push(format!("{}: {word} does not exist", page.path.display()));
                }
            }
        }
    }
    assert_no_errors(wrong);
}

/// The error lines of docs/troubleshooting.md are in the code. `…` stands for the parts that vary.
#[test]
fn quoted_messages_are_in_the_code() {
    let mut code = String::new();
    let crates = ["trainer", "trainer/tools", "launcher", "dataloader", "dataloader/cli", "configs"];
    let mut folders = crates.map(|name| Path::new(ROOT).join(name).join("src")).to_vec();
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                code += &fs::read_to_string(&path).unwrap_or_default();
            }
        }
    }
    // Joins string literals that continue on the next line.
    let lines: Vec<&str> = code.split("\\\n").collect();
    let code = lines.iter().enumerate().map(|(at, part)| if at == 0 { part } else { part.trim_start() });
    let code = code.collect::<String>();
    let page = fs::read_to_string(Path::new(ROOT).join("docs/troubleshooting.md")).unwrap();
    let mut wrong = Vec::new();
    let mut found = 0;
    let mut in_table = false;
    for line in page.lines() {
        let is_header = line.starts_with("| Line |") || line.starts_with("| It says |");
        in_table = is_header || in_table && line.starts_with('|');
        let Some(cell) = line.split('|').nth(1).filter(|_| in_table) else { continue };
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
    assert_no_errors(wrong);
}

#[test]
fn checks_reject_wrong_commands() {
    let find_error = |command: &str| check_command(&shlex::split(command).unwrap()).err().unwrap_or_default();
    for (command, error) in [
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
        assert!(find_error(command).contains(error), "{command}: {}", find_error(command));
    }
    for command in ["codinet-train my.yaml --set optim.batch_size=64 --resume auto", "make test", "ls"] {
        assert_eq!(find_error(command), "", "{command}");
    }
}
