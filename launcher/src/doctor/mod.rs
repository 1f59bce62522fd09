//! `codinet-launch doctor`: what is wrong with this machine, or with an allocation, for training: measured on every rank
//! as training would start it.

mod judge;
mod probe;

use crate::allocation::{Allocation, Asked};
use crate::machine::Machine;
use crate::mpi::Flavour;
use crate::start::{self, Bind};
use crate::{print, trainer};
use codinet_config::exit::Exit;
use codinet_config::text::counted;
use serde::Serialize;
use std::process::Command;
use std::time::Duration;

const EXAMPLES: &str = "\
Examples:
  codinet-launch doctor                         this machine
  codinet-launch doctor my.yaml --set run.dir=/scratch/a
  codinet-launch doctor --hosts a:8,b:8 my.yaml --json

The exit code is 0 where nothing is red, 1 otherwise.";

/// Look for what would keep a run from starting, from being fast, or from being stopped in order.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    asked: Asked,

    /// The config, as for codinet-train; without one, data and disk are left out.
    config: Option<String>,

    /// Overrides one key of the config; may be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,

    /// Seconds that ranks have to start and to measure.
    #[arg(long, value_name = "SECONDS", default_value = "180")]
    timeout: u64,

    /// Prints one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// How good something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As it should be.
    Green,
    /// Training works, but not as well as it could.
    Yellow,
    /// Training will not work.
    Red,
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How good it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// How to make it good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Check {
    fn green(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, state: State::Green, found: found.into(), mend: None }
    }

    fn yellow(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state: State::Yellow, found: found.into(), mend: Some(mend.into()) }
    }

    fn red(name: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { name, state: State::Red, found: found.into(), mend: Some(mend.into()) }
    }
}

/// Looks, and prints; returns the exit code.
pub async fn run(args: &Args) -> Result<u8, String> {
    let checks = checks(args).await;
    let worst = checks.iter().map(|check| check.state).max().unwrap_or(State::Green);
    if args.json {
        print(&format!("{}\n", serde_json::json!({ "state": worst, "checks": checks })));
    } else {
        let mut table = String::new();
        for Check { name, state, found, mend } in &checks {
            let state = match state {
                State::Green => "green",
                State::Yellow => "yellow",
                State::Red => "RED",
            };
            table += &format!("{state:<7}{name:<12}{found}\n");
            if let Some(mend) = mend {
                table += &format!("{:<19}mend: {mend}\n", "");
            }
        }
        print(&table);
    }
    Ok(if worst == State::Red { 1 } else { Exit::Done as u8 })
}

async fn checks(args: &Args) -> Vec<Check> {
    let mut checks = Vec::new();
    let flavour = match Flavour::of_this_machine() {
        Ok((flavour, version)) => {
            checks.push(Check::green("mpi", format!("{} ({version})", flavour.name())));
            flavour
        }
        Err(what) => {
            let mend = "install Open MPI, or load the module of the MPI that codinet-train was built with";
            checks.push(Check::red("mpi", what, mend));
            return checks;
        }
    };
    match program() {
        Ok(version) => checks.push(Check::green("program", version)),
        Err(what) => {
            let mend = "run make build, or put codinet-train and its libtorch beside codinet-launch";
            checks.push(Check::red("program", what, mend));
            return checks;
        }
    }
    let machine = Machine::here();
    let found = Allocation::find(&args.asked, &machine).and_then(|allocation| {
        Ok((allocation.by, start::job(flavour, &machine, allocation, Bind::Auto, true)?))
    });
    let (by, job) = match found {
        Ok(found) => found,
        Err(what) => {
            checks.push(Check::red("ranks", what, "see codinet-launch --help"));
            return checks;
        }
    };
    let ranks = format!(
        "{} by {by}; here {}, {}, {}",
        job.ranks,
        counted(machine.cores, "core"),
        counted(machine.memories, "memory node"),
        counted(machine.gpus, "GPU")
    );
    checks.push(match job.crowded {
        true => Check::yellow("ranks", ranks, "start no more ranks than cores; they share them"),
        false => Check::green("ranks", ranks),
    });
    checks.extend(judge::scheduler());
    checks.extend(judge::links(machine.gpus));
    checks.extend(judge::grace(probe::grace(flavour, machine.root).await));
    let probed = probe::of_ranks(&job, args.config.as_deref(), &args.set, Duration::from_secs(args.timeout));
    checks.extend(judge::ranks(probed.await, job.ranks));
    checks
}

/// The version of the codinet-train that would be started.
fn program() -> Result<String, String> {
    let path = trainer();
    let output = Command::new(&path).arg("--version").output();
    let output = output.map_err(|error| format!("cannot run {}: {error}", path.display()))?;
    match output.status.success() {
        true => Ok(format!("{}, {}", String::from_utf8_lossy(&output.stdout).trim(), path.display())),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{}: {}", path.display(), said.lines().next().unwrap_or("it fails")))
        }
    }
}
