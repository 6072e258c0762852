//! Busy polling: a worker's own system calls drive the NIC, and its interrupts stay off while the
//! calls come (the kernel's Documentation/networking/napi.rst, since Linux 5.11).
//!
//! Three socket options ask for it, and two settings of the NIC let it take effect. A third setting
//! suspends interrupts for longer while packets are found.
//!
//! The settings are the host's, and are restored when the uplink ends. Their former values are
//! written to a note first. So after a death without notice, the next process restores them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::platform::text_file::{self, FileError};

use super::napi::{self, Deferral, Napi};
use super::uplink_interface::Interface;

/// The values of the kernel's own example for AF_XDP, and of DPDK's driver. The kernel polls
/// instead after a worker was away for a fifth of a millisecond. Interrupts are on after twice
/// that.
const POLLED: Deferral =
    Deferral { defer_hard_irqs: 2, gro_flush_timeout: 200_000, irq_suspend_timeout: 0 };
/// How long a worker that found packets may be away, ns: the value of the kernel's documentation
/// (napi.rst, "IRQ suspension").
const SUSPENDED: u64 = 20_000_000;

/// The ending of a note's name, after the interface.
const NOTE: &str = ".json";
/// Longest note that is read, bytes: a thousand instances have a tenth of it.
const NOTE_BYTES_MAX: u64 = 1 << 20;

/// How an uplink is polled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// Most packets that one call has the NIC's driver take.
    pub budget: u16,
    /// Whether interrupts stay off for longer after packets were found (Linux 6.13).
    pub suspend: bool,
    /// Where the NIC's settings are written down while ours are in force. Nowhere if None: then
    /// nothing restores them after a death without notice.
    pub notes: Option<PathBuf>,
}

/// Why a NIC cannot be polled so.
#[derive(Debug, thiserror::Error)]
pub enum BusyPollError {
    /// A socket does not take the options.
    #[error(
        "the kernel refuses busy polling; it needs Linux 5.11, 6.9 with irq_suspend, and us \
         CAP_NET_ADMIN"
    )]
    Socket(#[source] io::Error),
    /// The NIC's settings cannot be read or changed.
    #[error(
        "cannot defer the interrupts of {interface}: before Linux 6.13 it takes files below \
         /sys/class/net to be written, which is root's"
    )]
    Settings {
        /// NIC.
        interface: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Its interrupts cannot be suspended.
    #[error(
        "cannot suspend the interrupts of {0}: it takes Linux 6.13, and a driver whose queues have \
         settings of their own; leave out irq_suspend"
    )]
    Suspension(String),
    /// They cannot be written down.
    #[error("cannot write down the interrupt settings of {interface}")]
    Note {
        /// NIC.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The note cannot be read.
    #[error("cannot read what interrupt settings a NIC had")]
    Unreadable(#[from] FileError),
    /// The note has no meaning to us.
    #[error(
        "{} does not say what interrupt settings a NIC had; remove it if they are well",
        path.display()
    )]
    Unknown {
        /// The note.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

/// The settings that a NIC had before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Former {
    /// Each instance its own.
    Instances(Vec<Napi>),
    /// All of them the same, on a kernel without settings for each instance.
    Device(Deferral),
}

/// Interrupts that give way to polling, until this is dropped.
#[derive(Debug)]
pub struct DeferredInterrupts {
    interface: String,
    former: Former,
    note: Option<PathBuf>,
}

impl DeferredInterrupts {
    /// Defer the interrupts of a NIC whose sockets are bound: binding may have made new instances.
    pub(super) fn start(interface: &Interface, wish: &BusyPoll) -> Result<Self, BusyPollError> {
        let name = || interface.name.clone();
        let settings = |source| BusyPollError::Settings { interface: name(), source };
        let former = Former::read(interface).map_err(settings)?;
        if wish.suspend && !matches!(former, Former::Instances(_)) {
            return Err(BusyPollError::Suspension(name()));
        }
        let polled = if wish.suspend {
            Deferral { irq_suspend_timeout: SUSPENDED, ..POLLED }
        } else {
            POLLED
        };
        let note = wish.notes.as_deref().map(|notes| note_of(notes, &interface.name));
        if let Some(note) = &note {
            former
                .write(note)
                .map_err(|source| BusyPollError::Note { interface: name(), source })?;
        }
        // From here on, dropping this restores all settings.
        let deferred = Self { interface: interface.name.clone(), former, note };
        deferred.former.replaced_by(polled).set(&interface.name).map_err(settings)?;
        Ok(deferred)
    }
}

impl Drop for DeferredInterrupts {
    fn drop(&mut self) {
        put_back(&self.former, &self.interface);
        if let Some(note) = &self.note {
            let _ = fs::remove_file(note);
        }
    }
}

/// Restore the settings that an isonic process left changed when it ended without notice. Call this
/// before any uplink is opened.
///
/// # Errors
/// [`BusyPollError`].
pub fn recover(notes: &Path) -> Result<(), BusyPollError> {
    for entry in fs::read_dir(notes).into_iter().flatten().flatten() {
        let path = entry.path();
        // A note with another ending was not written completely: no setting had been changed then.
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(interface) = name.and_then(|name| name.strip_suffix(NOTE)) else { continue };
        let text = text_file::read_text(&path, NOTE_BYTES_MAX)?;
        let former: Former = serde_json::from_str(&text)
            .map_err(|source| BusyPollError::Unknown { path: path.clone(), source })?;
        put_back(&former, interface);
        let _ = fs::remove_file(&path);
    }
    Ok(())
}

/// A NIC may be gone, and an instance with it: a new one has no settings of ours.
fn put_back(former: &Former, interface: &str) {
    if let Err(error) = former.set(interface) {
        tracing::warn!(interface, %error, "the interrupt settings may not be what they were");
    }
}

fn note_of(notes: &Path, interface: &str) -> PathBuf {
    notes.join(format!("{interface}{NOTE}"))
}

impl Former {
    fn read(interface: &Interface) -> io::Result<Self> {
        match napi::instances(interface.index) {
            Ok(instances) if !instances.is_empty() => Ok(Self::Instances(instances)),
            // The kernel does not know the question, or has no answer to it.
            _ => Ok(Self::Device(napi::of_device(&interface.name)?)),
        }
    }

    fn write(&self, note: &Path) -> io::Result<()> {
        if let Some(directory) = note.parent() {
            fs::create_dir_all(directory)?;
        }
        let text = serde_json::to_string(self).expect("numbers");
        text_file::replace(note, text.as_bytes())
    }

    /// All of them with these settings.
    fn replaced_by(&self, deferral: Deferral) -> Self {
        match self {
            Self::Instances(instances) => {
                Self::Instances(instances.iter().map(|&napi| Napi { deferral, ..napi }).collect())
            }
            Self::Device(_) => Self::Device(deferral),
        }
    }

    /// Set all that still exist, even after an error; returns the first error.
    fn set(&self, interface: &str) -> io::Result<()> {
        let outcomes = match self {
            Self::Instances(instances) => {
                instances.iter().map(|&napi| napi::set_instance(napi)).collect()
            }
            Self::Device(deferral) => vec![napi::set_device(interface, *deferral)],
        };
        let is_gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let failed = |outcome: io::Result<()>| outcome.err().filter(|error| !is_gone(error));
        outcomes.into_iter().find_map(failed).map_or(Ok(()), Err)
    }
}
