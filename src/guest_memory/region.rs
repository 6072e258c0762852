//! One mapped file of guest memory; unmapped when dropped.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use super::addresses::{FrontendAddress, GuestAddress};
use super::files::MemoryFiles;
use super::map_error::{MapError, PAGE_BYTES};
use super::mapping_budget::{MappingBudget, TakenBytes};
use super::sigbus::Watch;

/// The largest huge page of any architecture, bytes.
const HUGE_PAGE_BYTES_MAX: u64 = 16 << 30;

/// A front-end's description of a memory region (vhost-user: "Memory region description").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Its address for the guest.
    pub guest: GuestAddress,
    /// Its address in the front-end's mapping.
    pub frontend: FrontendAddress,
    /// Bytes.
    pub size: u64,
    /// Its start in the file, bytes.
    pub file_offset: u64,
}

/// A mapped region of a guest's memory.
#[derive(Debug)]
pub struct Region {
    spec: RegionSpec,
    // Before `mapping`, since fields drop in order: the handler must never see a range that is
    // no longer ours.
    watch: Watch,
    mapping: MmapRegion,
    /// The offset of its first byte in the mapping.
    start: usize,
    // After `mapping`: the budget gets its bytes back when it is unmapped.
    _taken: TakenBytes,
}

impl Region {
    /// Map the part of `file` that `spec` names, for a port with a budget of its own.
    ///
    /// # Errors
    /// As [`map_in`](Self::map_in).
    pub fn map(spec: RegionSpec, file: File) -> Result<Self, MapError> {
        Self::map_in(&MappingBudget::new(MemoryFiles::Shared), spec, file)
    }

    /// Map the region within the budget of a port. Down to a page, each address has the same
    /// alignment here as in the guest and in the front-end.
    ///
    /// # Errors
    /// [`MapError`], before anything is mapped unless the kernel itself refuses.
    pub fn map_in(
        budget: &Arc<MappingBudget>,
        spec: RegionSpec,
        file: File,
    ) -> Result<Self, MapError> {
        let RegionSpec { guest, frontend, file_offset: offset, .. } = spec;
        let same = |address: u64| address % PAGE_BYTES == offset % PAGE_BYTES;
        if !same(guest.0) || !same(frontend.0) {
            return Err(MapError::Misaligned { guest: guest.0, frontend: frontend.0, offset });
        }
        Self::map_bytes(budget, spec, file)
    }

    /// Map a file that is not a guest's memory, and is read and written in single bytes: of any
    /// alignment.
    pub(super) fn map_bytes(
        budget: &Arc<MappingBudget>,
        spec: RegionSpec,
        file: File,
    ) -> Result<Self, MapError> {
        budget.check(&file)?;
        let Extent { first, start, length } = Extent::of(&spec, &file)?;
        let taken = budget.take(length as u64)?;
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, first)),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_NORESERVE,
        )
        .map_err(MapError::Map)?;
        let watch = Watch::new(mapping.as_ptr(), length)?;
        Ok(Self { spec, watch, mapping, start, _taken: taken })
    }

    /// The front-end's description of it.
    #[must_use]
    pub fn spec(&self) -> &RegionSpec {
        &self.spec
    }

    /// Its file.
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

    /// The address of the region's first byte in our process; `spec().size` bytes are mapped there.
    pub(super) fn host_base(&self) -> *mut u8 {
        self.mapping.as_ptr().wrapping_add(self.start)
    }
}

/// The mapped part of a file: whole pages of its kind. Huge pages are mapped and unmapped whole,
/// and a region need not begin or end with one.
struct Extent {
    /// Start of the mapping in the file, bytes.
    first: u64,
    /// Start of the region in the mapping, bytes.
    start: usize,
    /// Bytes mapped, at least start + size.
    length: usize,
}

impl Extent {
    /// The extent in a file that was checked before, so that fstat(2) waits for no file system.
    fn of(spec: &RegionSpec, file: &File) -> Result<Self, MapError> {
        let RegionSpec { guest, frontend, size, file_offset } = *spec;
        if size == 0 {
            return Err(MapError::Empty(guest.0));
        }
        let wraps = || MapError::Wraps { guest: guest.0, size, offset: file_offset };
        let (Some(needed), Some(_), Some(_)) = (
            file_offset.checked_add(size),
            guest.0.checked_add(size),
            frontend.0.checked_add(size),
        ) else {
            return Err(wraps());
        };
        let metadata = file.metadata().map_err(MapError::Stat)?;
        if needed > metadata.len() {
            return Err(MapError::BeyondFile { guest: guest.0, needed, actual: metadata.len() });
        }
        // hugetlbfs reports its page size as the block size. Another file system may report
        // anything.
        let page = match metadata.blksize() {
            page if page.is_power_of_two() && page <= HUGE_PAGE_BYTES_MAX => page.max(PAGE_BYTES),
            _ => PAGE_BYTES,
        };
        let first = file_offset - file_offset % page;
        let end = needed.checked_next_multiple_of(page).ok_or_else(wraps)?;
        let whole = |bytes: u64| usize::try_from(bytes).map_err(|_| wraps());
        Ok(Self { first, start: whole(file_offset - first)?, length: whole(end - first)? })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{MemfdFlags, memfd_create};

    use super::*;

    fn memory(bytes: u64) -> File {
        let file = File::from(memfd_create("isonic-test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    fn spec(guest: u64, frontend: u64, file_offset: u64) -> RegionSpec {
        let (guest, frontend) = (GuestAddress(guest), FrontendAddress(frontend));
        RegionSpec { guest, frontend, size: 0x2000, file_offset }
    }

    #[test]
    fn only_the_region_s_own_part_of_a_sparse_file_is_mapped() {
        let file = memory(1 << 46);
        let offset = (1 << 45) + 0x1000;
        file.write_all_at(b"isonic", offset).unwrap();
        let region = Region::map(spec(0, 0x7000, offset), file).unwrap();
        assert_eq!(region.mapping.size(), 0x2000);
        // SAFETY: the region's first bytes, which are mapped.
        let read = unsafe { std::slice::from_raw_parts(region.host_base(), 6) }.to_vec();
        assert_eq!(read, b"isonic");
    }

    #[test]
    fn addresses_that_would_be_aligned_otherwise_here_are_refused() {
        for (guest, frontend, offset) in
            [(0, 1, 0), (1, 0, 0), (0, 0, 1), (8, 0, 0), (0x1234, 0x5678, 0x234), (0, 2048, 2048)]
        {
            let refused = Region::map(spec(guest, frontend, offset), memory(1 << 20)).unwrap_err();
            assert!(matches!(refused, MapError::Misaligned { .. }), "{refused}");
        }
        // None of them begins with a page, and all of them have the same offset in one.
        let region = Region::map(spec(0x4234, 0x8234, 0x1234), memory(1 << 20)).unwrap();
        assert_eq!(region.host_base().addr() % 4096, 0x234);
    }

    #[test]
    fn what_is_no_memory_is_refused_unless_all_files_are_allowed() {
        let null = || File::options().read(true).write(true).open("/dev/null").unwrap();
        let program = File::open("/proc/self/exe").unwrap();
        for file in [null(), program] {
            assert!(matches!(Region::map(spec(0, 0, 0), file), Err(MapError::Foreign)));
        }
        let any = MappingBudget::new(MemoryFiles::Any);
        let refused = Region::map_in(&any, spec(0, 0, 0), null()).unwrap_err();
        assert!(matches!(refused, MapError::BeyondFile { .. }), "only then it is looked at");
    }
}
