//! `codinet-analyze`.

use codinet_trainer::analyze::{self, Args};
use codinet_trainer::program;

fn main() {
    let work = |args: &Args, world: &mut _, ()| analyze::run(args, world);
    program::run("codinet-analyze", |args: &Args| args.completions, || Ok(()), work);
}
