//! The world as the trainer sees it: collectives are handed to one thread, which alone calls the backend, in the order
//! in which they were handed over.

use super::nccl::{Comm, ID_BYTES, Nccl, NcclWorld};
use super::single::Alone;
use super::watchdog::{Progress, Watch};
use super::{Collective, abort, agree, all_gather_lists, start_backend};
use crate::config;
use crate::model::RankMean;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Driver, Event, Phase, range, set_side_stream};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

/// Why a rank that computes on the CPU cannot use NCCL.
const NO_GPU: &str = "it has no GPU";

type Backend = Box<dyn Collective>;
type Job = Box<dyn FnOnce(&mut Backend) + Send>;

/// All ranks of a run, of which this process is one.
pub struct World {
    rank: usize,
    ranks: usize,
    local: (usize, usize),
    backend: &'static str,
    about: String,
    queue: Queue,
    thread: Option<JoinHandle<()>>,
    watch: Option<JoinHandle<()>>,
}

/// Where collectives are handed over; autograd's hooks hold one of their own.
#[derive(Clone)]
pub struct Queue {
    /// `None` ends the thread.
    jobs: Sender<Option<Job>>,
    progress: Arc<Progress>,
}

/// A collective under way. What it changes or returns must not be touched before [`Pending::wait`].
#[must_use = "a collective is waited for"]
pub struct Pending<T> {
    result: Receiver<(Result<T>, Option<Event>)>,
    progress: Arc<Progress>,
}

/// What communication has cost this rank.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Collectives.
    pub calls: u64,
    /// Bytes that this rank put into them.
    pub bytes: u64,
    /// Time from the moment that a collective's turn came to its end, waiting for other ranks included; on a GPU to the
    /// moment that the device was asked for it.
    pub busy: Duration,
    /// Of all time, that in which computation waited for a collective.
    pub waited: Duration,
}

impl World {
    /// Joins the ranks that the launcher started, on the thread that will speak with them.
    pub(super) fn start() -> Result<Self> {
        let (jobs, queue) = channel::<Option<Job>>();
        let (told, joined) = sync_channel(1);
        let speak = move || {
            let mut backend = match start_backend() {
                Ok(backend) => backend,
                Err(error) => return drop(told.send(Err(error))),
            };
            let _ = told.send(Ok((
                backend.rank(),
                backend.ranks(),
                backend.local(),
                backend.name(),
                backend.about(),
            )));
            while let Ok(Some(job)) = queue.recv() {
                job(&mut backend);
            }
        };
        let thread = thread("collectives", speak)?;
        let (rank, ranks, local, backend, about) = joined.recv().expect("the thread tells what it joined")?;
        let queue = Queue { jobs, progress: Arc::default() };
        Ok(Self { rank, ranks, local, backend, about, queue, thread: Some(thread), watch: None })
    }

    /// This process's number, `0..ranks()`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many ranks there are.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// This rank's number among those on the same host, and how many those are.
    pub fn local(&self) -> (usize, usize) {
        self.local
    }

    /// What tensors travel by, in words.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// What ranks met by: the library, its version, and how threads may call it.
    pub fn about(&self) -> &str {
        &self.about
    }

    /// All ranks: from here on a rank that does not come to a collective in time ends the job.
    pub fn watch(&mut self, options: &config::Collective) -> Result<()> {
        if self.ranks > 1 {
            let watch = Watch::new(self, options, self.queue.progress.clone())?;
            self.watch = Some(thread("watch", move || watch.run())?);
        }
        Ok(())
    }

    /// All ranks: the device that this rank computes on, and what its tensors travel by. Collectives get a stream of their
    /// own there.
    pub fn use_device(&mut self, device: Device, wanted: config::Backend) -> Result<()> {
        let nccl = self.nccl(device, wanted)?;
        let (rank, ranks) = (self.rank, self.ranks);
        let meet = move |_: &mut Backend| {
            set_side_stream(device);
            match (nccl, device) {
                (Some((nccl, id)), Device::Cuda(index)) => Comm::join(nccl, id, index, rank, ranks).map(Some),
                _ => Ok(None),
            }
        };
        // Where one rank fails, the others wait for it in there, and cannot agree on anything.
        if let Some(comm) = self.queue.start("the start of NCCL", Device::Cpu, 0, meet).wait()? {
            let take = move |backend: &mut Backend| {
                let host = std::mem::replace(backend, Box::new(Alone));
                *backend = Box::new(NcclWorld::new(comm, host));
                Ok(backend.name())
            };
            self.backend = self.queue.start("the choice of NCCL", Device::Cpu, 0, take).wait()?;
        }
        Ok(())
    }

