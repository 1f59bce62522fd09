//! The cost of a collective in the α–β model: a message of n bytes takes α + n·β seconds.

use clap::ValueEnum;

/// A link between two neighbours of a ring or tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// α: the latency of a message, in seconds.
    pub alpha: f64,
    /// β: seconds per byte.
    pub beta: f64,
}

impl Link {
    /// A link of `us` microseconds and `gbps` Gbit/s in each direction.
    pub fn new(us: f64, gbps: f64) -> Self {
        Self { alpha: us * 1e-6, beta: 8e-9 / gbps }
    }

    /// α in microseconds.
    pub fn us(&self) -> f64 {
        self.alpha * 1e6
    }

    /// Gbit/s in each direction.
    pub fn gbps(&self) -> f64 {
        8e-9 / self.beta
    }

    /// A ring's reduce-scatter or all-gather of `bytes` in total over `p` ranks: (p − 1)·α + (p − 1)/p·n·β.
    pub fn ring_half(&self, bytes: f64, p: f64) -> f64 {
        (p - 1.0) * self.alpha + (p - 1.0) / p * bytes * self.beta
    }

    /// A ring's all-reduce, a reduce-scatter and an all-gather: 2(p − 1)·α + 2(p − 1)/p·n·β.
    pub fn ring_all_reduce(&self, bytes: f64, p: f64) -> f64 {
        2.0 * self.ring_half(bytes, p)
    }

    /// An all-reduce over two binary trees that each carry half (Sanders, Speck and Träff, 2009; NCCL since 2.4):
    /// 2·⌈log₂ p⌉·α + 2·n·β.
    pub fn tree_all_reduce(&self, bytes: f64, p: f64) -> f64 {
        if p == 1.0 {
            return 0.0;
        }
        2.0 * p.log2().ceil() * self.alpha + 2.0 * bytes * self.beta
    }
}

/// A cluster of equal nodes on one network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cluster {
    /// GPUs per node.
    pub gpus_per_node: u64,
    /// Between neighbouring GPUs of a node.
    pub intra: Link,
    /// Between nodes: all network cards of a node together, shared by its GPUs.
    pub inter: Link,
}

impl Cluster {
    /// How `gpus` GPUs are laid out: GPUs per node, and nodes.
    fn shape(&self, gpus: u64) -> (f64, f64) {
        let on_node = gpus.min(self.gpus_per_node);
        (on_node as f64, (gpus / on_node) as f64)
    }

    /// Seconds of an all-reduce of `bytes`: a ring's reduce-scatter in each node, an all-reduce of each GPU's shard between
    /// nodes over a ring or trees, whichever is faster, and a ring's all-gather in each node.
    pub fn all_reduce(&self, bytes: f64, gpus: u64) -> f64 {
        let (on_node, nodes) = self.shape(gpus);
        // A node sends all its shards at once: together all bytes.
        let ring = self.inter.ring_all_reduce(bytes, nodes);
        let tree = self.inter.tree_all_reduce(bytes, nodes);
        self.intra.ring_all_reduce(bytes, on_node) + ring.min(tree)
    }

    /// Seconds of an all-gather of `bytes` in total: over a ring between nodes, then over one in each node.
    pub fn all_gather(&self, bytes: f64, gpus: u64) -> f64 {
        let (on_node, nodes) = self.shape(gpus);
        self.inter.ring_half(bytes, nodes) + self.intra.ring_half(bytes, on_node)
    }
}

/// Named clusters; docs/scaling.md has the sources of the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Links {
    /// 8 GPUs per node on NVLink 4 (H100), a 400 Gbit/s InfiniBand card for each.
    #[value(name = "nvlink+ib")]
    NvlinkIb,
    /// 4 GPUs per node on PCIe 3, one 25 Gbit/s Ethernet card for all, by TCP.
    #[value(name = "25gbe")]
    Ethernet25,
}

impl Links {
    /// The cluster of that name.
    pub fn cluster(self) -> Cluster {
        match self {
            // 18 links of 20.6 GB/s; 8 cards of 48 GB/s; latencies of NCCL's "Simple" protocol.
            Self::NvlinkIb => {
                Cluster { gpus_per_node: 8, intra: Link::new(3.4, 2966.0), inter: Link::new(14.0, 3072.0) }
            }
            // 12 GB/s; 3 GB/s; the kernel's TCP adds some 16 µs to NCCL's 14.
            Self::Ethernet25 => {
                Cluster { gpus_per_node: 4, intra: Link::new(5.7, 96.0), inter: Link::new(30.0, 24.0) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 10 µs and 1 GB/s.
    const LINK: Link = Link { alpha: 10e-6, beta: 1e-9 };

    fn close(left: f64, right: f64) {
        assert!((left - right).abs() < 1e-12, "{left} {right}");
    }

    #[test]
    fn ring_and_tree_costs_match_hand_worked_values() {
        // 4 ranks, 1 MB: 6 messages of 10 µs, and 1.5 MB.
        close(LINK.ring_all_reduce(1e6, 4.0), 60e-6 + 1.5e-3);
        close(LINK.ring_half(1e6, 4.0), 30e-6 + 0.75e-3);
        // 2 levels up and down, and 2 MB.
        close(LINK.tree_all_reduce(1e6, 4.0), 40e-6 + 2e-3);
        close(LINK.tree_all_reduce(1e6, 5.0), 60e-6 + 2e-3);
        close(LINK.ring_all_reduce(1e6, 1.0), 0.0);
        close(LINK.tree_all_reduce(1e6, 1.0), 0.0);
    }

    #[test]
    fn hierarchical_all_reduce_matches_hand_worked_values() {
        let cluster = Cluster { gpus_per_node: 4, intra: LINK, inter: Link::new(100.0, 0.8) }; // 0.1 GB/s
        close(cluster.all_reduce(1e6, 1), 0.0);
        close(cluster.all_reduce(1e6, 4), 60e-6 + 1.5e-3);
        // 2 nodes: the ring's 2 messages of 100 µs, and 1 MB at 0.1 GB/s.
        close(cluster.all_reduce(1e6, 8), 60e-6 + 1.5e-3 + 200e-6 + 10e-3);
        close(cluster.all_gather(1e6, 8), 30e-6 + 0.75e-3 + 100e-6 + 5e-3);
        // With few bytes over many nodes trees are faster: 2·6 messages against 2·63.
        close(cluster.all_reduce(0.0, 256), 60e-6 + 1200e-6);
    }

    #[test]
    fn cost_rises_with_bytes_and_gpus() {
        for links in [Links::NvlinkIb, Links::Ethernet25] {
            let cluster = links.cluster();
            let times: Vec<f64> = (0..=12).map(|power| cluster.all_reduce(25e6, 1 << power)).collect();
            assert!(times.is_sorted(), "{times:?}");
            assert!(cluster.all_reduce(50e6, 64) > cluster.all_reduce(25e6, 64));
        }
    }
}
