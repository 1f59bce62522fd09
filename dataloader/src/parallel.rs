//! Numbered pieces of work, shared among threads.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::{Error, Result};

/// Threads that can compute at once.
pub(crate) fn count_cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// Calls `work(position, item)` for each of `items` and returns the results in their order, or the first error in
/// that order. After an error no further item is begun.
pub(crate) fn map<T: Sync, R: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(usize, &T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let next = AtomicUsize::new(0);
    let failed = AtomicUsize::new(usize::MAX);
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
        done.lock().unwrap_or_else(PoisonError::into_inner).append(&mut mine);
    };
    thread::scope(|scope| {
        // Where the machine refuses a thread, the others (at least this one) do its work.
        for number in 1..threads.min(items.len()) {
            let _ = thread::Builder::new().name(format!("open-{number}")).spawn_scoped(scope, run);
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|&(position, _)| position);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Calls `work` once for each number in 0..count, begun in ascending order, and returns each thread's `Tools`, which
/// `start` made. After an error no further number is begun.
///
/// # Errors
/// The error of the first thread that failed; a thread that can't be started.
pub(crate) fn for_each<Tools: Send>(
    count: usize,
    threads: usize,
    start: impl Fn() -> Result<Tools> + Sync,
    work: impl Fn(&mut Tools, usize) -> Result<()> + Sync,
) -> Result<Vec<Tools>> {
    if threads == 0 {
        return Err(Error::InvalidArgument("threads must be at least 1, not 0".into()));
    }
    let next = AtomicUsize::new(0);
    let run = || {
        let done = start().and_then(|mut tools| {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(tools);
                }
                work(&mut tools, number)?;
            }
        });
        if done.is_err() {
            next.store(count, Ordering::Relaxed);
        }
        done
    };
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(threads);
        for number in 0..threads.min(count.max(1)) {
            let thread = thread::Builder::new().spawn_scoped(scope, run).map_err(|error| {
                next.store(count, Ordering::Relaxed);
                Error::Exhausted(format!("cannot start thread {number}: {error}"))
            })?;
            running.push(thread);
        }
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn every_number_is_met_once() {
        for threads in [1, 3, 50] {
            let done = for_each(
                20,
                threads,
                || Ok(Vec::new()),
                |met, number| {
                    met.push(number);
                    Ok(())
                },
            );
            let mut met = done.unwrap().concat();
            met.sort_unstable();
            assert_eq!(met, (0..20).collect::<Vec<_>>());
        }
        assert!(for_each(1, 0, || Ok(()), |_, _| Ok(())).is_err());
    }

    #[test]
    fn an_error_ends_the_work() {
        let begun = AtomicUsize::new(0);
        let work = |_: &mut (), number| {
            begun.fetch_add(1, Ordering::Relaxed);
            if number == 3 { Err(Error::InvalidArgument("three".into())) } else { Ok(()) }
        };
        let error = for_each(1_000_000, 1, || Ok(()), work).unwrap_err();
        assert_eq!((error.to_string().as_str(), begun.into_inner()), ("three", 4));
    }
}
