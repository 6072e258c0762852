//! The facts about a NIC that opening an uplink needs; [`NicFacts`](super::NicFacts) has all facts.

use std::io;

use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

use super::nic::{self, Channels, Device, InterfaceError, XdpFeatures};

/// The facts about a NIC that decide whether and how it can be an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Kernel index.
    pub index: u32,
    /// Driver, or the kind of a virtual device.
    pub driver: String,
    /// Its own MAC.
    pub mac: [u8; 6],
    /// MTU, bytes.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Queues that can receive now.
    pub receive_queues: u32,
    /// Most frames of one packet that the driver takes in zero-copy mode. It is 0 if the driver
    /// reports no such mode. It is 1 if the driver takes no more, or reports nothing.
    pub zero_copy_frames: u32,
    /// Its kind of device, and the devices below it.
    pub device: Device,
}

impl Interface {
    /// Ask the kernel. Blocks; call it from the control plane only.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn read(name: &str) -> Result<Self, InterfaceError> {
        let failed = |source| InterfaceError::Netlink { name: name.to_owned(), source };
        let facts = nic::ask(async {
            let link = nic::link(name).await?;
            let channels = nic::channels(name).await;
            let interface = from_link(name, &link, channels.as_ref());
            let zero_copy_frames = zero_copy_frames(nic::xdp_features(interface.index));
            let device = Device::read(name, &link).await;
            Ok(Self { zero_copy_frames, device, ..interface })
        });
        facts.map_err(failed)?
    }

    /// The interfaces of this network namespace that have a MAC: name and MAC. Blocks.
    ///
    /// # Errors
    /// The netlink socket failed.
    pub fn macs() -> io::Result<Vec<(String, [u8; 6])>> {
        nic::ask(nic::macs())?
    }
}

/// Kernels before 6.3 report nothing of a driver, and some drivers report nothing: then zero-copy
/// must be tried.
fn zero_copy_frames(features: Option<XdpFeatures>) -> u32 {
    match features {
        Some(XdpFeatures { native: true, zero_copy: false, .. }) => 0,
        Some(features) => features.zero_copy_frames,
        None => 1,
    }
}

fn from_link(name: &str, link: &LinkMessage, channels: Option<&Channels>) -> Interface {
    let mut interface = Interface {
        name: name.to_owned(),
        index: link.header.index,
        driver: nic::driver(name, link),
        mac: nic::mac_of(link),
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        receive_queues: 1,
        zero_copy_frames: 1,
        device: Device::default(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::NumRxQueues(queues) => interface.receive_queues = *queues,
            _ => {}
        }
    }
    // The driver's number counts queues in use; the link's number counts all that were allocated.
    interface.receive_queues = channels.map_or(interface.receive_queues, Channels::receiving);
    interface
}
