//! `codinet-launch CONFIG`: starts, supervises and restarts a job.

use crate::allocation::{Allocation, RankArgs};
use crate::machine::Machine;
use crate::mpi::{Flavour, Job, mpirun};
use crate::restart::{Commands, back_off};
use crate::supervise::{self, OutputMode, Signals};
use crate::trainer;
use clap::Parser;
use codinet_config::env;
use codinet_config::exit::Exit;
use codinet_config::host;
use codinet_config::text::print;
use codinet_config::text::shell_quote;
use codinet_config::{TrainArgs, key_as_option};
use std::io::IsTerminal;
use std::time::Duration;
use tokio::time::sleep;

/// How ranks are started, stopped and restarted.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many ranks, and where.
    #[command(flatten)]
    pub ranks: RankArgs,

    /// The cores of a rank: auto binds it to its share of them if the machine has several NUMA nodes.
    #[arg(long, value_enum, default_value = "auto")]
    pub bind: Bind,

    /// After a crash, resumes from the last complete checkpoint, at most K times.
    #[arg(long, value_name = "K", default_value = "0")]
    pub max_restarts: u32,

    /// Seconds before the first restart; the wait doubles with each restart, up to 5 minutes.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub back_off: u64,

    /// Seconds for a checkpoint after a request to stop.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    pub grace: u64,

    /// Leaves the ranks' output to mpirun: lines without their rank, mpirun's own lines, no summary of errors, no bar.
    #[arg(long)]
    pub raw: bool,

    /// Prints the mpirun command without running it.
    #[arg(long)]
    pub print: bool,
}

/// The cores of a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bind {
    /// Its share, if the machine has several NUMA nodes and the share is two cores or more; else all.
    Auto,
    /// All.
    None,
    /// Its share.
    Core,
}

impl Bind {
    /// The number of cores that each rank is bound to; `None`: not bound.
    fn cores(self, machine: &Machine, allocation: &Allocation) -> Result<Option<usize>, String> {
        let ranks = allocation.max_ranks_per_host();
        match (self, machine.cores / ranks) {
            (Self::None, _) => Ok(None),
            // Named hosts may have other cores than this one.
            (Self::Auto, _) if !allocation.hosts.is_empty() => Ok(None),
            (Self::Auto, _) => Ok(machine.cores_to_bind(ranks)),
            (Self::Core, 0) => Err(format!(
                "--bind core: {ranks} ranks are more than the {} cores that this process may use",
                machine.cores
            )),
            (Self::Core, share) => Ok(Some(share)),
        }
    }
}

/// The job for mpirun; with `labels`, mpirun tags each line with its rank.
pub fn plan_job(
    flavour: Flavour,
    machine: &Machine,
    allocation: Allocation,
    bind: Bind,
    labels: bool,
) -> Result<Job, String> {
    Ok(Job {
        flavour,
        ranks: allocation.ranks,
        oversubscribed: allocation.oversubscribed(machine),
        cores: bind.cores(machine, &allocation)?,
        hosts: allocation.hosts,
        root: machine.root,
        labels,
    })
}

/// codinet-train's command line. What clap says of a wrong one, or the help, is printed, and the program ends.
fn parse_train_args(arguments: &[String]) -> Result<TrainArgs, String> {
    let words: Vec<String> = std::iter::once("codinet-train")
        .chain(arguments.iter().map(String::as_str))
        .map(Into::into)
        .collect();
    TrainArgs::try_parse_from(&words).map_err(|error| match key_as_option(&error, &words) {
        Some(what) => what,
        None => error.exit(),
    })
}

