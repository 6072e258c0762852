//! The route netlink family: links and addresses.

use std::fmt;
use std::fs;
use std::io;

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::address::{AddressAttribute, AddressScope};
use rtnetlink::packet_route::link::{
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use serde::Serialize;

use super::holder::{self, Holder};
use super::lower_devices::Device;
use crate::xdp::program;
use crate::xdp::uplink_interface::InterfaceError;

/// What the link itself says.
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
    /// Of a veth: the index of the other end, and the identifier of its namespace if that is
    /// another one.
    #[serde(skip)]
    pub other_end: Option<(u32, Option<i32>)>,
}

/// Another interface that has to do with this one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Relative {
    /// Name.
    pub interface: String,
    /// Kind: "bridge", "bond", "vlan".
    pub kind: String,
}

/// An XDP program on a NIC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttachedProgram {
    /// Its identifiers: one, or one for each hook that has one.
    pub ids: Vec<u32>,
    /// Its name, if we may ask.
    pub name: Option<String>,
    /// At the kernel's generic hook.
    pub generic: bool,
    /// The process that holds it, if that is known.
    pub holder: Option<Holder>,
}

impl fmt::Display for AttachedProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<String> = self.ids.iter().map(u32::to_string).collect();
        write!(f, "program {}", ids.join(" and "))?;
        self.name.iter().try_for_each(|name| write!(f, " \"{name}\""))
    }
}

impl AttachedProgram {
    /// Whether it is isonic's, by its name.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.name.as_deref() == Some(program::NAME)
    }
}

/// The facts of one link, and what kind of device it is.
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
            // Drivers that name no limit say 0.
            LinkAttribute::MaxMtu(mtu) => facts.mtu_max = Some(*mtu).filter(|&mtu| mtu > 0),
            LinkAttribute::Carrier(carrier) => facts.carrier = *carrier != 0,
            LinkAttribute::NumRxQueues(queues) => facts.receive_queues = *queues,
            LinkAttribute::Controller(index) => master = Some(*index).filter(|&index| index > 0),
            LinkAttribute::Link(index) => linked = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::Xdp(attributes) => facts.program = attached(attributes),
            _ => {}
        }
    }
    facts.other_end = linked.map(|index| (index, namespace));
    if let Some(handle) = connect() {
        if let Some(index) = master {
            facts.master = relatives(&handle, |link| link.header.index == index).await.pop();
        }
        facts.uppers = relatives(&handle, |link| lies_on(link, facts.index)).await;
        // The other end of a veth lies on ours as ours does on it.
        facts.uppers.retain(|upper| upper.kind != "veth");
        facts.addresses = addresses(&handle, facts.index).await;
    }
    Ok((facts, device))
}

/// The program that is on an interface, and the bridge, bond or team that the interface is a port
/// of.
pub(in crate::xdp) async fn program_on(
    name: &str,
) -> Result<(Option<AttachedProgram>, Option<Relative>), InterfaceError> {
    read(name).await.map(|(facts, _)| (facts.program, facts.master))
}

/// One link, by name.
pub(in crate::xdp) async fn link(name: &str) -> Result<LinkMessage, InterfaceError> {
    let failed = |source| InterfaceError::Netlink { name: name.to_owned(), source };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(failed)?;
    tokio::spawn(connection);
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    match links.try_next().await {
        Ok(Some(link)) => Ok(link),
        Ok(None) => Err(InterfaceError::NotFound(name.to_owned())),
        Err(rtnetlink::Error::NetlinkError(error)) if is_absent(error.to_io().raw_os_error()) => {
            Err(InterfaceError::NotFound(name.to_owned()))
        }
        Err(error) => Err(failed(io::Error::other(error))),
    }
}

/// ENODEV for a name that no NIC has, EINVAL or ERANGE for one that none could have.
fn is_absent(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ENODEV | libc::EINVAL | libc::ERANGE))
}

/// The driver of a NIC on a bus, or the kind of a virtual device.
pub(in crate::xdp) fn driver(name: &str, link: &LinkMessage) -> String {
    kind(link).or_else(|| bus_driver(name)).unwrap_or_else(|| "unknown".to_owned())
}

fn bus_driver(name: &str) -> Option<String> {
    let target = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

pub(super) fn kind(link: &LinkMessage) -> Option<String> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.to_string()),
        _ => None,
    })
}

/// A link's own MAC; zero if it has none.
pub(in crate::xdp) fn mac_of(link: &LinkMessage) -> [u8; 6] {
    let bytes = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    bytes.unwrap_or_default()
}

/// The links of this namespace that have a MAC: name and MAC.
pub(in crate::xdp) async fn macs() -> io::Result<Vec<(String, [u8; 6])>> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    tokio::spawn(connection);
    let links: Vec<LinkMessage> =
        handle.link().get().execute().try_collect().await.map_err(io::Error::other)?;
    let named = links.iter().filter_map(|link| Some((name_of(link)?, mac_of(link))));
    Ok(named.filter(|(_, mac)| *mac != [0; 6]).collect())
}

pub(super) fn connect() -> Option<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().ok()?;
    tokio::spawn(connection);
    Some(handle)
}

pub(super) fn name_of(link: &LinkMessage) -> Option<String> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })
}

/// The links of which this holds.
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

fn attached(attributes: &[LinkXdp]) -> Option<AttachedProgram> {
    let mut program = AttachedProgram::default();
    for attribute in attributes {
        match attribute {
            LinkXdp::Attached(mode) => program.generic = *mode == XdpAttached::SocketBuffer,
            LinkXdp::ProgId(id)
            | LinkXdp::DrvProgId(id)
            | LinkXdp::SkbProgId(id)
            | LinkXdp::HwProgId(id) => program.ids.push(*id),
            _ => {}
        }
    }
    program.ids.retain(|&id| id > 0);
    program.ids.sort_unstable();
    program.ids.dedup();
    if program.ids.is_empty() {
        return None;
    }
    program.name = program.ids.iter().find_map(|&id| program::name_of(id));
    program.holder = holder::find(&program.ids);
    Some(program)
}
