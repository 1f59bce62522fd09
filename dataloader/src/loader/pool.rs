//! A pool of threads that fill batches, slot by slot.
//!
//! A batch is one buffer, split into one part for each slot. Each part moves to a free thread, and the filled parts are
//! joined again, all without copying. Slots of several batches may be in progress at once; they are begun in the order
//! of submission.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::BytesMut;
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::order::BatchPlan;
use crate::error::{Error, Result};

/// One thread's work: fills the buffer of one slot of a batch.
pub(crate) trait SlotWorker: Send + 'static {
    /// The description of a filled slot.
    type Output: Send + 'static;
    fn fill_slot(&mut self, plan: &BatchPlan, slot: usize, slot_buf: &mut [u8]) -> Result<Self::Output>;
}

/// The threads. Dropping the pool stops them; each finishes its current slot first.
pub(crate) struct WorkerPool<T> {
    jobs: Option<Sender<Job<T>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A batch in progress.
pub(crate) struct PendingBatch<T> {
    pub(crate) plan: BatchPlan,
    slots: Mutex<Slots<T>>,
    complete: Condvar,
}

struct Slots<T> {
    finished: Vec<Option<(BytesMut, Result<T>)>>,
    missing: usize,
    /// When the latest slot was finished.
    last_finished: Option<Instant>,
}

struct Job<T> {
    batch: Arc<PendingBatch<T>>,
    slot: usize,
    slot_buf: BytesMut,
}

impl<T: Send + 'static> WorkerPool<T> {
    /// Starts a thread for each of `workers`.
    pub(crate) fn new<W: SlotWorker<Output = T>>(workers: Vec<W>) -> Result<WorkerPool<T>> {
        let (sender, receiver) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let mut pool = WorkerPool { jobs: Some(sender), stop, threads: Vec::with_capacity(workers.len()) };
        for (number, worker) in workers.into_iter().enumerate() {
            let receiver = receiver.clone();
            let stop = pool.stop.clone();
            let thread = thread::Builder::new()
                .name(format!("decode-{number}"))
                .spawn(move || run_worker(worker, &receiver, &stop))
                .map_err(|error| Error::Exhausted(format!("cannot start decode thread {number}: {error}")))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Begins a batch: splits `buffer` into one part for each sample. Its length must be a multiple of their number.
    pub(crate) fn submit_batch(&self, plan: BatchPlan, mut buffer: BytesMut) -> Arc<PendingBatch<T>> {
        let count = plan.samples.len();
        let slot_bytes = buffer.len() / count.max(1);
        let slots =
            Slots { finished: (0..count).map(|_| None).collect(), missing: count, last_finished: None };
        let batch = Arc::new(PendingBatch { plan, slots: Mutex::new(slots), complete: Condvar::new() });
        for slot in 0..count {
            // The last slot keeps the spare capacity of a buffer that held a larger batch.
            let is_last = slot + 1 == count;
            let slot_buf = if is_last { mem::take(&mut buffer) } else { buffer.split_to(slot_bytes) };
            let job = Job { batch: batch.clone(), slot, slot_buf };
            if let Some(jobs) = &self.jobs {
                let _ = jobs.send(job); // fails only without receivers, and each thread keeps its own
            }
        }
        batch
    }
}

impl<T> Drop for WorkerPool<T> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.jobs = None; // wakes the threads that wait for a job
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // panics were caught, and reported as errors
        }
    }
}

impl<T> PendingBatch<T> {
    /// Waits until every slot is finished. Returns the buffer and each slot's output, or the first slot's error.
    pub(crate) fn wait(&self) -> Result<(BytesMut, Vec<T>)> {
        let mut slots = self.lock();
        while slots.missing > 0 {
            slots = self.complete.wait(slots).unwrap_or_else(PoisonError::into_inner);
        }
        let mut buffer = BytesMut::new();
        let mut outputs = Vec::with_capacity(slots.finished.len());
        for (slot_buf, output) in slots.finished.drain(..).flatten() {
            outputs.push(output?);
            buffer.unsplit(slot_buf); // adjacent in memory, so it is joined without a copy
        }
        Ok((buffer, outputs))
    }

    /// When the latest slot was finished, and the first slot that is not.
    pub(crate) fn progress(&self) -> (Option<Instant>, Option<usize>) {
        let slots = self.lock();
        (slots.last_finished, slots.finished.iter().position(Option::is_none))
    }

