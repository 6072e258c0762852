//! From what a front-end says of a ring to a queue that can run: all checks, once.

use std::sync::Arc;

use crate::guest_memory::{FrontendAddress, GuestAddress, GuestMemory};

use super::journal::Journal;
use super::layout::{DeviceRing, Queue};
use super::log::RingLog;
use super::packed::PackedRing;
use super::split::SplitRing;

/// The largest ring of either layout (virtio 1.2, 2.7: "The maximum Queue Size value is 32768";
/// 2.8.10: likewise).
pub const QUEUE_SIZE_MAX: u32 = 32768;

/// Where the three parts of a ring are, in the front-end's address space; in brackets what they
/// are in a packed ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// The descriptor table (the ring).
    pub descriptors: FrontendAddress,
    /// The driver's ring, available (its event suppression area).
    pub available: FrontendAddress,
    /// The device's ring, used (our event suppression area).
    pub used: FrontendAddress,
}

/// The negotiated features that change how a ring is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueOptions {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
    /// VIRTIO_F_RING_PACKED.
    pub packed: bool,
    /// VIRTIO_F_NOTIFY_ON_EMPTY, which only drivers from before virtio 1 know.
    pub notify_on_empty: bool,
}

impl QueueOptions {
    /// None of them.
    pub const NONE: Self =
        Self { event_idx: false, indirect: false, packed: false, notify_on_empty: false };
}

/// All that is needed to run a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Entries (SET_VRING_NUM).
    pub size: u16,
    /// Parts (SET_VRING_ADDR).
    pub addresses: QueueAddresses,
    /// The next available entry to take (SET_VRING_BASE); of a packed ring, bit 15 is the wrap
    /// counter there.
    pub base: u16,
    /// The base that the front-end knows, and names again if we die: `base`, unless the ring went
    /// on since.
    pub named: u16,
    /// Features (SET_FEATURES).
    pub options: QueueOptions,
    /// Where our writes to the device's part are logged (SET_VRING_ADDR with VHOST_VRING_F_LOG), if
    /// the memory is logged: as if the part began there. None: the ring's are not.
    pub log: Option<GuestAddress>,
}

/// Why a ring cannot run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ActivateError {
    /// Not a power of two between 1 and [`QUEUE_SIZE_MAX`].
    #[error("ring size {0} is not a power of two between 1 and {QUEUE_SIZE_MAX}")]
    Size(u32),
    /// Not between 1 and [`QUEUE_SIZE_MAX`].
    #[error("packed ring size {0} is not between 1 and {QUEUE_SIZE_MAX}")]
    PackedSize(u32),
    /// A packed ring cannot start behind its end.
    #[error("base {index} is behind the end of a packed ring of {size}")]
    Base {
        /// As given, without the wrap counter.
        index: u16,
        /// Entries.
        size: u16,
    },
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
    /// "The bit offset of the last byte of the ring must fall within the size" of the log.
    #[error("the log has no room for {len} bytes of {part} logged at {address:#x}")]
    Log {
        /// Which part.
        part: &'static str,
        /// Guest address, as given for logging.
        address: u64,
        /// Bytes.
        len: u64,
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

/// The number of entries, if a ring of this layout can have it: any for a packed ring, a power of
/// two for a split one.
///
/// # Errors
/// [`ActivateError::Size`], [`ActivateError::PackedSize`].
pub fn check_size(entries: u32, packed: bool) -> Result<u16, ActivateError> {
    let within = (1..=QUEUE_SIZE_MAX).contains(&entries);
    match u16::try_from(entries) {
        Ok(size) if within && (packed || size.is_power_of_two()) => Ok(size),
        _ if packed => Err(ActivateError::PackedSize(entries)),
        _ => Err(ActivateError::Size(entries)),
    }
}

impl QueueSetup {
    /// Check all of it against `memory` and make the queue, whose position is kept in `journal`.
    ///
    /// A split ring's used index is in the ring itself, and the next entry to take is set equal to
    /// it: we complete what we take within one burst, so after a crash (ours or the front-end's)
    /// the used index alone says what was done, and `base` may be stale. A packed ring has no such
    /// index: it goes on where the journal has it, if the journal is of that very ring, and else
    /// `base` is both positions.
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
        // terms, and lie in `memory`; so was the base.
        let ring = unsafe {
            if packed {
                DeviceRing::Packed(PackedRing::new(keep, resolved, self, log, journal))
            } else {
                DeviceRing::Split(SplitRing::new(keep, resolved, self, log))
            }
        };
        Ok(Queue::new(Arc::clone(memory), ring))
    }

    /// Whether the memory's log, if it has one, has room for the ring's.
    ///
    /// # Errors
    /// [`ActivateError::Log`].
    pub fn check_log(&self, memory: &GuestMemory) -> Result<(), ActivateError> {
        let [_, _, (part, _, len)] = self.parts();
        match (memory.log(), self.log) {
            (Some(log), Some(address)) if !log.covers(address, len) => {
                Err(ActivateError::Log { part, address: address.0, len })
            }
            _ => Ok(()),
        }
    }

    /// Where the device's part is logged, and its bytes, if the ring is logged.
    #[must_use]
    pub fn logged_part(&self) -> Option<(GuestAddress, u64)> {
        let [_, _, (_, _, len)] = self.parts();
        self.log.map(|address| (address, len))
    }

    /// The three parts: name, alignment and bytes, by the tables of virtio 1.2, 2.7 and 2.8.10. The
    /// two bytes at the end of each split ring (used_event, avail_event) are there whether
    /// negotiated or not.
    fn parts(&self) -> [(&'static str, u64, u64); 3] {
        let size = u64::from(self.size);
        if self.options.packed {
            [("descriptor ring", 16, 16 * size), ("driver area", 4, 4), ("device area", 4, 4)]
        } else {
            [
                ("descriptor table", 16, 16 * size),
                ("available ring", 2, 6 + 2 * size),
                ("used ring", 4, 6 + 8 * size),
            ]
        }
    }
}

/// Where a part of a ring is in our process: name, alignment and bytes given.
fn resolve(
    memory: &GuestMemory,
    address: FrontendAddress,
    (part, alignment, len): (&'static str, u64, u64),
) -> Result<*mut u8, ActivateError> {
    let address = address.0;
    if !address.is_multiple_of(alignment) {
        return Err(ActivateError::Alignment { part, address, alignment });
    }
    let slice = memory.translate_frontend(FrontendAddress(address), len);
    Ok(slice.ok_or(ActivateError::Unmapped { part, address, len })?.as_ptr())
}
