//! Questions to the kernel about links, in the route netlink family, and its answers.

use std::fs;
use std::io;

use futures_util::TryStreamExt;
use rtnetlink::Handle;
use rtnetlink::packet_route::link::{LinkAttribute, LinkInfo, LinkMessage};

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

/// Ask the kernel, and wait for the answers.
pub(crate) fn ask<T>(questions: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(questions))
}

/// One link, by name.
pub(crate) async fn link(name: &str) -> Result<LinkMessage, InterfaceError> {
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
pub(crate) fn driver(name: &str, link: &LinkMessage) -> String {
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
pub(crate) fn mac_of(link: &LinkMessage) -> [u8; 6] {
    let bytes = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    });
    bytes.unwrap_or_default()
}

/// The links of this namespace that have a MAC: name and MAC.
pub(crate) async fn macs() -> io::Result<Vec<(String, [u8; 6])>> {
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
