//! SUCCESSION: another process goes on with everything, and no front-end notices.
//!
//! `isonic upgrade` asks the running daemon, the *predecessor* (`give`), to start a *successor*
//! (`take`), which may be another version, with the same arguments:
//!
//! ```text
//! predecessor                                    successor
//!   starts it ─────────────────────────────────▶   reads its configuration
//!   foundation: NICs, listening sockets ───────▶   maps sockets, loads its program, makes ports
//!                 ◀──────────────────── ready ──
//!   sessions stop between two messages
//!   workers come to rest          ┐
//!   traffic: sessions, positions ─┼────────────▶   sessions followed, rings begun, all at rest
//!                 ◀──────────────┼───── taken ──   from here on it is the successor's
//!   ends                         ┘ the outage      workers go on
//! ```
//!
//! Until `taken` the predecessor goes on as if nothing had been whenever anything fails or takes
//! too long: nothing of what it left was moved. A worker at rest shows everything to guests and
//! kernel and has nothing of its own but positions, so whichever process goes on from them goes
//! on exactly there.
//!
//! A service manager that keeps descriptors (`manager`) may stand between the two: then the
//! predecessor leaves everything with it when it is told to stop, and ends; the outage is as long
//! as the manager takes to start the successor.
//!
//! Each module gives and takes its own part; here is where they meet.

mod channel;
mod exporter;
mod importer;
mod port_changes;
mod service_manager;
mod socket_names;

mod token;
mod upgrade_document;

use serde::{Deserialize, Serialize};

use crate::control::api::PortChange;

pub use exporter::{Succeeded, Succession, UpgradeError};
pub use importer::{Estate, Predecessor, TakeError, refuse_predecessor};
pub use service_manager::notify;
pub use upgrade_document::PortPart;

/// Says to a process that its standard input leads to the one before it.
const PREDECESSOR_VARIABLE: &str = "ISONIC_PREDECESSOR";

/// What the successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// All is made that can be, and nothing is taken.
    Ready,
    /// The same, to a predecessor that has said what its ports are.
    Prepared {
        /// What would be otherwise.
        changes: Vec<PortChange>,
    },
    /// All is taken. Sent before anything moves.
    Taken,
    /// Packets move again.
    Running(Running),
    /// It cannot be; nothing is taken.
    Refused { reason: String },
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    /// The successor's version.
    pub version: String,
    /// From when the workers came to rest until they went on.
    pub outage_nanoseconds: u64,
    /// From when sessions were asked to stand still until they went on; 0 if that is not told.
    #[serde(default)]
    pub unanswered_nanoseconds: u64,
    /// Sessions that go on.
    pub sessions: usize,
    /// Ports whose front-end has to connect anew.
    pub reconnecting: Vec<String>,
}

/// CLOCK_MONOTONIC, which all processes share, in nanoseconds.
fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}
