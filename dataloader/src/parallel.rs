//! The same for every item of a list, on a few threads.

use std::num::NonZero;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::Result;

/// Threads that can compute at once.
pub(crate) fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// `work(position, item)` for each of `items`, in their order; the first error in that order, if any was met.
/// After an error nothing more is begun.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(usize, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let done = Mutex::new(Vec::with_capacity(items.len()));
    let run = || {
        let mut mine = Vec::new();
        loop {
            let position = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(position).filter(|_| position < failed.load(Ordering::Relaxed)) else {
                break;
            };
            let result = work(position, item);
            if result.is_err() {
                failed.fetch_min(position, Ordering::Relaxed);
            }
            mine.push((position, result));
        }
        done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).append(&mut mine);
    };
    thread::scope(|scope| {
        // Where the machine refuses a thread, the others (at least this one) do its share.
        for number in 1..threads.min(items.len()) {
            let _ = thread::Builder::new().name(format!("open-{number}")).spawn_scoped(scope, run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.sort_by_key(|&(position, _)| position);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn results_keep_their_order_and_the_first_error_wins() {
        let items: Vec<usize> = (0..500).collect();
        let squares = map(&items, 4, |position, item| Ok(position * item)).unwrap();
        assert!(squares.iter().enumerate().all(|(n, &square)| square == n * n) && squares.len() == 500);
        let fail = |_: usize, &item: &usize| match item {
            123.. => Err(Error::InvalidArgument(item.to_string())),
            _ => Ok(item),
        };
        assert_eq!(map(&items, 4, fail).unwrap_err().to_string(), "123");
        assert!(map(&items[..0], 4, fail).unwrap().is_empty());
    }
}
