//! What a step takes on many GPUs: computing, and what of its communication computing does not hide.

use super::links::Cluster;
use serde::Serialize;

/// Share of a step's computing that is backward: it has twice the multiplications of forward.
const BACKWARD: f64 = 2.0 / 3.0;

/// Bytes that L_div and its gradient move to or from memory for each pair of centres: what the trainer's
/// `loss/diversity.rs` reads and writes of `[L, G]` numbers. The coordinates are read once, and do not count beside it.
const DIVERSITY_BYTES: f64 = 132.0;

/// Bytes a second of a GPU's memory: an A100's 2 TB/s.
const MEMORY: f64 = 2e12;

/// A GPU's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Numbers whose gradients are averaged.
    pub parameters: f64,
    /// Numbers of the first bucket.
    pub first_bucket: f64,
    /// Numbers of every other bucket.
    pub bucket: f64,
    /// Whether buckets leave while backward runs.
    pub overlap: bool,
    /// Bytes of a number on the wire.
    pub wire: f64,
    /// n: gates, coordinates of a path's centre.
    pub gates: f64,
    /// Samples a GPU and step, over its micro-batches.
    pub samples: f64,
    /// Micro-batches a step; gradients travel in the last one's backward.
    pub micro_batches: f64,
    /// Seconds of forward, backward and update on a GPU that is alone.
    pub compute: f64,
}

/// Seconds of a step, by what they go to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Forward, backward and update.
    pub compute: f64,
    /// Gradients that are still under way when backward ends.
    pub gradients: f64,
    /// All-gathers of path centres, which backward waits for.
    pub centres: f64,
    /// L_div between this GPU's samples and those of the others.
    pub diversity: f64,
    /// Waiting for the slowest GPU of the step.
    pub stragglers: f64,
}

impl Step {
    /// The step on `gpus` GPUs whose times for one step vary by `jitter`, a standard deviation over the mean.
    pub fn predict(work: &Work, cluster: &Cluster, gpus: u64, jitter: f64) -> Self {
        let (world, micro_batches) = (gpus as f64, work.micro_batches);
        let own = work.samples / micro_batches;
        let all = own * world;
        let pairs_with_others = own * (all - own);
        let keys = 4.0 * all * work.gates; // fp32
        Self {
            compute: work.compute,
            gradients: exposed(work, cluster, gpus),
            centres: match work.gates {
                0.0 => 0.0,
                _ => micro_batches * cluster.all_gather(keys, gpus),
            },
            diversity: micro_batches * pairs_with_others * DIVERSITY_BYTES / MEMORY,
            stragglers: jitter * expected_maximum(gpus) * work.compute,
        }
    }

    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.compute + self.gradients + self.centres + self.diversity + self.stragglers
    }
}

/// Seconds from backward's end to that of the last bucket's all-reduce. Gradients become ready evenly over the
/// last micro-batch's backward; a bucket leaves when its last gradient is there (without overlap: all are) and the bucket
/// before has arrived.
fn exposed(work: &Work, cluster: &Cluster, gpus: u64) -> f64 {
    let backward = BACKWARD * work.compute / work.micro_batches;
    let (mut ready, mut arrived) = (0.0, 0.0_f64);
    while ready < work.parameters {
        let room = if ready == 0.0 { work.first_bucket } else { work.bucket };
        let bucket = room.min(work.parameters - ready);
        ready += bucket;
        let ready_at = if work.overlap { backward * ready / work.parameters } else { backward };
        let leaves = arrived.max(ready_at);
        arrived = leaves + cluster.all_reduce(bucket * work.wire, gpus);
    }
    arrived - backward
}

