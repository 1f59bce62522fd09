//! `--find-batch`: the largest batch that fits in memory.
//!
//! A step's memory is nearly affine in the batch size. Two small sizes are tried with real steps. The line through them
//! predicts the largest size that fits, which is tried next, and so on with the line through the last two sizes until the
//! gain is small.
//!
//! All ranks try each size together and in this process, because under mpirun a rank cannot start another job. Sizes grow
//! towards the limit from below, with a reserve, because running out of memory would end the search.

use crate::config::{Config, MemorySize};
use crate::data::{Datasets, batch_size_unit};
use crate::dist::{World, agree, all_gather_objects};
use crate::optim::schedule::format_lr;
use crate::run::Console;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{OOM_ADVICE, available_memory, format_gib, peak_memory, release_memory};
use crate::text::counted;
use crate::train::BenchmarkRun;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::Device;

/// The share of the limit that is kept free: steps differ, and evaluation and checkpoints need some.
const RESERVE: f64 = 0.05;
const WARM_UP_STEPS: usize = 2;
const TIMED_STEPS: usize = 3;
/// A size that is larger by less than this share is not worth another trial.
const MIN_GAIN: f64 = 1.0 / 32.0;
/// The most that a size grows from one trial to the next.
const MAX_GROWTH: usize = 4;

/// The measurements of a batch size.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Trial {
    batch_size: usize,
    /// The most memory of any rank, in bytes.
    peak: u64,
    images_per_second: f64,
}

/// All ranks: finds the largest `optim.batch_size` with which every rank needs at most `limit`, by default its available
/// memory, and prints the settings for it.
pub fn run(
    world: &World,
    config: &Config,
    device: Device,
    stop: &Arc<AtomicBool>,
    limit: Option<MemorySize>,
) -> Result<()> {
    let mut console = Console::new(world.rank());
    let own = limit.map_or_else(|| available_memory(device, world.local_rank().count), |limit| limit.0);
    let limit = all_gather_objects(world, &own)?.into_iter().min().expect("a number per rank") as f64;
    let unit = batch_size_unit(config, world.ranks());
    let mut largest_views = config.clone();
    largest_views.data.image_size = config.image_sizes().last().copied().unwrap_or(config.data.image_size);
    largest_views.data.eval_size = Some(config.data.eval_size());
    largest_views.stages.iter_mut().for_each(|stage| stage.image_size = None);
    let config = &largest_views;
    let mut smallest = config.clone();
    smallest.optim.batch_size = unit;
    let data = Datasets::open(&smallest, device).or_else(|problems| {
        problems.into_result(&|_| None)?;
        unreachable!("data that cannot be opened have a problem")
    });
    let data = agree(world, data)?;
    if world.rank() == 0 {
        data.print_notes(config)?;
    }
    let samples = data.samples;
    let search = Search { limit: limit * (1.0 - RESERVE), unit, largest: samples / unit * unit };
    console.say(&format!(
        "multiples of {unit} on {}, at most {} per rank, {:.0} % of it kept free",
        counted(world.ranks(), "rank"),
        format_gib(limit as u64),
        100.0 * RESERVE
    ));
    console.say(&format!("{:>12}{:>16}{:>12}", "batch_size", "peak memory", "images/s"));
    let mut trials = Vec::new();
    while let Some(batch_size) = search.next(&trials) {
        let mut config = config.clone();
        config.optim.batch_size = batch_size;
        let trial = measure(world, &config, device, stop)?;
        let verdict = if search.fits(&trial) { "" } else { "  too much" };
        let peak = format_gib(trial.peak);
        console.say(&format!("{batch_size:>12}{peak:>16}{:>12.1}{verdict}", trial.images_per_second));
        trials.push(trial);
    }
    let Some(best) = search.best(&trials) else {
        let needed = format_gib(trials.first().map_or(0, |trial| trial.peak));
        let what = format!("a batch of {unit} takes {needed} per rank, more than there is; {OOM_ADVICE}");
        return Err(Error::on_all_ranks(Exit::Memory, what));
    };
    console.say(&advice(config, &best, best.batch_size == search.largest));
    Ok(())
}

/// All ranks: takes some real steps of `config`.
fn measure(world: &World, config: &Config, device: Device, stop: &Arc<AtomicBool>) -> Result<Trial> {
    release_memory(device);
    let mut benchmark = BenchmarkRun::new(world, config, device, stop.clone())?;
    for _ in 0..WARM_UP_STEPS {
        benchmark.step()?;
    }
    world.barrier()?;
    let start = Instant::now();
    for _ in 0..TIMED_STEPS {
        benchmark.step()?;
    }
    benchmark.synchronize();
    let seconds = all_gather_objects(world, &start.elapsed().as_secs_f64())?.into_iter().fold(0.0, f64::max);
    let peaks = all_gather_objects(world, &peak_memory(device).held)?;
    let images = TIMED_STEPS * config.optim.batch_size * config.data.views;
    Ok(Trial {
        batch_size: config.optim.batch_size,
        peak: peaks.into_iter().max().expect("a number per rank"),
        images_per_second: images as f64 / seconds,
    })
}

/// Chooses the sizes to try.
struct Search {
    /// Bytes per rank.
    limit: f64,
    /// Sizes are multiples of it.
    unit: usize,
    /// The largest size, by the number of samples.
    largest: usize,
}

