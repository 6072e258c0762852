//! PORTS: the registry of ports.

mod diagnosis;
mod port_link;
mod port_watch;
mod profile_choice;
mod rarp;
mod registry;
mod state_file;

pub use registry::*;
pub use state_file::{Bound, KnownUplink, StateError, StateFile};
