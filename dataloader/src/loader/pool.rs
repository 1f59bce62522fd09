//! A pool of threads that fill batches, slot by slot.
//!
//! A batch is one buffer, cut into a piece a slot; each piece travels to whichever thread is free and the filled
//! pieces are put together again, all without copying. Slots of several batches may be in work at once; they
//! are begun in the order they were submitted.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::order::BatchPlan;
use crate::error::{Error, Result};

/// What one thread does: fills the piece of a slot of a batch, and says what it holds.
pub(crate) trait Fill: Send + 'static {
    type Done: Send + 'static;
    fn fill(&mut self, plan: &BatchPlan, slot: usize, piece: &mut [u8]) -> Result<Self::Done>;
}

/// The threads. Dropping it stops them: each finishes the slot it is at, and no more.
pub(crate) struct Pool<D> {
    jobs: Option<Sender<Job<D>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A batch in work.
pub(crate) struct Pending<D> {
    pub(crate) plan: BatchPlan,
    slots: Mutex<Slots<D>>,
    complete: Condvar,
}

struct Slots<D> {
    done: Vec<Option<(BytesMut, Result<D>)>>,
    missing: usize,
}

struct Job<D> {
    batch: Arc<Pending<D>>,
    slot: usize,
    piece: BytesMut,
}

impl<D: Send + 'static> Pool<D> {
    /// Starts a thread for each of `workers`.
    pub(crate) fn new<W: Fill<Done = D>>(workers: Vec<W>) -> Result<Pool<D>> {
        let (sender, receiver) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = Pool { jobs: Some(sender), stop, threads: Vec::with_capacity(workers.len()) };
        for (number, worker) in workers.into_iter().enumerate() {
            let (receiver, stop) = (receiver.clone(), pool.stop.clone());
            let thread = thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || work(worker, &receiver, &stop))
                .map_err(|error| Error::Exhausted(format!("cannot start decode thread {number}: {error}")))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Begins a batch: cuts `buffer` into a piece a sample. Its length must be a multiple of theirs.
    pub(crate) fn submit(&self, plan: BatchPlan, mut buffer: BytesMut) -> Arc<Pending<D>> {
        let count = plan.samples.len();
        let piece_bytes = buffer.len() / count.max(1);
        let slots = Slots { done: (0..count).map(|_| None).collect(), missing: count };
        let batch = Arc::new(Pending { plan, slots: Mutex::new(slots), complete: Condvar::new() });
        for slot in 0..count {
            let job = Job { batch: batch.clone(), slot, piece: buffer.split_to(piece_bytes) };
            if let Some(jobs) = &self.jobs {
                let _ = jobs.send(job); // fails only without receivers, and each thread keeps its own
            }
        }
        batch
    }
}

impl<D> Drop for Pool<D> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None; // wakes the threads that wait for a job
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // panics were caught, and reported as errors
        }
    }
}

impl<D> Pending<D> {
    /// Waits until every slot is done. Returns the buffer and what each slot holds, or the first slot's error.
    pub(crate) fn wait(&self) -> Result<(BytesMut, Vec<D>)> {
        let mut slots = self.lock();
        while slots.missing > 0 {
            slots = self.complete.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
        let mut buffer = BytesMut::new();
        let mut held = Vec::with_capacity(slots.done.len());
        for (piece, done) in slots.done.drain(..).flatten() {
            held.push(done?);
            buffer.unsplit(piece); // the neighbour in memory of what is there: joined, not copied
        }
        Ok((buffer, held))
    }

    fn lock(&self) -> MutexGuard<'_, Slots<D>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner) // no code that could panic runs under the lock
    }
}

fn work<W: Fill>(mut worker: W, jobs: &Receiver<Job<W::Done>>, stop: &AtomicBool) {
    while let Ok(Job { batch, slot, mut piece }) = jobs.recv() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A panic must reach the consumer, which would wait for this slot for ever. The worker may be left in a
        // bad state, but what it fills afterwards belongs to batches that the error keeps from being served.
        let outcome = catch_unwind(AssertUnwindSafe(|| worker.fill(&batch.plan, slot, &mut piece)));
        let outcome = outcome.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let sample = batch.plan.samples[slot];
            Err(Error::Panicked { sample, message: text.unwrap_or_else(|| "no message".into()) })
        });
        let mut slots = batch.lock();
        slots.done[slot] = Some((piece, outcome));
        slots.missing -= 1;
        if slots.missing == 0 {
            batch.complete.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Fills with the sample's number; dawdles on even ones, so that slots finish out of order.
    struct Stamp;

    impl Fill for Stamp {
        type Done = i64;
        fn fill(&mut self, plan: &BatchPlan, slot: usize, piece: &mut [u8]) -> Result<i64> {
            let sample = plan.samples[slot];
            if sample.is_multiple_of(2) {
                thread::sleep(Duration::from_millis(2));
            }
            assert_ne!(sample, 66, "sixty-six");
            if sample >= 90 {
                return Err(Error::InvalidArgument(format!("sample {sample}")));
            }
            piece.fill(sample as u8);
            Ok(i64::from(sample))
        }
    }

    fn plan(samples: Vec<u32>) -> BatchPlan {
        BatchPlan { epoch: 0, samples, replacements: None }
    }

    #[test]
    fn pieces_join_in_order_without_a_copy() {
        let pool = Pool::new(vec![Stamp, Stamp, Stamp]).unwrap();
        let mut buffer = BytesMut::zeroed(7 * 1000);
        for round in 0..3 {
            let (address, capacity) = (buffer.as_ptr(), buffer.capacity());
            let samples: Vec<u32> = (round..round + 7).collect();
            let (joined, labels) = pool.submit(plan(samples.clone()), buffer).wait().unwrap();
            assert_eq!((joined.as_ptr(), joined.len(), joined.capacity()), (address, 7000, capacity));
            assert!(joined.chunks(1000).zip(&samples).all(|(piece, &n)| piece.iter().all(|&b| b == n as u8)));
            assert_eq!(labels, samples.iter().map(|&n| i64::from(n)).collect::<Vec<_>>());
            buffer = joined; // and again, as a recycled buffer
        }
    }

    #[test]
    fn the_first_slot_in_order_gives_the_error() {
        let pool = Pool::new(vec![Stamp, Stamp, Stamp]).unwrap();
        let error = pool.submit(plan(vec![1, 94, 91, 93]), BytesMut::zeroed(4)).wait().unwrap_err();
        assert_eq!(error.to_string(), "sample 94"); // although 91 is done sooner
    }

    #[test]
    fn a_panic_is_an_error_and_later_jobs_still_run() {
        let pool = Pool::new(vec![Stamp]).unwrap();
        let error = pool.submit(plan(vec![1, 66, 3]), BytesMut::zeroed(3)).wait().unwrap_err();
        assert!(
            matches!(&error, Error::Panicked { sample: 66, message } if message.contains("sixty-six")),
            "{error}"
        );
        assert!(pool.submit(plan(vec![1]), BytesMut::zeroed(1)).wait().is_ok());
    }

    #[test]
    fn dropping_drops_the_queue_not_just_the_handle() {
        let pool = Pool::new(vec![Stamp, Stamp]).unwrap();
        let batch = pool.submit(plan(vec![0; 10_000]), BytesMut::zeroed(10_000)); // 10 s of work
        let start = std::time::Instant::now();
        drop(pool);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(batch.lock().missing > 9_000);
    }
}
