//! Logging what is written, for a front-end that migrates its guest: the log, and when it is in
//! force.
//!
//! A log is in force while there is one and VHOST_F_LOG_ALL is acknowledged; then the memory table
//! of every ring has it. So beginning, ending or changing a log moves the rings to another table.
//! The reply means that the workers mark pages, or no longer do.
//!
//! QEMU gives the log before it asks for logging when a migration begins. When a device starts
//! during a migration, the log comes after the rings have started (hw/virtio/vhost.c,
//! `vhost_dev_start`). So pages that rings wrote in between are marked afterwards: from the log
//! before, or, if there was none, by marking everything.

#![forbid(unsafe_code)]

use std::sync::Arc;

use vhost::vhost_user::message::VhostUserLog;

use crate::device::features::LOG_ALL;
use crate::guest_memory::{DirtyLog, GuestAddress, GuestMemory, LogError, LogRange};
use crate::virtqueue::{EventFd, QueueSetup};

use super::device::Device;
use super::memory_requests::memory_file;
use super::refusal::Refusal;
use super::transport::Message;

impl Device {
    /// SET_LOG_BASE.
    pub(super) fn set_log(&mut self, message: &mut Message) -> Result<(), Refusal> {
        let VhostUserLog { mmap_size: size, mmap_offset: offset } = message.body();
        let range = LogRange { size, offset };
        DirtyLog::check_size(range, self.memory.end())?;
        let file = memory_file(&self.room, message.take_descriptor()).map_err(LogError::Map)?;
        let log = DirtyLog::map_in(&self.room, file, range)?;
        check_covers(&log, &self.memory)?;
        let log = Arc::new(log);
        let before = self.log.replace(Arc::clone(&log));
        self.apply_log()?;
        if self.is_logging() {
            self.make_up(&log, before.as_deref());
        }
        Ok(())
    }

    /// SET_LOG_FD: an event that "may be used to inform the front-end that the log has been
    /// modified". Front-ends look by themselves, so nobody is informed.
    pub(super) fn set_log_event(&self, message: &mut Message) -> Result<(), Refusal> {
        EventFd::check(&*message.take_descriptor()).map_err(Refusal::LogEvent)
    }

    /// SET_VRING_ADDR of a ring that runs: its own pages are logged at `log`, or no longer logged.
    pub(super) fn log_ring(
        &mut self,
        index: usize,
        log: Option<GuestAddress>,
    ) -> Result<(), Refusal> {
        if self.rings[index].log == log {
            return Ok(());
        }
        if let Some(setup) = self.setup(index) {
            let checked = QueueSetup { log, ..setup }.check_log(&self.memory);
            checked.map_err(|source| Refusal::Activate { ring: index, source })?;
        }
        self.rings[index].log = log;
        if self.memory.log().is_none() {
            return Ok(());
        }
        self.move_ring(index)
    }

    /// Have the rings mark pages, or stop marking them, as is negotiated now.
    pub(super) fn apply_log(&mut self) -> Result<(), Refusal> {
        let log = self.log.as_ref().filter(|_| self.is_logging());
        if log.map(Arc::as_ptr) == self.memory.log().map(Arc::as_ptr) {
            return Ok(());
        }
        let memory = self.memory.logged(log.cloned());
        self.move_rings(memory)
    }

    /// `memory` with the log that is in force. While the log is written to, a table that outgrows
    /// it is refused. A log that no ring uses is forgotten instead: front-ends that start a device
    /// anew send memory first and the log last.
    pub(super) fn logged(&mut self, memory: GuestMemory) -> Result<GuestMemory, Refusal> {
        let Some(log) = &self.log else { return Ok(memory) };
        if let Err(error) = check_covers(log, &memory) {
            if self.is_logging() && self.rings.iter().any(|ring| ring.started) {
                return Err(error.into());
            }
            self.log = None;
        }
        let log = self.log.clone().filter(|_| self.is_logging());
        Ok(memory.logged(log))
    }

    fn is_logging(&self) -> bool {
        self.acknowledged.is_some_and(|features| features.has(LOG_ALL))
    }

    /// Mark in `log` the writes from before it was in force. With a log `before`, those are the
    /// pages that the front-end has not taken from it; without one, all that may have been written.
    fn make_up(&self, log: &DirtyLog, before: Option<&DirtyLog>) {
        let mark = |address, len| match before {
            Some(before) => log.mark_as(before, address, len),
            None => log.mark(address, len),
        };
        for region in self.memory.regions() {
            mark(region.guest, region.size);
        }
        for index in 0..self.rings.len() {
            let setup = self.setup(index);
            if let Some((address, len)) = setup.and_then(|setup| setup.logged_part()) {
                mark(address, len);
            }
        }
    }
}

fn check_covers(log: &DirtyLog, memory: &GuestMemory) -> Result<(), LogError> {
    let end = memory.end().0;
    if log.covers(GuestAddress(0), end) {
        return Ok(());
    }
    Err(LogError::TooSmall { size: log.size(), end })
}
