//! DOCTOR: whether a port can be served here, and what would mend it if not.
//!
//! Pure: [`Facts`] in, a [`Report`] out. `cli` gathers the facts from `xdp`, `platform`, the
//! configuration and a daemon that may run; nothing is touched for it.
//!
//! Its files, each above those that it imports:
//! - `finding`: one check's result;
//! - `kernel` and `drivers`: facts known beforehand;
//! - `facts`;
//! - `subject`: one interface;
//! - `host_checks`: the checks of the host;
//! - `interface_checks`, `frames`, `queues` and `cpus`: those of an interface, in functions of one
//!   finding each;
//! - `examination`: runs them all.
//!
//! A finding that is no [`Status::Ok`] says what it means, and the command that mends it where
//! there is one. Its `id` never changes.

#![forbid(unsafe_code)]

mod cpus;
mod drivers;
mod examination;
mod facts;
mod finding;
mod frames;
mod host_checks;
mod interface_checks;
mod kernel;
mod queues;
mod subject;

pub use examination::{Report, UplinkReport, examine};
pub use facts::{Candidate, DaemonFacts, Facts, Promise, our_part};
pub use finding::{Finding, Status};
pub use queues::spread_command;

#[cfg(test)]
mod tests;
