//! What this rank communicates and waits for: counted for reports, watched by the watchdog.

use super::nccl::CommMonitor;
use crate::sys::Event;
use codinet_dataloader::{LoaderMonitor, Stall};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

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

/// The steps, collectives and loaders of this rank.
#[derive(Default)]
pub(super) struct Progress {
    /// The current step of the run.
    step: AtomicU64,
    /// Steps begun since the start of this process.
    steps_begun: AtomicU64,
    collectives: Mutex<Collectives>,
    loaders: Mutex<Vec<LoaderMonitor>>,
    /// NCCL's communicator, if there is one.
    communicator: OnceLock<CommMonitor>,
    ended: Mutex<bool>,
    end: Condvar,
}

#[derive(Debug, Default)]
struct Collectives {
    traffic: Traffic,
    /// The collective that the host is in, and its start.
    current: Option<(&'static str, Instant)>,
    /// Collectives that are queued on the device, oldest first.
    on_device: VecDeque<(&'static str, Instant, Event)>,
}

impl Collectives {
    /// The oldest collective in progress, and its start.
    fn oldest(&mut self) -> Option<(&'static str, Instant)> {
        while self.on_device.front().is_some_and(|(.., done)| done.is_complete()) {
            self.on_device.pop_front();
        }
        self.on_device.front().map(|&(what, start, _)| (what, start)).or(self.current)
    }
}

impl Progress {
    pub(super) fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
        self.steps_begun.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn enter(&self, what: &'static str, bytes: u64) {
        let mut collectives = self.collectives();
        collectives.traffic.calls += 1;
        collectives.traffic.bytes += bytes;
        collectives.current = Some((what, Instant::now()));
    }

    /// The host has left the collective; `done` marks its end on the device.
    pub(super) fn leave(&self, done: Option<Event>) {
        let mut collectives = self.collectives();
        if let Some((what, start)) = collectives.current.take() {
            collectives.traffic.busy += start.elapsed();
            collectives.on_device.extend(done.map(|done| (what, start, done)));
            collectives.oldest(); // drops those that are over
        }
    }

    /// The communicator that the watchdog watches from now on.
    pub(super) fn watch(&self, communicator: CommMonitor) {
        let _ = self.communicator.set(communicator); // there is one a process
    }

    pub(super) fn communicator(&self) -> Option<&CommMonitor> {
        self.communicator.get()
    }

    pub(super) fn add_wait(&self, time: Duration) {
        self.collectives().traffic.waited += time;
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.collectives().traffic
    }

    /// From now on [`Progress::stall`] covers a loader that `monitor` watches.
    pub(super) fn add_loader(&self, monitor: LoaderMonitor) {
        let mut loaders = self.loaders.lock().expect("no panic under the lock");
        loaders.retain(LoaderMonitor::is_live);
        loaders.push(monitor);
    }

    /// The wait for a loader that is in progress.
    pub(super) fn stall(&self) -> Option<Stall> {
        self.loaders.lock().expect("no panic under the lock").iter().find_map(LoaderMonitor::stall)
    }

    /// The world has ended: the watchdog stops.
    pub(super) fn end(&self) {
        *self.ended.lock().expect("no panic under the lock") = true;
        self.end.notify_all();
    }

    pub(super) fn has_ended(&self) -> bool {
        *self.ended.lock().expect("no panic under the lock")
    }

    /// Returns after `time`, or at the world's end.
    pub(super) fn sleep(&self, time: Duration) {
        let ended = self.ended.lock().expect("no panic under the lock");
        drop(self.end.wait_timeout_while(ended, time, |ended| !*ended));
    }

    pub(super) fn step(&self) -> u64 {
        self.step.load(Ordering::Relaxed)
    }

    pub(super) fn steps_begun(&self) -> u64 {
        self.steps_begun.load(Ordering::Relaxed)
    }

    /// The oldest collective in progress, and its start.
    pub(super) fn oldest(&self) -> Option<(&'static str, Instant)> {
        self.collectives().oldest()
    }

    fn collectives(&self) -> MutexGuard<'_, Collectives> {
        self.collectives.lock().expect("no panic under the lock")
    }
}
