//! A front-end's data about a ring, and why the ring cannot run.

use crate::guest_memory::{FrontendAddress, GuestAddress, GuestMemory};

/// The largest ring of either layout (virtio 1.2, 2.7: "The maximum Queue Size value is 32768";
/// 2.8.10: likewise).
pub const QUEUE_SIZE_MAX: u32 = 32768;

/// Addresses of the three parts of a ring, in the front-end's address space; in brackets the parts
/// of a packed ring.
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
    /// The next available entry to take (SET_VRING_BASE); for a packed ring, bit 15 is the wrap
    /// counter there.
    pub base: u16,
    /// The base that the front-end knows, and names again if we die: `base`, unless the ring has
    /// moved since.
    pub named: u16,
    /// Features (SET_FEATURES).
    pub options: QueueOptions,
    /// The log address of our writes to the device's part, as if the part began there
    /// (SET_VRING_ADDR with VHOST_VRING_F_LOG), if the memory is logged. None: this ring's writes
    /// are not logged.
    pub log: Option<GuestAddress>,
}

/// Virtio's requirements for one of a ring's three parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    /// For messages.
    pub name: &'static str,
    /// Bytes.
    pub alignment: u64,
    /// Bytes.
    pub len: u64,
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
    /// The base of a packed ring is behind its end.
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

/// The number of entries, if a ring of this layout can have it. A packed ring can have any number,
/// a split one a power of two.
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
    /// Whether the memory's log, if it has one, has room for the ring's part.
    ///
    /// # Errors
    /// [`ActivateError::Log`].
    pub fn check_log(&self, memory: &GuestMemory) -> Result<(), ActivateError> {
        let [_, _, device] = self.parts();
        match (memory.log(), self.log) {
            (Some(log), Some(address)) if !log.covers(address, device.len) => {
                let Part { name: part, len, .. } = device;
                Err(ActivateError::Log { part, address: address.0, len })
            }
            _ => Ok(()),
        }
    }

    /// Log address and bytes of the device's part, if the ring is logged.
    #[must_use]
    pub fn logged_part(&self) -> Option<(GuestAddress, u64)> {
        let [_, _, device] = self.parts();
        self.log.map(|address| (address, device.len))
    }

    /// The three parts, by the tables of virtio 1.2, 2.7 and 2.8.10. The two bytes at the end of
    /// each split ring (used_event, avail_event) are there whether negotiated or not.
    pub(super) fn parts(&self) -> [Part; 3] {
        let size = u64::from(self.size);
        let part = |name, alignment, len| Part { name, alignment, len };
        if self.options.packed {
            [
                part("descriptor ring", 16, 16 * size),
                part("driver area", 4, 4),
                part("device area", 4, 4),
            ]
        } else {
            [
                part("descriptor table", 16, 16 * size),
                part("available ring", 2, 6 + 2 * size),
                part("used ring", 4, 6 + 8 * size),
            ]
        }
    }
}
