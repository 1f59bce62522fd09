//! `--profile`: where a training step's time and memory go, as a table, and libtorch's own trace of some steps.

pub mod find_batch;

use crate::config::{Config, Resume};
use crate::dist::{World, agree, all_gather_objects, on_rank_zero};
use crate::run::{Console, resolve_run_dir, write_atomically};
use crate::sys::error::{Error, Result};
use crate::sys::{
    PeakMemory, Phase, Recording, Span, format_gib, peak_memory, save_trace, start_recording, start_trace,
    stop_recording,
};
use crate::text::counted;
use crate::train::BenchmarkRun;
use serde_json::{Value, json};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tch::Device;

/// Steps before those that count: allocators, oneDNN's and cuDNN's choices and the loader settle.
const WARM_UP: usize = 4;
/// Steps in the trace, at most: one of ResNet-50 takes megabytes.
const TRACED: u64 = 3;

/// A step's time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Anatomy {
    /// The whole of it.
    pub step: f64,
    /// Waiting for the loader.
    pub loader: f64,
    /// Forward, with the objective, without its waits for collectives.
    pub forward: f64,
    /// Backward, likewise.
    pub backward: f64,
    /// Waiting for collectives.
    pub exposed: f64,
    /// The update.
    pub optimizer: f64,
    /// What is left of the step: making tensors of the batch, drawing noise, deciding, logging.
    pub host: f64,
    /// Collectives while something else was computed; part of what stands above, not of the sum.
    pub hidden: f64,
}

impl Anatomy {
    /// Of each step in `spans`. The parts but `hidden` add up to the step.
    pub fn of(spans: &[Span]) -> Vec<Self> {
        let steps = spans.iter().filter(|span| span.phase == Phase::Step);
        steps.map(|step| Self::of_step(step, spans)).collect()
    }

    fn of_step(step: &Span, spans: &[Span]) -> Self {
        let within = |phase| {
            let inside = spans.iter().filter(move |span| span.phase == phase);
            union(inside.map(|span| (span.start.max(step.start), span.end.min(step.end))).collect())
        };
        let waits = within(Phase::Wait);
        let own = |phase| {
            let ranges = within(phase);
            length(&ranges) - common(&ranges, &waits)
        };
        let mut anatomy = Self {
            step: step.end - step.start,
            loader: own(Phase::Loader),
            forward: own(Phase::Forward),
            backward: own(Phase::Backward),
            exposed: length(&waits),
            optimizer: own(Phase::Optimizer),
            host: 0.0,
            hidden: own(Phase::Collective),
        };
        anatomy.host = anatomy.step - anatomy.parts()[..5].iter().map(|(_, time)| time).sum::<f64>();
        anatomy
    }

    /// Each part by itself: the median over steps.
    fn median(steps: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| {
            let mut times: Vec<f64> = steps.iter().map(part).collect();
            times.sort_by(f64::total_cmp);
            let middle = times.len() / 2;
            if times.len() % 2 == 1 { times[middle] } else { f64::midpoint(times[middle - 1], times[middle]) }
        };
        Self {
            step: of(|one| one.step),
            loader: of(|one| one.loader),
            forward: of(|one| one.forward),
            backward: of(|one| one.backward),
            exposed: of(|one| one.exposed),
            optimizer: of(|one| one.optimizer),
            host: of(|one| one.host),
            hidden: of(|one| one.hidden),
        }
    }

    /// What a step is the sum of, by name.
    fn parts(&self) -> [(&'static str, f64); 6] {
        [
            ("loader wait", self.loader),
            ("forward", self.forward),
            ("backward", self.backward),
            ("collectives exposed", self.exposed),
            ("optimizer", self.optimizer),
            ("host", self.host),
        ]
    }
}

/// Sorted, without what is empty, overlaps made one.
fn union(mut ranges: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    ranges.retain(|(start, end)| start < end);
    ranges.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut whole: Vec<(f64, f64)> = Vec::new();
    for (start, end) in ranges {
        match whole.last_mut().filter(|last| start <= last.1) {
            Some(last) => last.1 = last.1.max(end),
            None => whole.push((start, end)),
        }
    }
    whole
}

fn length(ranges: &[(f64, f64)]) -> f64 {
    ranges.iter().map(|(start, end)| end - start).sum()
}

/// How long both last at once; each is a [`union`].
fn common(a: &[(f64, f64)], b: &[(f64, f64)]) -> f64 {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.1.min(b.1) - a.0.max(b.0)));
    pairs.filter(|both| *both > 0.0).sum()
}

