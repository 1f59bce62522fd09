//! The world as the rest of the crate sees it. One thread calls the backend; collectives are queued for it and run in the
//! order in which they were queued.

use super::launched::start_backend;
use super::nccl::{Comm, NcclWorld};
use super::nccl_choice::choose_nccl;
use super::single::SingleProcess;
use super::watchdog::{Progress, Watchdog};
use super::{Collective, LocalRank, abort};
use crate::config;
use crate::model::RankMean;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Event, Phase, range, set_side_stream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tch::{Device, Tensor};

type Backend = Box<dyn Collective>;
type Job = Box<dyn FnOnce(&mut Backend) + Send>;

/// The ranks of a job, including this process.
///
/// Methods that communicate are marked "All ranks": every rank calls them in the same order. Each returns when the result
/// may be used; on a GPU the current stream waits for it, and the host does not.
pub struct World {
    rank: usize,
    ranks: usize,
    local_rank: LocalRank,
    backend: &'static str,
    library_version: String,
    queue: CollectiveQueue,
    thread: Option<JoinHandle<()>>,
    watchdog: Option<JoinHandle<()>>,
}

/// Accepts collectives for the thread that runs them; cloned for autograd's hooks, which run on other threads.
#[derive(Clone)]
pub struct CollectiveQueue {
    /// `None` ends the thread.
    jobs: Sender<Option<Job>>,
    progress: Arc<Progress>,
}

/// A collective in progress. Its tensors must not be touched before [`Pending::wait`].
#[must_use = "a collective has to be waited for"]
pub struct Pending<T> {
    result: Receiver<(Result<T>, Option<Event>)>,
    progress: Arc<Progress>,
}

/// The communication of this rank so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Collectives.
    pub calls: u64,
    /// Bytes of this rank's tensors in them.
    pub bytes: u64,
    /// Time in collectives, waiting for other ranks included; on a GPU the time to queue them.
    pub busy: Duration,
    /// Time that computation waited for collectives.
    pub waited: Duration,
}

impl World {
    /// Connects to the ranks that the launcher started, on the thread that will run the collectives.
    pub(super) fn start() -> Result<Self> {
        let (jobs_tx, jobs_rx) = channel::<Option<Job>>();
        let (joined_tx, joined_rx) = sync_channel(1);
        let run_collectives = move || {
            let mut backend = match start_backend() {
                Ok(backend) => backend,
                Err(error) => return drop(joined_tx.send(Err(error))),
            };
            let size = (backend.rank(), backend.ranks(), backend.local_rank());
            let _ = joined_tx.send(Ok((size, backend.name(), backend.library_version())));
            while let Ok(Some(job)) = jobs_rx.recv() {
                job(&mut backend);
            }
        };
        let thread = spawn("collectives", run_collectives)?;
        let joined = joined_rx.recv().expect("the thread sends what it joined, or an error");
        let ((rank, ranks, local_rank), backend, library_version) = joined?;
        Ok(Self {
            rank,
            ranks,
            local_rank,
            backend,
            library_version,
            queue: CollectiveQueue { jobs: jobs_tx, progress: Arc::default() },
            thread: Some(thread),
            watchdog: None,
        })
    }

    /// This process's rank, `0..ranks()`.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks, W.
    pub fn ranks(&self) -> usize {
        self.ranks
    }

    /// This rank among the ranks of its host.
    pub fn local_rank(&self) -> LocalRank {
        self.local_rank
    }

