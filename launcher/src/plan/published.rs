//! The model against published measurements: the table of docs/scaling.md.

use super::links::{Cluster, Link};
use super::step::{Step, Work};

/// A published measurement: a network's parameters, images per second of one GPU, images per GPU and step.
struct Published {
    parameters: f64,
    images_per_second: f64,
    batch: f64,
    cluster: Cluster,
}

impl Published {
    /// Predicted efficiency on `gpus` GPUs, in per cent.
    fn efficiency(&self, gpus: u64) -> f64 {
        let compute = self.batch / self.images_per_second;
        let work = Work {
            parameters: self.parameters,
            first_bucket: 1.0 * 262_144.0,
            bucket: 25.0 * 262_144.0,
            overlap: true,
            wire: 4.0,
            gates: 0.0,
            samples: self.batch,
            micro_batches: 1.0,
            compute,
        };
        100.0 * compute / Step::predict(&work, &self.cluster, gpus, 0.02).seconds()
    }
}

const RESNET_50: f64 = 25_557_032.0;
const RESNET_101: f64 = 44_549_160.0;
const VGG_16: f64 = 138_357_544.0;

#[test]
fn pytorch_ddp_on_v100() {
    // DGX-1: 6 NVLinks of 20 GB/s per GPU, 4 cards of 100 Gbit/s per node.
    let cluster = Cluster { gpus_per_node: 8, intra: Link::new(3.4, 960.0), inter: Link::new(14.0, 384.0) };
    let resnet_50 = Published { parameters: RESNET_50, images_per_second: 329.0, batch: 32.0, cluster };
    let resnet_101 = Published { parameters: RESNET_101, images_per_second: 197.0, ..resnet_50 };
    // Relative to the step without DDP; relative to DDP on one GPU they are 96.2 and 95.9 %.
    near(resnet_50.efficiency(8), 93.3, 96.9);
    near(resnet_50.efficiency(16), 93.0, 95.8);
    near(resnet_101.efficiency(8), 90.9, 97.0);
    near(resnet_101.efficiency(16), 90.4, 96.1);
}

#[test]
fn horovod_on_512_pascal_gpus() {
    // 4 GPUs per node on PCIe, one card of 25 Gbit/s by RoCE.
    let cluster = Cluster { gpus_per_node: 4, intra: Link::new(5.7, 96.0), inter: Link::new(14.0, 24.0) };
    let resnet_101 =
        Published { parameters: RESNET_101, images_per_second: 1656.82 / 16.0, batch: 64.0, cluster };
    let vgg_16 = Published { parameters: VGG_16, images_per_second: 154.0, ..resnet_101 };
    near(resnet_101.efficiency(512), 90.0, 92.0);
    near(vgg_16.efficiency(512), 68.0, 67.0);
}

#[test]
fn facebook_on_256_p100() {
    // Big Basin: 4 NVLinks of 18 GB/s per GPU, one card of 50 Gbit/s per node; a backward pass takes 120 ms, so a step 180.
    let cluster = Cluster { gpus_per_node: 8, intra: Link::new(3.4, 576.0), inter: Link::new(14.0, 48.0) };
    let resnet_50 = Published { parameters: RESNET_50, images_per_second: 32.0 / 0.18, batch: 32.0, cluster };
    near(100.0 * resnet_50.efficiency(256) / resnet_50.efficiency(8), 90.0, 93.6);
}

/// Checks that the prediction is the one in docs/scaling.md and near the measurement.
fn near(predicted: f64, measured: f64, documented: f64) {
    assert!((predicted - documented).abs() < 0.06, "{predicted}, not {documented}");
    assert!((predicted - measured).abs() < 7.0, "{predicted} against {measured}");
}
