//! `codinet-train`'s command line, and what it does with it.

pub mod dry_run;
mod probe;
pub mod program;

use crate::config::{self, Config, TrainArgs};
use crate::data::{Datasets, Validation};
use crate::dist::device;
use crate::dist::replicas;
use crate::dist::{World, agree, on_rank_zero};
use crate::model::{Decisions, Net};
use crate::profile;
use crate::profile::find_batch;
use crate::run::{Console, checkpoint, resolve_run_dir, resolve_weights};
use crate::run_dir;
use crate::sys::error::{Error, Exit, Result};
use crate::text::shell_quote;
use crate::train::Trainer;
use crate::train::evaluate::evaluate;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use tch::Device;

/// All ranks: does what the command line asks for.
pub fn run(args: &TrainArgs, world: &mut World, stop: Arc<AtomicBool>) -> Result<()> {
    device::register();
    if args.probe {
        return probe::run(args.config.as_deref(), &args.set, world, &stop);
    }
    let name = args.config.as_deref().unwrap_or_default();
    let config = agree(world, config::load(name, &args.set).map_err(Error::from))?;
    let facts = [
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("config", serde_json::to_string(&config).expect("a config is JSON")),
    ];
    replicas::refuse_differences(world, &facts)?;
    world.start_watchdog(&config.collective)?;
    if let Some(format) = args.dry_run {
        let described = agree(world, dry_run::describe(&config, world, format))?;
        Console::new(world.rank()).say(&described);
        return Ok(());
    }
    let chosen = device::prepare(world, config.run.device, "run.device", config.run.threads);
    let device = agree(world, chosen)?;
    world.use_device(device, config.collective.backend)?;
    let world: &World = world;
    device::choose_kernels(&config, world, device)?;
    let stem = run_dir::stem(name);
    if args.find_batch {
        return find_batch::run(world, &config, device, &stop, args.memory);
    }
    if let Some(steps) = args.profile {
        return profile::run(world, &config, device, stop, steps, &stem);
    }
    if args.eval_only {
        return eval_only(&config, world, device, || resolve_weights(&stem, &config, &args.resume));
    }
    let input = agree(world, Datasets::open(&config, world, device))?;
    let location = on_rank_zero(world, || resolve_run_dir(&stem, &config, &args.resume))?;
    Trainer::new(world, &config, location, input, device, stop, again(args, world.ranks()))?.run()?;
    Ok(())
}

/// The command that starts a run like this one, to which `--resume` is added.
fn again(args: &TrainArgs, ranks: usize) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_else(|_| "codinet-train".into());
    let shown = |path: &Path| {
        let path = path.strip_prefix(&here).unwrap_or(path).display().to_string();
        shell_quote(&if path.contains('/') { path } else { format!("./{path}") })
    };
    let launcher = program.with_file_name("codinet-launch");
    let mut words = match ranks {
        1 => vec![shown(&program)],
        // The launcher, where it is: it knows the flags that this machine's mpirun needs.
        _ if launcher.exists() => vec![format!("{} -n {ranks}", shown(&launcher))],
        _ => vec![format!("mpirun -n {ranks} {}", shown(&program))],
    };
    words.extend(args.config.as_deref().map(shell_quote));
    // run.dir is what --resume will say.
    let sets = args.set.iter().filter(|setting| !setting.starts_with("run.dir="));
    words.extend(sets.map(|setting| format!("--set {}", shell_quote(setting))));
    words.join(" ")
}

/// All ranks: `--eval-only`.
fn eval_only(
    config: &Config,
    world: &World,
    device: Device,
    choose: impl FnOnce() -> Result<PathBuf>,
) -> Result<()> {
    let net = Net::from_config(config, device);
    let path = on_rank_zero(world, || {
        let path = choose()?;
        checkpoint::load_model(&path, &net.params)?;
        Ok(path)
    })?;
    replicas::broadcast_all(world, &[net.params.flat(), net.params.flat_buffers()])?;
    let val = Validation::open(config, device).and_then(|val| {
        val.set.check_labels(config.data.classes as usize)?;
        Ok(val)
    });
    let val = agree(world, val)?;
    let evaluation = evaluate(world, config, &net, &val, Decisions::Hard)?;
    let text = format!(
        "{}\n  top-1 {:.2} %  top-5 {:.2} % of {} images · {:.4} GMACs per image (static {:.4}) · {} distinct paths",
        path.display(),
        100.0 * evaluation.top1,
        100.0 * evaluation.top5,
        evaluation.images,
        evaluation.gmacs,
        net.costs.static_macs() as f64 / 1e9,
        evaluation.distinct_paths
    );
    Console::new(world.rank()).say(&text);
    Ok(())
}

/// The first SIGUSR2, SIGTERM or SIGINT asks for a checkpoint and an end; another one, a second or more later, ends at once.
/// One that comes sooner is the same request: `timeout` and schedulers signal a program, and then its group.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>> {
    let wrong = |error: io::Error| Error::new(Exit::Config, format!("cannot watch signals: {error}"));
    let mut signals = Signals::new([SIGUSR2, SIGTERM, SIGINT]).map_err(wrong)?;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = stop.clone();
    let watch = move || {
        let mut last = None::<Instant>;
        for signal in signals.forever() {
            let later =
                last.replace(Instant::now()).is_some_and(|last| last.elapsed() >= Duration::from_secs(1));
            if asked.swap(true, Ordering::Relaxed) && later {
                signal_hook::low_level::exit(128 + signal);
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map_err(wrong)?;
    Ok(stop)
}
