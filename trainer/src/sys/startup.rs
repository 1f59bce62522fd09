//! Settings that libraries read only when a process starts. A program that finds others restarts itself with these.
#![expect(unsafe_code, reason = "OpenMP's list of places is a C interface")]

use crate::env::{self, Variable};
use libloading::os::unix::Library;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::ffi::c_int;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Settings of glibc's allocator for tensors. By default it maps each large tensor newly and unmaps it at once, and the page faults
/// take a sixth of a training step on a CPU. With these, freed memory stays with the process, which therefore does not
/// shrink, and huge pages are used where the system has them.
const TUNABLES: &str = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776:\
                        glibc.malloc.top_pad=67108864:glibc.malloc.hugetlb=1";

/// A program's allocator, which reads its settings before `main`.
#[derive(Clone, Copy, Debug)]
pub enum Allocator {
    /// glibc's malloc.
    Glibc,
    /// mimalloc, linked in its place.
    Mimalloc,
}

impl Allocator {
    /// The variable that makes it keep freed memory, with its value; `None` if the user has set it.
    fn setting(self) -> Option<(Variable, String)> {
        match self {
            Self::Glibc => {
                let set = env::raw(env::GLIBC_TUNABLES).unwrap_or_default().into_string().ok()?;
                let value = if set.is_empty() { TUNABLES.to_owned() } else { format!("{set}:{TUNABLES}") };
                (!set.contains("glibc.malloc.")).then_some((env::GLIBC_TUNABLES, value))
            }
            Self::Mimalloc if env::is_set(env::MIMALLOC_PURGE_DELAY) => None,
            Self::Mimalloc => Some((env::MIMALLOC_PURGE_DELAY, "-1".to_owned())),
        }
    }
}

/// Variables by which OpenMP binds threads. It binds the first one before `main`, and every thread started from it, such as a
/// decoder, inherits that one core.
const OPENMP_BINDING: [Variable; 3] = [env::OMP_PROC_BIND, env::OMP_PLACES, env::GOMP_CPU_AFFINITY];

/// Restarts this program once, in the same process, if its allocator needs a setting (unless the user has set it) or if OpenMP has
/// bound this thread; it may then use all cores again that it was given.
pub fn restart_with_settings(allocator: Allocator) {
    let setting = allocator.setting();
    let is_bound = OPENMP_BINDING.into_iter().any(env::is_set);
    if setting.is_none() && !is_bound {
        return;
    }
    let mut args = std::env::args_os();
    let (Some(name), Ok(program)) = (args.next(), std::env::current_exe()) else { return };
    if Path::new(&name).file_name() != program.file_name() {
        return; // run by a loader or under another name, so a restart might run something else
    }
    let mut command = Command::new(program);
    command.arg0(name).args(args);
    command.envs(setting.map(|(variable, value)| (variable.name, value)));
    if is_bound {
        OPENMP_BINDING.iter().for_each(|variable| _ = command.env_remove(variable.name));
        if let Some(cpus) = openmp_cpus() {
            let _ = sched_setaffinity(None, &cpus); // if it fails, the program runs on fewer cores
        }
    }
    let _ = command.exec(); // returns only on failure: the program then goes on with its settings
}

/// The hardware threads in all of OpenMP's places, which are those of the process unless the user named others. `None`
/// without places, or with an OpenMP library that does not list them.
fn openmp_cpus() -> Option<CpuSet> {
    let process = Library::this();
    let mut cpus = CpuSet::new();
    // SAFETY: the signatures are OpenMP's (5.2, sections 18.3.2 to 18.3.4); `ids` has room for the place's number of ids.
    unsafe {
        let place_count = process.get::<unsafe extern "C" fn() -> c_int>(b"omp_get_num_places\0").ok()?;
        let cpu_count =
            process.get::<unsafe extern "C" fn(c_int) -> c_int>(b"omp_get_place_num_procs\0").ok()?;
        let list_cpus =
            process.get::<unsafe extern "C" fn(c_int, *mut c_int)>(b"omp_get_place_proc_ids\0").ok()?;
        for place in 0..place_count() {
            let mut ids = vec![0; usize::try_from(cpu_count(place)).ok()?];
            list_cpus(place, ids.as_mut_ptr());
            let ids = ids.into_iter().filter_map(|id| usize::try_from(id).ok());
            ids.filter(|&id| id < CpuSet::MAX_CPU).for_each(|id| cpus.set(id));
        }
    }
    (cpus.count() > 0).then_some(cpus)
}
