//! `codinet-analyze`.

use codinet_tools::analyze::{self, Args};
use codinet_trainer::cli::program::Program;
use codinet_trainer::sys::Allocator;

fn main() {
    let oom_advice = "let more ranks share the images, or lower --similarity-images and --tsne-images";
    let program = Program {
        name: "codinet-analyze",
        allocator: Allocator::Glibc,
        oom_advice,
        completions: |args: &Args| args.completions,
    };
    program.run_ranks(|| Ok(()), |args, world, ()| analyze::run(args, world));
}
