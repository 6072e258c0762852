//! Tests that have a process to themselves, one after the other: they count all that the process
//! has open, fork it, or read the log of all its threads.

use std::sync::{Mutex, MutexGuard, PoisonError};

mod ring_crash;
mod session_hostile;
mod session_log;

/// No other test of this program runs until it is dropped.
fn my_turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
