//! The duration of a step on many GPUs: compute, and the communication that compute does not hide.

use super::links::Cluster;
use serde::Serialize;

/// The backward pass's share of compute: it has twice the multiplications of the forward pass.
const BACKWARD: f64 = 2.0 / 3.0;

/// Bytes of memory traffic of L_div and its gradient for each pair of centres: the trainer's `loss/diversity.rs` reads and
/// writes `[L, G]` numbers several times. Reading the coordinates once is negligible.
const DIVERSITY_BYTES: f64 = 132.0;

/// A GPU's memory bandwidth, bytes per second: an A100's 2 TB/s.
const MEMORY: f64 = 2e12;

/// A GPU's part of a step.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Number of gradients to average.
    pub parameters: f64,
    /// Gradients in the first bucket.
    pub first_bucket: f64,
    /// Gradients in every other bucket.
    pub bucket: f64,
    /// Whether buckets are sent during the backward pass.
    pub overlap: bool,
    /// Bytes per gradient on the wire.
    pub wire: f64,
    /// n: number of gates, the length of a path's centre.
    pub gates: f64,
    /// Samples per GPU and step, over its micro-batches.
    pub samples: f64,
    /// Micro-batches per step; gradients are sent in the last one's backward pass.
    pub micro_batches: f64,
    /// Seconds of forward pass, backward pass and update on a single GPU.
    pub compute: f64,
}

/// The parts of a step, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Step {
    /// Forward pass, backward pass and update.
    pub compute: f64,
    /// Gradients still in flight when the backward pass ends.
    pub gradients: f64,
    /// All-gathers of path centres, before the backward pass.
    pub centres: f64,
    /// L_div between this GPU's samples and the other GPUs'.
    pub diversity: f64,
    /// Waiting for the slowest GPU of the step.
    pub stragglers: f64,
}

impl Step {
    /// Predicts the step on `gpus` GPUs; `jitter` is the standard deviation of a GPU's step time relative to its mean.
    pub fn predict(work: &Work, cluster: &Cluster, gpus: u64, jitter: f64) -> Self {
        let world = gpus as f64;
        let micro_batches = work.micro_batches;
        let own = work.samples / micro_batches;
        let all = own * world;
        let pairs_with_others = own * (all - own);
        let centres = 4.0 * all * work.gates; // bytes in fp32
        Self {
            compute: work.compute,
            gradients: exposed_all_reduce(work, cluster, gpus),
            centres: if work.gates == 0.0 { 0.0 } else { micro_batches * cluster.all_gather(centres, gpus) },
            diversity: micro_batches * pairs_with_others * DIVERSITY_BYTES / MEMORY,
            stragglers: jitter * expected_maximum(gpus) * work.compute,
        }
    }

    /// The sum of the parts.
    pub fn seconds(&self) -> f64 {
        self.compute + self.gradients + self.centres + self.diversity + self.stragglers
    }
}

/// Seconds from the end of the backward pass to the end of the last bucket's all-reduce. Gradients become ready at a
/// constant rate during the last micro-batch's backward pass. A bucket is sent when its last gradient is ready (without
/// overlap: all gradients) and the bucket before it has arrived.
fn exposed_all_reduce(work: &Work, cluster: &Cluster, gpus: u64) -> f64 {
    let backward = BACKWARD * work.compute / work.micro_batches;
    let mut ready = 0.0;
    let mut arrived = 0.0_f64;
    while ready < work.parameters {
        let room = if ready == 0.0 { work.first_bucket } else { work.bucket };
        let bucket = room.min(work.parameters - ready);
        ready += bucket;
        let ready_at = if work.overlap { backward * ready / work.parameters } else { backward };
        let sent = arrived.max(ready_at);
        arrived = sent + cluster.all_reduce(bucket * work.wire, gpus);
    }
    arrived - backward
}

