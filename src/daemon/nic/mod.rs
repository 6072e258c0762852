//! NIC: the uplinks' NICs, from the moment they are opened, through all their changes.
//!
//! From the bottom:
//!
//! - `nic_status`: the present and past state of one: data.
//! - `stall`: tells that a socket stands still.
//! - `indirection_table`: which queues receive; set where that is wanted.
//! - `redirects`: the meaning of routes for the XDP program.
//! - `open_nic`: opens one as it is configured.
//! - `pump`, `host_pump`: the threads that bring multicast, and join the host to its VMs.
//! - `nic_in_use`, `nics`: one NIC, and all of them.
//! - `nic_control`: the actions and observations of a life.
//! - `nic_life`: the reaction when a link goes down, a NIC goes away, a socket stands still.
//! - `nic_watch`: the thread that looks.

mod host_pump;
mod indirection_table;
mod nic_control;
mod nic_in_use;
mod nic_life;
mod nic_status;
mod nic_watch;
mod nics;
mod open_nic;
mod pump;
mod redirects;
mod stall;

pub use nic_control::PortsOfNics;
pub use nic_in_use::Nic;
pub use nic_life::NicLife;
pub use nic_status::{ExportedUplink, KnownUplink, NicError, NicState, NicStatus};
pub use nic_watch::{NicWatch, NicWatchSetup};
pub use nics::Nics;
pub use open_nic::interrupt_notes;
