//! `codinet-data index`.

use std::time::Instant;

use clap::Args;
use codinet_dataloader::index::IndexState;
use codinet_dataloader::{Dataset, Options, Result};

use super::print;

#[derive(Args)]
pub struct Arguments {
    /// A folder of shards, a glob ('x-*.tar', quoted), a range ('x-{000000..000012}.tar'), one shard, or a list
    /// of shards by another tool ('_info.json#train'); local or after s3://, gs://, https://.
    shards: String,

    /// Make every index anew, even one whose size and date fit its shard.
    #[arg(long)]
    force: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let start = Instant::now();
    let options = Options { rebuild_indices: arguments.force, ..Options::default() };
    let dataset = Dataset::open_with(&arguments.shards, &options)?;
    let seconds = start.elapsed().as_secs_f64();
    let count = |state| dataset.shards().filter(|shard| shard.index == state).count();
    let (read, rebuilt, unsaved) =
        (count(IndexState::Read), count(IndexState::Rebuilt), count(IndexState::Unsaved));
    let mut parts = Vec::new();
    for (shards, what) in [
        (rebuilt, "indexed"),
        (read, "already indexed:"),
        (unsaved, "scanned, for no index can be written there:"),
        (count(IndexState::NotNeeded), "image folder, which needs no index:"),
    ] {
        if shards > 0 {
            parts.push(format!("{what} {shards} {}", if shards == 1 { "shard" } else { "shards" }));
        }
    }
    print(&format!("{}, {} samples, {seconds:.1} s\n", parts.join(", "), dataset.len()));
    Ok(())
}
