//! CAPTURE: another backend's interface, measured from the front-end's side, as a profile.
//!
//! [`capture`] connects to any vhost-user backend (DPDK, Open vSwitch, another isonic), asks what
//! it offers, and finds by trying what it only shows by refusing. It shares memory of its own and
//! sets a ring up, but never kicks one, so no packet moves; what it changed ends with the
//! connection. Every wait has a time limit.
//!
//! A file is made only of what was found: a bit that this version cannot name ends the capture,
//! because a profile without it would describe another interface. What no backend tells (the
//! front-end's own bits, and the MTU where every one is acknowledged) is filled in by a rule that
//! the file states.
//!
//! Its files, each above those that it imports: `target` (what to capture, and why not), `measured`
//! (what was found), `profile_text`, `backend_connection`, `measure`.

#![forbid(unsafe_code)]

mod backend_connection;
mod measure;
mod measured;
mod profile_text;
mod target;

pub use measure::{Capture, capture};
pub use measured::{HowFound, Measured};
pub use target::{CaptureError, CaptureTarget, Side};
