//! Closing what a front-end sent, where nobody waits for it.
//!
//! A close(2) may block for as long as a front-end likes. Examples are a TCP socket with SO_LINGER
//! and a file of a file system that the front-end serves. Another is a unix socket that has such a
//! descriptor queued. So every descriptor that came from a front-end, or that leads to what it
//! sent, is a [`DeferredClose`]. When dropped it is closed at once if that cannot block (an event,
//! shared memory). Otherwise a thread of its port closes it, and nobody joins that thread.
//!
//! The number of descriptors that wait to be closed is bounded ([`DescriptorCloser::is_full`]). The
//! message that exceeds the bound ends its session. The port then takes no connection until some
//! descriptors are closed.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::guest_memory::MemoryFiles;
use crate::virtqueue::EventFd;

/// Descriptors of a port that may wait to be closed; a message that exceeds this ends its session.
const WAITING_MAX: usize = 64;

/// Closes what the front-ends of one port sent.
#[derive(Debug)]
pub(super) struct DescriptorCloser {
    port: String,
    queue: Mutex<CloseQueue>,
}

#[derive(Debug, Default)]
struct CloseQueue {
    waiting: VecDeque<OwnedFd>,
    /// A thread closes what waits.
    closing: bool,
}

impl DescriptorCloser {
    pub fn new(port: &str) -> Arc<Self> {
        Arc::new(Self { port: port.to_owned(), queue: Mutex::default() })
    }

    /// Descriptors that are not closed yet.
    pub fn waiting(&self) -> usize {
        let queue = self.queue();
        queue.waiting.len() + usize::from(queue.closing)
    }

    /// Whether the port may have no more of them.
    pub fn is_full(&self) -> bool {
        self.waiting() > WAITING_MAX
    }

    /// Close the descriptor: at once if that cannot block, else on the port's thread.
    fn close(self: &Arc<Self>, descriptor: OwnedFd) {
        let harmless =
            EventFd::check(&descriptor).is_ok() || MemoryFiles::Shared.check(&descriptor).is_ok();
        if harmless {
            return;
        }
        let mut queue = self.queue();
        queue.waiting.push_back(descriptor);
        if !queue.closing {
            queue.closing = self.start();
        }
    }

    /// Start the closing thread; if none can be had, the descriptors wait until the next close.
    fn start(self: &Arc<Self>) -> bool {
        let closer = Arc::clone(self);
        let name = format!("close {}", self.port);
        std::thread::Builder::new().name(name).spawn(move || closer.run()).is_ok()
    }

    fn run(&self) {
        loop {
            let mut queue = self.queue();
            let Some(descriptor) = queue.waiting.pop_front() else {
                queue.closing = false;
                return;
            };
            drop(queue);
            // Linger usually makes a close block. The front-end may set it again: then this thread
            // waits.
            let _ = rustix::net::sockopt::set_socket_linger(&descriptor, None);
            drop(descriptor);
        }
    }

    fn queue(&self) -> MutexGuard<'_, CloseQueue> {
        // No code that can panic runs under the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DescriptorCloser {
    /// Leak the descriptors for which no thread could be started: closing them here could block the
    /// caller.
    fn drop(&mut self) {
        self.queue().waiting.drain(..).for_each(std::mem::forget);
    }
}

/// A descriptor whose close may block: the port's [`DescriptorCloser`] does it when this is
/// dropped.
pub struct DeferredClose<T: Into<OwnedFd>> {
    /// Some until it is kept or dropped.
    inner: Option<T>,
    closer: Arc<DescriptorCloser>,
}

impl<T: Into<OwnedFd>> DeferredClose<T> {
    pub(super) fn new(inner: T, closer: &Arc<DescriptorCloser>) -> Self {
        Self { inner: Some(inner), closer: Arc::clone(closer) }
    }

    /// Keep the descriptor: the caller has found that closing it cannot block.
    pub(super) fn keep(mut self) -> T {
        self.inner.take().expect("taken here only")
    }
}

impl<T: Into<OwnedFd>> Deref for DeferredClose<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("there until it is kept or dropped")
    }
}

impl<T: Into<OwnedFd>> Drop for DeferredClose<T> {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            self.closer.close(inner.into());
        }
    }
}

impl<T: Into<OwnedFd> + AsFd> fmt::Debug for DeferredClose<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeferredClose").field(&self.inner.as_ref().map(AsFd::as_fd)).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    #[test]
    fn what_cannot_block_is_closed_at_once_and_the_rest_by_a_thread() {
        let closer = DescriptorCloser::new("isonic-test");
        for descriptor in [
            eventfd(0, EventfdFlags::CLOEXEC).unwrap(),
            memfd_create("isonic-test", MemfdFlags::CLOEXEC).unwrap(),
        ] {
            drop(DeferredClose::new(descriptor, &closer));
            assert_eq!(closer.waiting(), 0);
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        drop(DeferredClose::new(ours, &closer));
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "it was closed");
    }

    #[test]
    fn a_close_that_blocks_holds_up_nobody_and_is_counted() {
        let closer = DescriptorCloser::new("isonic-test");
        // As if a thread were blocked for ever in one close.
        closer.queue().closing = true;
        for number in 1..=WAITING_MAX {
            assert!(!closer.is_full(), "after {number}");
            drop(DeferredClose::new(UnixStream::pair().unwrap().0, &closer));
        }
        assert!(closer.is_full());
        closer.run();
        assert_eq!(closer.waiting(), 0, "and it serves again once all are closed");
    }
}
