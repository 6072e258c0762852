//! The dirty log: the pages of the guest's memory that we wrote, for a front-end that migrates the
//! guest while it runs (vhost-user, "Migration").
//!
//! One bit for each page of 4 KiB, from guest address 0 on, in a file that the front-end shares and
//! clears while we set. The front-end clears a mark, then copies the page. So a page is marked
//! after it was written: an earlier mark could be cleared before the write.
//!
//! The session that received the log maps and owns it. It is part of the
//! [`GuestMemory`](super::GuestMemory) whose pages it covers for as long as they are logged.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::addresses::{FrontendAddress, GuestAddress};
use super::files::MemoryFiles;
use super::map_error::MapError;
use super::mapping_budget::MappingBudget;
use super::region::{Region, RegionSpec};

/// Bytes that one bit stands for (VHOST_LOG_PAGE).
pub const LOG_PAGE_BYTES: u64 = 0x1000;

/// Largest log, with the part before it in its file, bytes: for guest addresses up to 2^47.
pub const LOG_BYTES_MAX: u64 = 1 << 32;

/// Bytes of a log that any guest may have, whatever it needs: enough for addresses up to 2 TiB.
/// There may be memory there that we are not told of.
const SPARE_BYTES: u64 = 64 << 20;

/// Why a log was not taken; the one in force stays.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// More than [`LOG_BYTES_MAX`].
    #[error("{size:#x} bytes at offset {offset:#x}: a log ends within {LOG_BYTES_MAX:#x} bytes")]
    TooLarge {
        /// Bytes.
        size: u64,
        /// In the file, bytes.
        offset: u64,
    },
    /// Far more than the guest's memory needs, all of which would have to be marked.
    #[error(
        "a log of {size:#x} bytes for memory that ends at {end:#x}, which needs {needed:#x}; at \
         most {limit:#x} are taken"
    )]
    BeyondMemory {
        /// Bytes.
        size: u64,
        /// The first guest address behind all regions.
        end: u64,
        /// Bytes for that.
        needed: u64,
        /// Bytes.
        limit: u64,
    },
    /// The file is missing, or shorter than described.
    #[error("cannot map the log, which starts at guest address 0")]
    Map(#[source] MapError),
    /// Not "large enough to cover all known guest addresses".
    #[error("a log of {size:#x} bytes does not reach the end of the guest's memory at {end:#x}")]
    TooSmall {
        /// Bytes.
        size: u64,
        /// The first guest address behind all regions.
        end: u64,
    },
}

/// The part of a file that is a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogRange {
    /// Bytes.
    pub size: u64,
    /// In the file, bytes.
    pub offset: u64,
}

/// A log in force.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Region,
}

