//! `codinet-launch doctor`: checks this machine or allocation for training, by measurements on every rank, started as
//! training starts them.

mod judge;
mod probe;

use crate::allocation::{Allocation, RankArgs};
use crate::machine::Machine;
use crate::mpi::Flavour;
use crate::start::{self, Bind};
use crate::trainer;
use codinet_config::exit::Exit;
use codinet_config::text::counted;
use codinet_config::text::print;
use serde::Serialize;
use std::process::Command;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  codinet-launch doctor                         this machine
  codinet-launch doctor my.yaml --set run.dir=/scratch/a
  codinet-launch doctor --hosts a:8,b:8 my.yaml --json

The exit code is 0 if no check is red, else 1.";

/// Check whether a run would start, be fast, and stop cleanly.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    ranks: RankArgs,

    /// The config, as for codinet-train; without one, data and disk are not checked.
    config: Option<String>,

    /// Overrides one key of the config; may be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Seconds within which the ranks must start and measure.
    #[arg(long, value_name = "SECONDS", default_value = "180")]
    timeout: u64,

    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Good.
    Green,
    /// Training works, but not as well as it could.
    Yellow,
    /// Training will not work.
    Red,
}

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// Its name.
    pub name: &'static str,
    /// Its result.
    pub state: State,
    /// What was measured.
    pub found: String,
    /// How to fix it, unless it is green.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Check {
    fn green(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Green, found: found.into(), fix: None }
    }

    fn yellow(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Yellow, found: found.into(), fix: Some(fix.into()) }
    }

    fn red(name: &'static str, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name, state: State::Red, found: found.into(), fix: Some(fix.into()) }
    }
}

/// Runs and prints the checks; returns the exit code.
pub async fn run(args: &Args) -> Result<u8, String> {
    let checks = checks(args).await;
    let worst = checks.iter().map(|check| check.state).max().unwrap_or(State::Green);
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "state": worst, "checks": checks })));
    } else {
        let mut table = String::new();
        for Check { name, state, found, fix } in &checks {
            let state = match state {
                State::Green => "green",
                State::Yellow => "yellow",
                State::Red => "RED",
            };
            table += &format!("{state:<7}{name:<12}{found}\n");
            if let Some(fix) = fix {
                table += &format!("{:<19}fix: {fix}\n", "");
            }
        }
        print(&table);
    }
    Ok(if worst == State::Red { 1 } else { Exit::Done as u8 })
}

async fn checks(args: &Args) -> Vec<Check> {
    let mut checks = Vec::new();
    let flavour = match Flavour::detect() {
        Ok((flavour, version)) => {
            checks.push(Check::green("mpi", format!("{} ({version})", flavour.name())));
            flavour
        }
        Err(what) => {
            let fix = "install Open MPI, or load the module of the MPI that codinet-train was built with";
            checks.push(Check::red("mpi", what, fix));
            return checks;
        }
    };
    match trainer_version() {
        Ok(version) => checks.push(Check::green("program", version)),
        Err(what) => {
            let fix = "run make build, or put codinet-train and its libtorch next to codinet-launch";
            checks.push(Check::red("program", what, start::load_advice().unwrap_or(fix)));
            return checks;
        }
    }
    let machine = Machine::detect();
    let job = Allocation::resolve(&args.ranks, &machine).and_then(|allocation| {
        Ok((allocation.source, start::plan_job(flavour, &machine, allocation, Bind::Auto, true)?))
    });
    let (source, job) = match job {
        Ok(job) => job,
        Err(what) => {
            checks.push(Check::red("ranks", what, "see codinet-launch --help"));
            return checks;
        }
    };
    let ranks = format!(
        "{} by {source}; here {}, {}, {}",
        job.ranks,
        counted(machine.cores, "core"),
        counted(machine.numa_nodes, "NUMA node"),
        counted(machine.gpus, "GPU")
    );
    checks.push(if job.oversubscribed {
        Check::yellow("ranks", ranks, "start no more ranks than cores; they share them")
    } else {
        Check::green("ranks", ranks)
    });
    checks.extend(judge::check_binding_variables());
    checks.extend(judge::check_scheduler());
    checks.extend(judge::check_gpu_links(machine.gpus));
    checks.extend(judge::check_grace(probe::measure_grace(flavour, machine.root).await));
    let limit = Duration::from_secs(args.timeout);
    let result = probe::probe_ranks(&job, args.config.as_deref(), &args.set, limit).await;
    checks.extend(judge::check_ranks(result, job.ranks));
    checks
}

/// The version of the codinet-train that the launcher starts.
fn trainer_version() -> Result<String, String> {
    let path = trainer();
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", path.display()))?;
    if output.status.success() {
        return Ok(format!("{}, {}", String::from_utf8_lossy(&output.stdout).trim(), path.display()));
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {}", path.display(), stderr.lines().next().unwrap_or("it fails")))
}
