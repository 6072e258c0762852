//! CAPTURE: another backend's interface, measured from the front-end's side, as a profile.
//!
//! [`capture`] connects to any vhost-user backend (DPDK, Open vSwitch, another isonic) and asks
//! what it offers. It finds by trying the limits that a backend shows only by refusing. It shares
//! memory of its own and sets a ring up, but never kicks one, so no packet moves. Its changes end
//! with the connection. Every wait has a time limit.
//!
//! The file holds only values that were found. A bit that this version cannot name ends the
//! capture, because a profile without it would describe another interface. No backend tells the
//! front-end's own bits, nor the MTU where every one is acknowledged. A rule fills these in, and
//! the file states it.
//!
//! Its files, each above those that it imports: `target` (the backend to capture, and the errors),
//! `measured` (the values found), `profile_text`, `backend_connection`, `measure`.

#![forbid(unsafe_code)]

mod backend_connection;
mod measure;
mod measured;
mod profile_text;
mod target;

pub use measure::{Capture, capture};
pub use measured::{HowFound, Measured};
pub use target::{CaptureError, CaptureTarget, Side};
