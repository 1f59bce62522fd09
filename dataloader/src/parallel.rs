//! Work that is cut in numbered pieces, shared out among threads.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Result};

/// Calls `work` once for each number of 0..count, in ascending order but for what runs at the same time, and
/// returns each thread's tools, which `start` made. After an error no further piece is begun.
///
/// # Errors
/// The first error of the thread that comes first among those that met one; a thread that can't be started.
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
