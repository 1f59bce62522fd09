//! The command line of `codinet-train`.

use crate::Config;
use crate::exit::{Exit, OF_TRAINING};
use crate::types::keys_named;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, ValueEnum};
use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

const EXAMPLES: &str = "\
Examples:
  mpirun -n 8 codinet-train my.yaml             one process per GPU, one rank per process
  codinet-train --list                          the shipped configs
  codinet-train my.yaml --dry-run --ranks 8     would it start on 8 ranks? the resolved config and the network
  codinet-train my.yaml --set optim.batch_size=256 --set stages.0.lr=0.2
  codinet-train my.yaml --resume auto           resume the last run of this config
  codinet-train my.yaml --profile 20            where a step's time goes
  kill -USR2 <pid of mpirun>                    checkpoint and stop (exit 75)";

fn exit_codes() -> String {
    let lost = Exit::Lost;
    format!("{}\nUnder codinet-launch also {}: {}.", Exit::list(OF_TRAINING), lost as u8, lost.meaning())
}

/// Train CoDiNet, a dynamic-routing ResNet with consistent and diverse routing paths, on one process or,
/// under mpirun or srun, on many.
#[derive(Clone, Debug, Parser)]
#[command(name = "codinet-train", version, after_help = format!("{EXAMPLES}\n\n{}", exit_codes()))]
pub struct TrainArgs {
    /// A YAML file, or the name of a shipped config.
    #[arg(value_name = "CONFIG", required_unless_present_any = ["completions", "list", "probe"])]
    pub config: Option<String>,

    /// Overrides one key of the config; may be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// `never` starts a new run. `auto` resumes the run in run.dir, or else the newest run of an equal config; if there is
    /// none, it starts a new run. A run directory or checkpoint folder is resumed from there; a copied run, such as
    /// s3://bucket/run, is fetched into run.dir first. The last --resume counts.
    #[arg(long, value_name = "auto|never|PATH", default_value = "never", overrides_with = "resume")]
    pub resume: Resume,

    /// Prints the resolved config, the network's table and the steps per epoch, says everything that would keep the run from
    /// starting, and stops with the run's exit code; `--dry-run=json` prints for programs.
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub dry_run: Option<DryRunFormat>,

    /// With --dry-run: leaves out what needs the data, on a machine that has none.
    #[arg(long, requires = "dry_run")]
    pub no_data: bool,

    /// With --dry-run: checks the config for N ranks [default: those that are started].
    #[arg(long, value_name = "N", requires = "dry_run", value_parser = parse_ranks)]
    pub ranks: Option<usize>,

    /// Evaluates the checkpoint that --resume names, and stops; nothing is written.
    #[arg(long, conflicts_with = "dry_run")]
    pub eval_only: bool,

    /// Times the parts of N training steps of the first stage, after some steps of warm-up, and stops. Prints a table and
    /// writes it, with a trace of up to 3 more steps for ui.perfetto.dev, into `profile/` of run.dir (default: a new folder in
    /// runs/); nothing else is written.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(conflicts_with_all = ["dry_run", "eval_only", "resume"])]
    pub profile: Option<u64>,

    /// Finds the largest optim.batch_size that fits in memory, by real steps at growing sizes, prints how to use it, and
    /// stops; nothing is written.
    #[arg(long, conflicts_with_all = ["dry_run", "eval_only", "resume", "profile"])]
    pub find_batch: bool,

    /// With --find-batch: the memory that a rank may use, such as 8GiB; default: the GPU's memory, or this rank's share of
    /// what the host and its cgroup have free.
    #[arg(long, value_name = "SIZE", requires = "find_batch")]
    pub memory: Option<MemorySize>,

    /// Lists the shipped configs, with a line about each, and stops.
    #[arg(long)]
    pub list: bool,

    /// Measures what `codinet-launch doctor` checks, and prints it for that program.
    #[arg(long, hide = true)]
    pub probe: bool,

    /// Prints a completion script for a shell, and stops.
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<clap_complete::Shell>,
}

fn parse_ranks(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|ranks| (1..=1_000_000).contains(ranks))
        .ok_or("a number of ranks from 1 on".into())
}