impl Search {
    fn fits(&self, trial: &Trial) -> bool {
        trial.peak as f64 <= self.limit
    }

    /// The largest size that fits.
    fn best(&self, trials: &[Trial]) -> Option<Trial> {
        trials.iter().filter(|trial| self.fits(trial)).max_by_key(|trial| trial.batch_size).copied()
    }

    /// The size to try next; none once the largest that fits is known, up to [`MIN_GAIN`].
    fn next(&self, trials: &[Trial]) -> Option<usize> {
        let Some(best) = self.best(trials) else { return self.next_smaller(trials) };
        let above = trials.iter().filter(|trial| !self.fits(trial)).min_by_key(|trial| trial.batch_size);
        let below = trials
            .iter()
            .filter(|trial| trial.batch_size < best.batch_size)
            .max_by_key(|trial| trial.batch_size);
        let slope = |other: &Trial| {
            (other.peak as f64 - best.peak as f64) / (other.batch_size as f64 - best.batch_size as f64)
        };
        let free = self.limit - best.peak as f64;
        let growth = match above.or(below).map(slope) {
            None => best.batch_size, // a second point for the line
            Some(slope) if slope > 0.0 => (free / slope) as usize,
            Some(_) => usize::MAX - best.batch_size,
        };
        let bound = above.map_or(self.largest, |above| above.batch_size - self.unit);
        let bound = bound.min(MAX_GROWTH * best.batch_size);
        let next = best.batch_size.saturating_add(growth).min(bound) / self.unit * self.unit;
        let min_gain = MIN_GAIN * best.batch_size as f64;
        (next > best.batch_size && (next - best.batch_size) as f64 >= min_gain).then_some(next)
    }

    /// The size to try next as long as none fits.
    fn next_smaller(&self, trials: &[Trial]) -> Option<usize> {
        match trials.iter().map(|trial| trial.batch_size).min() {
            None => Some((4 * self.unit).min(self.largest)),
            Some(smallest) if smallest <= self.unit => None,
            Some(smallest) => Some((smallest / 2 / self.unit * self.unit).max(self.unit)),
        }
    }
}

/// The settings for the batch size that was found, and the learning rates that follow from it.
fn advice(config: &Config, best: &Trial, whole_set: bool) -> String {
    let batch_size = best.batch_size;
    let base = config.optim.lr_batch_size.unwrap_or(config.optim.batch_size);
    let rates: Vec<String> = config
        .stages
        .iter()
        .map(|stage| format!("{} {}", stage.name, format_lr(stage.lr * batch_size as f64 / base as f64)))
        .collect();
    let rates = rates.join(", ");
    let base_setting = match config.optim.lr_batch_size {
        Some(_) => String::new(),
        None => format!(" --set optim.lr_batch_size={base}"),
    };
    let bound = if whole_set { "; the data set has no more samples" } else { "" };
    format!(
        "\nlargest batch that fits: {batch_size} samples ({} per rank, {:.1} images/s){bound}\n  \
         --set optim.batch_size={batch_size}{base_setting}\n\
         learning rates, scaled in proportion from a batch of {base}: {rates}",
        format_gib(best.peak),
        best.images_per_second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The result of a search where a batch of n takes `peak(n)` bytes, and the sizes that it tries.
    fn search(
        limit: f64,
        unit: usize,
        largest: usize,
        peak: impl Fn(usize) -> f64,
    ) -> (Option<usize>, Vec<usize>) {
        let search = Search { limit, unit, largest };
        let mut trials = Vec::new();
        while let Some(batch_size) = search.next(&trials) {
            assert!(batch_size.is_multiple_of(unit) && trials.len() < 20, "{trials:?}");
            trials.push(Trial { batch_size, peak: peak(batch_size) as u64, images_per_second: 1.0 });
        }
        let sizes = trials.iter().map(|trial| trial.batch_size).collect();
        (search.best(&trials).map(|best| best.batch_size), sizes)
    }

    #[test]
    fn search_follows_the_line_and_stays_below_the_limit() {
        let affine = |batch: usize| 300.0 + 10.0 * batch as f64;
        assert_eq!(search(10_300.0, 4, 100_000, affine), (Some(1000), vec![16, 32, 128, 512, 1000]));
        // The data set ends first; nothing fits; only the smallest does.
        assert_eq!(search(10_300.0, 4, 100, affine).0, Some(100));
        assert_eq!(search(310.0, 4, 100, affine), (None, vec![16, 8, 4]));
        assert_eq!(search(345.0, 4, 100, affine).0, Some(4));
        // A jump, as from another algorithm's workspace, and a curve: the result fits and is not far from the largest.
        for peak in [
            |b: usize| 300.0 + 10.0 * b as f64 + if b > 700 { 4000.0 } else { 0.0 },
            |b| 300.0 + (b * b) as f64 / 90.0,
        ] {
            let best = search(10_300.0, 4, 100_000, peak).0.unwrap();
            let largest = (1..).map(|n| 4 * n).take_while(|&b| peak(b) <= 10_300.0).last().unwrap();
            assert!(best <= largest && best as f64 > 0.9 * largest as f64, "{best} of {largest}");
        }
    }
}
