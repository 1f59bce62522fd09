//! `codinet-infer`.

use codinet_tools::infer::cli::{self, Args};
use codinet_trainer::cli::program::Program;
use codinet_trainer::sys::Allocator;
use mimalloc::MiMalloc;

/// Every layer allocates its output anew. The feature `override` exports malloc and free, so that libtorch uses it, too.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let completions = |args: &Args| args.completions;
    Program {
        name: "codinet-infer",
        allocator: Allocator::Mimalloc,
        oom_advice: "lower --batch",
        completions,
    }
    .run_single(cli::run);
}
