//! What the kernel says of a NIC and of its place on the host, before anything is bound.
//!
//! One file for each who is asked: `link` the route netlink family, `ethtool` and `features` two
//! generic ones, `ioctl` and `steering` what netlink does not have, `place` sysfs and the files of
//! those who manage interfaces, `peer` the other end of a veth, `below` what a virtual device is
//! made of, `holder` who has a program on it. `fitness` judges what a kind of device is good for.
//! Nothing here changes a NIC but [`steering`], and nothing opens a socket on one.
//!
//! What a driver does not tell is None. All of it blocks: for the control plane only.

mod ethtool;
mod fitness;
mod holder;
mod ioctl;
mod link_facts;
mod lower_devices;
mod peer;
mod place;
pub mod steering;
mod xdp_features;

use std::io;

use serde::Serialize;

pub use self::ethtool::{Channels, Offloads, Rings};
pub use fitness::{Caution, Unfit};
pub use holder::Holder;
pub use link_facts::{AttachedProgram, LinkFacts, Relative};
pub use lower_devices::{Device, LinkLayer, Lower, Macvlan};
pub use peer::Peer;
pub use place::{Manager, physical_interfaces};
pub use steering::{FlowRule, Steering, SteeringError};
pub use xdp_features::XdpFeatures;

pub(super) use self::ethtool::channels;
pub(super) use link_facts::{driver, link, mac_of, macs, program_on};
pub(super) use xdp_features::xdp_features;

use super::uplink_interface::InterfaceError;

/// All that is known of a NIC before it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NicFacts {
    /// Its link.
    #[serde(flatten)]
    pub link: LinkFacts,
    /// What kind of device it is, and what lies below it.
    pub device: Device,
    /// Version of the driver, or of the kernel where the driver has none of its own.
    pub driver_version: Option<String>,
    /// Version of the firmware.
    pub firmware: Option<String>,
    /// Queues, now and at most.
    pub channels: Option<Channels>,
    /// Sizes of its own rings, now and at most.
    pub rings: Option<Rings>,
    /// What it does to frames by itself.
    pub offloads: Option<Offloads>,
    /// What its driver does of XDP.
    pub xdp: Option<XdpFeatures>,
    /// Which of its queues receive what.
    pub steering: Steering,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// Nanoseconds for which its interrupts may be held back after a poll (`gro_flush_timeout`).
    pub gro_flush_timeout: Option<u64>,
    /// Polls without packets after which they come again (`napi_defer_hard_irqs`).
    pub defer_hard_irqs: Option<u64>,
    /// Who else configures it.
    pub manager: Option<Manager>,
    /// The other end, of a veth.
    pub peer: Option<Peer>,
}

impl NicFacts {
    /// Ask all there is to ask about the interface `name`.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn read(name: &str) -> Result<Self, InterfaceError> {
        let failed = |source| InterfaceError::Netlink { name: name.to_owned(), source };
        let mut facts = ask(async {
            let (link, device) = link_facts::read(name).await?;
            Ok::<_, InterfaceError>(Self {
                device,
                channels: channels(name).await,
                rings: self::ethtool::rings(name).await,
                offloads: self::ethtool::offloads(name).await,
                xdp: xdp_features(link.index),
                link,
                ..Self::default()
            })
        })
        .map_err(failed)??;
        facts.steering = Steering::read(name);
        if let Some(versions) = ioctl::driver_info(name) {
            (facts.driver_version, facts.firmware) = versions;
        }
        facts.numa_node = place::numa_node(name);
        facts.gro_flush_timeout = place::number(name, "gro_flush_timeout");
        facts.defer_hard_irqs = place::number(name, "napi_defer_hard_irqs");
        facts.manager = place::manager(facts.link.index);
        if facts.link.driver == "veth" {
            facts.peer = peer::find(&facts.link);
        }
        Ok(facts)
    }

    /// Queues that can receive now.
    #[must_use]
    pub fn receive_queues(&self) -> u32 {
        self.channels.as_ref().map_or(self.link.receive_queues, Channels::receiving)
    }
}

/// Put questions to the kernel, and wait for the answers.
pub(super) fn ask<T>(questions: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(questions))
}