/// The error for an option that is a key of the config, such as `--epochs 10`; none for other errors of the command line.
pub fn key_as_option(error: &clap::Error, words: &[String]) -> Option<String> {
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let name = option.split('=').next()?.strip_prefix("--")?.replace('-', "_");
    let name = name.rsplit('.').next()?;
    let example = Config { stages: vec![Default::default()], ..Config::default() };
    let keys = keys_named(&serde_json::to_value(example).ok()?, name);
    let place = words.iter().position(|word| word.split('=').next() == option.split('=').next())?;
    let value = match words[place].split_once('=') {
        Some((_, value)) => value,
        None => {
            words.get(place + 1).map_or("VALUE", |next| if next.starts_with("--") { "VALUE" } else { next })
        }
    };
    let settings: Vec<String> = keys.iter().map(|key| format!("--set {key}={value}")).collect();
    let option = option.split('=').next()?;
    (!keys.is_empty())
        .then(|| format!("{option} is a key of the config, not an option: {}", settings.join(" or ")))
}

/// `--resume`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Start a new run; a directory that holds a run is refused.
    Never,
    /// Resume the run in `run.dir`, or else the newest `runs/<config name>-*` of an equal config; if there is none, start a
    /// new run.
    Auto,
    /// Resume from this run directory, `step-…` folder, or copied run (`run.copy_to`).
    From(PathBuf),
}

impl FromStr for Resume {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "never" => Self::Never,
            "auto" => Self::Auto,
            path => Self::From(path.into()),
        })
    }
}

/// How `--dry-run` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DryRunFormat {
    /// For a person.
    Text,
    /// For a program, such as `codinet-launch plan`.
    Json,
}

/// `--memory`, in bytes: `8GiB`, `512MiB`, `16GB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(pub u64);

impl FromStr for MemorySize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "a size such as 8GiB, 512MiB or 16GB";
        let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match text[number.len()..].to_ascii_lowercase().as_str() {
            "kib" | "k" => 1u64 << 10,
            "mib" | "m" => 1 << 20,
            "gib" | "g" => 1 << 30,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            _ => return Err(EXPECTED.into()),
        };
        let bytes = number.parse::<f64>().map_err(|_| EXPECTED)? * unit as f64;
        if bytes >= 1.0 { Ok(Self(bytes as u64)) } else { Err("a size of at least a byte".into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn option_that_is_a_key_names_its_setting() {
        let advice = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            key_as_option(&TrainArgs::try_parse_from(&words).unwrap_err(), &words)
        };
        let expected = "--epochs is a key of the config, not an option: --set stages.0.epochs=10";
        assert_eq!(advice("codinet-train my.yaml --epochs 10").as_deref(), Some(expected));
        assert_eq!(advice("codinet-train my.yaml --epochs=10").as_deref(), Some(expected));
        for (line, part) in [
            ("codinet-train --batch-size 64 my.yaml", "--set optim.batch_size=64"),
            ("codinet-train my.yaml --lr", "--set stages.0.lr=VALUE"),
            ("codinet-train my.yaml --optim.momentum 0.8", "--set optim.momentum=0.8"),
            ("codinet-train my.yaml --gamma 1", "--set cost.gamma=1 or --set stages.0.gamma=1"),
        ] {
            assert!(advice(line).is_some_and(|advice| advice.contains(part)), "{line}: {:?}", advice(line));
        }
        assert_eq!(advice("codinet-train my.yaml --nonsense 1"), None);
        assert_eq!(advice("codinet-train my.yaml --eval-only --dry-run"), None);
    }

    #[test]
    fn memory_sizes_are_parsed() {
        let parse = |text: &str| text.parse::<MemorySize>().ok().map(|size| size.0);
        assert_eq!(parse("1.5GiB"), Some(3 << 29));
        assert_eq!([parse("512MiB"), parse("16GB")], [Some(512 << 20), Some(16_000_000_000)]);
        assert_eq!([parse("12"), parse("GiB"), parse("-1GiB"), parse("8 TiB")], [None; 4]);
    }
}