impl DirtyLog {
    /// The log of `size` bytes at `offset` of `file`, for a port with a budget of its own.
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::Map`].
    pub fn map(file: File, size: u64, offset: u64) -> Result<Self, LogError> {
        Self::map_in(&MappingBudget::new(MemoryFiles::Shared), file, LogRange { size, offset })
    }

    /// Map the log within the budget of a port.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    pub fn map_in(
        budget: &Arc<MappingBudget>,
        file: File,
        LogRange { size, offset }: LogRange,
    ) -> Result<Self, LogError> {
        if offset.checked_add(size).is_none_or(|end| end > LOG_BYTES_MAX) {
            return Err(LogError::TooLarge { size, offset });
        }
        let (guest, frontend) = (GuestAddress(0), FrontendAddress(0));
        let spec = RegionSpec { guest, frontend, size, file_offset: offset };
        Ok(Self { bits: Region::map_bytes(budget, spec, file).map_err(LogError::Map)? })
    }

    /// Whether memory that ends at `end` justifies a log of so many bytes. The limit is twice the
    /// need, which leaves room for later memory.
    ///
    /// # Errors
    /// [`LogError::TooLarge`], [`LogError::BeyondMemory`].
    pub fn check_size(range: LogRange, end: GuestAddress) -> Result<(), LogError> {
        let LogRange { size, offset } = range;
        if offset.checked_add(size).is_none_or(|end| end > LOG_BYTES_MAX) {
            return Err(LogError::TooLarge { size, offset });
        }
        let needed = end.0.div_ceil(8 * LOG_PAGE_BYTES);
        let limit = SPARE_BYTES.max(2 * needed);
        if size <= limit {
            return Ok(());
        }
        Err(LogError::BeyondMemory { size, end: end.0, needed, limit })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bits.spec().size
    }

    /// Where in its file it starts, bytes.
    #[must_use]
    pub fn file_offset(&self) -> u64 {
        self.bits.spec().file_offset
    }

    /// The file that the front-end shares.
    #[must_use]
    pub fn file(&self) -> &File {
        self.bits.file()
    }

    /// Whether there is a bit for each page of `len` bytes at `address`.
    #[must_use]
    pub fn covers(&self, address: GuestAddress, len: u64) -> bool {
        let end = address.0.checked_add(len);
        end.is_some_and(|end| end.div_ceil(8 * LOG_PAGE_BYTES) <= self.size())
    }

    /// Mark the pages of `len` bytes at `address`, which were written before. The code that set the
    /// address has checked [`covers`](Self::covers); pages without a bit are skipped.
    pub fn mark(&self, address: GuestAddress, len: u64) {
        for (index, mask) in bytes_of(address, len) {
            // Release: the writes come before their mark. It pairs with the exchange by which the
            // front-end takes the mark before it reads the page (QEMU: hw/virtio/vhost.c,
            // `vhost_dev_sync_region`).
            self.byte(index).map(|byte| byte.fetch_or(mask, Ordering::Release));
        }
    }

    /// Mark those pages of `len` bytes at `address` that are marked in `other`.
    pub fn mark_as(&self, other: &Self, address: GuestAddress, len: u64) {
        for (index, mask) in bytes_of(address, len) {
            let marked = other.byte(index).map_or(0, |byte| byte.load(Ordering::Acquire)) & mask;
            if marked != 0 {
                self.byte(index).map(|byte| byte.fetch_or(marked, Ordering::Release));
            }
        }
    }

    /// Whether the log's file was cut short under it.
    #[must_use]
    pub fn faulted(&self) -> bool {
        self.bits.faulted()
    }

    fn byte(&self, index: u64) -> Option<&AtomicU8> {
        if index >= self.size() {
            return None;
        }
        // A log has at most LOG_BYTES_MAX bytes, and they are mapped.
        #[allow(clippy::cast_possible_truncation)]
        let byte = self.bits.host_base().wrapping_add(index as usize);
        // SAFETY: `Region::map` mapped `size` bytes from host_base, and the index is below that.
        // They stay mapped while `self` is borrowed. All of our accesses are atomic.
        Some(unsafe { AtomicU8::from_ptr(byte) })
    }
}

/// The bytes of a log, each with its bits, for `len` bytes at `address`.
fn bytes_of(address: GuestAddress, len: u64) -> impl Iterator<Item = (u64, u8)> {
    let first = address.0 / LOG_PAGE_BYTES;
    let end = address.0.saturating_add(len).div_ceil(LOG_PAGE_BYTES);
    let indices = if len == 0 { 0..0 } else { first / 8..end.div_ceil(8) };
    indices.map(move |index| {
        let from = first.saturating_sub(8 * index);
        let to = (end - 8 * index).min(8);
        (index, (u8::MAX << from) & (u8::MAX >> (8 - to)))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn memory() -> File {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        File::from(rustix::fs::memfd_create("isonic-test", flags).unwrap())
    }

    fn log(size: u64, offset: u64) -> (DirtyLog, File) {
        let file = memory();
        file.set_len(offset + size).unwrap();
        (DirtyLog::map(file.try_clone().unwrap(), size, offset).unwrap(), file)
    }

    /// The pages marked in the log at `offset` of `file`.
    fn marked(file: &File, offset: u64) -> Vec<u64> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len() - offset).unwrap()];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let bits = (0_u64..).zip(bytes).flat_map(|(index, byte)| {
            (0..8).filter(move |bit| byte & 1 << bit != 0).map(move |bit| 8 * index + bit)
        });
        bits.collect()
    }

    #[test]
    fn every_page_that_a_range_touches_is_marked_and_no_other() {
        for offset in [0, 1, 0x1003] {
            for (address, len, pages) in [
                (0, 1, 0..1),
                (0xfff, 1, 0..1),
                (0xfff, 2, 0..2),
                (0x1000, 0x1000, 1..2),
                (0x6fff, 0x2002, 6..10),
                (0x7000, 0x9001, 7..17),
                (0x3f_f000, 0x1000, 0x3ff..0x400),
                (0, 0x40_0000, 0..0x400),
                (0x1234, 0, 0..0),
            ] {
                let (log, file) = log(128, offset);
                assert!(log.covers(GuestAddress(address), len));
                log.mark(GuestAddress(address), len);
                assert_eq!(
                    marked(&file, offset),
                    pages.collect::<Vec<_>>(),
                    "{address:#x} {len:#x}"
                );
            }
        }
    }

    #[test]
    fn pages_behind_the_log_have_no_bit_and_touch_nothing() {
        let (log, file) = log(2, 0x1000);
        for (address, len) in
            [(0x1_0000, 1), (0xffff, 2), (u64::MAX, 1), (0, u64::MAX), (1, u64::MAX), (u64::MAX, 2)]
        {
            assert!(!log.covers(GuestAddress(address), len), "{address:#x} {len:#x}");
        }
        assert!(log.covers(GuestAddress(0), 0x1_0000));
        log.mark(GuestAddress(0x1_0000), 0x1000);
        log.mark(GuestAddress(u64::MAX), 2);
        assert!(marked(&file, 0x1000).is_empty());
        log.mark(GuestAddress(0xf000), 0x2000);
        assert_eq!(marked(&file, 0x1000), [15]);
    }

    #[test]
    fn a_log_far_larger_than_the_memory_needs_is_refused() {
        const TIB: u64 = 1 << 40;
        for (end, limit) in [(0, 64 << 20), (TIB, 64 << 20), (8 * TIB, 512 << 20)] {
            DirtyLog::check_size(LogRange { size: limit, offset: 0 }, GuestAddress(end)).unwrap();
            let refused =
                DirtyLog::check_size(LogRange { size: limit + 1, offset: 0 }, GuestAddress(end))
                    .unwrap_err();
            assert!(matches!(refused, LogError::BeyondMemory { .. }), "{refused}");
        }
    }

    #[test]
    fn marks_are_taken_over_for_the_range_asked_for() {
        let ((old, _), (new, file)) = (log(8, 0), log(16, 0));
        for page in [0, 5, 9, 40, 63] {
            old.mark(GuestAddress(page * LOG_PAGE_BYTES), 1);
        }
        new.mark_as(&old, GuestAddress(0x5000), 0x7b000);
        assert_eq!(marked(&file, 0), [5, 9, 40, 63]);
    }

    #[test]
    fn a_log_that_overflows_or_is_not_in_its_file_is_refused() {
        let file = || {
            let file = memory();
            file.set_len(0x1000).unwrap();
            file
        };
        let refused = |size, offset| DirtyLog::map(file(), size, offset).unwrap_err();
        // CVE-2020-10722: the offset near 2^64.
        for (size, offset) in [(2, u64::MAX), (u64::MAX, 1), (1, 1 << 32), ((1 << 32) + 1, 0)] {
            assert!(matches!(refused(size, offset), LogError::TooLarge { .. }));
        }
        for (size, offset) in [(0x1001, 0), (1, 0x1000), (0x1000, 1), (1 << 32, 0)] {
            let error = refused(size, offset);
            assert!(matches!(error, LogError::Map(MapError::BeyondFile { .. })), "{error:?}");
        }
        assert!(matches!(refused(0, 0), LogError::Map(MapError::Empty(0))));
    }
}
