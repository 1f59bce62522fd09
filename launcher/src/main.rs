//! `codinet-launch`: starts `codinet-train` on this machine, a rank a process, under the MPI that it has.

use clap::{CommandFactory, Parser, Subcommand};
use codinet_launcher::{Flavour, plan, trainer};
use rustix::process::{Pid, Signal as Send, kill_process};
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Stdio};
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

const EXAMPLES: &str = "\
Examples:
  codinet-launch -n 2 fashion_quick.yaml
  codinet-launch my.yaml --set optim.batch_size=256 --resume auto
  codinet-launch --print -n 8 my.yaml           the command alone
  codinet-launch plan my.yaml --run runs/a      throughput, hours and cost on more GPUs: plan --help

Ctrl-C, SIGTERM and SIGUSR2 make the ranks checkpoint and stop (exit 75); a second one ends them at once.
The exit code is codinet-train's: see codinet-train --help.";

/// Start codinet-train under mpirun, with the flags that this machine's MPI needs.
#[derive(Debug, Parser)]
#[command(name = "codinet-launch", version, after_help = EXAMPLES)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
struct Args {
    #[command(subcommand)]
    tool: Option<Tool>,

    /// Ranks to start; by default one a GPU, or one where there is none.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    n: Option<u32>,

    /// Prints the command and stops.
    #[arg(long)]
    print: bool,

    /// Prints a completion script for a shell, and stops.
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,

    /// The config, and whatever else codinet-train takes.
    #[arg(
        required_unless_present = "completions",
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "CONFIG [ARGS]"
    )]
    arguments: Vec<String>,
}

/// What it does beside starting ranks.
#[derive(Debug, Subcommand)]
enum Tool {
    Plan(Box<plan::Args>),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(shell) = args.completions {
        clap_complete::generate(shell, &mut Args::command(), "codinet-launch", &mut std::io::stdout());
        return ExitCode::SUCCESS;
    }
    let done = match &args.tool {
        Some(Tool::Plan(args)) => plan::run(args).map(|()| ExitCode::SUCCESS),
        None => launch(args).await,
    };
    match done {
        Ok(code) => code,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

async fn launch(args: Args) -> Result<ExitCode, String> {
    let flavour = Flavour::of_this_machine()?;
    let ranks = args.n.map_or_else(gpus, |n| n as usize).max(1);
    let root =
        std::fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0);
    let mut words = flavour.flags(ranks, root);
    words.push(trainer().to_string_lossy().into_owned());
    words.extend(args.arguments);
    let shown: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    println!("mpirun {}", shown.join(" "));
    if args.print {
        return Ok(ExitCode::SUCCESS);
    }
    // Watched before mpirun starts, so that no signal ends this program and leaves mpirun behind.
    let signals = Signals::watch().map_err(|error| format!("cannot watch signals: {error}"))?;
    // A process group of its own: Ctrl-C reaches this program alone, which passes on what the ranks take.
    let child = Command::new("mpirun").args(&words).stdin(Stdio::null()).process_group(0).spawn();
    let status = relay(child.map_err(|error| format!("cannot run mpirun: {error}"))?, signals).await;
    let status = status.map_err(|error| format!("lost mpirun: {error}"))?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(code as u8))
}

/// The signals that ask for an end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    checkpoint: Signal,
}

impl Signals {
    fn watch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            checkpoint: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for any of them.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
            _ = self.checkpoint.recv() => {}
        }
    }
}

/// Waits for mpirun; turns a first signal into the SIGUSR2 that it forwards to the ranks, a second into an end.
async fn relay(mut child: Child, mut signals: Signals) -> std::io::Result<std::process::ExitStatus> {
    let mut asked = false;
    loop {
        tokio::select! {
            status = child.wait() => return status,
            () = signals.next() => {}
        }
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid as i32)) {
            // Fails only where mpirun has just ended, which the next turn sees.
            let _ = kill_process(pid, if asked { Send::TERM } else { Send::USR2 });
        }
        asked = true;
    }
}

/// GPUs of this machine, by the NVIDIA driver's own list.
fn gpus() -> usize {
    std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(1, |entries| entries.count())
}

/// A word as a shell would need it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
