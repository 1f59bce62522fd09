//! What this machine has: cores that this process may run on, memory nodes, GPUs.

use codinet_config::{env, host};
use std::collections::BTreeSet;
use std::fs;

/// This machine, as far as ranks are laid out by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores that this process may run on; two hardware threads of a core count once.
    pub cores: usize,
    /// Memory nodes (sockets, or parts of them) that have these cores.
    pub memories: usize,
    /// GPUs.
    pub gpus: usize,
    /// Whether root asks.
    pub root: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let cpus = cpu_list(&host::allowed_cpus());
        let of_cpu = |cpu: &usize| format!("/sys/devices/system/cpu/cpu{cpu}");
        let siblings = |cpu: &usize| {
            let list = fs::read_to_string(format!("{}/topology/thread_siblings_list", of_cpu(cpu)));
            list.map_or_else(|_| cpu.to_string(), |list| list.trim().to_owned())
        };
        let memory = |cpu: &usize| {
            let entries = fs::read_dir(of_cpu(cpu)).into_iter().flatten().flatten();
            let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names
                .into_iter()
                .find(|name| name.strip_prefix("node").is_some_and(|number| number.parse::<usize>().is_ok()))
        };
        let root =
            fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0);
        Self {
            cores: cpus.iter().map(siblings).collect::<BTreeSet<_>>().len().max(1),
            memories: cpus.iter().filter_map(memory).collect::<BTreeSet<_>>().len().max(1),
            gpus: gpus(env::is_set(env::CUDA_VISIBLE_DEVICES), env::get(env::CUDA_VISIBLE_DEVICES)),
            root,
        }
    }

    /// Ranks that suit this machine: one a GPU, or one a memory node where there is no GPU.
    pub fn ranks(&self) -> usize {
        if self.gpus > 0 { self.gpus } else { self.memories }
    }

    /// Cores to bind each of `ranks` ranks of this machine to. On one memory node none is bound: the system moves threads
    /// better than a rule does. Each rank has at least two, for its decode threads beside those that compute.
    pub fn cores_to_bind(&self, ranks: usize) -> Option<usize> {
        let cores = self.cores / ranks.max(1);
        (self.memories > 1 && cores >= 2).then_some(cores)
    }
}

/// Reads a list such as `0-3,8`.
fn cpu_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        Some(from.trim().parse::<usize>().ok()?..=to.trim().parse().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// GPUs by the NVIDIA driver's own list, of which CUDA_VISIBLE_DEVICES may show some alone.
fn gpus(chosen: bool, shown: Option<String>) -> usize {
    let installed = host::installed_gpus();
    let shown = shown.map_or(0, |list| list.split(',').take_while(|gpu| gpu.trim() != "-1").count());
    if chosen { installed.min(shown) } else { installed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(cpu_list(" 0-3,8,10-11\n"), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(cpu_list(""), [] as [usize; 0]);
    }

    #[test]
    fn ranks_are_bound_where_memory_is_far_and_cores_are_many() {
        let machine = |cores, memories| Machine { cores, memories, gpus: 0, root: false };
        assert_eq!(machine(64, 2).cores_to_bind(8), Some(8));
        assert_eq!(machine(64, 1).cores_to_bind(8), None);
        assert_eq!(machine(8, 2).cores_to_bind(8), None, "a core each is no room for decoding");
        assert_eq!((machine(64, 2).ranks(), Machine { gpus: 8, ..machine(64, 2) }.ranks()), (2, 8));
    }
}
