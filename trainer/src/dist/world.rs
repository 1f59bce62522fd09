//! The world as the rest of the crate sees it. One thread calls the backend; collectives are queued for it and run in the
//! order in which they were queued.

use super::abort;
use super::collective::{Collective, LocalRank};
use super::launched::start_backend;
use super::progress::{Progress, Traffic};
use super::single::SingleProcess;
use crate::model::RankMean;
use crate::sys::error::{Error, Exit, Result};
use crate::sys::{Event, Phase, range};
use codinet_dataloader::Loader;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Instant;
use tch::{Device, Tensor};

pub(super) type Backend = Box<dyn Collective>;
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
    /// End when the world does.
    threads: Vec<JoinHandle<()>>,
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
            threads: vec![thread],
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

    /// Runs `body` until [`Progress::has_ended`].
    pub(super) fn add_thread(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        self.threads.push(spawn(name, body)?);
        Ok(())
    }

    /// All ranks: the thread that runs collectives makes the backend for those that follow from the one so far.
    pub(super) fn replace_backend(
        &mut self,
        replace: impl FnOnce(Backend) -> Backend + Send + 'static,
    ) -> Result<()> {
        let job = move |backend: &mut Backend| {
            let old = std::mem::replace(backend, Box::new(SingleProcess));
            *backend = replace(old);
            Ok(backend.name())
        };
        self.backend = self.queue.start("the choice of a backend", Device::Cpu, 0, job).wait()?;
        Ok(())
    }

    /// The step that begins, for the watchdog's message.
    pub fn set_step(&self, step: u64) {
        self.queue.progress.set_step(step);
    }

    /// From now on the watchdog ends the job if a wait for `loader` takes too long.
    pub fn watch_loader(&self, loader: &Loader) {
        self.queue.progress.add_loader(loader.monitor());
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
                crate::eprint_line!("error: {error}"); // autograd cannot return it
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
    pub(super) fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// All ranks: starts to replace `tensor` by its sum over ranks. `what` names it in the watchdog's message.
    pub fn start_sum(&self, what: &'static str, tensor: &Tensor) -> Pending<()> {
        let value = tensor.shallow_clone();
        let job = move |backend: &mut Backend| backend.all_reduce_sum(&value);
        self.start(what, tensor.device(), bytes(tensor), job)
    }

    /// Queues a collective on tensors of `device`. It runs after what this thread's stream has been given so far.
    pub(super) fn start<T: Send + 'static>(
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
        for thread in self.threads.drain(..) {
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
