//! Marks our writes to a ring itself, while the front-end logs them.
//!
//! A split ring's used ring, and a packed ring's device area, are logged at the address in
//! SET_VRING_ADDR, which may differ from their own. We also write the descriptors of a packed ring,
//! for which the protocol has no rule. They are logged at their guest address, since the
//! front-end's log address is that of the device area (QEMU: hw/virtio/vhost.c,
//! `vhost_virtqueue_set_addr`).

use std::sync::Arc;

use crate::guest_memory::{DirtyLog, GuestAddress, GuestMemory};

use super::setup::QueueSetup;

/// The log addresses of the writes to one ring.
#[derive(Debug)]
pub(super) struct RingLog {
    log: Arc<DirtyLog>,
    /// The log address of the used ring or device area, from the front-end.
    device_part: GuestAddress,
    /// The guest address of the descriptors.
    descriptors: GuestAddress,
}

impl RingLog {
    /// A log for a ring of `memory` whose descriptors are at `descriptors`; None if it is not
    /// logged.
    pub(super) fn new(
        memory: &GuestMemory,
        setup: &QueueSetup,
        descriptors: *const u8,
    ) -> Option<Self> {
        let log = Arc::clone(memory.log()?);
        let descriptors = memory.guest_address(descriptors)?;
        Some(Self { log, device_part: setup.log?, descriptors })
    }

    /// Mark `len` bytes written at `offset` bytes into the used ring or device area.
    #[cold]
    pub(super) fn device_part(&self, offset: usize, len: usize) {
        mark(&self.log, self.device_part, offset, len);
    }

    /// Mark `len` bytes written at `offset` bytes into the descriptors.
    #[cold]
    pub(super) fn descriptors(&self, offset: usize, len: usize) {
        mark(&self.log, self.descriptors, offset, len);
    }
}

fn mark(log: &DirtyLog, start: GuestAddress, offset: usize, len: usize) {
    // `covers` has checked the whole part.
    log.mark(GuestAddress(start.0.saturating_add(offset as u64)), len as u64);
}

/// The places of `count` entries from `first` on in a ring of `size`: one run, or two if they wrap
/// around.
pub(super) fn runs(first: u16, count: u16, size: u16) -> [(usize, usize); 2] {
    let here = count.min(size - first);
    [(first, here), (0, count - here)].map(|(start, len)| (usize::from(start), usize::from(len)))
}
