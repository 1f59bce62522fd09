//! The command `codinet-train`.

mod dry_run;
mod probe;
pub mod program;

use crate::config::{self, Config, TrainArgs};
use crate::data::{Validation, print_data_notes};
use crate::dist::device::{choose_device, set_thread_count};
use crate::dist::{World, agree, enable_kernels, on_rank_zero, replicas, start_watchdog, use_device};
use crate::host;
use crate::model::Net;
use crate::profile;
use crate::run::{Console, checkpoint, resolve_weights};
use crate::run_dir;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::load_cuda;
use crate::text::shell_quote;
use crate::train::evaluate::{EvaluationMode, evaluate};
use crate::train::{Directory, Start, Trainer};
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use tch::Device;

/// All ranks: does what the command line asks for. `stop` asks a run to end with a checkpoint.
pub fn run(args: &TrainArgs, world: &mut World, stop: Arc<AtomicBool>) -> Result<()> {
    if args.list {
        Console::new(world.rank()).say(&config::list());
        return Ok(());
    }
    load_cuda();
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
    start_watchdog(world, &config.collective)?;
    let stem = run_dir::stem(name);
    let place = |key: &str| config::place_of(name, &args.set, key);
    let mut start = Start {
        config: &config,
        rank: world.rank(),
        ranks: world.ranks(),
        device: None,
        has_data: true,
        directory: Some(Directory { stem: &stem, resume: &args.resume }),
        place: &place,
    };
    if let Some(format) = args.dry_run {
        start.ranks = args.ranks.unwrap_or(start.ranks);
        start.has_data = !args.no_data;
        return dry_run::run(&start, world, format);
    }
    set_thread_count(world, config.run.threads)?;
    let device = choose_device(world, config.run.device, "run.device");
    let device = agree(world, device)?;
    use_device(world, device, config.collective.backend)?;
    let world: &World = world;
    enable_kernels(&config, world, device)?;
    if args.find_batch {
        return profile::find_batch::run(world, &config, device, &stop, args.memory);
    }
    if let Some(steps) = args.profile {
        return profile::run(world, &config, device, stop, steps, &stem);
    }
    if args.eval_only {
        return evaluate_weights(world, &config, device, || resolve_weights(&stem, &config, &args.resume));
    }
    let net = Net::from_config(&config, device);
    start.device = Some(device);
    let started = start.start(world, &net)?;
    let command = restart_command(args, world.ranks());
    let mut trainer = Trainer::new(world, &config, net, started, device, stop, command)?;
    if world.rank() == 0 {
        let _ = RESUME.set(trainer.resume_command());
    }
    trainer.run()?;
    Ok(())
}

/// The command that starts this run again, without `--resume RUN`.
fn restart_command(args: &TrainArgs, ranks: usize) -> String {
    let current_dir = std::env::current_dir().unwrap_or_default();
    let program = std::env::current_exe().unwrap_or_else(|_| "codinet-train".into());
    let runnable = |path: &Path| {
        let path = path.strip_prefix(&current_dir).unwrap_or(path).display().to_string();
        shell_quote(&if path.contains('/') { path } else { format!("./{path}") })
    };
    let launcher = program.with_file_name("codinet-launch");
    let mut words = match ranks {
        1 => vec![runnable(&program)],
        // The launcher, if it is installed, because it knows the options that this machine's mpirun needs.
        _ if launcher.exists() => vec![format!("{} -n {ranks}", runnable(&launcher))],
        _ => vec![format!("mpirun -n {ranks} {}", runnable(&program))],
    };
    words.extend(args.config.as_deref().map(shell_quote));
    // --resume takes the place of run.dir.
    let settings = args.set.iter().filter(|setting| !setting.starts_with("run.dir="));
    words.extend(settings.map(|setting| format!("--set {}", shell_quote(setting))));
    words.join(" ")
}

/// All ranks: evaluates the weights that rank 0 finds with `find_weights`, and prints the results.
fn evaluate_weights(
    world: &World,
    config: &Config,
    device: Device,
    find_weights: impl FnOnce() -> Result<PathBuf>,
) -> Result<()> {
    let net = Net::from_config(config, device);
    let file = on_rank_zero(world, || {
        let file = find_weights()?;
        checkpoint::load_model(&file, &net.params)?;
        Ok(file)
    })?;
    replicas::broadcast_all(world, &[net.params.flat(), net.params.flat_buffers()])?;
    let val = Validation::open(config, device).and_then(|val| {
        val.set.check_labels(config.data.classes as usize)?;
        if world.rank() == 0 {
            print_data_notes("data.val", &val.set, &config.evaluation(), config.data.eval_size())?;
        }
        Ok(val)
    });
    let val = agree(world, val)?;
    let evaluation = evaluate(world, config, &net, &val, EvaluationMode::inference(config))?;
    let with_noise = if config.run.evaluate_with_noise {
        let noisy = evaluate(world, config, &net, &val, EvaluationMode::HardWithNoise)?;
        format!("\n  {}", noisy.describe_with_noise())
    } else {
        String::new()
    };
    Console::new(world.rank()).say(&format!(
        "{}\n  top-1 {:.2} %  top-5 {:.2} % of {} images · {:.4} GMACs per image (static {:.4}) · {} distinct paths{with_noise}",
        file.display(),
        100.0 * evaluation.top1,
        100.0 * evaluation.top5,
        evaluation.images,
        evaluation.gmacs,
        net.costs.static_macs() as f64 / 1e9,
        evaluation.distinct_paths
    ));
    Ok(())
}

/// Rank 0, once it has a run directory: the command that resumes the run.
static RESUME: OnceLock<String> = OnceLock::new();

/// Starts a thread that handles SIGUSR2, SIGTERM and SIGINT, unless they were ignored when the program started. The first one sets the returned flag, which asks for a checkpoint
/// and the end of the run; another one, a second or more after the last, ends the process. Sooner ones are the same request:
/// `timeout` and schedulers signal a process and then its group.
pub fn watch_signals() -> Result<Arc<AtomicBool>> {
    let config_error = |error: io::Error| Error::new(Exit::Config, format!("cannot watch signals: {error}"));
    let watched = [SIGUSR2, SIGTERM, SIGINT].into_iter().filter(|&signal| !host::ignores_signal(signal));
    let mut signals = Signals::new(watched).map_err(config_error)?;
    let stop = Arc::new(AtomicBool::new(false));
    let requested = stop.clone();
    let watch = move || {
        let mut last = None::<Instant>;
        for signal in signals.forever() {
            let previous = last.replace(Instant::now());
            let is_new = previous.is_some_and(|previous| previous.elapsed() >= Duration::from_secs(1));
            let repeated = requested.swap(true, Ordering::Relaxed);
            if repeated && is_new {
                signal_hook::low_level::exit(128 + signal);
            }
            // At once: mpirun kills ranks a second after Ctrl-C, perhaps before they have a checkpoint. SIGUSR2 leaves them time.
            if let Some(command) = RESUME.get().filter(|_| !repeated && signal != SIGUSR2) {
                crate::eprint_line!("stopping with a checkpoint after this step; to resume: {command}");
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map_err(config_error)?;
    Ok(stop)
}
