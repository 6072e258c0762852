//! The facts that the kernel reports about a NIC and its place on the host, before anything is
//! bound.
//!
//! The floors, each file importing only from those above it:
//!
//! - `link_messages`: questions in the route netlink family. `ethtool` and `xdp_features` use two
//!   generic families, `ioctl` and `steering` the calls that netlink lacks.
//! - `place`: sysfs, and the state files of programs that manage interfaces.
//! - `holder`: the process that has a program; `attached_program`: the program.
//! - `lower_devices`: the composition of a virtual device; `fitness` judges its kind as an uplink.
//! - `link_facts`: the facts of a link; `peer`: the other end of a veth.
//! - `nic_facts`: all of it.
//!
//! Nothing here changes a NIC except [`steering`], and nothing opens a socket on one. A value that
//! a driver does not report is None. All of it blocks: for the control plane only.

mod attached_program;
mod ethtool;
mod fitness;
mod holder;
mod ioctl;
mod link_facts;
mod link_messages;
mod lower_devices;
mod nic_facts;
mod peer;
mod place;
pub mod steering;
mod xdp_features;

pub use self::ethtool::{Channels, Offloads, Rings};
pub use attached_program::AttachedProgram;
pub use fitness::{Caution, Unfit};
pub use holder::Holder;
pub use link_facts::{LinkFacts, Relative};
pub use link_messages::InterfaceError;
pub use lower_devices::{Device, LinkLayer, Lower, Macvlan};
pub use nic_facts::NicFacts;
pub use peer::Peer;
pub use place::{Manager, physical_interfaces};
pub use steering::{FlowRule, Steering, SteeringError};
pub use xdp_features::XdpFeatures;

pub(super) use self::ethtool::channels;
pub(super) use link_facts::program_on;
pub(super) use link_messages::{ask, driver, link, mac_of, macs};
pub(super) use xdp_features::xdp_features;
