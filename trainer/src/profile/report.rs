//! A profile as numbers, `profile.json`, and as a table.

use super::step_time::StepTime;
use crate::config::Config;
use crate::dist::World;
use crate::model::Costs;
use crate::sys::{Driver, PeakMemory, Phase, format_gib};
use crate::text::counted;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use tch::Device;

/// One rank's entry in `profile.json`.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RankProfile {
    rank: usize,
    /// The measured steps.
    steps: u64,
    /// Views per step, over all ranks.
    images_a_step: f64,
    /// Views per second, over all ranks.
    images_per_second: f64,
    tflops_a_rank: f64,
    device: String,
    /// Milliseconds of a step and its parts, by name.
    ms: BTreeMap<String, f64>,
    peak_bytes: PeakBytes,
}

#[derive(Debug, Serialize, Deserialize)]
struct PeakBytes {
    tensors: u64,
    held: u64,
    /// By the names of the phases.
    phases: BTreeMap<String, u64>,
}

/// The largest peak of each phase, by its name.
pub(super) fn phase_peaks(peaks: &[(Phase, u64)]) -> BTreeMap<String, u64> {
    let mut largest = BTreeMap::new();
    for (phase, peak) in peaks {
        let entry = largest.entry(phase.name().to_owned()).or_insert(0);
        *entry = (*entry).max(*peak);
    }
    largest
}

impl RankProfile {
    /// Of this rank: `steps` steps of the median `time`, the peak of the process, and those of the phases.
    pub fn new(
        world: &World,
        config: &Config,
        device: Device,
        steps: u64,
        time: &StepTime,
        costs: &Costs,
        (peak, phases): (PeakMemory, BTreeMap<String, u64>),
    ) -> Self {
        let images = (config.optim.batch_size * config.data.views) as f64;
        let images_per_second = 1e3 * images / time.step;
        // Forward and backward take three times the forward's MACs, of two operations each.
        let flops = 3.0 * 2.0 * costs.training_macs() as f64 * images_per_second / world.ranks() as f64;
        Self {
            rank: world.rank(),
            steps,
            images_a_step: images,
            images_per_second,
            tflops_a_rank: flops / 1e12,
            device: device_name(device),
            ms: time.rows().into_iter().map(|(name, time)| (name.to_owned(), time)).collect(),
            peak_bytes: PeakBytes { tensors: peak.tensors, held: peak.held, phases },
        }
    }
}

/// The table of rank `rank`, whose `time` it has, followed by a line per rank if there are several.
pub(super) fn render(
    ranks: &[RankProfile],
    rank: usize,
    time: &StepTime,
    device: Device,
    costs: &Costs,
) -> String {
    let own = &ranks[rank];
    let mut text = step_table(own, time, device);
    let _ = write!(
        text,
        "\n{:.1} images/s on {}; {:.4} TFLOP/s per rank",
        own.images_per_second,
        counted(ranks.len(), "rank"),
        own.tflops_a_rank
    );
    if let Some((tflops, bandwidth)) = device_limits(&own.device) {
        let share = 100.0 * own.tflops_a_rank / tflops;
        let _ = write!(text, ", {share:.1} % of {tflops} (dense bf16; memory {bandwidth} GB/s)");
    }
    let gmacs = costs.training_macs() as f64 / 1e9;
    let _ =
        writeln!(text, "\n3 × {gmacs:.4} GMACs × 2 per image, arithmetic of convolutions and linear layers");
    if ranks.len() > 1 {
        text += &rank_table(ranks);
    }
    text
}

fn step_table(own: &RankProfile, time: &StepTime, device: Device) -> String {
    let mut text = format!("{:<20}{:>10}{:>8}{:>14}\n", "", "ms", "%", "peak memory");
    let peaks = &own.peak_bytes;
    for (name, part) in time.rows() {
        let memory = peaks.phases.get(name).map_or(String::new(), |&bytes| format_gib(bytes));
        let share = 100.0 * part / time.step;
        let line = format!("{name:<20}{part:>10.2}{share:>8.1}{memory:>14}");
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let held = format_gib(peaks.held);
    let _ = match device {
        Device::Cuda(_) => {
            let tensors = format_gib(peaks.tensors);
            writeln!(text, "\npeak memory {tensors} of tensors, {held} with what the allocator keeps")
        }
        _ => writeln!(
            text,
            "\npeak memory {held} of the process; in a phase's row: up to its end, in the first step"
        ),
    };
    text
}

/// One line per rank: the slowest need not be rank 0, whose table is above.
fn rank_table(ranks: &[RankProfile]) -> String {
    let mut text = format!(
        "\n{:<6}{:>10}{:>10}{:>10}{:>10}{:>14}\n",
        "rank", "step", "loader", "exposed", "hidden", "peak memory"
    );
    for profile in ranks {
        let ms = |part: &str| profile.ms.get(part).copied().unwrap_or(f64::NAN);
        let _ = writeln!(
            text,
            "{:<6}{:>10.2}{:>10.2}{:>10.2}{:>10.2}{:>14}",
            profile.rank,
            ms("step"),
            ms("loader wait"),
            ms("collectives exposed"),
            ms("collectives hidden"),
            format_gib(profile.peak_bytes.held)
        );
    }
    text
}

/// The GPU's name by its driver, or `CPU`. Not yet run on a GPU.
fn device_name(device: Device) -> String {
    let Device::Cuda(index) = device else { return "CPU".into() };
    Driver::open().and_then(|driver| driver.name(index)).unwrap_or_else(|_| "unknown GPU".into())
}

/// Dense bf16 TFLOP/s and memory bandwidth in GB/s of a GPU, from NVIDIA's data sheets (A100: the 80 GB SXM's; H100 and H200:
/// SXM).
fn device_limits(name: &str) -> Option<(f64, f64)> {
    let known = [
        ("H200", 989.0, 4800.0),
        ("H100 80GB HBM3", 989.0, 3350.0),
        ("H100 PCIe", 756.0, 2000.0),
        ("A100-SXM4-80GB", 312.0, 2039.0),
        ("A100-SXM4-40GB", 312.0, 1555.0),
        ("L40S", 362.0, 864.0),
        ("A10", 125.0, 600.0),
    ];
    known.into_iter().find(|(part, ..)| name.contains(part)).map(|(_, tflops, bandwidth)| (tflops, bandwidth))
}
