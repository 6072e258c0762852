//! The regions in force, and the translation of addresses through them.

use std::fs::File;
use std::sync::Arc;

use super::addresses::{FrontendAddress, GuestAddress};
use super::dirty_log::DirtyLog;
use super::region::{Region, RegionSpec};
use super::slice::GuestSlice;

/// Most regions one front-end may have: the slots we report for GET_MAX_MEM_SLOTS. QEMU sends
/// one per memory slot that is backed by a file; memory hot-plug adds one per module.
pub const REGIONS_MAX: usize = 64;

/// Why a table was refused; the one in force stays as it was.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TableError {
    /// Two regions claim the same guest or front-end addresses.
    #[error("memory regions at guest addresses {0:#x} and {1:#x} overlap")]
    Overlap(u64, u64),
    /// More than [`REGIONS_MAX`].
    #[error("{0} memory regions, and at most {REGIONS_MAX} are served")]
    TooMany(usize),
    /// The region to remove is not there exactly as described.
    #[error("no memory region at guest address {0:#x} with that size and front-end address")]
    NotFound(u64),
}

/// The addresses of one region: in the guest, in the front-end, and in our process.
#[derive(Clone, Copy, Debug)]
struct Span {
    guest: u64,
    frontend: u64,
    size: u64,
    host: *mut u8,
}

// SAFETY: an address, used only through the table, which holds the region behind it.
unsafe impl Send for Span {}
// SAFETY: as above. Any process may change the memory behind it at any moment; it is only accessed
// through `GuestSlice`, which allows for that.
unsafe impl Sync for Span {}

impl Span {
    fn of(region: &Region) -> Self {
        let RegionSpec { guest, frontend, size, .. } = *region.spec();
        Self { guest: guest.0, frontend: frontend.0, size, host: region.host_base() }
    }

    /// The part of `address..address + len` that lies in the region, which begins at `start`.
    #[inline]
    fn slice(&self, start: u64, address: u64, len: u64) -> Option<GuestSlice<'_>> {
        let offset = address.wrapping_sub(start);
        if offset >= self.size || len == 0 {
            return None;
        }
        let part = len.min(self.size - offset);
        // The region is mapped, so offsets and lengths within it fit in usize.
        #[allow(clippy::cast_possible_truncation)]
        let (offset, part) = (offset as usize, part as usize);
        // SAFETY: offset + part <= size, and `Region::map` mapped `size` bytes from `host`. The
        // slice borrows the table that the span is in, and with it the region, which unmaps only
        // when dropped.
        Some(unsafe { GuestSlice::new(self.host.wrapping_add(offset), part) })
    }
}

/// An immutable table of regions, sorted by guest address.
#[derive(Clone, Debug, Default)]
pub struct GuestMemory {
    regions: Vec<Arc<Region>>,
    /// The addresses that a translation needs of each region, side by side: each buffer is looked
    /// up here.
    spans: Vec<Span>,
    /// The log of writes, if they are logged.
    log: Option<Arc<DirtyLog>>,
}

impl GuestMemory {
    /// A table of these regions, whose writes are not logged.
    ///
    /// # Errors
    /// [`TableError::TooMany`], or [`TableError::Overlap`] (in either address space).
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<Self, TableError> {
        if regions.len() > REGIONS_MAX {
            return Err(TableError::TooMany(regions.len()));
        }
        check_overlap(&mut regions, |spec| spec.frontend.0)?;
        check_overlap(&mut regions, |spec| spec.guest.0)?;
        Ok(Self::of(regions, None))
    }

    fn of(regions: Vec<Arc<Region>>, log: Option<Arc<DirtyLog>>) -> Self {
        let spans = regions.iter().map(|region| Span::of(region)).collect();
        Self { regions, spans, log }
    }

    /// A table of these regions, with writes logged to `log`, or not logged.
    #[must_use]
    pub fn logged(&self, log: Option<Arc<DirtyLog>>) -> Self {
        Self::of(self.regions.clone(), log)
    }

    /// The log of writes, if they are logged.
    #[must_use]
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// This table and one more region (ADD_MEM_REG).
    ///
    /// # Errors
    /// As [`GuestMemory::new`].
    pub fn with_region(&self, region: Region) -> Result<Self, TableError> {
        let mut regions = self.regions.clone();
        regions.push(Arc::new(region));
        Self::new(regions)
    }

    /// This table without one region (REM_MEM_REG), which must match in both addresses and size.
    /// The file offset is not compared, since vhost-user says that front-ends send 0 there.
    ///
    /// # Errors
    /// [`TableError::NotFound`].
    pub fn without_region(&self, spec: &RegionSpec) -> Result<Self, TableError> {
        let mut regions = self.regions.clone();
        let same = |region: &Arc<Region>| {
            let own = region.spec();
            (own.guest, own.frontend, own.size) == (spec.guest, spec.frontend, spec.size)
        };
        let index = regions.iter().position(same).ok_or(TableError::NotFound(spec.guest.0))?;
        regions.remove(index);
        Ok(Self::of(regions, None))
    }

