//! All facts about a NIC before it is used, read together.

use serde::Serialize;

use super::ethtool::{Channels, Offloads, Rings, channels, offloads, rings};
use super::ioctl;
use super::link_facts::{self, LinkFacts};
use super::link_messages::{InterfaceError, ask};
use super::lower_devices::Device;
use super::peer::{self, Peer};
use super::place::{self, Manager};
use super::steering::Steering;
use super::xdp_features::{XdpFeatures, xdp_features};

/// All facts about a NIC before it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NicFacts {
    /// Its link.
    #[serde(flatten)]
    pub link: LinkFacts,
    /// Its kind of device, and the devices below it.
    pub device: Device,
    /// Version of the driver, or of the kernel where the driver has none of its own.
    pub driver_version: Option<String>,
    /// Version of the firmware.
    pub firmware: Option<String>,
    /// Queues, now and at most.
    pub channels: Option<Channels>,
    /// Sizes of its own rings, now and at most.
    pub rings: Option<Rings>,
    /// Its own work on frames.
    pub offloads: Option<Offloads>,
    /// Its driver's support of XDP.
    pub xdp: Option<XdpFeatures>,
    /// Which of its queues receive which frames.
    pub steering: Steering,
    /// NUMA node.
    pub numa_node: Option<u32>,
    /// Nanoseconds for which its interrupts may be held back after a poll (`gro_flush_timeout`).
    pub gro_flush_timeout: Option<u64>,
    /// Polls without packets after which interrupts come again (`napi_defer_hard_irqs`).
    pub defer_hard_irqs: Option<u64>,
    /// The other program that configures it.
    pub manager: Option<Manager>,
    /// The other end, of a veth.
    pub peer: Option<Peer>,
}

impl NicFacts {
    /// Read all facts about the interface `name`.
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
                rings: rings(name).await,
                offloads: offloads(name).await,
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
