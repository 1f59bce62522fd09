//! `codinet-launch CONFIG`: ranks started, watched, and started again where that helps.

use crate::allocation::{Allocation, Asked};
use crate::machine::Machine;
use crate::mpi::{Flavour, Job, mpirun};
use crate::restart::{Commands, back_off};
use crate::supervise::{self, Signals};
use crate::{print, trainer};
use codinet_config::env;
use codinet_config::exit::Exit;
use codinet_config::text::shell_quote;
use std::time::Duration;
use tokio::time::sleep;

/// How ranks are started and kept going.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// How many ranks, and where.
    #[command(flatten)]
    pub asked: Asked,

    /// Which cores a rank may use: auto binds it to its share of them where the machine has several memory nodes.
    #[arg(long, value_enum, default_value = "auto")]
    pub bind: Bind,

    /// After a crash, goes on from the last complete checkpoint, at most so many times.
    #[arg(long, value_name = "K", default_value = "0")]
    pub max_restarts: u32,

    /// Seconds before the first restart; each further wait is twice as long, up to 5 minutes.
    #[arg(long, value_name = "SECONDS", default_value = "10")]
    pub back_off: u64,

    /// Seconds that ranks have for a checkpoint once they are asked to stop.
    #[arg(long, value_name = "SECONDS", default_value = "600")]
    pub grace: u64,

    /// Leaves the ranks' output to mpirun: no rank before a line, nothing repeated, and the progress bar on a terminal.
    #[arg(long)]
    pub raw: bool,

    /// Prints the command and stops.
    #[arg(long)]
    pub print: bool,
}

/// Which cores a rank may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bind {
    /// Its share, where the machine has several memory nodes and the share is two cores or more; else any.
    Auto,
    /// Any.
    None,
    /// Its share.
    Core,
}

impl Bind {
    /// Cores that each rank is bound to; none: not bound.
    fn cores(self, machine: &Machine, allocation: &Allocation) -> Result<Option<usize>, String> {
        let ranks = allocation.most_on_a_host();
        match (self, machine.cores / ranks) {
            (Self::None, _) => Ok(None),
            // Hosts that a user names may have other cores than this one.
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

/// The job as mpirun is to start it, with each line's rank before it if `labels`.
pub fn job(
    flavour: Flavour,
    machine: &Machine,
    allocation: Allocation,
    bind: Bind,
    labels: bool,
) -> Result<Job, String> {
    Ok(Job {
        flavour,
        ranks: allocation.ranks,
        crowded: allocation.crowded(machine),
        cores: bind.cores(machine, &allocation)?,
        hosts: allocation.hosts,
        root: machine.root,
        labels,
    })
}

/// Starts codinet-train with `arguments`; returns the exit code.
pub async fn start(args: &Args, arguments: &[String]) -> Result<Exit, String> {
    let (flavour, _) = Flavour::of_this_machine()?;
    let machine = Machine::here();
    let allocation = Allocation::find(&args.asked, &machine)?;
    let job = job(flavour, &machine, allocation, args.bind, !args.raw)?;
    let words = |arguments: &[String]| {
        let mut words = job.words();
        words.push(trainer().to_string_lossy().into_owned());
        words.extend_from_slice(arguments);
        words
    };
    let show = |words: &[String]| {
        let shown: Vec<String> = words.iter().map(|word| shell_quote(word)).collect();
        print(&format!("{} {}\n", mpirun().display(), shown.join(" ")));
    };
    if args.print {
        show(&words(arguments));
        return Ok(Exit::Done);
    }
    if let Some(count) = env::get(env::SLURM_RESTART_COUNT) {
        print(&format!("codinet-launch: SLURM has requeued this job {count} times\n"));
    }
    let commands = match args.max_restarts {
        0 => Commands { first: arguments.to_vec(), restart: Vec::new() },
        _ => Commands::new(arguments)?,
    };
    // Watched before mpirun starts, so that no signal ends this program and leaves mpirun behind.
    let mut signals = Signals::watch()?;
    let mut words_now = words(&commands.first);
    for restart in 1.. {
        show(&words_now);
        let ended =
            supervise::run(&words_now, args.raw, Duration::from_secs(args.grace), &mut signals).await?;
        let exit = Exit::of_mpirun(ended.code, args.raw || ended.said.any());
        if matches!(exit, Exit::Done | Exit::Interrupted) {
            return Ok(exit);
        }
        if let Some(epitaph) = ended.said.epitaph() {
            eprintln!("{epitaph}");
        }
        let how = ended.code.map_or("by a signal".into(), |code| format!("with {code}"));
        let why = match () {
            () if args.max_restarts == 0 && exit.restartable(false) => {
                "--resume auto goes on from its last checkpoint".to_owned()
            }
            () if args.max_restarts == 0 => {
                "once that is mended, --resume auto goes on from its last checkpoint, if it has one"
                    .to_owned()
            }
            () if ended.asked => "it was asked to end".to_owned(),
            () if !exit.restartable(restart == 1) => "a restart would not mend that".to_owned(),
            () if restart > args.max_restarts => format!("all {} restarts are used up", args.max_restarts),
            () => {
                let wait = back_off(Duration::from_secs(args.back_off), restart);
                eprintln!(
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
                words_now = words(&commands.restart);
                continue;
            }
        };
        eprintln!("codinet-launch: exit code {} (mpirun ended {how}); {why}", exit as u8);
        return Ok(exit);
    }
    unreachable!("restarts are counted from 1 without an end")
}