/// Mean of the largest of `count` independent standard normal numbers, in standard deviations: the integral of
/// x·d(Φ(x)^count).
pub fn expected_maximum(count: u64) -> f64 {
    if count == 1 {
        return 0.0;
    }
    let width = 1e-3;
    let (mut mean, mut below, mut largest_below) = (0.0, 0.0_f64, 0.0);
    for i in -8000..8000 {
        let x = (f64::from(i) + 0.5) * width;
        below += (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * width;
        let all_below = below.min(1.0).powf(count as f64);
        mean += x * (all_below - largest_below);
        largest_below = all_below;
    }
    mean
}

/// The computing of a GPU alone, in seconds, that makes the predicted step on `gpus` GPUs take `measured` seconds.
pub fn compute_alone(work: &Work, cluster: &Cluster, gpus: u64, jitter: f64, measured: f64) -> f64 {
    let (mut low, mut high) = (0.0, measured);
    for _ in 0..60 {
        let compute = (low + high) / 2.0;
        let step = Step::predict(&Work { compute, ..*work }, cluster, gpus, jitter);
        if step.seconds() < measured {
            low = compute;
        } else {
            high = compute;
        }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::super::links::{Link, Links};
    use super::*;

    /// 0.3 s alone; 10 M numbers, 4 bytes each, in buckets of 1, 4, 4 and 1 M.
    const WORK: Work = Work {
        parameters: 10e6,
        first_bucket: 1e6,
        bucket: 4e6,
        overlap: true,
        wire: 4.0,
        gates: 16.0,
        samples: 64.0,
        micro_batches: 1.0,
        compute: 0.3,
    };

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-9, "{left} {right}");
    }

    #[test]
    fn one_gpu_waits_for_nobody() {
        for links in [Links::NvlinkIb, Links::Ethernet25] {
            close(Step::predict(&WORK, &links.cluster(), 1, 0.02).seconds(), 0.3);
        }
    }

    #[test]
    fn buckets_leave_while_backward_runs() {
        // Two GPUs, no latency: an all-reduce takes n·β. Backward lasts 0.2 s; buckets are ready at 0.02, 0.10, 0.18
        // and 0.20 s.
        let at = |gb: f64| Cluster {
            gpus_per_node: 2,
            intra: Link::new(0.0, 8.0 * gb),
            inter: Link::new(0.0, 1.0),
        };
        // 4 GB/s: 1, 4, 4 and 1 ms each; only the last is still under way.
        close(exposed(&WORK, &at(4.0), 2), 1e-3);
        // 0.16 GB/s: 25, 100, 100 and 25 ms; the second starts at 0.10, then the channel is never free: 0.325 s.
        close(exposed(&WORK, &at(0.16), 2), 0.125);
        // Half the bytes: 12.5, 50, 50 and 12.5 ms; the third starts at 0.18, and 0.2425 s is the end.
        close(exposed(&Work { wire: 2.0, ..WORK }, &at(0.16), 2), 0.0425);
        // Two micro-batches: backward is 0.1 s, ready at 0.01, 0.05, 0.09, 0.10; from 0.05 on never free: 0.275 s.
        close(exposed(&Work { micro_batches: 2.0, ..WORK }, &at(0.16), 2), 0.175);
        // None before backward's end: 10 + 40 + 40 + 10 ms at 0.4 GB/s.
        close(exposed(&Work { overlap: false, ..WORK }, &at(0.4), 2), 0.1);
    }

    #[test]
    fn the_largest_of_normal_numbers_is_known() {
        // Tables of order statistics; of two it is 1/√π.
        for (count, mean) in [(1, 0.0), (2, 0.564_19), (8, 1.423_60), (16, 1.765_99), (100, 2.507_59)] {
            assert!((expected_maximum(count) - mean).abs() < 2e-3, "{count}: {}", expected_maximum(count));
        }
    }

    #[test]
    fn more_gpus_never_make_a_step_shorter() {
        for links in [Links::NvlinkIb, Links::Ethernet25] {
            let seconds = |power: u32| Step::predict(&WORK, &links.cluster(), 1 << power, 0.02).seconds();
            let steps: Vec<f64> = (0..=12).map(seconds).collect();
            assert!(steps.is_sorted(), "{steps:?}");
        }
    }

    #[test]
    fn what_is_measured_on_many_tells_what_one_would_take() {
        let cluster = Links::Ethernet25.cluster();
        let measured = Step::predict(&WORK, &cluster, 64, 0.02).seconds();
        assert!(measured > 0.31);
        close(compute_alone(&WORK, &cluster, 64, 0.02, measured), 0.3);
    }
}
