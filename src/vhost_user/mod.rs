//! SESSION: one connection of a front-end to a port's socket; it never sees a packet.

mod host;
mod session;

pub use host::{HostError, PortHost, SessionBinding};