    fn lock(&self) -> MutexGuard<'_, Slots<T>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner) // no code that could panic runs under the lock
    }
}

fn run_worker<W: SlotWorker>(mut worker: W, jobs: &Receiver<Job<W::Output>>, stop: &AtomicBool) {
    while let Ok(Job { batch, slot, mut slot_buf }) = jobs.recv() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A panic must reach the consumer, which would wait for this slot for ever. It may leave the worker in a bad
        // state, but the batches that this worker fills afterwards come after the error and are never returned.
        let output = catch_unwind(AssertUnwindSafe(|| worker.fill_slot(&batch.plan, slot, &mut slot_buf)));
        let output = output.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let sample = batch.plan.samples[slot];
            Err(Error::Panicked { sample, message: text.unwrap_or_else(|| "no message".into()) })
        });
        let mut slots = batch.lock();
        slots.finished[slot] = Some((slot_buf, output));
        slots.missing -= 1;
        slots.last_finished = Some(Instant::now());
        if slots.missing == 0 {
            batch.complete.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Fills a slot with the sample's number; is slow at even ones, so that slots finish out of order.
    struct NumberWriter;

    impl SlotWorker for NumberWriter {
        type Output = i64;
        fn fill_slot(&mut self, plan: &BatchPlan, slot: usize, slot_buf: &mut [u8]) -> Result<i64> {
            let sample = plan.samples[slot];
            if sample.is_multiple_of(2) {
                thread::sleep(Duration::from_millis(2));
            }
            assert_ne!(sample, 66, "sixty-six");
            if sample >= 90 {
                return Err(Error::InvalidArgument(format!("sample {sample}")));
            }
            slot_buf.fill(sample as u8);
            Ok(i64::from(sample))
        }
    }

    fn plan(samples: Vec<u32>) -> BatchPlan {
        BatchPlan::new(0, samples)
    }

    #[test]
    fn slots_join_in_order_without_a_copy() {
        let pool = WorkerPool::new(vec![NumberWriter, NumberWriter, NumberWriter]).unwrap();
        let mut buffer = BytesMut::zeroed(7 * 1000);
        for round in 0..3 {
            let address = buffer.as_ptr();
            let capacity = buffer.capacity();
            let samples: Vec<u32> = (round..round + 7).collect();
            let (joined, labels) = pool.submit_batch(plan(samples.clone()), buffer).wait().unwrap();
            assert_eq!((joined.as_ptr(), joined.len(), joined.capacity()), (address, 7000, capacity));
            assert!(joined.chunks(1000).zip(&samples).all(|(slot, &n)| slot.iter().all(|&b| b == n as u8)));
            assert_eq!(labels, samples.iter().map(|&n| i64::from(n)).collect::<Vec<_>>());
            buffer = joined; // the next round recycles it
        }
        let capacity = buffer.capacity();
        buffer.truncate(4000);
        let (joined, _) = pool.submit_batch(plan(vec![1, 2, 3, 4]), buffer).wait().unwrap();
        assert_eq!((joined.len(), joined.capacity()), (4000, capacity), "a smaller batch");
    }

    #[test]
    fn first_slot_in_order_gives_the_error() {
        let pool = WorkerPool::new(vec![NumberWriter, NumberWriter, NumberWriter]).unwrap();
        let error = pool.submit_batch(plan(vec![1, 94, 91, 93]), BytesMut::zeroed(4)).wait().unwrap_err();
        assert_eq!(error.to_string(), "sample 94"); // although 91 is done sooner
    }

    #[test]
    fn panic_is_an_error_and_later_jobs_still_run() {
        let pool = WorkerPool::new(vec![NumberWriter]).unwrap();
        let error = pool.submit_batch(plan(vec![1, 66, 3]), BytesMut::zeroed(3)).wait().unwrap_err();
        assert!(
            matches!(&error, Error::Panicked { sample: 66, message } if message.contains("sixty-six")),
            "{error}"
        );
        assert!(pool.submit_batch(plan(vec![1]), BytesMut::zeroed(1)).wait().is_ok());
    }

    #[test]
    fn dropping_the_pool_drops_its_queue() {
        let pool = WorkerPool::new(vec![NumberWriter, NumberWriter]).unwrap();
        let batch = pool.submit_batch(plan(vec![0; 10_000]), BytesMut::zeroed(10_000)); // 10 s of work
        let start = std::time::Instant::now();
        drop(pool);
        assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
        assert!(batch.lock().missing > 9_000);
    }
}
