//! The memory messages: each makes a new table, whole, and moves the running rings to it.
//!
//! Everything is mapped and checked before any ring is touched, so that a refused table leaves
//! everything as it was. Only when every ring has left it does the old table go.

#![forbid(unsafe_code)]

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::{MAX_ATTACHED_FD_ENTRIES, VhostUserMemoryRegion};

use crate::guest_memory::{
    FrontendAddress, GuestAddress, GuestMemory, Region, RegionSpec, TableError,
};

use super::device::Device;
use super::message::Message;
use super::refusal::Refusal;

/// A region as the `vhost` crate reads it from a message.
pub(super) fn region_spec(region: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: GuestAddress(region.guest_phys_addr),
        frontend: FrontendAddress(region.user_addr),
        size: region.memory_size,
        file_offset: region.mmap_offset,
    }
}

impl Device {
    /// SET_MEM_TABLE: u32 count, u32 padding, then 32 bytes and one descriptor for each region.
    pub(super) fn check_memory_table(&self, message: &Message) -> Result<(), Refusal> {
        let limit = usize::from(self.profile.memory_slots).min(MAX_ATTACHED_FD_ENTRIES);
        let (bytes, descriptors) = (message.body.len(), message.descriptors.len());
        let count = message.u32_at(0);
        let fits = (1..=limit).contains(&descriptors)
            && usize::try_from(count) == Ok(descriptors)
            && bytes == 8 + 32 * descriptors;
        if fits {
            return Ok(());
        }
        Err(Refusal::RegionCount { count, bytes, descriptors, limit })
    }

    /// SET_MEM_TABLE, checked: these regions and no others.
    pub(super) fn set_memory(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<(), Refusal> {
        let map = |(region, file)| Ok(Arc::new(Region::map(region_spec(region), file)?));
        let mapped: Result<Vec<_>, Refusal> = regions.iter().zip(files).map(map).collect();
        let memory = GuestMemory::new(mapped?)?;
        self.replace_memory(memory)
    }

    /// ADD_MEM_REG: one more.
    ///
    /// QEMU 7.2 keeps one list of regions per queue pair and sends its changes for each, so the
    /// same region is added, and removed, once per pair: what is there already is there, and what
    /// is gone is gone.
    pub(super) fn add_region(&mut self, spec: RegionSpec, file: File) -> Result<(), Refusal> {
        if self.memory.has(&spec, &file) {
            return Ok(());
        }
        let slots = usize::from(self.profile.memory_slots);
        if self.memory.regions().len() >= slots {
            return Err(Refusal::NoSlot(slots, self.profile.name.clone()));
        }
        let memory = self.memory.with_region(Region::map(spec, file)?)?;
        self.replace_memory(memory)
    }

    /// REM_MEM_REG: one less, or already gone.
    pub(super) fn remove_region(&mut self, spec: &RegionSpec) -> Result<(), Refusal> {
        match self.memory.without_region(spec) {
            Ok(memory) => self.replace_memory(memory),
            Err(TableError::NotFound(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Put `memory` in force.
    fn replace_memory(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        let memory = self.logged(memory)?;
        self.move_rings(memory)
    }

    /// Move all running rings to `memory`. Fails with the first one that it does not hold any
    /// more; the others run on.
    pub(super) fn move_rings(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        let before = std::mem::replace(&mut self.memory, Arc::new(memory));
        let mut failure = None;
        for index in 0..self.rings.len() {
            if let Err(refusal) = self.move_ring(index) {
                failure.get_or_insert(refusal);
            }
        }
        drop(before);
        // A ring that still waits for its memory is no failure: regions may come one by one.
        let fatal = self.start_waiting().filter(Refusal::ends_session);
        self.publish();
        fatal.or(failure).map_or(Ok(()), Err)
    }
}