/// All ranks: profiles `steps` steps, then traces some more; writes `profile/` in the run directory and nothing else of it.
/// `name` is the config's.
pub fn run(
    world: &World,
    config: &Config,
    device: Device,
    stop: Arc<AtomicBool>,
    steps: u64,
    name: &str,
) -> Result<()> {
    let mut trial = BenchmarkRun::new(world, config, device, stop)?;
    let folder = on_rank_zero(world, || folder(name, config))?;
    let images = (config.optim.batch_size * config.data.views) as f64;
    let macs = trial.costs().training_macs() as f64;
    let mut peaks = Vec::new();
    for _ in 0..WARM_UP {
        start_recording(device, true);
        trial.step()?;
        peaks.push(stop_recording().peaks);
    }
    // A GPU's first steps try out kernels; a CPU's peak only rises, and the first step tells where.
    let of_phases = if device.is_cuda() { peaks.pop() } else { peaks.into_iter().next() }.unwrap_or_default();
    start_recording(device, false);
    for _ in 0..steps {
        trial.step()?;
    }
    let Recording { spans, .. } = stop_recording();
    let peak = peak_memory(device);
    start_recording(device, false);
    start_trace(device);
    for _ in 0..steps.min(TRACED) {
        trial.step()?;
    }
    stop_recording();
    let trace = folder.join(format!("rank{}.json", world.rank()));
    save_trace(&trace);
    let saved = fs::metadata(&trace).map(drop).map_err(|error| Error::disk("write", &trace, &error));
    agree(world, saved)?;

    let anatomy = Anatomy::median(&Anatomy::of(&spans));
    let speed = 1e3 * images / anatomy.step;
    let flops = 3.0 * 2.0 * macs * speed / world.ranks() as f64;
    let mine = json!({
        "rank": world.rank(), "steps": steps, "images_a_step": images, "images_per_second": speed,
        "tflops_a_rank": flops / 1e12, "device": device_name(device), "ms": milliseconds(&anatomy),
        "peak_bytes": {"tensors": peak.tensors, "held": peak.held, "phases": phases(&of_phases)},
    });
    let all = all_gather_objects(world, &mine)?;
    let mut table = table(&anatomy, device, peak, &of_phases);
    let _ = write!(
        table,
        "\n{speed:.1} images/s on {}; {:.4} TFLOP/s per rank",
        counted(world.ranks(), "rank"),
        flops / 1e12
    );
    if let Some((flops_peak, bytes_peak)) = peaks_of(&device_name(device)) {
        let share = 100.0 * flops / 1e12 / flops_peak;
        let _ = write!(table, ", {share:.1} % of {flops_peak} (dense bf16; memory {bytes_peak} GB/s)");
    }
    let _ = writeln!(
        table,
        "\n3 × {:.4} GMACs × 2 an image, arithmetic of convolutions and linear layers",
        macs / 1e9
    );
    if world.ranks() > 1 {
        table += &ranks(&all);
    }
    let write = || {
        write_atomically(&folder.join("table.txt"), table.as_bytes())?;
        write_atomically(&folder.join("profile.json"), &serde_json::to_vec_pretty(&all).expect("JSON"))
    };
    on_rank_zero(world, write)?;
    let last = steps.min(TRACED);
    Console::new(world.rank()).say(&format!(
        "{table}\n{0}/table.txt and profile.json have this; {0}/rank*.json the trace of {1}, for https://ui.perfetto.dev",
        folder.display(),
        counted(last as usize, "more step")
    ));
    Ok(())
}

/// Rank 0: makes `profile/` in `run.dir`, whether it holds a run or not, or in a folder as a run would have it.
fn folder(name: &str, config: &Config) -> Result<PathBuf> {
    let dir = match &config.run.dir {
        Some(dir) => PathBuf::from(dir),
        None => resolve_run_dir(name, config, &Resume::Never)?.dir,
    };
    let folder = dir.join("profile");
    fs::create_dir_all(&folder).map_err(|error| Error::disk("make", &folder, &error))?;
    for old in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let is_trace = old.file_name().to_string_lossy().starts_with("rank");
        let _ = is_trace.then(|| fs::remove_file(old.path())); // of more ranks, perhaps
    }
    Ok(folder)
}

fn milliseconds(anatomy: &Anatomy) -> Value {
    let parts =
        anatomy.parts().into_iter().chain([("step", anatomy.step), ("collectives hidden", anatomy.hidden)]);
    parts.map(|(name, time)| (name.to_owned(), json!(time))).collect::<serde_json::Map<_, _>>().into()
}

fn phases(peaks: &[(Phase, u64)]) -> Value {
    peaks.iter().fold(json!({}), |mut phases, (phase, peak)| {
        let most = phases[phase.name()].as_u64().unwrap_or(0).max(*peak);
        phases[phase.name()] = most.into();
        phases
    })
}

