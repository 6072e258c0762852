//! What the kernel says of a NIC: asked over netlink, before anything is bound.

use std::fs;
use std::io;

use futures_util::TryStreamExt;
use libbpf_rs::libbpf_sys;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};

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
    /// Most frames of one packet that the driver takes in zero-copy mode; 1 where it takes no more,
    /// has no zero-copy, or does not say.
    pub zero_copy_frames: u32,
}

/// Why the facts could not be had.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// No such NIC in this network namespace.
    #[error("there is no interface {0:?} in this network namespace; see `ip link`")]
    NotFound(String),
    /// The netlink socket failed.
    #[error("cannot ask the kernel about interface {name:?}")]
    Netlink {
        /// Asked for.
        name: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl Interface {
    /// Ask the kernel. Blocks; call it from the control plane only.
    ///
    /// # Errors
    /// [`InterfaceError`].
    pub fn read(name: &str) -> Result<Self, InterfaceError> {
        let failed = |source| InterfaceError::Netlink { name: name.to_owned(), source };
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        runtime.block_on(async {
            let link = link(name).await?;
            let channels = receive_channels(name).await;
            let interface = from_link(name, &link, channels);
            let zero_copy_frames = zero_copy_frames(interface.index);
            Ok(Self { zero_copy_frames, ..interface })
        })
    }
}

async fn link(name: &str) -> Result<LinkMessage, InterfaceError> {
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

/// Receive channels in use, as the driver reports them: drivers with paired queues say "combined",
/// veth says "rx". None where the driver does not say.
async fn receive_channels(name: &str) -> Option<u32> {
    use ethtool::{EthtoolAttr, EthtoolChannelAttr};
    let (connection, mut handle, _) = ethtool::new_connection().ok()?;
    tokio::spawn(connection);
    let mut messages = handle.channel().get(Some(name)).execute().await.ok()?;
    let message = messages.try_next().await.ok()??;
    let count = message.payload.nlas.iter().map(|attribute| match attribute {
        EthtoolAttr::Channel(
            EthtoolChannelAttr::RxCount(count) | EthtoolChannelAttr::CombinedCount(count),
        ) => *count,
        _ => 0,
    });
    Some(count.sum()).filter(|&count| count > 0)
}

/// NETDEV_A_DEV_XDP_ZC_MAX_SEGS of linux/netdev.h; kernels before 6.6 do not know it.
fn zero_copy_frames(index: u32) -> u32 {
    let mut answer = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as u64,
        ..Default::default()
    };
    // An interface index is positive and fits the C int that the call takes.
    #[allow(clippy::cast_possible_wrap)]
    let index = index as i32;
    // SAFETY: the answer's size field says how long it is, and it outlives the call.
    let result = unsafe { libbpf_sys::bpf_xdp_query(index, 0, &raw mut answer) };
    if result == 0 { answer.xdp_zc_max_segs.max(1) } else { 1 }
}

fn from_link(name: &str, link: &LinkMessage, channels: Option<u32>) -> Interface {
    let mut interface = Interface {
        name: name.to_owned(),
        index: link.header.index,
        driver: driver_of(name).unwrap_or_else(|| "unknown".to_owned()),
        mac: [0; 6],
        mtu: 0,
        up: link.header.flags.contains(LinkFlags::Up),
        receive_queues: 1,
        zero_copy_frames: 1,
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => {
                interface.mac = bytes.as_slice().try_into().unwrap_or_default();
            }
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::NumRxQueues(queues) => interface.receive_queues = *queues,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        interface.driver = kind_name(kind);
                    }
                }
            }
            _ => {}
        }
    }
    // What the driver says it uses; the link's number counts all that were allocated.
    interface.receive_queues = channels.unwrap_or(interface.receive_queues);
    interface
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

/// The driver of a NIC on a bus; virtual devices have none.
fn driver_of(name: &str) -> Option<String> {
    let target = fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}
