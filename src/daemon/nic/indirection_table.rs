//! The NICs' indirection tables: read when an uplink is opened and every few seconds. They are set
//! where the configuration wants that, so that no frame for a VM arrives on a queue without a
//! socket.
//!
//! A table that was set is put back in the end. Before it is set, the earlier table is noted in
//! `runtime_dir`, so that the next isonic puts it back if this one is killed. If the table is no
//! longer ours by then, somebody else has set it, and it stays.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::{UplinkConfig, UplinkSteering};
use crate::platform::text_file::{read_text, replace};
use crate::xdp::Interface;
use crate::xdp::nic::{Steering, SteeringError, steering};

/// Largest note, bytes: two tables of 4096 entries.
const NOTE_BYTES_MAX: u64 = 1 << 20;

/// The queues on which an uplink receives, as long as it is open.
#[derive(Debug, Default)]
pub struct Steered {
    /// Queues that receive and have no socket.
    pub unserved: Vec<u32>,
    /// Only if a table was set.
    set: Option<SetTable>,
}

/// A table of ours, put back on drop.
#[derive(Debug)]
struct SetTable {
    interface: String,
    receive_queues: u32,
    note: Option<PathBuf>,
    tables: Mutex<Note>,
}

/// The table before, and the table that we have set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    before: Vec<u32>,
    set: Vec<u32>,
}

impl Steered {
    /// Read the table of a NIC with sockets on `queues`. Set it if the configuration wants that and
    /// a receiving queue has no socket. `note` is the file that keeps the earlier table.
    ///
    /// # Errors
    /// [`SteeringError`]; the table is then as it was.
    pub fn begin(
        config: &UplinkConfig,
        interface: &Interface,
        queues: &[u32],
        note: Option<PathBuf>,
    ) -> Result<Self, SteeringError> {
        let (name, count) = (interface.name.as_str(), interface.receive_queues);
        put_back_what_was_left(name, count, note.as_deref());
        let found = Steering::read(name);
        let unserved = found.unserved(count, queues);
        match (config.steering, found.table) {
            (UplinkSteering::Check, _) => {
                tell(name, &unserved);
                Ok(Self { unserved, set: None })
            }
            (UplinkSteering::Set, None) if unserved.is_empty() => Ok(Self::default()),
            (UplinkSteering::Set, None) => Err(SteeringError::NoTable(name.to_owned())),
            (UplinkSteering::Set, Some(before)) => {
                let tables = Mutex::new(Note { set: before.clone(), before });
                let interface = name.to_owned();
                let set = SetTable { interface, receive_queues: count, note, tables };
                set.spread(queues)?;
                Ok(Self { unserved: Vec::new(), set: Some(set) })
            }
        }
    }

    /// Look again: drivers lose a table, and administrators change it. Each finding is logged once.
    pub fn look(&mut self, interface: &Interface, queues: &[u32]) {
        let name = interface.name.as_str();
        let table = steering::table(name);
        let unserved = steering::unserved(table.as_deref(), interface.receive_queues, queues);
        if self.unserved != unserved {
            tell(name, &unserved);
            self.unserved = unserved;
        }
    }

    /// Whether a table of ours is in force.
    pub fn is_set(&self) -> bool {
        self.set.as_ref().is_some_and(SetTable::is_changed)
    }

    /// Spread over these queues from now on, if the configuration wants that. A driver that took
    /// one table takes another; if it does not, the present table stays.
    pub fn spread(&self, queues: &[u32]) {
        let Some(set) = &self.set else { return };
        if let Err(error) = set.spread(queues) {
            let error = crate::report::chain(&error);
            tracing::error!(interface = set.interface, error, "the indirection table stays");
        }
    }
}

fn tell(interface: &str, unserved: &[u32]) {
    if !unserved.is_empty() {
        tracing::warn!(
            interface, queues = ?unserved,
            "queues receive and have no socket: VMs' frames that arrive there are lost; see \
             `isonic doctor`"
        );
    }
}

impl SetTable {
    fn is_changed(&self) -> bool {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.set != tables.before
    }

    /// A table that has exactly these queues already stays, evenly spread or not.
    fn spread(&self, queues: &[u32]) -> Result<(), SteeringError> {
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if steering::leads_to(&tables.set, queues) {
            return Ok(());
        }
        let wanted = steering::spread(tables.before.len(), queues);
        let failed = |source| SteeringError::Set { interface: self.interface.clone(), source };
        let next = Note { before: tables.before.clone(), set: wanted };
        // The note comes first: if we are killed in between, the NIC's table is not the noted one,
        // and stays.
        if let Some(path) = &self.note {
            next.write(path).map_err(failed)?;
        }
        steering::set_table(&self.interface, &next.set).map_err(failed)?;
        tracing::info!(interface = self.interface, ?queues, "the indirection table is set");
        *tables = next;
        Ok(())
    }
}

impl Drop for SetTable {
    fn drop(&mut self) {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        tables.put_back(&self.interface, self.receive_queues);
        if let Some(path) = &self.note {
            // The note may never have been written.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Note {
    fn write(&self, path: &Path) -> io::Result<()> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        replace(path, &serde_json::to_vec(self)?)
    }

    /// Put the earlier table back, unless somebody has changed ours.
    fn put_back(&self, interface: &str, receive_queues: u32) {
        if self.before == self.set || steering::table(interface).as_ref() != Some(&self.set) {
            return;
        }
        match steering::restore_table(interface, &self.before, receive_queues) {
            Ok(()) => tracing::info!(interface, "the indirection table is as it was"),
            Err(error) => {
                tracing::error!(interface, %error, "the indirection table cannot be put back");
            }
        }
    }
}

/// Put the table back that a killed isonic has set.
fn put_back_what_was_left(interface: &str, receive_queues: u32, note: Option<&Path>) {
    let Some(path) = note else { return };
    let Ok(text) = read_text(path, NOTE_BYTES_MAX) else { return };
    match serde_json::from_str::<Note>(&text) {
        Ok(left) => left.put_back(interface, receive_queues),
        Err(error) => tracing::error!(note = %path.display(), %error, "not a note of ours"),
    }
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("steering").join("eth0");
        let note = Note { before: vec![0, 1, 2, 3], set: vec![0, 1, 0, 1] };
        note.write(&path).unwrap();
        let text = read_text(&path, NOTE_BYTES_MAX).unwrap();
        assert_eq!(serde_json::from_str::<Note>(&text).unwrap(), note);
    }

    #[test]
    fn a_note_of_a_nic_without_a_table_is_taken_away_and_does_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lo");
        Note { before: vec![0, 1], set: vec![0, 0] }.write(&path).unwrap();
        put_back_what_was_left("lo", 2, Some(&path));
        assert!(!path.exists());
    }
}
