//! The queue that a checked setup becomes: a ring of either layout, and the memory that its
//! descriptors refer to.

use std::sync::Arc;

use crate::guest_memory::{FrontendAddress, GuestMemory};

use super::fault::Fault;
use super::journal::Journal;
use super::layout::Layout;
use super::packed::PackedRing;
use super::ring_log::RingLog;
use super::setup::{ActivateError, Part, QueueAddresses, QueueSetup, check_size};
use super::split::SplitRing;

/// A ring of either layout.
#[derive(Debug)]
pub enum DeviceRing {
    /// virtio 1.2, 2.7.
    Split(SplitRing),
    /// virtio 1.2, 2.8.
    Packed(PackedRing),
}

impl DeviceRing {
    /// The journal of the same ring in other memory; a split ring needs none.
    pub(super) fn journal(&self) -> Journal {
        match self {
            Self::Split(_) => Journal::private(),
            Self::Packed(ring) => ring.journal(),
        }
    }

    /// [`Layout::has_available`] of either.
    #[inline]
    pub fn has_available(&mut self) -> Result<bool, Fault> {
        match self {
            Self::Split(ring) => ring.has_available(),
            Self::Packed(ring) => ring.has_available(),
        }
    }

    /// [`Layout::has_unpublished`] of either.
    #[inline]
    #[must_use]
    pub fn has_unpublished(&self) -> bool {
        match self {
            Self::Split(ring) => ring.has_unpublished(),
            Self::Packed(ring) => ring.has_unpublished(),
        }
    }

    /// The common operations, for work that is not done per packet.
    #[inline]
    pub fn any(&mut self) -> &mut dyn Layout {
        match self {
            Self::Split(ring) => ring,
            Self::Packed(ring) => ring,
        }
    }
}

/// A started ring and the memory that its descriptors refer to, borrowed apart by [`Queue::parts`].
#[derive(Debug)]
pub struct Queue {
    memory: Arc<GuestMemory>,
    ring: DeviceRing,
}

impl Queue {
    /// The memory, for the lifetime of chains taken from the ring, and the ring.
    #[inline]
    pub fn parts(&mut self) -> (&GuestMemory, &mut DeviceRing) {
        (&self.memory, &mut self.ring)
    }

    /// The journal of the same ring in other memory.
    pub(super) fn journal(&self) -> Journal {
        self.ring.journal()
    }

    /// The ring, for work that is not done per packet.
    #[inline]
    pub fn ring_mut(&mut self) -> &mut dyn Layout {
        self.ring.any()
    }

    /// The ring, to look at.
    #[inline]
    #[must_use]
    pub fn ring(&self) -> &dyn Layout {
        match &self.ring {
            DeviceRing::Split(ring) => ring,
            DeviceRing::Packed(ring) => ring,
        }
    }

    /// Whether the memory's file was cut short under the ring.
    #[must_use]
    pub fn memory_gone(&self) -> bool {
        self.memory.faulted()
    }
}

impl QueueSetup {
    /// Check all of it against `memory` and make the queue, whose position is kept in `journal`.
    ///
    /// A split ring has its used index in the ring itself, and the next entry to take is set equal
    /// to it. We complete the entries we take within one burst. So after a crash (ours or the
    /// front-end's) the used index alone says what was done, and `base` may be stale.
    ///
    /// A packed ring has no such index. It continues at the journal's position, if the journal is
    /// of that very ring. Otherwise `base` is both positions.
    ///
    /// # Errors
    /// [`ActivateError`]; nothing has been touched then.
    pub fn activate(
        &self,
        memory: &Arc<GuestMemory>,
        journal: Journal,
    ) -> Result<Queue, ActivateError> {
        let packed = self.options.packed;
        check_size(u32::from(self.size), packed)?;
        let index = self.base & !(1 << 15);
        if packed && index >= self.size {
            return Err(ActivateError::Base { index, size: self.size });
        }
        self.check_log(memory)?;
        let QueueAddresses { descriptors, available, used } = self.addresses;
        let places = [descriptors, available, used];
        let mut resolved = [std::ptr::null_mut(); 3];
        for ((place, part), pointer) in places.into_iter().zip(self.parts()).zip(&mut resolved) {
            *pointer = resolve(memory, place, part)?;
        }
        let log = RingLog::new(memory, self, resolved[0]);
        let keep = Arc::clone(memory);
        // SAFETY: the three parts were just checked for alignment and extent in the layout's own
        // terms, and lie in `memory`. The base was checked too.
        let ring = unsafe {
            if packed {
                DeviceRing::Packed(PackedRing::new(keep, resolved, self, log, journal))
            } else {
                DeviceRing::Split(SplitRing::new(keep, resolved, self, log))
            }
        };
        Ok(Queue { memory: Arc::clone(memory), ring })
    }
}

/// The address of a part of a ring in our process.
fn resolve(
    memory: &GuestMemory,
    address: FrontendAddress,
    Part { name: part, alignment, len }: Part,
) -> Result<*mut u8, ActivateError> {
    let address = address.0;
    if !address.is_multiple_of(alignment) {
        return Err(ActivateError::Alignment { part, address, alignment });
    }
    let slice = memory.translate_frontend(FrontendAddress(address), len);
    Ok(slice.ok_or(ActivateError::Unmapped { part, address, len })?.as_ptr())
}
