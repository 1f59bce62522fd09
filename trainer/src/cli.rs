//! `codinet-train`'s command line, and what it does with it.

use crate::collective::{self, Collective, agree};
use crate::config::{self, Config};
use crate::dry_run;
use crate::error::{EXIT_CODES, Error, Exit, Result};
use crate::evaluate::evaluate;
use crate::input::{self, Input};
use crate::model::Net;
use crate::run::{Console, Place, Resume, checkpoint, choose};
use crate::train::Trainer;
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

const EXAMPLES: &str = "\
Examples:
  mpirun -n 8 codinet-train imagenet.yaml          a rank a process, a process a GPU
  codinet-train fashion_quick.yaml --dry-run       what the run would be
  codinet-train my.yaml --set optim.batch_size=256 --set stages.0.lr=0.2
  codinet-train my.yaml --resume auto              go on where the last run of this config stopped
  kill -USR2 <pid of mpirun>                       checkpoint and stop (exit 75)";

/// Train CoDiNet, a dynamic-routing ResNet with consistent and diverse routing paths, on one process or,
/// under mpirun or srun, on many.
#[derive(Debug, Parser)]
#[command(name = "codinet-train", version, after_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
pub struct Args {
    /// A YAML file, or the bare name of a shipped config.
    #[arg(value_name = "CONFIG", required_unless_present = "completions")]
    pub config: Option<String>,

    /// Overrides one key of the config; may be given many times.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// `never` starts anew, `auto` goes on with the run in run.dir or the newest run of an equal config
    /// (or starts anew where there is none), a run directory or checkpoint folder goes on from there.
    #[arg(long, value_name = "auto|never|PATH", default_value = "never")]
    pub resume: Resume,

    /// Prints the resolved config, the model's table and the steps an epoch, and stops.
    #[arg(long)]
    pub dry_run: bool,

    /// Evaluates the checkpoint that --resume names, and stops; nothing is written.
    #[arg(long, conflicts_with = "dry_run")]
    pub eval_only: bool,

    /// Prints a completion script for a shell, and stops.
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<clap_complete::Shell>,
}

/// All ranks: does what the command line asks for.
pub fn run(args: &Args, world: &dyn Collective) -> Result<()> {
    let name = args.config.as_deref().unwrap_or_default();
    let config = agree(world, config::load(name, &args.set))?;
    if args.dry_run {
        if world.rank() == 0 {
            print!("{}", dry_run::describe(&config, world));
        }
        return Ok(());
    }
    let stop = stop_on_signals()?;
    let device = agree(world, input::prepare(&config, world))?;
    if args.eval_only {
        return eval_only(args, &config, world, device);
    }
    let input = agree(world, Input::open(&config, world, device))?;
    let stem = Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let place = agree_on_place(world, choose(&stem, &config, &args.resume))?;
    Trainer::new(world, &config, place, input, device, stop, Console::new(world.rank()))?.run()?;
    Ok(())
}

/// All ranks: `--eval-only`.
fn eval_only(args: &Args, config: &Config, world: &dyn Collective, device: Device) -> Result<()> {
    let path = match &args.resume {
        Resume::From(path) => Ok(path.clone()),
        Resume::Auto if config.run.dir.is_some() => {
            Ok(PathBuf::from(config.run.dir.clone().unwrap_or_default()))
        }
        _ => Err(Error::new(
            Exit::Config,
            "--eval-only needs a checkpoint: add --resume RUN, where RUN is a run directory, a step folder or a \
             model.safetensors",
        )),
    };
    let path = agree(world, path)?;
    let input = agree(world, Input::open(config, world, device))?;
    let (channels, size) = (config.data.channels.into(), config.data.image_size.into());
    let net = Net::new(&config.model, channels, size, config.data.classes, config.run.seed, device);
    let file = agree(world, checkpoint::load_model(&path, &net.params))?;
    let evaluation = evaluate(world, config, &net, &input)?;
    if world.rank() == 0 {
        println!(
            "{}\n  top-1 {:.2} %  top-5 {:.2} % of {} images · {:.4} GMACs an image (static {:.4}) · {} distinct paths",
            file.display(),
            100.0 * evaluation.top1,
            100.0 * evaluation.top5,
            evaluation.images,
            evaluation.gmacs,
            net.costs.static_macs() as f64 / 1e9,
            evaluation.distinct_paths
        );
    }
    Ok(())
}

/// All ranks: rank 0's choice holds for all.
fn agree_on_place(world: &dyn Collective, mine: Result<Place>) -> Result<Place> {
    let mine = if world.rank() == 0 { mine.map(Some) } else { Ok(None) };
    let mine = agree(world, mine)?.map(|place| {
        let checkpoint = place.checkpoint.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        format!("{}\n{checkpoint}", place.dir.display())
    });
    let text = collective::broadcast_text(world, &mine.unwrap_or_default())?;
    let (dir, checkpoint) = text.split_once('\n').expect("two lines");
    let checkpoint = (!checkpoint.is_empty()).then(|| PathBuf::from(checkpoint));
    Ok(Place { dir: dir.into(), checkpoint })
}

/// The first SIGUSR2, SIGTERM or SIGINT asks for a checkpoint and an end; a second one ends at once.
fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGUSR2, SIGTERM, SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|error| Error::new(Exit::Config, format!("cannot watch signal {signal}: {error}")))?;
    }
    Ok(stop)
}
