//! The facts that a link reports, and the links and addresses that belong to it.

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use serde::Serialize;

use super::attached_program::AttachedProgram;
use super::link_messages::{InterfaceError, connect, driver, kind, link, mac_of, name_of};
use super::lower_devices::Device;

/// The facts that the link itself reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LinkFacts {
    /// Name.
    pub interface: String,
    /// Kernel index.
    pub index: u32,
    /// Driver, or the kind of a virtual device.
    pub driver: String,
    /// Its own MAC.
    #[serde(skip)]
    pub mac: [u8; 6],
    /// MTU, bytes.
    pub mtu: u32,
    /// Smallest MTU that the driver takes.
    pub mtu_min: Option<u32>,
    /// Largest MTU that the driver takes, without an XDP program.
    pub mtu_max: Option<u32>,
    /// Administratively up.
    pub up: bool,
    /// There is something at the other end of the cable.
    pub carrier: bool,
    /// Receive queues that were allocated, in use or not.
    pub receive_queues: u32,
    /// The bridge, bond or team that it is a port of.
    pub master: Option<Relative>,
    /// VLAN and macvlan interfaces on it, and the like.
    pub uppers: Vec<Relative>,
    /// The host's addresses on it, with their prefix lengths.
    pub addresses: Vec<String>,
    /// The XDP program on it.
    pub program: Option<AttachedProgram>,
    /// The index of a veth's other end, and the identifier of its namespace if that is
    /// another one.
    #[serde(skip)]
    pub other_end: Option<(u32, Option<i32>)>,
}

/// Another interface, related to this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Relative {
    /// Name.
    pub interface: String,
    /// Kind: "bridge", "bond", "vlan".
    pub kind: String,
}

/// The facts of one link, and its kind of device.
pub(super) async fn read(name: &str) -> Result<(LinkFacts, Device), InterfaceError> {
    let message = link(name).await?;
    let device = Device::read(name, &message).await;
    let mut facts = LinkFacts {
        interface: name.to_owned(),
        index: message.header.index,
        driver: driver(name, &message),
        mac: mac_of(&message),
        up: message.header.flags.contains(LinkFlags::Up),
        ..LinkFacts::default()
    };
    let mut master = None;
    let (mut linked, mut namespace) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::Mtu(mtu) => facts.mtu = *mtu,
            LinkAttribute::MinMtu(mtu) => facts.mtu_min = Some(*mtu),
            // Drivers without a limit report 0.
            LinkAttribute::MaxMtu(mtu) => facts.mtu_max = Some(*mtu).filter(|&mtu| mtu > 0),
            LinkAttribute::Carrier(carrier) => facts.carrier = *carrier != 0,
            LinkAttribute::NumRxQueues(queues) => facts.receive_queues = *queues,
            LinkAttribute::Controller(index) => master = Some(*index).filter(|&index| index > 0),
            LinkAttribute::Link(index) => linked = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::Xdp(attributes) => facts.program = AttachedProgram::of(attributes),
            _ => {}
        }
    }
    facts.other_end = linked.map(|index| (index, namespace));
    if let Some(handle) = connect() {
        if let Some(index) = master {
            facts.master = relatives(&handle, |link| link.header.index == index).await.pop();
        }
        facts.uppers = relatives(&handle, |link| lies_on(link, facts.index)).await;
        // Each end of a veth counts as lying on the other.
        facts.uppers.retain(|upper| upper.kind != "veth");
        facts.addresses = addresses(&handle, facts.index).await;
    }
    Ok((facts, device))
}

/// The program that is on an interface, and the bridge, bond or team of which the interface is a
/// port.
pub(crate) async fn program_on(
    name: &str,
) -> Result<(Option<AttachedProgram>, Option<Relative>), InterfaceError> {
    read(name).await.map(|(facts, _)| (facts.program, facts.master))
}

/// The links for which `is_one` holds.
async fn relatives(handle: &Handle, is_one: impl Fn(&LinkMessage) -> bool) -> Vec<Relative> {
    let all: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.unwrap_or_default();
    let relative = |link: &LinkMessage| {
        Some(Relative { interface: name_of(link)?, kind: kind(link).unwrap_or_default() })
    };
    all.iter().filter(|link| is_one(link)).filter_map(relative).collect()
}

/// Whether a link of this namespace was made on top of the one with this index.
fn lies_on(link: &LinkMessage, index: u32) -> bool {
    let has = |wanted: &dyn Fn(&LinkAttribute) -> bool| link.attributes.iter().any(wanted);
    has(&|attribute| *attribute == LinkAttribute::Link(index))
        && !has(&|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)))
        && link.header.index != index
}

async fn addresses(handle: &Handle, index: u32) -> Vec<String> {
    let found = handle.address().get().set_link_index_filter(index).execute();
    let messages: Vec<_> = found.try_collect().await.unwrap_or_default();
    let global = messages.iter().filter(|message| message.header.scope == AddressScope::Universe);
    let address = |attribute: &AddressAttribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    };
    global
        .filter_map(|message| {
            let address = message.attributes.iter().find_map(address)?;
            Some(format!("{address}/{}", message.header.prefix_len))
        })
        .collect()
}
