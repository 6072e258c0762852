//! An event that wakes a thread, which polls it.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// An eventfd that somebody polls.
#[derive(Debug)]
pub(super) struct WakeEvent(OwnedFd);

impl WakeEvent {
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub fn signal(&self) {
        // Fails only when the counter is full, and then the other side has its signal.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Wait until it is signalled, at most until `deadline`; false if it is not.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a deadline is at most seconds away");
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Forget the signals so far.
    pub fn clear(&self) {
        // Fails only if there are none.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for WakeEvent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
