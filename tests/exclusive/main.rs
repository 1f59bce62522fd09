//! The trainer's tests that need the machine to themselves: they bound how long something takes, start daemons or measure
//! speed. Cargo runs test binaries one after another, and `reserve_machine` does the same for the tests of this one.

mod faults;
mod gpu_check;
mod network;
mod profile;
mod random_faults;
mod slurm;

#[path = "../common/mod.rs"]
mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Each test here holds what this returns until it ends.
fn reserve_machine() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}
