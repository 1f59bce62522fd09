//! Whether the ranks' GPUs communicate over NCCL.

use super::agreement::{all_gather_objects, on_rank_zero};
use super::nccl::{Comm, ID_BYTES, Nccl, NcclWorld};
use super::world::{Backend, World};
use crate::config;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Driver, SideStream, set_side_stream};
use std::collections::HashSet;
use tch::Device;

/// The reason of a rank that computes on the CPU.
const NO_GPU: &str = "it has no GPU";

/// All ranks: `device` is the one that this rank computes on. Afterwards collectives on its tensors have a stream of their own
/// there and use NCCL, if `wanted` allows that and every rank can.
pub fn use_device(world: &mut World, device: Device, wanted: config::Backend) -> Result<()> {
    let nccl = choose_nccl(world, device, wanted)?;
    let rank = world.rank();
    let ranks = world.ranks();
    let start_nccl = move |_: &mut Backend| {
        set_side_stream(device, SideStream::Collectives);
        match (nccl, device) {
            (Some((nccl, id)), Device::Cuda(index)) => Comm::join(nccl, id, index, rank, ranks).map(Some),
            _ => Ok(None),
        }
    };
    // If one rank fails, the others wait for it in NCCL until the watchdog ends the job.
    if let Some(comm) = world.queue().start("the start of NCCL", Device::Cpu, 0, start_nccl).wait()? {
        world.queue().progress().watch(comm.monitor());
        world.replace_backend(|host| Box::new(NcclWorld::new(comm, host)))?;
    }
    Ok(())
}

/// All ranks: the library and the id of a new communicator, if `wanted` allows NCCL and every rank can use it. Every rank
/// needs a GPU of its own and the library.
fn choose_nccl(
    world: &World,
    device: Device,
    wanted: config::Backend,
) -> Result<Option<(Nccl, [u8; ID_BYTES])>> {
    if wanted == config::Backend::Mpi || (wanted == config::Backend::Auto && world.ranks() == 1) {
        return Ok(None);
    }
    let own = open(device);
    let gpu = own.as_ref().map(|(_, gpu)| gpu.clone()).map_err(Clone::clone);
    let all: Vec<Result<String, String>> = all_gather_objects(world, &gpu)?;
    let Some(reason) = obstacle(&all) else {
        let (nccl, _) = own.expect("a rank without NCCL is an obstacle");
        let id = on_rank_zero(world, || Ok(nccl.create_id()?.to_vec()))?;
        return Ok(Some((nccl, id.try_into().expect("the bytes of an id"))));
    };
    if wanted == config::Backend::Nccl {
        let what = format!("collective.backend is nccl, but {reason}; or set it to auto or mpi");
        return Err(Error::on_all_ranks(Exit::Config, what));
    }
    let has_gpu = |rank: &Result<String, String>| rank.as_ref().err().is_none_or(|reason| reason != NO_GPU);
    if world.rank() == 0 && all.iter().any(has_gpu) {
        let backend = world.backend();
        crate::eprint_line!(
            "note: GPUs communicate through the host over {backend}, which is slower: {reason}"
        );
    }
    Ok(None)
}

/// The library and the name of this rank's GPU, or the reason against NCCL.
fn open(device: Device) -> Result<(Nccl, String), String> {
    let Device::Cuda(index) = device else { return Err(NO_GPU.to_owned()) };
    let nccl = Nccl::open().map_err(|error| error.message)?;
    let gpu = Driver::open()?.uuid(index)?;
    Ok((nccl, gpu))
}

/// The first reason against NCCL, given every rank's GPU or its own reason.
fn obstacle(ranks: &[Result<String, String>]) -> Option<String> {
    let failed = ranks.iter().enumerate().find_map(|(rank, gpu)| Some((rank, gpu.as_ref().err()?)));
    if let Some((rank, reason)) = failed {
        return Some(format!("rank {rank}: {reason}"));
    }
    let gpus: HashSet<_> = ranks.iter().collect();
    (gpus.len() < ranks.len()).then(|| "ranks share a GPU; start one rank per GPU".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nccl_needs_a_gpu_per_rank() {
        let gpu = |name: &str| Ok(name.to_owned());
        assert_eq!(obstacle(&[gpu("a"), gpu("b")]), None);
        assert!(obstacle(&[gpu("a"), gpu("a")]).unwrap().contains("one rank per GPU"));
        assert_eq!(obstacle(&[gpu("a"), Err(NO_GPU.into())]).unwrap(), "rank 1: it has no GPU");
    }
}
