//! `--find-batch`: the largest batch that fits in memory.
//!
//! A step's memory is very nearly affine in the batch. So real steps are taken at two small sizes, the line through them
//! tells the largest size that fits, and that one is tried in turn, with a new line through the last two, until nothing is to
//! be gained. Every size is tried by all ranks together, in this very process: under mpirun a rank cannot start another
//! program of ranks. Sizes grow towards the limit from below, with a reserve, so that running out of memory, which would end
//! the search, is not how the limit is found.

use crate::config::{Config, MemorySize};
use crate::data::{Datasets, batch_size_unit};
use crate::dist::{World, agree};
use crate::optim::schedule::format_lr;
use crate::run::Console;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{OOM_ADVICE, available_memory, format_gib, peak_memory, release_memory};
use crate::text::counted;
use crate::train::BenchmarkRun;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use tch::{Device, Tensor};

/// Of the limit, what is left free: no two steps are alike, and evaluation and checkpoints want some.
const RESERVE: f64 = 0.05;
/// Steps at a size before those that are timed, and those.
const STEPS: (usize, usize) = (2, 3);
/// A size that is larger by less than this is not worth another trial.
const GAIN: f64 = 1.0 / 32.0;
/// The most that a size grows by in one go.
const GROWTH: usize = 4;

/// A size that was tried.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tried {
    batch: usize,
    /// The most memory that any rank needed, in bytes.
    peak: u64,
    images_per_second: f64,
}

/// All ranks: finds the largest `optim.batch_size` of which a rank needs at most `limit`, by default what it has, and says
/// how to use it.
pub fn run(
    world: &World,
    config: &Config,
    device: Device,
    stop: &Arc<AtomicBool>,
    limit: Option<MemorySize>,
) -> Result<()> {
    let mut console = Console::new(world.rank());
    let own = limit.map_or_else(|| available_memory(device, world.local_rank().count), |limit| limit.0);
    let limit = over_ranks(world, own as f64)?.into_iter().fold(f64::INFINITY, f64::min);
    let unit = batch_size_unit(config, world.ranks());
    let mut smallest = config.clone();
    smallest.optim.batch_size = unit;
    let samples = agree(world, Datasets::open(&smallest, world, device))?.samples;
    let search = Search { limit: limit * (1.0 - RESERVE), unit, most: samples / unit * unit };
    console.say(&format!(
        "multiples of {unit} on {}, at most {} per rank, of which {:.0} % stay free",
        counted(world.ranks(), "rank"),
        format_gib(limit as u64),
        100.0 * RESERVE
    ));
    console.say(&format!("{:>12}{:>16}{:>12}", "batch_size", "peak memory", "images/s"));
    let mut tried = Vec::new();
    while let Some(batch) = search.next(&tried) {
        let mut at = config.clone();
        at.optim.batch_size = batch;
        let one = measure(world, &at, device, stop)?;
        let fits = if one.peak as f64 <= search.limit { "" } else { "  too much" };
        console.say(&format!("{batch:>12}{:>16}{:>12.1}{fits}", format_gib(one.peak), one.images_per_second));
        tried.push(one);
    }
    let Some(best) = search.best(&tried) else {
        let least = tried.first().map_or(0, |one| one.peak);
        let message = format!(
            "a batch of {unit} takes {} per rank, more than there is; {}",
            format_gib(least),
            OOM_ADVICE
        );
        return Err(Error::on_all_ranks(Exit::Memory, message));
    };
    console.say(&advice(config, &best, best.batch == search.most));
    Ok(())
}

/// All ranks: some real steps at this config's batch size.
fn measure(world: &World, config: &Config, device: Device, stop: &Arc<AtomicBool>) -> Result<Tried> {
    release_memory(device);
    let mut trial = BenchmarkRun::new(world, config, device, stop.clone())?;
    for _ in 0..STEPS.0 {
        trial.step()?;
    }
    world.barrier()?;
    let start = Instant::now();
    for _ in 0..STEPS.1 {
        trial.step()?;
    }
    trial.synchronize();
    let seconds = over_ranks(world, start.elapsed().as_secs_f64())?.into_iter().fold(0.0, f64::max);
    let peak = over_ranks(world, peak_memory(device).held as f64)?.into_iter().fold(0.0, f64::max);
    let images = STEPS.1 * config.optim.batch_size * config.data.views;
    Ok(Tried {
        batch: config.optim.batch_size,
        peak: peak as u64,
        images_per_second: images as f64 / seconds,
    })
}

/// All ranks: a number of each.
fn over_ranks(world: &World, own: f64) -> Result<Vec<f64>> {
    Ok(Vec::try_from(&world.all_gather(&Tensor::from(own))?).expect("a number per rank"))
}

/// Which sizes to try.
struct Search {
    /// Bytes per rank.
    limit: f64,
    /// Sizes are multiples of it.
    unit: usize,
    /// The largest: the data set has no more.
    most: usize,
}

impl Search {
    fn fits(&self, one: &Tried) -> bool {
        one.peak as f64 <= self.limit
    }

