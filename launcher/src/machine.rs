//! This machine's cores, NUMA nodes and GPUs.

use codinet_config::{env, host};
use std::collections::BTreeSet;
use std::fs;

/// The resources that the layout of ranks depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may run on; a core's two hardware threads count once.
    pub cores: usize,
    /// Memory nodes (sockets, or parts of them) that have these cores.
    pub numa_nodes: usize,
    /// GPUs.
    pub gpus: usize,
    /// Whether the user is root.
    pub root: bool,
}

impl Machine {
    /// Detects this machine's.
    pub fn detect() -> Self {
        let cpus = parse_cpu_list(&host::allowed_cpus());
        let sysfs = |cpu: &usize| format!("/sys/devices/system/cpu/cpu{cpu}");
        let siblings = |cpu: &usize| {
            let list = fs::read_to_string(format!("{}/topology/thread_siblings_list", sysfs(cpu)));
            list.map_or_else(|_| cpu.to_string(), |list| list.trim().to_owned())
        };
        let memory = |cpu: &usize| {
            let entries = fs::read_dir(sysfs(cpu)).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names
                .into_iter()
                .find(|name| name.strip_prefix("node").is_some_and(|number| number.parse::<usize>().is_ok()))
        };
        let root =
            fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0);
        Self {
            cores: cpus.iter().map(siblings).collect::<BTreeSet<_>>().len().max(1),
            numa_nodes: cpus.iter().filter_map(memory).collect::<BTreeSet<_>>().len().max(1),
            gpus: count_gpus(env::is_set(env::CUDA_VISIBLE_DEVICES), env::get(env::CUDA_VISIBLE_DEVICES)),
            root,
        }
    }

    /// The default number of ranks: one per GPU, or one per NUMA node without a GPU.
    pub fn ranks(&self) -> usize {
        if self.gpus > 0 { self.gpus } else { self.numa_nodes }
    }

    /// The number of cores to bind each of `ranks` ranks to. `None` on a single NUMA node, where the operating system
    /// schedules threads better, and for fewer than two cores per rank, because decode threads need cores too.
    pub fn cores_to_bind(&self, ranks: usize) -> Option<usize> {
        let cores = self.cores / ranks.max(1);
        (self.numa_nodes > 1 && cores >= 2).then_some(cores)
    }
}

/// Parses a list such as `0-3,8`.
fn parse_cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse::<usize>().ok()?..=to.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// The number of GPUs in the NVIDIA driver's list, limited by CUDA_VISIBLE_DEVICES if that is set.
fn count_gpus(limited: bool, visible: Option<String>) -> usize {
    let installed = host::installed_gpus();
    let visible = visible.map_or(0, |list| list.split(',').take_while(|gpu| gpu.trim() != "-1").count());
    if limited { installed.min(visible) } else { installed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_parsed() {
        assert_eq!(parse_cpu_list(" 0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_cpu_list(""), [] as [usize; 0]);
    }

    #[test]
    fn ranks_are_bound_on_several_numa_nodes_with_enough_cores() {
        let machine = |cores, numa_nodes| Machine { cores, numa_nodes, gpus: 0, root: false };
        assert_eq!(machine(64, 2).cores_to_bind(8), Some(8));
        assert_eq!(machine(64, 1).cores_to_bind(8), None);
        assert_eq!(machine(8, 2).cores_to_bind(8), None, "one core each leaves none for decoding");
        assert_eq!((machine(64, 2).ranks(), Machine { gpus: 8, ..machine(64, 2) }.ranks()), (2, 8));
    }
}
