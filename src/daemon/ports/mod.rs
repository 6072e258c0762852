//! PORTS: the ports, each with its socket, its session's link to the workers, and what is kept of
//! it.
//!
//! From the bottom:
//!
//! - `port_record`: what is on record of a port: data.
//! - `state_text`, `state_file`: what survives a restart, as text and as files.
//! - `profile_choice`: which profile a port gets.
//! - `port_error`: why a port is not made, changed or removed.
//! - `rarp`, `port_link`: a session's link to the workers.
//! - `ring_journals`: where the positions of packed rings are.
//! - `inherited_ports`: what the process before this one leaves.
//! - `listen`, `placement`: a port's socket; its workers and queues.
//! - `port`: one port, served or refused.
//! - `registry`: which there are, and what of them is kept.
//! - `make_port`: a port is made whole or not at all.
//! - `change_ports`, `restore_ports`, `end_sessions`: what is asked for, what was there before,
//!   what this process ends of itself.
//! - `diagnosis`, `port_watch`: what is wrong with a port, and the thread that looks.

mod change_ports;
mod diagnosis;
mod end_sessions;
mod inherited_ports;
mod listen;
mod make_port;
mod placement;
mod port;
mod port_error;
mod port_link;
mod port_record;
mod port_watch;
mod profile_choice;
mod rarp;
mod registry;
mod restore_ports;
mod ring_journals;
mod state_file;
mod state_text;

pub use inherited_ports::{InheritedPorts, InheritedSocket};
pub use listen::Origin;
pub use port::{Port, RefusedPort};
pub use port_error::PortError;
pub use port_record::PortRecord;
pub use port_watch::{PortWatch, PortWatchSetup};
pub use registry::{LockedPorts, PortMap, Registry, RegistrySetup};
pub use state_file::{StateFile, StateFileError};