    /// The largest that fits.
    fn best(&self, tried: &[Tried]) -> Option<Tried> {
        tried.iter().filter(|one| self.fits(one)).max_by_key(|one| one.batch).copied()
    }

    /// The size to try next; none where the largest that fits is known, to [`GAIN`].
    fn next(&self, tried: &[Tried]) -> Option<usize> {
        let Some(best) = self.best(tried) else {
            // Nothing fits yet: what is known is a bound from above.
            let least = tried.iter().map(|one| one.batch).min();
            return match least {
                None => Some((4 * self.unit).min(self.most)),
                Some(batch) => {
                    (batch > self.unit).then(|| (batch / 2 / self.unit * self.unit).max(self.unit))
                }
            };
        };
        let above = tried.iter().filter(|one| !self.fits(one)).min_by_key(|one| one.batch);
        let below = tried.iter().filter(|one| one.batch < best.batch).max_by_key(|one| one.batch);
        let slope =
            |other: &Tried| (other.peak as f64 - best.peak as f64) / (other.batch as f64 - best.batch as f64);
        let room = self.limit - best.peak as f64;
        let more = match above.or(below).map(slope) {
            None => best.batch, // a second point for the line
            Some(slope) if slope > 0.0 => (room / slope) as usize,
            Some(_) => usize::MAX - best.batch,
        };
        let most = above.map_or(self.most, |above| above.batch - self.unit).min(GROWTH * best.batch);
        let next = best.batch.saturating_add(more).min(most) / self.unit * self.unit;
        let worth = next > best.batch && (next - best.batch) as f64 >= GAIN * best.batch as f64;
        worth.then_some(next)
    }
}

/// What to write on the command line, and what becomes of the learning rates.
fn advice(config: &Config, best: &Tried, whole_set: bool) -> String {
    let (batch, meant) = (best.batch, config.optim.lr_batch_size);
    let from = meant.unwrap_or(config.optim.batch_size);
    let rates: Vec<String> = config
        .stages
        .iter()
        .map(|stage| format!("{} {}", stage.name, format_lr(stage.lr * batch as f64 / from as f64)))
        .collect();
    let rates = rates.join(", ");
    let set = match meant {
        Some(_) => String::new(),
        None => format!(" --set optim.lr_batch_size={from}"),
    };
    let bound = if whole_set { "; the data set has no more samples" } else { "" };
    format!(
        "\nlargest batch that fits: {batch} samples ({} per rank, {:.1} images/s){bound}\n  --set optim.batch_size={batch}{set}\n\
         learning rates, scaled in proportion from a batch of {from}: {rates}",
        format_gib(best.peak),
        best.images_per_second
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a search finds where a batch takes `peak(batch)` bytes, and the sizes that it tries.
    fn found(
        limit: f64,
        unit: usize,
        most: usize,
        peak: impl Fn(usize) -> f64,
    ) -> (Option<usize>, Vec<usize>) {
        let search = Search { limit, unit, most };
        let mut tried = Vec::new();
        while let Some(batch) = search.next(&tried) {
            assert!(batch.is_multiple_of(unit) && tried.len() < 20, "{tried:?}");
            tried.push(Tried { batch, peak: peak(batch) as u64, images_per_second: 1.0 });
        }
        (search.best(&tried).map(|best| best.batch), tried.iter().map(|one| one.batch).collect())
    }

    #[test]
    fn a_search_follows_the_line_and_stays_below_the_limit() {
        let affine = |batch: usize| 300.0 + 10.0 * batch as f64;
        assert_eq!(found(10_300.0, 4, 100_000, affine), (Some(1000), vec![16, 32, 128, 512, 1000]));
        // The data set ends first; nothing fits; the smallest alone does.
        assert_eq!(found(10_300.0, 4, 100, affine).0, Some(100));
        assert_eq!(found(310.0, 4, 100, affine), (None, vec![16, 8, 4]));
        assert_eq!(found(345.0, 4, 100, affine).0, Some(4));
        // A jump, as of another algorithm's workspace, and a curve: never far off, and what is said fits.
        for peak in [
            |b: usize| 300.0 + 10.0 * b as f64 + if b > 700 { 4000.0 } else { 0.0 },
            |b| 300.0 + (b * b) as f64 / 90.0,
        ] {
            let best = found(10_300.0, 4, 100_000, peak).0.unwrap();
            let largest = (1..).map(|n| 4 * n).take_while(|&b| peak(b) <= 10_300.0).last().unwrap();
            assert!(best <= largest && best as f64 > 0.9 * largest as f64, "{best} of {largest}");
        }
    }

    #[test]
    fn sizes_are_read() {
        let read = |text: &str| text.parse::<MemorySize>().ok().map(|size| size.0);
        assert_eq!(read("1.5GiB"), Some(3 << 29));
        assert_eq!([read("512MiB"), read("16GB")], [Some(512 << 20), Some(16_000_000_000)]);
        assert_eq!([read("12"), read("GiB"), read("-1GiB"), read("8 TiB")], [None; 4]);
    }
}
