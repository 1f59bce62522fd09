//! `codinet-data verify`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use codinet_dataloader::verify::{Class, Report, SampleLocation, verify};
use codinet_dataloader::{Dataset, Error, Result};

use super::progress::ProgressMeter;
use super::{ImageLimit, Shards, count_cores, describe_left_out};
use codinet_config::text::print;

const EXAMPLES: &str = "\
Examples:
  codinet-data verify data/imagenet/train
  codinet-data verify data/imagenet/train --threads 8 --json > report.json";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    shards: Shards,

    #[command(flatten)]
    limit: ImageLimit,

    /// Threads that decode [default: the number of cores].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,

    /// Prints one JSON object instead of a table, with every finding.
    #[arg(long)]
    json: bool,
}

/// Limit of listed lines of a kind that is harmless.
const MAX_LISTED: usize = 10;

pub fn run(arguments: &Arguments) -> Result<()> {
    let dataset = Dataset::open(&arguments.shards.shards)?;
    let meter = ProgressMeter::new()?;
    let done = AtomicU64::new(0);
    let bytes = AtomicU64::new(0);
    let progress = |samples: u64, more: u64| {
        let samples = done.fetch_add(samples, Ordering::Relaxed) + samples;
        let bytes = bytes.fetch_add(more, Ordering::Relaxed) + more;
        meter.update(samples, dataset.len() as u64, Some(bytes));
    };
    let threads = arguments.threads.unwrap_or_else(count_cores);
    let report = verify(&dataset, threads, arguments.limit.max_pixels, &progress);
    meter.finish();
    let report = report?;
    if arguments.json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Error::InvalidArgument(error.to_string()))?;
        print(&(json + "\n"));
    } else {
        let mut text = String::new();
        let _ = describe(&mut text, &report); // writing to a String can't fail
        print(&text);
    }
    match report.bad.len() {
        0 => Ok(()),
        bad => {
            let what = format!(
                "{bad} bad of {} samples; replace the listed images, or correct their labels",
                report.samples
            );
            Err(Error::Malformed { path: arguments.shards.shards.clone().into(), what })
        }
    }
}

fn describe(text: &mut String, report: &Report) -> std::fmt::Result {
    let Report { samples, shards, bytes, kinds, jpegs, progressive, tiled, .. } = report;
    writeln!(text, "samples     {samples} in {shards} shards, {:.1} MB of images", *bytes as f64 / 1e6)?;
    writeln!(text, "kinds")?;
    for (kind, count) in kinds {
        writeln!(text, "  {count:>9}  {kind}")?;
    }
    if *jpegs > 0 {
        let share = *tiled as f64 / *jpegs as f64 * 100.0;
        writeln!(text, "JPEGs       {progressive} progressive, {tiled} tiled ({share:.1} %)")?;
    }
    if let Some(sizes) = report.sizes {
        let size = |(width, height): (u32, u32)| format!("{width}x{height}");
        writeln!(
            text,
            "sizes       smallest {}, median {}, largest {}",
            size(sizes.smallest),
            size(sizes.median),
            size(sizes.largest)
        )?;
    }
    describe_classes(text, &report.classes)?;
    writeln!(text, "turned      {} by their EXIF orientation, which training ignores", report.turned.len())?;
    for turned in report.turned.iter().take(MAX_LISTED) {
        writeln!(text, "  {}: orientation {}", describe_location(&turned.location), turned.orientation)?;
    }
    writeln!(text, "duplicates  {}, {} of them with another label", report.duplicates, report.relabelled)?;
    for [first, later] in report.duplicate_examples.iter().take(MAX_LISTED) {
        writeln!(text, "  {} is {}", describe_location(later), describe_location(first))?;
    }
    describe_left_out(text, &report.left_out)?;
    writeln!(text, "bad         {}", report.bad.len())?;
    for bad in &report.bad {
        writeln!(text, "  {}: {}", describe_location(&bad.location), bad.reason)?;
    }
    Ok(())
}

/// Describes the distribution of the classes' sizes, and lists the small ones: under half of the median.
fn describe_classes(text: &mut String, classes: &[Class]) -> std::fmt::Result {
    const BINS: u64 = 10;
    let mut by_size: Vec<&Class> = classes.iter().collect();
    by_size.sort_by_key(|class| class.samples);
    let (Some(first), Some(last)) = (by_size.first(), by_size.last()) else { return Ok(()) };
    let least = first.samples;
    let most = last.samples;
    let median = by_size[by_size.len() / 2].samples;
    writeln!(text, "classes     {} of {least} to {most} samples, the middle one of {median}", classes.len())?;
    let width = (most - least + 1).div_ceil(BINS);
    let mut bins: Vec<(u64, usize)> = Vec::new();
    for class in &by_size {
        let start = least + (class.samples - least) / width * width;
        match bins.last_mut().filter(|bin| bin.0 == start) {
            Some(bin) => bin.1 += 1,
            None => bins.push((start, 1)),
        }
    }
    let highest = bins.iter().map(|bin| bin.1).max().unwrap_or(1);
    for (start, count) in bins {
        let bar = "#".repeat((count * 30).div_ceil(highest));
        let end = (start + width - 1).min(most);
        let sizes = if start == end { start.to_string() } else { format!("{start} to {end}") };
        writeln!(text, "  {sizes:>16}  {count:>6} classes  {bar}")?;
    }
    let small: Vec<&&Class> = by_size.iter().filter(|class| class.samples * 2 < median).collect();
    for class in small.iter().take(MAX_LISTED) {
        let name = class.name.as_deref().unwrap_or_default();
        writeln!(text, "  small: class {} {name}, {} samples", class.label, class.samples)?;
    }
    if small.len() > MAX_LISTED {
        writeln!(text, "  and {} other small classes", small.len() - MAX_LISTED)?;
    }
    Ok(())
}

/// Names the image: its file, or its member in a shard.
fn describe_location(location: &SampleLocation) -> String {
    if location.shard.is_dir() {
        location.shard.join(&location.name).display().to_string()
    } else {
        format!("{}: {}", location.shard.display(), location.name)
    }
}
