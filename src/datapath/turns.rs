//! A worker's progress, published for its watchers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How often a worker turned and slept, as published.
#[derive(Debug, Default)]
pub struct Turns {
    pub(super) turns: AtomicU64,
    pub(super) sleeps: AtomicU64,
    pub(super) busy_nanoseconds: AtomicU64,
    /// Set around the wait itself: the look before it may be held up like any other.
    pub(super) waiting: AtomicBool,
}

impl Turns {
    /// Turns of the loop.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::Relaxed)
    }

    /// Nanoseconds in turns that did something, system calls included.
    #[must_use]
    pub fn busy_nanoseconds(&self) -> u64 {
        self.busy_nanoseconds.load(Ordering::Relaxed)
    }

    /// Whether it waits for something to do, for as long as it takes.
    #[must_use]
    pub fn waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Times it slept.
    #[must_use]
    pub fn sleeps(&self) -> u64 {
        self.sleeps.load(Ordering::Relaxed)
    }
}
