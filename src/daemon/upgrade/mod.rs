//! UPGRADE: another process takes over everything, and no front-end notices.
//!
//! `isonic upgrade` asks the running daemon, the *predecessor* (`exporter`), to start a *successor*
//! (`importer`), which may be another version, with the same arguments:
//!
//! ```text
//! predecessor                                    successor
//!   starts it ─────────────────────────────────▶   reads its configuration
//!   foundation: NICs, listening sockets ───────▶   maps sockets, loads its program, makes ports
//!                 ◀──────────────────── ready ──
//!   sessions pause between two messages
//!   workers pause                 ┐
//!   traffic: sessions, positions ─┼────────────▶   sessions taken over, rings set up, all paused
//!                 ◀──────────────┼───── taken ──   from here on it is the successor's
//!   ends                         ┘ the outage      workers resume
//! ```
//!
//! Until `taken` the predecessor resumes whenever anything fails or takes too long: none of its
//! state was changed. A paused worker has published everything to guests and kernel, and its own
//! state is only positions. So whichever process resumes from them resumes exactly there.
//!
//! A service manager that keeps descriptors (`service_manager`) may stand between the two. Then the
//! predecessor hands everything to it when it is told to stop, and ends. The outage lasts until the
//! manager has started the successor.
//!
//! From the bottom:
//!
//! - `upgrade_document`, `successor_answer`: the data that they exchange.
//! - `ownership_token`: which of two processes continues.
//! - `upgrade_channel`, `service_manager`: the channel from one to the other.
//! - `port_changes`: the changes that a successor would make to ports.
//! - `socket_names`: the names of the sockets, once they are ours.
//! - `importer`: the successor's side.
//! - `upgrade_error`, `successor_process`, `paused`, `exporter`: the predecessor's side.

mod exporter;
mod importer;
mod ownership_token;
mod paused;
mod port_changes;
mod service_manager;
mod socket_names;
mod successor_answer;
mod successor_process;
mod upgrade_channel;
mod upgrade_document;
mod upgrade_error;

pub use exporter::{ExportSource, OwnProgram, Upgrader};
pub use importer::{ImportError, ImportTarget, Predecessor, PredecessorState, refuse_predecessor};
pub use service_manager::notify;
pub use successor_process::CompletedUpgrade;
pub use upgrade_error::UpgradeError;
