//! Why a file is not mapped as a guest's memory, and the limits that the reasons name.

use std::io;

use vm_memory::mmap::MmapRegionError;

/// Bytes of the smallest page. Every address of a region has the same offset in its page as in the
/// file.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Bytes that every port may map whatever the others map: for 1024 ports, half of the address
/// space.
pub const SHARE_BYTES: u64 = 1 << 36;
/// Bytes that all ports together may map beyond their shares.
pub const COMMON_BYTES: u64 = 1 << 45;

/// Why a region was not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// Nothing to map.
    #[error("region at guest address {0:#x} has size 0")]
    Empty(u64),
    /// An address plus the size leaves the 64-bit space.
    #[error(
        "region at guest address {guest:#x}: size {size:#x} or offset {offset:#x} wraps around"
    )]
    Wraps {
        /// Guest address.
        guest: u64,
        /// Bytes.
        size: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// The file is too short: an access to the missing part would be a bus error.
    #[error(
        "region at guest address {guest:#x} needs {needed} bytes of its file, which has {actual}"
    )]
    BeyondFile {
        /// Guest address.
        guest: u64,
        /// Offset plus size.
        needed: u64,
        /// Bytes the file has.
        actual: u64,
    },
    /// A foreign file system would provide the pages, at its own pace.
    #[error(
        "the file is not memory (memfd, tmpfs, hugetlbfs), and each access to it could wait for \
         its file system; share such memory (memory-backend-memfd, or memory-backend-file in \
         /dev/shm \
         or on hugetlbfs, each with share=on), or allow all files with `memory_files = \"any\"`"
    )]
    Foreign,
    /// The region's addresses would have another alignment here than for the guest.
    #[error(
        "region at guest address {guest:#x}: front-end address {frontend:#x} and file offset \
         {offset:#x} do not lie at the same place of a page of {PAGE_BYTES} bytes"
    )]
    Misaligned {
        /// Guest address.
        guest: u64,
        /// Front-end address.
        frontend: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// All ports share the process's address space.
    #[error(
        "no room to map {bytes:#x} bytes beside the {mapped:#x} that the port has: \
         {SHARE_BYTES:#x} are each port's, and {COMMON_BYTES:#x} are there for what all need \
         beyond that"
    )]
    NoRoom {
        /// Bytes of this mapping.
        bytes: u64,
        /// Bytes that the port has mapped.
        mapped: u64,
    },
    /// The file could not be examined.
    #[error("cannot stat the region's file")]
    Stat(#[source] io::Error),
    /// mmap refused.
    #[error("cannot map the region's file")]
    Map(#[source] MmapRegionError),
    /// More regions than the fault handler can watch.
    #[error("too many memory regions in this process (limit {0}); remove a port")]
    TooMany(usize),
}