    /// The backend's name, for messages.
    pub fn backend(&self) -> &'static str {
        self.backend
    }

    /// The library that connected the ranks, with its version and thread level.
    pub fn library_version(&self) -> &str {
        &self.library_version
    }

    /// All ranks: from now on, a rank that does not reach a collective within the timeouts of `options` ends the job.
    pub fn start_watchdog(&mut self, options: &config::Collective) -> Result<()> {
        if self.ranks > 1 {
            let watchdog = Watchdog::new(self, options, self.queue.progress.clone())?;
            self.watchdog = Some(spawn("watchdog", move || watchdog.run())?);
        }
        Ok(())
    }

    /// All ranks: `device` is the one that this rank computes on. Afterwards collectives on its tensors have a stream of
    /// their own there and use NCCL, if `wanted` allows that and every rank can.
    pub fn use_device(&mut self, device: Device, wanted: config::Backend) -> Result<()> {
        let nccl = choose_nccl(self, device, wanted)?;
        let rank = self.rank;
        let ranks = self.ranks;
        let start_nccl = move |_: &mut Backend| {
            set_side_stream(device);
            match (nccl, device) {
                (Some((nccl, id)), Device::Cuda(index)) => Comm::join(nccl, id, index, rank, ranks).map(Some),
                _ => Ok(None),
            }
        };
        // If one rank fails, the others wait for it in NCCL until the watchdog ends the job.
        if let Some(comm) = self.queue.start("the start of NCCL", Device::Cpu, 0, start_nccl).wait()? {
            let replace_backend = move |backend: &mut Backend| {
                let host = std::mem::replace(backend, Box::new(SingleProcess));
                *backend = Box::new(NcclWorld::new(comm, host));
                Ok(backend.name())
            };
            self.backend = self.queue.start("the choice of NCCL", Device::Cpu, 0, replace_backend).wait()?;
        }
        Ok(())
    }

    /// The step that begins, for the watchdog's message.
    pub fn set_step(&self, step: u64) {
        self.queue.progress.set_step(step);
    }

    /// The communication of this rank so far.
    pub fn traffic(&self) -> Traffic {
        self.queue.progress.traffic()
    }

    /// Accepts collectives from other threads.
    pub fn queue(&self) -> &CollectiveQueue {
        &self.queue
    }

    /// All ranks: copies rank `root`'s `tensor` into every rank's, which is bit-identical afterwards.
    pub fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<()> {
        let value = tensor.shallow_clone();
        let job = move |backend: &mut Backend| backend.broadcast(&value, root);
        self.queue.start("a broadcast", tensor.device(), bytes(tensor), job).wait()
    }

    /// All ranks: replaces `tensor` (f32, f64 or bf16) by its sum over ranks, bit-identical on all of them.
    pub fn all_reduce_sum(&self, tensor: &Tensor) -> Result<()> {
        self.queue.start_sum("an all-reduce", tensor).wait()
    }

    /// The mean over ranks as an operation of autograd, whose backward pass is a mean over ranks too.
    pub fn differentiable_mean(&self) -> RankMean {
        let queue = self.queue.clone();
        let ranks = self.ranks;
        RankMean::new(ranks, move |tensor| {
            if let Err(error) = queue.start_sum("an all-reduce of batch statistics", tensor).wait() {
                eprintln!("error: {error}"); // autograd cannot return it
                abort(error.exit as i32);
            }
            let _ = tensor.shallow_clone().g_div_scalar_(ranks as f64);
        })
    }

    /// All ranks: every rank's `tensor`, `[…]`, stacked in rank order: `[W, …]`. Shape and kind are the same on all ranks.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        let value = tensor.detach();
        let job = move |backend: &mut Backend| backend.all_gather(&value);
        self.queue.start("an all-gather", tensor.device(), bytes(tensor), job).wait()
    }

    /// All ranks: returns once every rank has called it.
    pub fn barrier(&self) -> Result<()> {
        self.queue.start("a barrier", Device::Cpu, 0, |backend| backend.barrier()).wait()
    }
}

impl CollectiveQueue {
    /// All ranks: starts to replace `tensor` by its sum over ranks. `what` names it in the watchdog's message.
    pub fn start_sum(&self, what: &'static str, tensor: &Tensor) -> Pending<()> {
        let value = tensor.shallow_clone();
        let job = move |backend: &mut Backend| backend.all_reduce_sum(&value);
        self.start(what, tensor.device(), bytes(tensor), job)
    }

    /// Queues a collective on tensors of `device`. It runs after what this thread's stream has been given so far.
    fn start<T: Send + 'static>(
        &self,
        what: &'static str,
        device: Device,
        bytes: u64,
        collective: impl FnOnce(&mut Backend) -> Result<T> + Send + 'static,
    ) -> Pending<T> {
        let inputs_ready = Event::record(device);
        let (result_tx, result_rx) = sync_channel(1);
        let progress = self.progress.clone();
        let job = move |backend: &mut Backend| {
            progress.enter(what, bytes);
            if let Some(inputs_ready) = inputs_ready {
                inputs_ready.block();
            }
            let span = range(Phase::Collective);
            let value = collective(backend);
            drop(span);
            progress.leave(Event::record(device));
            let _ = result_tx.send((value, Event::record(device))); // after an error nobody may wait for it
        };
        let _ = self.jobs.send(Some(Box::new(job))); // if the thread has ended, `wait` returns an error
        Pending { result: result_rx, progress: self.progress.clone() }
    }
}

impl<T> Pending<T> {
    /// Waits for the collective. On a GPU the current stream waits, and the host only until the collective is queued.
    pub fn wait(self) -> Result<T> {
        let start = Instant::now();
        let _span = range(Phase::Wait);
        let (value, done) = self.result.recv().map_err(|_| {
            Error::new(Exit::Communication, "the thread that communicates with other ranks has ended")
        })?;
        if let Some(done) = done {
            done.block();
        }
        self.progress.add_wait(start.elapsed());
        value
    }
}

impl Drop for World {
    /// Leaves the world, which waits for the other ranks; while unwinding from a panic it must not.
    fn drop(&mut self) {
        self.queue.progress.end();
        if std::thread::panicking() {
            return;
        }
        let _ = self.queue.jobs.send(None);
        for thread in [self.watchdog.take(), self.thread.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    let started = std::thread::Builder::new().name(name.into()).spawn(body);
    started.map_err(|error| Error::new(Exit::Communication, format!("cannot start a thread: {error}")))
}

fn bytes(tensor: &Tensor) -> u64 {
    (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64
}