/// The expected maximum of `count` independent standard normal numbers: the integral of x·d(Φ(x)^count).
pub fn expected_maximum(count: u64) -> f64 {
    if count == 1 {
        return 0.0;
    }
    let width = 1e-3;
    let mut mean = 0.0;
    let mut cdf = 0.0_f64;
    let mut max_cdf = 0.0;
    for i in -8000..8000 {
        let x = (f64::from(i) + 0.5) * width;
        cdf += (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * width;
        let next = cdf.min(1.0).powf(count as f64);
        mean += x * (next - max_cdf);
        max_cdf = next;
    }
    mean
}

/// The seconds of compute on a single GPU with which the predicted step on `gpus` GPUs takes `measured` seconds.
pub fn single_gpu_compute(work: &Work, cluster: &Cluster, gpus: u64, jitter: f64, measured: f64) -> f64 {
    let mut low = 0.0;
    let mut high = measured;
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

    /// 0.3 s on a single GPU; 10 M gradients of 4 bytes, in buckets of 1, 4, 4 and 1 M.
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
    fn single_gpu_step_is_its_compute() {
        for links in [Links::NvlinkIb, Links::Ethernet25] {
            close(Step::predict(&WORK, &links.cluster(), 1, 0.02).seconds(), 0.3);
        }
    }

    #[test]
    fn exposed_all_reduce_matches_hand_worked_values() {
        // Two GPUs, no latency: an all-reduce takes n·β. Backward lasts 0.2 s; buckets are ready at 0.02, 0.10, 0.18
        // and 0.20 s.
        let at = |gb: f64| Cluster {
            gpus_per_node: 2,
            intra: Link::new(0.0, 8.0 * gb),
            inter: Link::new(0.0, 1.0),
        };
        // 4 GB/s: 1, 4, 4 and 1 ms each; only the last is still in flight.
        close(exposed_all_reduce(&WORK, &at(4.0), 2), 1e-3);
        // 0.16 GB/s: 25, 100, 100 and 25 ms; the second starts at 0.10, then the channel is never free: 0.325 s.
        close(exposed_all_reduce(&WORK, &at(0.16), 2), 0.125);
        // Half the bytes: 12.5, 50, 50 and 12.5 ms; the third starts at 0.18, and 0.2425 s is the end.
        close(exposed_all_reduce(&Work { wire: 2.0, ..WORK }, &at(0.16), 2), 0.0425);
        // Two micro-batches: backward is 0.1 s, ready at 0.01, 0.05, 0.09, 0.10; from 0.05 on never free: 0.275 s.
        close(exposed_all_reduce(&Work { micro_batches: 2.0, ..WORK }, &at(0.16), 2), 0.175);
        // Without overlap: 10 + 40 + 40 + 10 ms at 0.4 GB/s.
        close(exposed_all_reduce(&Work { overlap: false, ..WORK }, &at(0.4), 2), 0.1);
    }

    #[test]
    fn expected_maximum_matches_tables() {
        // Tables of order statistics; of two it is 1/√π.
        for (count, mean) in [(1, 0.0), (2, 0.564_19), (8, 1.423_60), (16, 1.765_99), (100, 2.507_59)] {
            assert!((expected_maximum(count) - mean).abs() < 2e-3, "{count}: {}", expected_maximum(count));
        }
    }

    #[test]
    fn step_time_rises_with_gpus() {
        for links in [Links::NvlinkIb, Links::Ethernet25] {
            let seconds = |power: u32| Step::predict(&WORK, &links.cluster(), 1 << power, 0.02).seconds();
            let steps: Vec<f64> = (0..=12).map(seconds).collect();
            assert!(steps.is_sorted(), "{steps:?}");
        }
    }

    #[test]
    fn single_gpu_compute_inverts_the_prediction() {
        let cluster = Links::Ethernet25.cluster();
        let measured = Step::predict(&WORK, &cluster, 64, 0.02).seconds();
        assert!(measured > 0.31);
        close(single_gpu_compute(&WORK, &cluster, 64, 0.02, measured), 0.3);
    }
}
