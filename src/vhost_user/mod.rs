//! SESSION: one connection of a front-end to a port's socket; it never sees a packet.
//!
//! A [`PortSocket`] gets connections and calls [`serve_connection`] for each. A session reads one
//! message at a time, looks it up in the table of requests, checks it, and answers it. Request
//! numbers, message types and limits are the `vhost` crate's. The settings that the front-end has
//! sent are gathered in a `Device`. A ring is given to the [`PortBackend`] when all of its settings
//! have come, and taken back before anything that it depends on changes.
//!
//! A request that breaks a rule is refused. The front-end gets a failed acknowledgement if it asks
//! for one; a log line names port, request, value and limit. The session continues. Only a stream
//! that cannot be followed any further ends the session; every ring is taken back first.
//!
//! A descriptor that comes with a message is checked before it is used, without a call into any
//! file system. One that nobody keeps is closed by the port's closer (`deferred_close`).
//!
//! Its files, each above those that it imports:
//!
//! - `outage`: how long our part of a stop and a start took
//! - `port_backend`: what a session asks of the daemon
//! - `device_state`: the document that migrates with a VM; `state_transfer`: its channel
//! - `refusal`: why a request was not done
//! - `deferred_close`: descriptors whose close may block; `wake_event`: wakes a thread
//! - `transport`: whole messages from the stream, and replies to it
//! - `requests`: the table of requests, and the check of a message against it
//! - `ring_state`: the settings of one ring
//! - `device`: all settings so far; features, status, reset
//! - `memory_requests`, `ring_requests`, `log_requests`: what changes memory, rings and the log
//! - `handler`: one request, from its check to its answer
//! - `session_record`: a session as messages, for another process; `pause`: how it gets them
//! - `session`: the loop of one connection
//! - `port_socket`: gets connections, one session at a time

#![forbid(unsafe_code)]

mod deferred_close;
mod device;
mod device_state;
mod handler;
mod log_requests;
mod memory_requests;
mod outage;
mod pause;
mod port_backend;
mod port_socket;
mod refusal;
mod requests;
mod ring_requests;
mod ring_state;
mod session;
mod session_record;
mod state_transfer;
mod transport;
mod wake_event;

pub use deferred_close::DeferredClose;
pub use device_state::{DeviceStateError, Difference};
pub use outage::OutageTimes;
pub use pause::{Connection, ContinuedSession, PausedSession};
pub use port_backend::{MemoryPolicy, PortBackend, PortBackendError, SessionBinding};
pub use port_socket::{Ended, PendingPause, PortSocket, SocketSource};
pub use refusal::Refusal;
pub use session::{SessionEnd, serve, serve_connection};
pub use session_record::{RecordedMessage, SessionRecord, WorkerRing};
pub use transport::TransportError;
