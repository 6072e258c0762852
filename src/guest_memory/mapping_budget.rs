//! The budget of our address space for the guests' memory.
//!
//! A file may be sparse. So shared memory costs a front-end nothing, but costs us address space, of
//! which a process has 2^47 bytes. A port's own limit bounds one table of regions.
//!
//! Beyond that, each port has a share that no other port can take. The total beyond all shares is
//! bounded. So a port within its share is served, whatever the others do.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::files::MemoryFiles;
use super::map_error::{COMMON_BYTES, MapError, SHARE_BYTES};

/// Bytes that all ports of the process have mapped beyond their shares.
static COMMON: AtomicU64 = AtomicU64::new(0);

/// The files and bytes that a port may map, and those that it has mapped.
#[derive(Debug)]
pub struct MappingBudget {
    /// The files that may be memory.
    files: MemoryFiles,
    /// Whether other files are also allowed: a running guest keeps the files that it has.
    keeps: AtomicBool,
    /// Whether it has such a file.
    foreign: AtomicBool,
    mapped: Mutex<u64>,
    common: &'static AtomicU64,
}

impl MappingBudget {
    /// The budget of a port with nothing mapped.
    #[must_use]
    pub fn new(files: MemoryFiles) -> Arc<Self> {
        Self::within(files, &COMMON)
    }

    fn within(files: MemoryFiles, common: &'static AtomicU64) -> Arc<Self> {
        let (keeps, foreign) = Default::default();
        Arc::new(Self { files, keeps, foreign, mapped: Mutex::new(0), common })
    }

    /// Whether this file may be memory; see [`MemoryFiles::check`].
    ///
    /// # Errors
    /// [`MapError::Foreign`].
    pub fn check(&self, file: impl AsFd) -> Result<(), MapError> {
        let outcome = self.files.check(file);
        if outcome.is_err() && self.keeps.load(Ordering::Relaxed) {
            self.foreign.store(true, Ordering::Relaxed);
            return Ok(());
        }
        outcome
    }

    /// Allow other files: the guest comes with another process's port, and keeps all files that it
    /// had there.
    pub fn keep(&self) {
        self.keeps.store(true, Ordering::Relaxed);
    }

    /// End the take-over: other files stay allowed only if the guest has some. Returns whether it
    /// has.
    pub fn kept(&self) -> bool {
        let foreign = self.foreign.load(Ordering::Relaxed);
        self.keeps.store(foreign, Ordering::Relaxed);
        foreign
    }

    /// Take `bytes` of the budget for a mapping.
    ///
    /// # Errors
    /// [`MapError::NoRoom`].
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Result<TakenBytes, MapError> {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let no_room = MapError::NoRoom { bytes, mapped: *mapped };
        let Some(after) = mapped.checked_add(bytes) else { return Err(no_room) };
        let beyond = beyond_share(after) - beyond_share(*mapped);
        let add = |used: u64| used.checked_add(beyond).filter(|&used| used <= COMMON_BYTES);
        if beyond > 0
            && self.common.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_err()
        {
            return Err(no_room);
        }
        *mapped = after;
        Ok(TakenBytes { budget: Arc::clone(self), bytes })
    }
}

fn beyond_share(bytes: u64) -> u64 {
    bytes.saturating_sub(SHARE_BYTES)
}

/// Bytes taken from a [`MappingBudget`] for one mapping, returned when dropped.
#[derive(Debug)]
pub(super) struct TakenBytes {
    budget: Arc<MappingBudget>,
    bytes: u64,
}

impl Drop for TakenBytes {
    fn drop(&mut self) {
        let mut mapped = self.budget.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let after = *mapped - self.bytes;
        let beyond = beyond_share(*mapped) - beyond_share(after);
        self.budget.common.fetch_sub(beyond, Ordering::Relaxed);
        *mapped = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(common: &'static AtomicU64) -> Arc<MappingBudget> {
        MappingBudget::within(MemoryFiles::Shared, common)
    }

    #[test]
    fn a_port_has_its_share_whatever_the_others_take() {
        static TEST_COMMON: AtomicU64 = AtomicU64::new(0);
        let (greedy, modest) = (port(&TEST_COMMON), port(&TEST_COMMON));
        let mut taken = Vec::new();
        for bytes in (12..=47).rev().map(|bits| 1 << bits) {
            while let Ok(more) = greedy.take(bytes) {
                taken.push(more);
            }
        }
        assert!(matches!(greedy.take(1 << 12), Err(MapError::NoRoom { .. })));
        assert!(greedy.take(u64::MAX).is_err());
        let share = modest.take(SHARE_BYTES).unwrap();
        assert!(modest.take(1).is_err());
        drop(taken);
        let more = modest.take(COMMON_BYTES).unwrap();
        assert!(modest.take(1).is_err(), "all that is common");
        drop((share, more));
        assert_eq!(TEST_COMMON.load(Ordering::Relaxed), 0, "all is given back, in any order");
    }
}