/// Starts codinet-train with `arguments`; returns the exit code.
pub async fn start(args: &Args, arguments: &[String]) -> Result<Exit, String> {
    let (flavour, _) = Flavour::detect()?;
    let machine = Machine::detect();
    let allocation = Allocation::resolve(&args.ranks, &machine)?;
    allocation.check_srun()?;
    let job = plan_job(flavour, &machine, allocation, args.bind, !args.raw)?;
    let mpirun_args = |arguments: &[String]| {
        let mut words = job.mpirun_args();
        words.push(trainer().to_string_lossy().into_owned());
        words.extend_from_slice(arguments);
        words
    };
    let print_command = |words: &[String]| {
        let quoted: Vec<String> = words.iter().map(|word| shell_quote(word)).collect();
        print(&format!("{} {}\n", mpirun().display(), quoted.join(" ")));
    };
    if args.print {
        print_command(&mpirun_args(arguments));
        return Ok(Exit::Done);
    }
    // What codinet-train would refuse is refused before mpirun starts it.
    let train_args = parse_train_args(arguments)?;
    if let Some(count) = env::get(env::SLURM_RESTART_COUNT) {
        print(&format!("codinet-launch: SLURM has requeued this job {count} times\n"));
    }
    let commands = if args.max_restarts == 0 {
        Commands::once(arguments)
    } else {
        Commands::new(arguments, train_args)?
    };
    // Before mpirun starts: no signal may end this program and leave mpirun behind.
    let mut signals = Signals::watch()?;
    let mode = if args.raw {
        OutputMode::Raw
    } else if std::io::stdout().is_terminal() {
        OutputMode::Bar
    } else {
        OutputMode::Lines
    };
    let mut command = mpirun_args(&commands.first);
    for restart in 1.. {
        print_command(&command);
        if mode == OutputMode::Bar {
            command.splice(..0, flavour.export(env::CODINET_PROGRESS));
        }
        let grace = Duration::from_secs(args.grace);
        let kills_before = host::out_of_memory_kills();
        let job_exit = supervise::run(&command, mode, grace, &mut signals).await?;
        let out_of_memory = host::out_of_memory_kills() > kills_before;
        let any_output = args.raw || job_exit.output.any();
        let exit = Exit::of_mpirun(job_exit.code, any_output, out_of_memory);
        if matches!(exit, Exit::Done | Exit::Interrupted) {
            return Ok(exit);
        }
        if let Some(lines) = job_exit.output.last_lines() {
            codinet_config::eprint_line!("{lines}");
        }
        let how = job_exit.code.map_or("by a signal".into(), |code| format!("with {code}"));
        let give_up = if exit == Exit::NotStarted && (args.max_restarts == 0 || any_output) {
            format!("no rank has trained; {}", load_advice().unwrap_or("see the lines above"))
        } else if args.max_restarts == 0 && exit.restartable(false) {
            "--resume auto resumes from its last checkpoint".to_owned()
        } else if args.max_restarts == 0 {
            "once that is fixed, --resume auto resumes from its last checkpoint, if it has one".to_owned()
        } else if job_exit.stop_requested {
            "stopped on request".to_owned()
        } else if !exit.restartable(restart == 1) {
            "not restartable".to_owned()
        } else if restart > args.max_restarts {
            format!("all {} restarts are used up", args.max_restarts)
        } else {
            let wait = back_off(Duration::from_secs(args.back_off), restart);
            codinet_config::eprint_line!(
                "codinet-launch: exit code {} (mpirun ended {how}); restart {restart} of {} in {} s, from the \
                 last complete checkpoint",
                exit as u8,
                args.max_restarts,
                wait.as_secs()
            );
            tokio::select! {
                () = sleep(wait) => {}
                () = signals.next() => return Ok(Exit::Interrupted),
            }
            command = mpirun_args(&commands.restart);
            continue;
        };
        codinet_config::eprint_line!(
            "codinet-launch: exit code {} (mpirun ended {how}); {give_up}",
            exit as u8
        );
        return Ok(exit);
    }
    unreachable!("the loop has no end")
}

/// What may keep codinet-train from loading.
pub fn load_advice() -> Option<&'static str> {
    let set = env::is_set(env::LD_LIBRARY_PATH);
    set.then_some(
        "LD_LIBRARY_PATH is set: if one of its folders holds another libtorch than 2.11, take it out",
    )
}
