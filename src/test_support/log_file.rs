//! A log of written pages as the front-end that migrates a guest has it: it takes the marks.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::guest_memory::{
    DirtyLog, FrontendAddress, GuestAddress, GuestMemory, Region, RegionSpec,
};

/// A log's file, mapped by us as well.
#[derive(Debug)]
pub struct LogFile {
    /// The file, to be sent to a session.
    pub file: File,
    memory: GuestMemory,
    size: u64,
}

impl LogFile {
    /// An empty log for this many bytes of guest memory.
    #[must_use]
    pub fn new(guest_bytes: u64) -> Self {
        let name = "isonic-dirty-log";
        let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let (file, size) = (File::from(fd), guest_bytes.div_ceil(8 * 4096));
        file.set_len(size).unwrap();
        let (guest, frontend) = (GuestAddress(0), FrontendAddress(0));
        let spec = RegionSpec { guest, frontend, size, file_offset: 0 };
        let region = Region::map(spec, file.try_clone().unwrap()).unwrap();
        let memory = GuestMemory::new(vec![Arc::new(region)]).unwrap();
        Self { file, memory, size }
    }

    /// The log for a writer that is not a session.
    #[must_use]
    pub fn log(&self) -> Arc<DirtyLog> {
        Arc::new(DirtyLog::map(self.file.try_clone().unwrap(), self.size, 0).unwrap())
    }

    /// Body of a SET_LOG_BASE.
    #[must_use]
    pub fn description(&self) -> Vec<u8> {
        [self.size, 0].map(u64::to_ne_bytes).concat()
    }

    /// The numbers of the marked pages; clears the marks.
    #[must_use]
    pub fn take(&self) -> Vec<usize> {
        let base = self.memory.translate(GuestAddress(0), self.size as u32).unwrap().as_ptr();
        let mut pages = Vec::new();
        for index in 0..self.size as usize {
            // SAFETY: inside the region, which `self` keeps mapped; all sides use atomics.
            let byte = unsafe { AtomicU8::from_ptr(base.add(index)) };
            // The other side sets a mark after the write that it stands for.
            let marks = byte.swap(0, Ordering::AcqRel);
            pages.extend((0..8).filter(|bit| marks & 1 << bit != 0).map(|bit| 8 * index + bit));
        }
        pages
    }
}
