//! The memory messages: each makes a new table, whole, and moves the running rings to it.
//!
//! Everything is mapped and checked before any ring is touched, so that a refused table changes
//! nothing. The old table is dropped only when every ring has moved. A region that is in both is
//! mapped once.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    MAX_ATTACHED_FD_ENTRIES, VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion,
};

use crate::guest_memory::{
    FrontendAddress, GuestAddress, GuestMemory, MapError, MappingBudget, REGIONS_MAX, Region,
    RegionSpec, TableError,
};

use super::deferred_close::DeferredClose;
use super::device::Device;
use super::refusal::Refusal;
use super::requests::memory_table_len;
use super::transport::Message;

/// The file of a descriptor, if it may be memory. Other descriptors are closed by the port's closer
/// without any call on them.
pub(super) fn memory_file(
    room: &MappingBudget,
    descriptor: DeferredClose<OwnedFd>,
) -> Result<File, MapError> {
    room.check(&*descriptor)?;
    Ok(File::from(descriptor.keep()))
}

impl Device {
    /// SET_MEM_TABLE: as many regions as its count, and a descriptor for each.
    pub(super) fn check_memory_table(&self, message: &Message) -> Result<(), Refusal> {
        let limit = usize::from(self.profile.memory_slots).min(MAX_ATTACHED_FD_ENTRIES);
        let (bytes, descriptors) = (message.body.len(), message.descriptors.len());
        let count = message.body::<VhostUserMemory>().num_regions;
        let fits = (1..=limit).contains(&descriptors)
            && usize::try_from(count) == Ok(descriptors)
            && bytes == memory_table_len(descriptors);
        if fits {
            return Ok(());
        }
        Err(Refusal::RegionCount { count, bytes, descriptors, limit })
    }

    /// SET_MEM_TABLE, checked: these regions and no others.
    pub(super) fn set_memory(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let descriptors = std::mem::take(&mut message.descriptors);
        let specs: Vec<_> = (0..descriptors.len())
            .map(|index| region_spec(&message.body_at(memory_table_len(index))))
            .collect();
        self.check_room(specs.iter().fold(0, |sum: u64, spec| sum.saturating_add(spec.size)))?;
        let mut regions = Vec::new();
        for (spec, descriptor) in specs.into_iter().zip(descriptors) {
            regions.push(self.region(spec, descriptor)?);
        }
        let memory = GuestMemory::new(regions)?;
        self.removed.clear();
        self.replace_memory(memory)
    }

    /// ADD_MEM_REG: one region more.
    ///
    /// QEMU 7.2 keeps one list of regions per queue pair and sends its changes for each. So one
    /// region is added, and removed, once per pair: a repeated addition or removal succeeds without
    /// effect.
    pub(super) fn add_region(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let spec = region_spec(&message.body::<VhostUserSingleMemoryRegion>());
        let file = memory_file(&self.room, message.take_descriptor())?;
        if self.memory.find(&spec, &file).is_some() {
            return Ok(());
        }
        let slots = usize::from(self.profile.memory_slots);
        if self.memory.regions().len() >= slots {
            return Err(Refusal::NoSlot(slots, self.profile.name.clone()));
        }
        self.check_room(self.memory.bytes().saturating_add(spec.size))?;
        let memory = self.memory.with_region(Region::map_in(&self.room, spec, file)?)?;
        self.removed.retain(|removed| !is_same(removed, &spec));
        self.replace_memory(memory)
    }

    /// REM_MEM_REG: one region less, or one that was removed already.
    pub(super) fn remove_region(&mut self, message: &Message) -> Result<(), Refusal> {
        let spec = region_spec(&message.body::<VhostUserSingleMemoryRegion>());
        match self.memory.without_region(&spec) {
            Ok(memory) => {
                if self.removed.len() == REGIONS_MAX {
                    self.removed.remove(0);
                }
                self.removed.push(spec);
                self.replace_memory(memory)
            }
            Err(TableError::NotFound(_))
                if self.removed.iter().any(|removed| is_same(removed, &spec)) =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A region of the table in force, or a new one.
    fn region(
        &self,
        spec: RegionSpec,
        descriptor: DeferredClose<OwnedFd>,
    ) -> Result<Arc<Region>, Refusal> {
        let file = memory_file(&self.room, descriptor)?;
        match self.memory.find(&spec, &file) {
            Some(region) => Ok(Arc::clone(region)),
            None => Ok(Arc::new(Region::map_in(&self.room, spec, file)?)),
        }
    }

    /// Whether the port may have so many bytes of regions.
    fn check_room(&self, bytes: u64) -> Result<(), Refusal> {
        if bytes <= self.memory_max {
            return Ok(());
        }
        Err(Refusal::MemoryMax { bytes, limit: self.memory_max })
    }

    /// Put `memory` in force.
    fn replace_memory(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        let memory = self.logged(memory)?;
        self.move_rings(memory)
    }

    /// Move all running rings to `memory`. Fails with the first ring that `memory` does not hold;
    /// the other rings run on.
    pub(super) fn move_rings(&mut self, memory: GuestMemory) -> Result<(), Refusal> {
        let before = std::mem::replace(&mut self.memory, Arc::new(memory));
        let mut failure = None;
        for index in 0..self.rings.len() {
            if let Err(refusal) = self.move_ring(index) {
                failure.get_or_insert(refusal);
            }
        }
        unmap_what_all_rings_left(before);
        // A ring that still waits for its memory is no failure: regions may come one by one.
        let fatal = self.start_waiting().filter(Refusal::ends_session);
        self.publish();
        fatal.or(failure).map_or(Ok(()), Err)
    }
}

/// A region as it is described.
fn region_spec(said: &VhostUserMemoryRegion) -> RegionSpec {
    RegionSpec {
        guest: GuestAddress(said.guest_phys_addr),
        frontend: FrontendAddress(said.user_addr),
        size: said.memory_size,
        file_offset: said.mmap_offset,
    }
}

/// The place where guest memory is unmapped while a session runs, on the session's thread.
///
/// The session has waited for the worker of every started ring. Each has acknowledged that its ring
/// uses the new table, or has given the ring back. So nobody but us has the old table; regions that
/// no newer table shares are unmapped before the front-end has its answer.
fn unmap_what_all_rings_left(before: Arc<GuestMemory>) {
    drop(before);
}

/// Whether two descriptions are of one region; front-ends send 0 for its place in the file when
/// they remove it.
fn is_same(one: &RegionSpec, other: &RegionSpec) -> bool {
    (one.guest, one.frontend, one.size) == (other.guest, other.frontend, other.size)
}
