//! `--profile`: where a training step's time and memory go, as a table, and libtorch's own trace of some steps.

pub mod find_batch;
mod report;
mod step_time;

use crate::config::Config;
use crate::dist::{World, agree, all_gather_objects, on_rank_zero};
use crate::run::{Console, write_atomically};
use crate::run_dir;
use crate::sys::error::{Error, Result};
use crate::sys::{peak_memory, save_trace, start_recording, start_trace, stop_recording};
use crate::text::counted;
use crate::train::BenchmarkRun;
use report::{RankProfile, phase_peaks};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use step_time::StepTime;
use tch::Device;

/// Steps before those that are measured: allocators, the loader, and the choices of oneDNN and cuDNN settle.
const WARM_UP_STEPS: usize = 4;
/// The most steps in the trace, which takes megabytes per step of ResNet-50.
const MAX_TRACED_STEPS: u64 = 3;

/// All ranks: measures `steps` steps and traces some more. Writes `profile/` in the run directory, and nothing else there.
/// `stem` starts the name of a new run directory.
pub fn run(
    world: &World,
    config: &Config,
    device: Device,
    stop: Arc<AtomicBool>,
    steps: u64,
    stem: &str,
) -> Result<()> {
    let mut benchmark = BenchmarkRun::new(world, config, device, stop)?;
    let folder = on_rank_zero(world, || create_folder(stem, config))?;

    // Warm-up. A GPU's first steps try out kernels, so the last one has the peaks of the phases. On a CPU the peak only
    // rises, so the first one does.
    let mut warm_up_peaks = Vec::new();
    for _ in 0..WARM_UP_STEPS {
        start_recording(device, true);
        benchmark.step()?;
        warm_up_peaks.push(phase_peaks(&stop_recording().peaks));
    }
    let phase_peaks = warm_up_peaks.swap_remove(if device.is_cuda() { WARM_UP_STEPS - 1 } else { 0 });

    start_recording(device, false);
    for _ in 0..steps {
        benchmark.step()?;
    }
    let spans = stop_recording().spans;
    let peak = peak_memory(device);

    let traced_steps = steps.min(MAX_TRACED_STEPS);
    start_recording(device, false);
    start_trace(device);
    for _ in 0..traced_steps {
        benchmark.step()?;
    }
    stop_recording();
    let trace = folder.join(format!("rank{}.json", world.rank()));
    save_trace(&trace);
    let saved = fs::metadata(&trace).map(drop).map_err(|error| Error::disk("write", &trace, &error));
    agree(world, saved)?;

    let time = StepTime::median(&StepTime::of_steps(&spans));
    let own = RankProfile::new(world, config, device, steps, &time, benchmark.costs(), (peak, phase_peaks));
    let all = all_gather_objects(world, &own)?;
    let table = report::render(&all, world.rank(), &time, device, benchmark.costs());
    on_rank_zero(world, || {
        write_atomically(&folder.join("table.txt"), table.as_bytes())?;
        write_atomically(&folder.join("profile.json"), &serde_json::to_vec_pretty(&all).expect("JSON"))
    })?;
    Console::new(world.rank()).say(&format!(
        "{table}\n{0}/table.txt and profile.json have this; {0}/rank*.json the trace of {1}, for https://ui.perfetto.dev",
        folder.display(),
        counted(traced_steps as usize, "more step")
    ));
    Ok(())
}

/// Rank 0: creates `profile/` in `run.dir`, even if that holds a run, or in a new run directory.
fn create_folder(stem: &str, config: &Config) -> Result<PathBuf> {
    let dir = match &config.run.dir {
        Some(dir) => PathBuf::from(dir),
        None => run_dir::create_unique(stem)?,
    };
    let folder = dir.join("profile");
    fs::create_dir_all(&folder).map_err(|error| Error::disk("make", &folder, &error))?;
    for old in fs::read_dir(&folder).into_iter().flatten().flatten() {
        if old.file_name().to_string_lossy().starts_with("rank") {
            let _ = fs::remove_file(old.path()); // a trace, perhaps of more ranks than now
        }
    }
    Ok(folder)
}
