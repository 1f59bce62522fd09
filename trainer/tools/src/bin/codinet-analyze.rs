//! `codinet-analyze`.

use codinet_tools::analyze::{self, Args};
use codinet_trainer::cli::program::Program;

fn main() {
    let mend = "let more ranks share the images, or lower --similarity-images and --tsne-images";
    let program = Program { name: "codinet-analyze", mend, shell: |args: &Args| args.completions };
    program.run(|| Ok(()), |args, world, ()| analyze::run(args, world));
}