    /// The regions, by guest address.
    pub fn regions(&self) -> impl ExactSizeIterator<Item = &RegionSpec> {
        self.regions.iter().map(|region| region.spec())
    }

    /// The regions, each with its file.
    pub fn files(&self) -> impl Iterator<Item = (&RegionSpec, &File)> {
        self.regions.iter().map(|region| (region.spec(), region.file()))
    }

    /// The region that `spec` and `file` describe exactly, if its file is still there.
    #[must_use]
    pub fn find(&self, spec: &RegionSpec, file: &File) -> Option<&Arc<Region>> {
        self.regions.iter().find(|region| region.is_of(spec, file) && !region.faulted())
    }

    /// Bytes of all regions.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.regions().fold(0, |sum: u64, spec| sum.saturating_add(spec.size))
    }

    /// The first guest address behind all regions.
    #[must_use]
    pub fn end(&self) -> GuestAddress {
        GuestAddress(self.regions().map(|spec| spec.guest.0 + spec.size).max().unwrap_or(0))
    }

    /// Whether any region's file, or the log's, was cut short under us; bytes read since are not
    /// the guest's.
    #[must_use]
    pub fn faulted(&self) -> bool {
        let log = self.log.as_ref().is_some_and(|log| log.faulted());
        log || self.regions.iter().any(|region| region.faulted())
    }

    /// As much of `len` bytes at `address` as lies in one region. It is shorter than `len` where
    /// the range continues in another. `None` where `address` is not the guest's or `len` is 0.
    #[inline]
    #[must_use]
    pub fn translate(&self, address: GuestAddress, len: u32) -> Option<GuestSlice<'_>> {
        self.spans.iter().find_map(|span| span.slice(span.guest, address.0, u64::from(len)))
    }

    /// All `len` bytes at `address`, a front-end address, which must lie in one region.
    #[must_use]
    pub fn translate_frontend(&self, address: FrontendAddress, len: u64) -> Option<GuestSlice<'_>> {
        let mut spans = self.spans.iter();
        let slice = spans.find_map(|span| span.slice(span.frontend, address.0, len))?;
        (slice.len() as u64 == len).then_some(slice)
    }

    /// The guest address of a pointer into one of the regions' mappings.
    #[must_use]
    pub fn guest_address(&self, pointer: *const u8) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = pointer.addr().wrapping_sub(region.host_base().addr()) as u64;
            let RegionSpec { guest, size, .. } = *region.spec();
            (offset < size).then(|| GuestAddress(guest.0 + offset))
        })
    }

    /// Record that the first `len` bytes of `pieces`, which [`translate`](Self::translate) made,
    /// were written: mark their pages if writes are logged.
    #[inline]
    pub fn written(&self, pieces: &[GuestSlice<'_>], len: u64) {
        if let Some(log) = &self.log {
            self.mark(log, pieces, len);
        }
    }

    /// Mark the pages of pieces. A piece has only its address in our process, so its guest address
    /// is looked up again.
    #[cold]
    #[inline(never)]
    fn mark(&self, log: &DirtyLog, pieces: &[GuestSlice<'_>], len: u64) {
        let mut left = len;
        for piece in pieces {
            let written = left.min(piece.len() as u64);
            if let Some(address) = self.guest_address(piece.as_ptr()) {
                log.mark(address, written);
            }
            left -= written;
        }
    }
}

/// Sort by `start` and refuse neighbours that overlap. Ends cannot wrap: `Region::map` checked.
fn check_overlap(
    regions: &mut [Arc<Region>],
    start: impl Fn(&RegionSpec) -> u64,
) -> Result<(), TableError> {
    regions.sort_by_key(|region| start(region.spec()));
    for pair in regions.windows(2) {
        let (low, high) = (pair[0].spec(), pair[1].spec());
        if start(low) + low.size > start(high) {
            return Err(TableError::Overlap(low.guest.0, high.guest.0));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::map_error::MapError;
    use super::*;

    fn file(bytes: u64) -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("isonic-test", flags).unwrap());
        file.set_len(bytes).unwrap();
        file
    }

    fn spec(guest: u64, frontend: u64, size: u64) -> RegionSpec {
        RegionSpec {
            guest: GuestAddress(guest),
            frontend: FrontendAddress(frontend),
            size,
            file_offset: 0,
        }
    }

    fn region(guest: u64, frontend: u64, size: u64) -> Arc<Region> {
        Arc::new(Region::map(spec(guest, frontend, size), file(size)).unwrap())
    }

    #[test]
    fn a_range_that_leaves_its_region_is_cut_at_the_end() {
        let memory = GuestMemory::new(vec![region(0x1000, 0x9000, 0x1000)]).unwrap();
        assert_eq!(memory.translate(GuestAddress(0x1ff0), 0x100).unwrap().len(), 0x10);
        assert!(memory.translate(GuestAddress(0x2000), 1).is_none());
        assert!(memory.translate(GuestAddress(0xfff), 1).is_none());
        assert!(memory.translate(GuestAddress(u64::MAX), 1).is_none());
        assert!(memory.translate(GuestAddress(0x1000), 0).is_none());
    }

    #[test]
    fn a_ring_must_lie_in_one_region_whole() {
        let memory =
            GuestMemory::new(vec![region(0, 0x10000, 0x1000), region(0x1000, 0x11000, 0x1000)])
                .unwrap();
        assert!(memory.translate_frontend(FrontendAddress(0x10ff0), 0x20).is_none());
        assert!(memory.translate_frontend(FrontendAddress(0x10ff0), 0x10).is_some());
        assert!(memory.translate_frontend(FrontendAddress(0x10ff0), u64::MAX).is_none());
    }

    #[test]
    fn what_is_written_is_read_back_through_the_other_address() {
        let memory = GuestMemory::new(vec![region(0x1000, 0x9000, 0x1000)]).unwrap();
        memory.translate(GuestAddress(0x1234), 4).unwrap().write(b"iso!");
        let mut read = [0; 4];
        memory.translate_frontend(FrontendAddress(0x9234), 4).unwrap().read(&mut read);
        assert_eq!(&read, b"iso!");
    }

    #[test]
    fn a_pointer_is_found_again_in_the_region_it_was_translated_from() {
        let memory =
            GuestMemory::new(vec![region(0x1000, 0x9000, 0x1000), region(1 << 40, 0, 0x2000)]);
        let memory = memory.unwrap();
        for address in [0x1000, 0x1fff, 1 << 40, (1 << 40) + 0x1abc].map(GuestAddress) {
            let pointer = memory.translate(address, 1).unwrap().as_ptr();
            assert_eq!(memory.guest_address(pointer), Some(address));
        }
        assert_eq!(memory.guest_address(std::ptr::null()), None);
        assert_eq!(memory.end(), GuestAddress((1 << 40) + 0x2000));
        assert_eq!(GuestMemory::default().end(), GuestAddress(0));
    }

    #[test]
    fn overlap_in_either_address_space_is_refused() {
        let guest = vec![region(0, 0x10000, 0x2000), region(0x1000, 0x20000, 0x1000)];
        assert_eq!(GuestMemory::new(guest).unwrap_err(), TableError::Overlap(0, 0x1000));
        let frontend = vec![region(0, 0x10000, 0x2000), region(0x8000, 0x11000, 0x1000)];
        assert_eq!(GuestMemory::new(frontend).unwrap_err(), TableError::Overlap(0, 0x8000));
    }

    #[test]
    fn a_region_longer_than_its_file_is_refused() {
        let error = Region::map(spec(0, 0, 0x2000), file(0x1000)).unwrap_err();
        assert!(matches!(error, MapError::BeyondFile { needed: 0x2000, actual: 0x1000, .. }));
        let wrapping = RegionSpec { file_offset: u64::MAX - 0xfff, ..spec(0, 0, 0x2000) };
        let error = Region::map(wrapping, file(0x1000)).unwrap_err();
        assert!(matches!(error, MapError::Wraps { .. }));
        assert!(matches!(Region::map(spec(0, 0, 0), file(1)), Err(MapError::Empty(0))));
    }

    #[test]
    fn a_file_truncated_under_us_ends_in_zeroes_and_a_flag_not_a_signal() {
        super::super::install_fault_handler();
        let file = file(0x2000);
        let mapped = Region::map(spec(0, 0, 0x2000), file.try_clone().unwrap()).unwrap();
        let memory = GuestMemory::new(vec![Arc::new(mapped)]).unwrap();
        memory.translate(GuestAddress(0), 4).unwrap().write(b"abcd");
        file.set_len(0).unwrap();
        let mut read = [1; 4];
        memory.translate(GuestAddress(0), 4).unwrap().read(&mut read);
        assert_eq!(read, [0; 4]);
        assert!(memory.faulted());
    }

    #[test]
    fn remove_needs_the_same_addresses_and_size() {
        let memory = GuestMemory::new(vec![region(0, 0x10000, 0x1000)]).unwrap();
        let other = spec(0, 0x10000, 0x2000);
        assert_eq!(memory.without_region(&other).unwrap_err(), TableError::NotFound(0));
        assert_eq!(memory.without_region(&spec(0, 0x10000, 0x1000)).unwrap().regions().len(), 0);
    }
}
