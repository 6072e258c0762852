//! SESSION: one connection of a front-end to a port's socket; it never sees a packet.
//!
//! A [`PortSocket`] gets connections and calls [`serve`] for each. `serve` reads one message at a
//! time, looks it up in the table of requests, checks it, and answers it; request numbers and
//! limits are the `vhost` crate's. What the front-end says is gathered in a `Device`; a ring is
//! given to the [`PortHost`] when all of it has been said, and taken back before anything it
//! depends on changes.
//!
//! A request that breaks a rule is refused: a failed acknowledgement where one is asked for, a log
//! line that names port, request, value and limit, and the session goes on. Only a stream that
//! cannot be followed any further ends the session, and then every ring is taken back first.
//!
//! A descriptor that comes with a message is looked at before it is used, by what asks no file
//! system; what nobody keeps is closed where nobody waits (`closer`).

#![forbid(unsafe_code)]

mod closer;
mod device;
mod device_state;
mod dirty_log;
mod handler;
mod host;
mod memory;
mod outage;
mod pause;
mod record;
mod refusal;
mod requests;
mod ring_state;
mod rings;
mod session;
mod socket;
mod transfer;
mod transport;

pub use closer::Deferred;
pub use device_state::{Difference, StateError};
pub use host::{HostError, MemoryPolicy, PortHost, SessionBinding};
pub use outage::Took;
pub use pause::{Connection, InheritedSession, SessionAtRest};
pub use record::{Record, Said, started};
pub use refusal::Refusal;
pub use session::{SessionEnd, serve, serve_connection};
pub use socket::{Ended, PortSocket, Resting, SocketSource};
pub use transport::TransportError;
