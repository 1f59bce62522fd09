//! `codinet-data index`.

use std::time::Instant;

use clap::Args;
use codinet_dataloader::{Dataset, IndexState, Options, Result};

use super::Shards;
use codinet_config::text::print;

const EXAMPLES: &str = "\
Examples:
  codinet-data index data/imagenet/train
  codinet-data index 's3://bucket/imagenet/train-{000000..001281}.tar'";

#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    shards: Shards,

    /// Rebuilds every index, even one whose size and date match its shard.
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let options = Options { rebuild_indices: arguments.force, ..Options::default() };
    let dataset = Dataset::open_with(&arguments.shards.shards, &options)?;
    let seconds = start.elapsed().as_secs_f64();
    let count = |state| dataset.shards().filter(|shard| shard.index == state).count();
    let mut parts = Vec::new();
    for (shards, what) in [
        (count(IndexState::Rebuilt), "indexed"),
        (count(IndexState::Read), "already indexed:"),
        (count(IndexState::Unsaved), "scanned, but the folder can't be written, so the index wasn't saved:"),
        (count(IndexState::NotNeeded), "image folder, which needs no index:"),
    ] {
        if shards > 0 {
            parts.push(format!("{what} {shards} {}", if shards == 1 { "shard" } else { "shards" }));
        }
    }
    print(&format!("{}, {} samples, {seconds:.1} s\n", parts.join(", "), dataset.len()));
    Ok(())
}
