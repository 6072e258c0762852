//! The end of a test's threads.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

/// Has the threads of a scope end, which look at this: when the test is over, by a panic too.
#[derive(Debug)]
pub struct StopOnDrop<'a>(pub &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
