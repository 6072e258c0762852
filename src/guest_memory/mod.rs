//! GUEST MEMORY: the only code that turns a guest's addresses into ours.
//!
//! A front-end shares its guest's memory as files; each becomes a [`Region`], and the regions in
//! force form one [`GuestMemory`] table that is never edited, only replaced whole. Rings hold an
//! `Arc` of the table they were resolved against, so a mapping outlives every pointer into it.
//!
//! The guest and the front-end write to this memory while we read it, so no Rust reference to it
//! ever exists: [`GuestSlice`] is a checked pointer and a length, and its copies are raw.
//!
//! While a front-end wants to know which pages we write, the table has a [`DirtyLog`], and whoever
//! writes marks what was written.
//!
//! Owned by the session that received the files; read by the workers that serve its rings. What
//! this module does not do: it knows nothing of rings, descriptors or messages.

mod dirty_log;
mod fault;
mod files;
mod region;
mod room;
mod slice;
mod table;

pub use dirty_log::{DirtyLog, LOG_BYTES_MAX, LOG_PAGE_BYTES, LogError};
pub use fault::install_handler as install_fault_handler;
pub use files::MemoryFiles;
pub use region::{MapError, Region, RegionSpec};
pub use room::{COMMON_BYTES, Room, SHARE_BYTES};
pub use slice::{GuestSlice, prefetch};
pub use table::{GuestMemory, REGIONS_MAX, TableError};

/// An address as the guest's driver writes it into descriptors ("guest physical").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GuestAddress(pub u64);

/// An address in the front-end's own address space, as ring addresses are given in
/// SET_VRING_ADDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendAddress(pub u64);
