//! One mapped file of guest memory; unmapped when dropped.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionError};

use super::fault::Watch;
use super::{FrontendAddress, GuestAddress};

/// What a front-end says of a memory region (vhost-user: "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Where the guest sees it.
    pub guest: GuestAddress,
    /// Where the front-end has mapped it.
    pub frontend: FrontendAddress,
    /// Bytes.
    pub size: u64,
    /// Where in the file it starts, bytes.
    pub file_offset: u64,
}

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
    /// Touching the missing part would be a bus error.
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

/// A mapped region of a guest's memory.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    // Before `mapping`, since fields drop in order: the handler must never see a range that is
    // no longer ours.
    watch: Watch,
    mapping: MmapRegion,
}

impl Region {
    /// Map the part of `file` that `spec` names.
    ///
    /// The file is mapped from its start: huge page files can be mapped only at multiples of
    /// their page size, and `file_offset` need not be one.
    ///
    /// # Errors
    /// [`MapError`], before anything is mapped unless the kernel itself refuses.
    pub fn map(spec: RegionSpec, file: File) -> Result<Self, MapError> {
        let length = checked_length(&spec, &file)?;
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, 0)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(MapError::Map)?;
        let watch = Watch::new(mapping.as_ptr(), length)?;
        Ok(Self { spec, watch, mapping })
    }

    /// What the front-end said of it.
    #[must_use]
    pub fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// The file it is of.
    pub(super) fn file(&self) -> &File {
        self.mapping.file_offset().expect("a region is mapped from a file").file()
    }

    /// Whether this region is exactly what `spec` and `file` describe.
    #[must_use]
    pub fn is_of(&self, spec: &RegionSpec, file: &File) -> bool {
        let identity = |file: &File| file.metadata().map(|data| (data.dev(), data.ino())).ok();
        let own = self.mapping.file_offset().and_then(|offset| identity(offset.file()));
        self.spec == *spec && own.is_some() && own == identity(file)
    }

    /// Whether an access found the file gone from under the mapping (SIGBUS).
    #[must_use]
    pub fn faulted(&self) -> bool {
        self.watch.faulted()
    }

    /// Where the region's first byte is in our process; `spec().size` bytes are mapped there.
    pub(super) fn host_base(&self) -> *mut u8 {
        // `map` checked that file_offset + size fits in the mapping, hence in usize.
        #[allow(clippy::cast_possible_truncation)]
        self.mapping.as_ptr().wrapping_add(self.spec.file_offset as usize)
    }
}

/// Bytes of the file to map: all up to the region's end, in whole pages of the file's kind.
fn checked_length(spec: &RegionSpec, file: &File) -> Result<usize, MapError> {
    let RegionSpec { guest, frontend, size, file_offset } = *spec;
    if size == 0 {
        return Err(MapError::Empty(guest.0));
    }
    let wraps = MapError::Wraps { guest: guest.0, size, offset: file_offset };
    let (Some(needed), Some(_), Some(_)) =
        (file_offset.checked_add(size), guest.0.checked_add(size), frontend.0.checked_add(size))
    else {
        return Err(wraps);
    };
    let metadata = file.metadata().map_err(MapError::Stat)?;
    if needed > metadata.len() {
        return Err(MapError::BeyondFile { guest: guest.0, needed, actual: metadata.len() });
    }
    // hugetlbfs reports its page size as the block size and unmaps only whole pages.
    let Some(length) = needed.checked_next_multiple_of(metadata.blksize().max(4096)) else {
        return Err(wraps);
    };
    usize::try_from(length).map_err(|_| wraps)
}
