//! What a loader waits for, as another thread sees it: a file system or store that does not answer would go unnoticed.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Instant;

use super::SlotResult;
use super::pool::PendingBatch;
use crate::dataset::Dataset;

/// The wait of a loader's consumer, shared with its monitors.
pub(super) struct Wait {
    /// The loader's threads own it.
    dataset: Weak<Dataset>,
    current: Mutex<Option<(Instant, Arc<PendingBatch<SlotResult>>)>>,
}

impl Wait {
    pub(super) fn new(dataset: &Arc<Dataset>) -> Wait {
        Wait { dataset: Arc::downgrade(dataset), current: Mutex::new(None) }
    }

    pub(super) fn begin(&self, batch: &Arc<PendingBatch<SlotResult>>) {
        self.set(Some((Instant::now(), batch.clone())));
    }

    pub(super) fn end(&self) {
        self.set(None);
    }

    fn set(&self, current: Option<(Instant, Arc<PendingBatch<SlotResult>>)>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = current;
    }
}

/// Watches a [`Loader`](super::Loader) from another thread, also while [`next`](Iterator::next) waits.
#[derive(Clone)]
pub struct LoaderMonitor(Weak<Wait>);

/// A wait for a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stall {
    /// When the wait began.
    pub start: Instant,
    /// Since when nothing has come: the start or, if that was later, when the latest sample of the batch was finished.
    pub idle_since: Instant,
    /// The first unfinished sample of the batch, by [`Dataset::sample_name`]; `None` once all are finished.
    pub sample: Option<String>,
}

impl LoaderMonitor {
    pub(super) fn new(wait: &Arc<Wait>) -> LoaderMonitor {
        LoaderMonitor(Arc::downgrade(wait))
    }

    /// Whether the loader still exists.
    pub fn is_live(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// The wait in progress; `None` while the consumer is busy with a batch.
    pub fn stall(&self) -> Option<Stall> {
        let wait = self.0.upgrade()?;
        let current = wait.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (start, batch) = current?;
        let (last_finished, missing) = batch.progress();
        let idle_since = last_finished.map_or(start, |finished| finished.max(start));
        let sample = wait.dataset.upgrade().zip(missing);
        let sample = sample.map(|(dataset, slot)| dataset.sample_name(batch.plan.samples[slot] as usize));
        Some(Stall { start, idle_since, sample })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Channels, DEFAULT_MAX_PIXELS};
    use crate::encode::{Encoder, Encoding};
    use crate::loader::{BatchPlan, Loader, LoaderSpec, OnBadSample};
    use crate::transform::Transform;
    use std::fs;
    use std::process::Command;
    use std::thread;
    use std::time::Duration;

    #[test]
    fn stall_names_the_sample_that_is_waited_for_and_since_when_nothing_came() {
        let folder = tempfile::tempdir().unwrap();
        let file = |sample: u32| folder.path().join(format!("a/{sample}.png"));
        fs::create_dir(folder.path().join("a")).unwrap();
        let png = Encoder::new(Encoding::Png).unwrap().encode(&[7; 64], 8, 8, Channels::Grey).unwrap();
        (0..4).for_each(|sample| fs::write(file(sample), &png).unwrap());
        let dataset = Arc::new(Dataset::open(folder.path().to_str().unwrap()).unwrap());
        let hung = [1, 3].map(file);
        for file in &hung {
            fs::remove_file(file).unwrap();
            assert!(Command::new("mkfifo").arg(file).status().unwrap().success());
        }
        let spec = LoaderSpec {
            transform: Transform::Eval { resize: None },
            image_size: 8,
            channels: 1,
            views: 1,
            normalization: None,
            max_pixels: DEFAULT_MAX_PIXELS,
            seed: 0,
            threads: 1,
            prefetch: 1,
            on_bad: OnBadSample::Fail,
        };
        let plan = vec![BatchPlan::new(0, vec![0, 1, 2, 3])].into_iter();
        let mut loader = Loader::new(dataset, spec, plan).unwrap();
        let monitor = loader.monitor();
        assert_eq!(monitor.stall(), None, "nobody waits");
        let consumer = thread::spawn(move || loader.next().unwrap().unwrap().samples);
        let stall_at = |file: &std::path::Path| {
            loop {
                match monitor.stall() {
                    Some(stall) if stall.sample.as_deref() == file.to_str() => return stall,
                    _ => thread::sleep(Duration::from_millis(1)),
                }
            }
        };
        let first = stall_at(&hung[0]);
        fs::write(&hung[0], &png).unwrap();
        let second = stall_at(&hung[1]);
        assert_eq!(second.start, first.start);
        assert!(second.idle_since > first.idle_since, "a finished sample is a sign of life");
        assert!(monitor.is_live());
        fs::write(&hung[1], &png).unwrap();
        assert_eq!(consumer.join().unwrap(), [0, 1, 2, 3]);
        assert!(monitor.stall().is_none() && !monitor.is_live());
    }
}