fn table(anatomy: &Anatomy, device: Device, peak: PeakMemory, of_phases: &[(Phase, u64)]) -> String {
    let of_phases = phases(of_phases);
    let mut text = format!("{:<20}{:>10}{:>8}{:>14}\n", "", "ms", "%", "peak memory");
    let mut row = |name: &str, time: f64| {
        let memory = of_phases[name].as_u64().map_or(String::new(), format_gib);
        let share = 100.0 * time / anatomy.step;
        let line = format!("{name:<20}{time:>10.2}{share:>8.1}{memory:>14}");
        let _ = writeln!(text, "{}", line.trim_end());
    };
    for (name, time) in anatomy.parts() {
        row(name, time);
    }
    row("step", anatomy.step);
    row("collectives hidden", anatomy.hidden);
    let _ = match device {
        Device::Cuda(_) => writeln!(
            text,
            "\npeak memory {} of tensors, {} with what the allocator keeps",
            format_gib(peak.tensors),
            format_gib(peak.held)
        ),
        _ => writeln!(
            text,
            "\npeak memory {} of the process; beside a phase: up to its end, in the first step",
            format_gib(peak.held)
        ),
    };
    text
}

/// One line per rank: the slowest is not always rank 0, whose table stands above.
fn ranks(all: &[Value]) -> String {
    let mut text = format!(
        "\n{:<6}{:>10}{:>10}{:>10}{:>10}{:>14}\n",
        "rank", "step", "loader", "exposed", "hidden", "peak memory"
    );
    for rank in all {
        let ms = |part: &str| rank["ms"][part].as_f64().unwrap_or(f64::NAN);
        let (step, loader) = (ms("step"), ms("loader wait"));
        let (exposed, hidden) = (ms("collectives exposed"), ms("collectives hidden"));
        let peak = format_gib(rank["peak_bytes"]["held"].as_u64().unwrap_or(0));
        let number = &rank["rank"];
        let _ =
            writeln!(text, "{number:<6}{step:>10.2}{loader:>10.2}{exposed:>10.2}{hidden:>10.2}{peak:>14}");
    }
    text
}

/// The GPU's name by its driver, by the place of this rank's among those of the host; untested. `CPU` for a CPU.
fn device_name(device: Device) -> String {
    let Device::Cuda(index) = device else { return "CPU".into() };
    let mut gpus: Vec<PathBuf> = fs::read_dir("/proc/driver/nvidia/gpus")
        .into_iter()
        .flatten()
        .flatten()
        .map(|gpu| gpu.path())
        .collect();
    gpus.sort();
    let model = |gpu: &Path| {
        let text = fs::read_to_string(gpu.join("information")).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()))
    };
    gpus.get(index).and_then(|gpu| model(gpu)).unwrap_or_else(|| "unknown GPU".into())
}

/// Dense bf16 TFLOP/s and GB/s of memory, by NVIDIA's data sheets (A100: the 80 GB SXM's; H100 and H200: SXM).
fn peaks_of(name: &str) -> Option<(f64, f64)> {
    let known = [
        ("H200", 989.0, 4800.0),
        ("H100 80GB HBM3", 989.0, 3350.0),
        ("H100 PCIe", 756.0, 2000.0),
        ("A100-SXM4-80GB", 312.0, 2039.0),
        ("A100-SXM4-40GB", 312.0, 1555.0),
        ("L40S", 362.0, 864.0),
        ("A10", 125.0, 600.0),
    ];
    known.into_iter().find(|(part, ..)| name.contains(part)).map(|(_, flops, bytes)| (flops, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steps_parts_add_up_and_collectives_hide_behind_backward() {
        let spans = [
            (Phase::Loader, 10.0, 11.0),
            (Phase::Wait, 14.0, 15.0), // inside forward
            (Phase::Collective, 14.0, 15.0),
            (Phase::Forward, 12.0, 20.0),
            (Phase::Collective, 25.0, 29.0), // hidden
            (Phase::Collective, 29.0, 33.0), // the last of it exposed
            (Phase::Backward, 20.0, 31.0),
            (Phase::Wait, 31.0, 33.0),
            (Phase::Optimizer, 33.0, 35.0),
            (Phase::Step, 10.0, 36.0),
            (Phase::Collective, 37.0, 40.0), // no step's
        ];
        let spans = spans.map(|(phase, start, end)| Span { phase, start, end });
        let expected = Anatomy {
            step: 26.0,
            loader: 1.0,
            forward: 7.0,
            backward: 11.0,
            exposed: 3.0,
            optimizer: 2.0,
            host: 2.0,
            hidden: 6.0,
        };
        assert_eq!(Anatomy::of(&spans), [expected]);
        assert_eq!(Anatomy::median(&[expected, Anatomy { step: 28.0, ..expected }]).step, 27.0);
    }
}
