//! A guest's violations of a ring's rules. Each breaks that ring alone.

/// A driver's violation of the virtio specification, found while serving its ring. The clauses
/// are those of virtio 1.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More new entries than the ring has places (2.7.13).
    #[error("available index {index} is {ahead} ahead of ours, and the ring has {size} entries")]
    AvailableIndex {
        /// As read from the guest.
        index: u16,
        /// Distance to our position.
        ahead: u16,
        /// Entries.
        size: u16,
    },
    /// A descriptor number outside its table (2.7.5).
    #[error("descriptor {index} is outside its table of {size}")]
    DescriptorIndex {
        /// As read from the guest.
        index: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A chain longer than its table: it loops (2.7.5.2).
    #[error("descriptor chain at {head} is longer than its table of {size}: it loops")]
    Loop {
        /// Where the chain starts.
        head: u16,
        /// Entries of the table.
        size: u16,
    },
    /// A buffer the device must not use in this direction (2.7.4.2).
    #[error("descriptor {index} has flags {flags:#x}: wrong direction for this queue")]
    WrongDirection {
        /// Entry of its table.
        index: u16,
        /// As read from the guest.
        flags: u16,
    },
    /// An address that is not the guest's.
    #[error("descriptor {index} names {len} bytes at {address:#x}, outside the guest's memory")]
    Unmapped {
        /// Entry of its table.
        index: u16,
        /// As read from the guest.
        address: u64,
        /// As read from the guest.
        len: u32,
    },
    /// An indirect descriptor that was not negotiated, is nested or chained, or whose table has
    /// an impossible length (2.7.5.3.1).
    #[error("indirect descriptor {index} (flags {flags:#x}, {len} bytes) is not allowed")]
    Indirect {
        /// Entry of its table.
        index: u16,
        /// As read from the guest.
        flags: u16,
        /// As read from the guest.
        len: u32,
    },
    /// More pieces than we keep for one packet.
    #[error("descriptor chain at {head} has more than {limit} pieces")]
    TooManySegments {
        /// Where the chain starts.
        head: u16,
        /// Our limit.
        limit: usize,
    },
    /// The front-end made its own call descriptor block, and with it the worker that signals it.
    #[error("the front-end's call descriptor blocks: its counter is full")]
    CallBlocked,
    /// The memory behind the ring went away (the front-end truncated its file).
    #[error("the guest's memory was cut short by its front-end")]
    MemoryGone,
}
