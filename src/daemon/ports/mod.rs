//! PORTS: the ports, each with its socket, its session's link to the workers, and its record.
//!
//! From the bottom:
//!
//! - `port_record`: the record of a port: data.
//! - `state_text`, `state_file`: the state that survives a restart, as text and as files.
//! - `profile_choice`: which profile a port gets.
//! - `port_error`: why a port is not made, changed or removed.
//! - `rarp`, `port_link`: a session's link to the workers.
//! - `ring_journals`: the files of the positions of packed rings.
//! - `inherited_ports`: the ports that the process before this one hands over.
//! - `listen`, `placement`: a port's socket; its workers and queues.
//! - `port`: one port, served or refused.
//! - `registry`: all ports, and the part of them that is kept.
//! - `make_port`: a port is made whole or not at all.
//! - `change_ports`, `restore_ports`, `end_sessions`: changes on request, ports of the last run,
//!   sessions that this process ends by itself.
//! - `diagnosis`, `port_watch`: finds faults of a port; the thread that watches the ports.

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
