//! Items that a thread prepares ahead of their use.

use crate::sys::{SideStream, set_device, set_side_stream};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tch::Device;

/// The items of an iterator. On a GPU, a thread with a stream of its own makes each while the one before is used. On a CPU this
/// would gain nothing, so there is no thread.
pub struct Ahead<I: Iterator>(Place<I>);

enum Place<I: Iterator> {
    Here(I),
    Thread {
        /// `None` once no more items are wanted.
        items: Option<Receiver<I::Item>>,
        thread: Option<JoinHandle<()>>,
        waited: Duration,
    },
}

impl<I> Ahead<I>
where
    I: Iterator + Send + 'static,
    I::Item: Send,
{
    /// The items of `items`, made for `device`.
    pub fn new(items: I, device: Device) -> Self {
        if device.is_cuda() { Self::on_thread(items, device) } else { Self(Place::Here(items)) }
    }

    /// With a thread, whatever the device.
    pub(super) fn on_thread(items: I, device: Device) -> Self {
        // Of no room: the thread offers one item and waits, so one is ahead.
        let (sender, receiver) = sync_channel(0);
        let work = move || {
            set_device(device);
            set_side_stream(device, SideStream::Uploads);
            for item in items {
                if sender.send(item).is_err() {
                    break;
                }
            }
        };
        let thread = thread::Builder::new().name("upload".into()).spawn(work).expect("a thread");
        Self(Place::Thread { items: Some(receiver), thread: Some(thread), waited: Duration::ZERO })
    }

    /// How long [`Iterator::next`] has waited for the thread; without one, what `own` returns of the iterator.
    pub fn waited(&self, own: impl FnOnce(&I) -> Duration) -> Duration {
        match &self.0 {
            Place::Here(items) => own(items),
            Place::Thread { waited, .. } => *waited,
        }
    }
}

impl<I: Iterator> Iterator for Ahead<I> {
    type Item = I::Item;

    fn next(&mut self) -> Option<I::Item> {
        match &mut self.0 {
            Place::Here(items) => items.next(),
            Place::Thread { items, thread, waited } => {
                let start = Instant::now();
                let item = items.as_ref()?.recv().ok();
                *waited += start.elapsed();
                if item.is_none() {
                    end(items, thread);
                }
                item
            }
        }
    }
}

impl<I: Iterator> Drop for Ahead<I> {
    fn drop(&mut self) {
        if let Place::Thread { items, thread, .. } = &mut self.0 {
            end(items, thread);
        }
    }
}

/// Ends the thread, which may offer an item.
fn end<T>(items: &mut Option<Receiver<T>>, thread: &mut Option<JoinHandle<()>>) {
    *items = None;
    if let Some(Err(panic)) = thread.take().map(JoinHandle::join) {
        resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn thread_is_one_item_ahead_and_ends_with_the_iterator_or_before() {
        let made = Arc::new(AtomicUsize::new(0));
        let items = |count: usize| {
            let made = made.clone();
            (0..count).inspect(move |_| {
                made.fetch_add(1, Ordering::SeqCst);
            })
        };
        let ahead = Ahead::on_thread(items(5), Device::Cpu);
        assert_eq!(ahead.collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert_eq!(made.swap(0, Ordering::SeqCst), 5);

        let mut ahead = Ahead::on_thread(items(5), Device::Cpu);
        assert_eq!(ahead.next(), Some(0));
        drop(ahead);
        assert!(made.load(Ordering::SeqCst) <= 2, "one in use and one ahead");
    }

    #[test]
    #[should_panic(expected = "broken")]
    fn panic_of_the_thread_is_passed_on() {
        Ahead::on_thread(std::iter::once_with(|| panic!("broken")), Device::Cpu).for_each(drop);
    }
}
