//! NIC: the uplinks' NICs.

mod indirection_table;
mod nic_life;
mod nic_watch;
mod nics;
mod stall;

pub use nic_life::NicLife;
pub use nic_watch::NicWatch;
pub use nics::*;
