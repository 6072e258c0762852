//! GUEST MEMORY: the only code that turns a guest's addresses into ours.
//!
//! A front-end shares its guest's memory as files; each becomes a [`Region`]. The regions in force
//! form one [`GuestMemory`] table, which is never edited, only replaced whole. Rings hold an `Arc`
//! of the table they were resolved against, so a mapping outlives every pointer into it.
//!
//! The guest and the front-end write to this memory while we read it, so no Rust reference to it
//! ever exists: [`GuestSlice`] is a checked pointer and a length, and its copies are raw.
//!
//! While a front-end wants to know which pages we write, the table has a [`DirtyLog`], and each
//! writer marks the pages that it wrote.
//!
//! The floors, each file importing only from those above it:
//!
//! - `addresses`: a guest's two address spaces.
//! - `map_error`: why a file is not mapped, and the limits on mappings.
//! - `files`: which files may be a guest's memory.
//! - `mapping_budget`: how much of our address space a port may take.
//! - `sigbus`: surviving a file that is cut short under us.
//! - `slice`: a checked range of guest memory, and its copies.
//! - `region`: one mapped file.
//! - `dirty_log`: the pages that we wrote, for a migration.
//! - `memory_table`: the regions in force, and the translation of addresses.
//!
//! The session that received the files owns the memory; the workers that serve its rings read it.
//! This module knows nothing of rings, descriptors or messages.

mod addresses;
mod dirty_log;
mod files;
mod map_error;
mod mapping_budget;
mod memory_table;
mod region;
mod sigbus;
mod slice;

pub use addresses::{FrontendAddress, GuestAddress};
pub use dirty_log::{DirtyLog, LOG_BYTES_MAX, LOG_PAGE_BYTES, LogError, LogRange};
pub use files::MemoryFiles;
pub use map_error::{COMMON_BYTES, MapError, SHARE_BYTES};
pub use mapping_budget::MappingBudget;
pub use memory_table::{GuestMemory, REGIONS_MAX, TableError};
pub use region::{Region, RegionSpec};
pub use sigbus::install_handler as install_fault_handler;
pub use slice::{GuestSlice, prefetch};
