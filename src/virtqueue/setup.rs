//! From what a front-end says of a ring to a queue that can run: all checks, once.

use std::sync::Arc;

use crate::guest_memory::{FrontendAddress, GuestMemory};

use super::split::{Queue, SplitRing};

/// The largest split ring (virtio 1.2, 2.7: "The maximum Queue Size value is 32768").
pub const QUEUE_SIZE_MAX: u32 = 32768;

/// Where the three parts of a ring are, in the front-end's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// The descriptor table.
    pub descriptors: FrontendAddress,
    /// The driver's ring (available).
    pub available: FrontendAddress,
    /// The device's ring (used).
    pub used: FrontendAddress,
}

/// The negotiated features that change how a ring is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// All that is needed to run a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries (SET_VRING_NUM).
    pub size: u16,
    /// Parts (SET_VRING_ADDR).
    pub addresses: QueueAddresses,
    /// The next available entry to take (SET_VRING_BASE).
    pub base: u16,
    /// Features (SET_FEATURES).
    pub options: QueueOptions,
}

/// Why a ring cannot run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ActivateError {
    /// Not a power of two between 1 and [`QUEUE_SIZE_MAX`].
    #[error("ring size {0} is not a power of two between 1 and {QUEUE_SIZE_MAX}")]
    Size(u32),
    /// A part not aligned as virtio 1.2, 2.7 demands.
    #[error("{part} at {address:#x} is not aligned to {alignment} bytes")]
    Alignment {
        /// Which part.
        part: &'static str,
        /// Front-end address.
        address: u64,
        /// Bytes.
        alignment: u64,
    },
    /// A part not wholly inside one memory region.
    #[error("{part} ({len} bytes at {address:#x}) is not inside one memory region")]
    Unmapped {
        /// Which part.
        part: &'static str,
        /// Front-end address.
        address: u64,
        /// Bytes.
        len: u64,
    },
}

/// The number of entries, if a split ring can have it.
///
/// # Errors
/// [`ActivateError::Size`].
pub fn check_size(entries: u32) -> Result<u16, ActivateError> {
    match u16::try_from(entries) {
        Ok(size) if size.is_power_of_two() => Ok(size),
        _ => Err(ActivateError::Size(entries)),
    }
}

impl QueueSetup {
    /// Check all of it against `memory` and make the queue.
    ///
    /// The device's position in the used ring is read from the ring itself, and the next entry to
    /// take is set equal to it: we complete what we take within one burst, so after a crash (ours
    /// or the front-end's) the used index alone says what was done, and `base` may be stale.
    ///
    /// # Errors
    /// [`ActivateError`]; nothing has been touched then.
    pub fn activate(&self, memory: &Arc<GuestMemory>) -> Result<Queue, ActivateError> {
        let size = u64::from(check_size(u32::from(self.size))?);
        let part = |part, address: FrontendAddress, alignment, len| {
            if !address.0.is_multiple_of(alignment) {
                return Err(ActivateError::Alignment { part, address: address.0, alignment });
            }
            let unmapped = ActivateError::Unmapped { part, address: address.0, len };
            memory.translate_frontend(address, len).ok_or(unmapped)
        };
        let QueueAddresses { descriptors, available, used } = self.addresses;
        // Sizes and alignments: virtio 1.2, 2.7, the table of the three parts. The two bytes at
        // the end of each ring (used_event, avail_event) are there whether negotiated or not.
        let descriptors = part("descriptor table", descriptors, 16, 16 * size)?;
        let available = part("available ring", available, 2, 6 + 2 * size)?;
        let used = part("used ring", used, 4, 6 + 8 * size)?;
        // SAFETY: the three parts were just checked for alignment and extent, and lie in `memory`.
        let ring = unsafe {
            SplitRing::new(
                Arc::clone(memory),
                [descriptors.as_ptr(), available.as_ptr(), used.as_ptr()],
                self,
            )
        };
        Ok(Queue::new(Arc::clone(memory), ring))
    }
}