    /// All ranks: NCCL and the number by which to meet there, where it is wanted and every rank can.
    fn nccl(&self, device: Device, wanted: config::Backend) -> Result<Option<(Nccl, [u8; ID_BYTES])>> {
        if wanted == config::Backend::Mpi || (wanted == config::Backend::Auto && self.ranks == 1) {
            return Ok(None);
        }
        let mine = match device {
            Device::Cuda(index) => Nccl::open().map_err(|error| error.message).and_then(|nccl| {
                let gpu = Driver::open()?.uuid(index)?;
                Ok((nccl, gpu))
            }),
            _ => Err(NO_GPU.to_owned()),
        };
        // A GPU that two ranks share is no rank's own.
        let gpus = all_gather_lists(self, mine.as_ref().map_or("", |(_, gpu)| gpu).as_bytes())?;
        let reasons = all_gather_lists(self, mine.as_ref().err().map_or("", |why| why).as_bytes())?;
        let lacks = match reasons.iter().position(|why| !why.is_empty()) {
            Some(rank) => Some(format!("rank {rank}: {}", String::from_utf8_lossy(&reasons[rank]))),
            None if gpus.iter().collect::<HashSet<_>>().len() < self.ranks => {
                Some("ranks share a GPU; start one rank per GPU".to_owned())
            }
            None => None,
        };
        let nccl = match (mine, lacks) {
            (Ok((nccl, _)), None) => nccl,
            (_, Some(why)) if wanted == config::Backend::Nccl => {
                let what = format!("collective.backend is nccl, but {why}; or set it to auto or mpi");
                return Err(Error::on_all_ranks(Exit::Config, what));
            }
            (_, why) => {
                let any_gpu = reasons.iter().any(|why| why != NO_GPU.as_bytes());
                if let Some(why) = why.filter(|_| self.rank == 0 && any_gpu) {
                    eprintln!("note: tensors travel by {}, by way of the host: {why}", self.backend);
                }
                return Ok(None);
            }
        };
        let made = agree(self, if self.rank == 0 { nccl.new_id() } else { Ok([0; ID_BYTES]) })?;
        let id = Tensor::from_slice(&made);
        self.broadcast(&id, 0)?;
        let id = Vec::<u8>::try_from(&id).expect("bytes").try_into().expect("as many as were sent");
        Ok(Some((nccl, id)))
    }

    /// Says which step is being taken, for whoever has to tell where a run stopped moving.
    pub fn at_step(&self, step: u64) {
        self.queue.progress.at_step(step);
    }

    /// What communication has cost so far.
    pub fn traffic(&self) -> Traffic {
        self.queue.progress.traffic()
    }

    /// Where to hand over collectives from another thread.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// All ranks: afterwards `tensor` holds on every rank what it held on rank `root`.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        let value = tensor.shallow_clone();
        let job = move |backend: &mut Backend| backend.broadcast(&value, root);
        self.queue.start("a broadcast", tensor.device(), bytes(tensor), job).wait()
    }

    /// All ranks: afterwards `tensor` (f32, f64 or bf16) holds on every rank the sum over ranks, to the bit the same on all.
    pub fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        self.queue.start_sum("an all-reduce", tensor).wait()
    }

    /// All ranks: the mean over ranks, in place.
    pub fn all_reduce_mean(&self, tensor: &Tensor) -> Result<()> {
        self.all_reduce_sum(tensor)?;
        if self.ranks > 1 {
            let _ = tensor.shallow_clone().g_div_scalar_(self.ranks as f64);
        }
        Ok(())
    }

    /// The mean over ranks as an operation that autograd sees through.
    pub fn mean_operation(&self) -> RankMean {
        let (queue, ranks) = (self.queue.clone(), self.ranks);
        RankMean::new(ranks, move |tensor| {
            if let Err(error) = queue.start_sum("an all-reduce of batch statistics", tensor).wait() {
                eprintln!("error: {error}"); // autograd has no way to pass it on
                abort(error.exit as i32);
            }
            let _ = tensor.shallow_clone().g_div_scalar_(ranks as f64);
        })
    }

    /// All ranks: `[world, …]`, every rank's `tensor`, which has the same shape and kind on all, in rank order.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let value = tensor.detach();
        let job = move |backend: &mut Backend| backend.all_gather(&value);
        self.queue.start("an all-gather", tensor.device(), bytes(tensor), job).wait()
    }

    /// All ranks: returns once every rank has come here.
    pub fn barrier(&self) -> Result<()> {
        self.queue.start("a barrier", Device::Cpu, 0, |backend| backend.barrier()).wait()
    }
}

impl Queue {
    /// All ranks: starts to sum `tensor` over ranks, in place.
    pub fn start_sum(&self, what: &'static str, tensor: &Tensor) -> Pending<()> {
        let value = tensor.shallow_clone();
        let job = move |backend: &mut Backend| backend.all_reduce_sum(&value);
        self.start(what, tensor.device(), bytes(tensor), job)
    }

    /// Hands over a collective on tensors of `device`; it sees what this thread's stream has been given until now.
    fn start<T: Send + 'static>(
        &self,
        what: &'static str,
        device: Device,
        bytes: u64,
        collective: impl FnOnce(&mut Backend) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let before = Event::record(device);
        let (told, result) = sync_channel(1);
        let progress = self.progress.clone();
        let job = move |backend: &mut Backend| {
            progress.enter(what, bytes);
            if let Some(before) = before {
                before.block();
            }
            let travelling = range(Phase::Collective);
            let value = collective(backend);
            drop(travelling);
            progress.leave(Event::record(device));
            let _ = told.send((value, Event::record(device))); // an error may have ended who waited
        };
        let _ = self.jobs.send(Some(Box::new(job))); // where the thread is gone, wait says so
        Pending { result, progress: self.progress.clone() }
    }
}

impl<T> Pending<T> {
    /// Waits for the collective; on a GPU the stream does, and the host goes on once it has been started.
    pub fn wait(self) -> Result<T> {
        let (start, _range) = (Instant::now(), range(Phase::Wait));
        let (value, done) = self.result.recv().map_err(|_| {
            Error::new(Exit::Communication, "the thread that speaks with other ranks has ended")
        })?;
        if let Some(done) = done {
            done.block();
        }
        self.progress.waited(start.elapsed());
        value
    }
}

impl Drop for World {
    /// Leaving the other ranks waits for them, so it is skipped while unwinding.
    fn drop(&mut self) {
        self.queue.progress.end();
        if std::thread::panicking() {
            return;
        }
        let _ = self.queue.jobs.send(None);
        for thread in [self.watch.take(), self.thread.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

fn thread(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let started = std::thread::Builder::new().name(name.into()).spawn(body);
    started.map_err(|error| Error::new(Exit::Communication, format!("cannot start a thread: {error}")))
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}
