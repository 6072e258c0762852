//! The other sides, for tests and benches: a front-end, a guest's driver, and the kernel's end of
//! AF_XDP rings.
//!
//! Behind the feature `test-support`, since `cfg(test)` is invisible to `tests/` and `benches/`.
//! Nothing here is in the daemon.
//!
//! Its files, each above those that it imports:
//! - `stop_on_drop` and `log_file`;
//! - `guest_driver`: a guest's side of a ring;
//! - `ring_pair`: the kernel's side of AF_XDP;
//! - `frontend`;
//! - `rig`, with workers stepped by hand, and `live_port`, with one that runs;
//! - `vm`, `rig_guest` and `echo_vm`.

// Test code asserts and indexes freely; sizes are chosen by tests.
#![allow(clippy::cast_possible_truncation, clippy::missing_panics_doc)]

pub mod echo_vm;
pub mod frontend;
pub mod guest_driver;
pub mod live_port;
pub mod log_file;
pub mod rig;
pub mod rig_guest;
pub mod ring_pair;
mod stop_on_drop;
pub mod vm;

pub use stop_on_drop::StopOnDrop;
