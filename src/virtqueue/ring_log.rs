//! Marking what we write to a ring itself, while the front-end logs it.
//!
//! A split ring's used ring, and a packed ring's device area, are logged where SET_VRING_ADDR said,
//! which need not be where they are. Of the descriptors of a packed ring, which we write as well,
//! the protocol says nothing: they are logged where they are in guest memory, since the front-end's
//! address is that of the device area (QEMU: hw/virtio/vhost.c, `vhost_virtqueue_set_addr`).

use std::sync::Arc;

use crate::guest_memory::{DirtyLog, GuestAddress, GuestMemory};

use super::setup::QueueSetup;

/// Where the writes to one ring are logged.
#[derive(Debug)]
pub(super) struct RingLog {
    log: Arc<DirtyLog>,
    /// The used ring's or device area's, as said.
    device_part: GuestAddress,
    /// The descriptors'.
    descriptors: GuestAddress,
}

impl RingLog {
    /// For a ring of `memory` whose descriptors are at `descriptors`; None if it is not logged.
    pub(super) fn new(
        memory: &GuestMemory,
        setup: &QueueSetup,
        descriptors: *const u8,
    ) -> Option<Self> {
        let log = Arc::clone(memory.log()?);
        let descriptors = memory.guest_address(descriptors)?;
        Some(Self { log, device_part: setup.log?, descriptors })
    }

    /// `len` bytes were written `offset` bytes into the used ring or device area.
    #[cold]
    pub(super) fn device_part(&self, offset: usize, len: usize) {
        mark(&self.log, self.device_part, offset, len);
    }

    /// `len` bytes were written `offset` bytes into the descriptors.
    #[cold]
    pub(super) fn descriptors(&self, offset: usize, len: usize) {
        mark(&self.log, self.descriptors, offset, len);
    }
}

fn mark(log: &DirtyLog, start: GuestAddress, offset: usize, len: usize) {
    // `covers` was asked for the whole part.
    log.mark(GuestAddress(start.0.saturating_add(offset as u64)), len as u64);
}

/// The places that `count` entries from `first` on take in a ring of `size`: one run, or two where
/// they go around.
pub(super) fn runs(first: u16, count: u16, size: u16) -> [(usize, usize); 2] {
    let here = count.min(size - first);
    [(first, here), (0, count - here)].map(|(start, len)| (usize::from(start), usize::from(len)))
}
