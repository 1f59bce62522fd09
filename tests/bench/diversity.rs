//! Time and memory of the diversity loss, value and gradient, as one rank of many computes it:
//!
//!     cargo bench --bench diversity
//!
//! 64 centres of this rank against G of all ranks (which are drawn here: that they come by an all-gather makes no
//! difference to what follows), 16 gates as in ResNet-50, on one thread. Memory is what the process's peak grows by.

#![expect(clippy::print_stdout, reason = "the result of a benchmark")]

use codinet_trainer::loss;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

const OWN: i64 = 64;
const GATES: i64 = 16;

fn main() {
    tch::set_num_threads(1);
    tch::manual_seed(1);
    println!(
        "| centres | as of ranks | forward and backward, ms | peak memory grows by, MB |\n|---|---|---|---|"
    );
    for ranks in [1, 4, 16, 64, 256, 1024] {
        let keys = Tensor::rand([ranks * OWN, GATES], (Kind::Float, Device::Cpu));
        let centres = keys.narrow(0, 0, OWN).copy().set_requires_grad(true);
        let once = || {
            let start = Instant::now();
            loss::diversity(&centres, &keys, 0, 1.5).backward();
            start.elapsed()
        };
        std::fs::write("/proc/self/clear_refs", "5").expect("Linux forgets the peak so far");
        let before = peak();
        once();
        let grown = peak() - before;
        let mut times: Vec<Duration> = (0..20).map(|_| once()).collect();
        times.sort();
        let milliseconds = 1e3 * times[10].as_secs_f64();
        println!("| {} | {ranks} | {milliseconds:.2} | {:.1} |", ranks * OWN, grown as f64 / 1e3);
    }
}

/// The largest resident size so far, in kilobytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).expect("in this form");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
