//! `codinet-launch`: starts `codinet-train`, one process per rank, under this machine's MPI.

use clap::{CommandFactory, Parser, Subcommand};
use codinet_config::exit::Exit;
use codinet_config::text::error_lines;
use codinet_config::{TrainArgs, key_as_option};
use codinet_launcher::command_line::sort_words;
use codinet_launcher::{doctor, plan, start, table};
use std::io::Write;
use std::process::ExitCode;

const EXAMPLES: &str = "\
Examples:
  codinet-launch -n 2 fashion_quick.yaml
  codinet-launch my.yaml --set optim.batch_size=256 --resume auto
  codinet-launch --hosts node1:8,node2:8 --max-restarts 3 my.yaml
  codinet-launch --print -n 8 my.yaml           prints the mpirun command
  codinet-launch doctor my.yaml                 checks this machine or allocation: doctor --help
  codinet-launch plan my.yaml --run runs/a      throughput, hours and cost on more GPUs: plan --help
  codinet-launch table cifar10_table3.yaml      the rows of a table of the paper, with its figures

Ctrl-C, SIGTERM, SIGHUP and SIGUSR2 make the ranks save a checkpoint and stop (exit 75); a second one ends them at once.
";

/// Start codinet-train under mpirun with the flags that this machine's MPI needs.
#[derive(Debug, Parser)]
#[command(name = "codinet-launch", version, after_help = format!("{EXAMPLES}\n{}", Exit::table()))]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Args {
    #[command(subcommand)]
    tool: Option<Tool>,

    #[command(flatten)]
    start: start::Args,

    /// Prints a completion script for a shell.
    #[arg(long, value_name = "SHELL")]
    completions: Option<clap_complete::Shell>,

    /// The config and other arguments of codinet-train; options of both may stand before and after it.
    #[arg(required_unless_present = "completions", trailing_var_arg = true, value_name = "CONFIG [ARGS]")]
    arguments: Vec<String>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
enum Tool {
    Plan(Box<plan::Args>),
    Doctor(Box<doctor::Args>),
    Table(table::Args),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().collect();
    let sorted = sort_words(words.clone(), Args::command(), TrainArgs::command());
    let args = match Args::try_parse_from(sorted) {
        Ok(args) => args,
        Err(error) => match key_as_option(&error, &words) {
            Some(what) => {
                codinet_config::eprint_line!("error: {what}");
                return ExitCode::from(Exit::Config as u8);
            }
            None => error.exit(),
        },
    };
    if let Some(shell) = args.completions {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Args::command(), "codinet-launch", &mut script);
        let _ = std::io::stdout().write_all(&script); // a closed pipe (`| head`) is not an error
        return ExitCode::SUCCESS;
    }
    let done = match &args.tool {
        Some(Tool::Plan(args)) => plan::run(args).map(|()| Exit::Done as u8),
        Some(Tool::Doctor(args)) => doctor::run(args).await,
        Some(Tool::Table(args)) => table::run(args).map(|()| Exit::Done as u8),
        None => start::start(&args.start, &args.arguments).await.map(|exit| exit as u8),
    };
    ExitCode::from(done.unwrap_or_else(|message| {
        codinet_config::eprint_line!("{}", error_lines(&message));
        Exit::Config as u8
    }))
}
