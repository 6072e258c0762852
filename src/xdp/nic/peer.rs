//! The other end of a veth, if we may look at it.
//!
//! A veth leaves checksums and VLAN tags to a NIC that does not exist, so we receive the frames
//! with that work undone. The other end mostly lies in another network namespace. The kernel
//! reports its index there and the namespace's identifier here. The identifier is compared with
//! those of the namespaces that have a file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::Serialize;

use super::ethtool::{Offloads, offloads};
use super::link_facts::LinkFacts;
use super::link_messages::{ask, connect, name_of};

/// Most processes whose namespaces are examined.
const PROCESSES_MAX: usize = 4096;

/// The other end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Peer {
    /// Its name, if it could be found.
    pub interface: Option<String>,
    /// The file of its network namespace; None if that is ours, or was not found.
    pub namespace: Option<PathBuf>,
    /// Its work on frames that it sends to us.
    pub offloads: Option<Offloads>,
}

/// Look for the other end of this veth.
pub(super) fn find(link: &LinkFacts) -> Option<Peer> {
    let (index, namespace) = link.other_end?;
    let Some(id) = namespace else { return look(index) };
    let place = ask(async { find_namespace(&connect()?, id).await }).ok().flatten();
    let Some((path, file)) = place else { return Some(Peer::default()) };
    // Only the thread that enters the namespace is in it, and it ends with the answer.
    let inside = || {
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).ok()?;
        look(index)
    };
    let found = std::thread::scope(|scope| scope.spawn(inside).join().ok().flatten());
    Some(Peer { namespace: Some(path), ..found.unwrap_or_default() })
}

/// The end with this index in the namespace we are in.
fn look(index: u32) -> Option<Peer> {
    let found = ask(async {
        let link = connect()?.link().get().match_index(index).execute().try_next().await;
        let name = name_of(&link.ok()??)?;
        let offloads = offloads(&name).await;
        Some(Peer { interface: Some(name), namespace: None, offloads })
    });
    found.ok().flatten()
}

/// The namespace with this identifier here, among those with a name and those of processes.
async fn find_namespace(handle: &Handle, id: i32) -> Option<(PathBuf, File)> {
    let named = paths_in("/run/netns").map(|entry| entry.to_owned());
    let numeric = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit))
    };
    let processes = paths_in("/proc").filter(numeric).map(|process| process.join("ns/net"));
    let mut seen = BTreeSet::new();
    for path in named.chain(processes.take(PROCESSES_MAX)) {
        // Another user's process is hidden from us, and one may have ended.
        let Ok(file) = File::open(&path) else { continue };
        let Ok(metadata) = file.metadata() else { continue };
        if seen.insert(metadata.ino()) && identifier(handle.clone(), &file).await == Some(id) {
            return Some((path, file));
        }
    }
    None
}

fn paths_in(folder: &str) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The identifier of a namespace in ours (RTM_GETNSID); None if it has none here.
async fn identifier(mut handle: Handle, namespace: &File) -> Option<i32> {
    let mut question = NsidMessage::default();
    let descriptor = u32::try_from(namespace.as_raw_fd()).ok()?;
    question.attributes.push(NsidAttribute::Fd(descriptor));
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
    request.header.flags = NLM_F_REQUEST;
    match handle.request(request).ok()?.next().await?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
            let id = |attribute: &NsidAttribute| match attribute {
                NsidAttribute::Id(id) => Some(*id),
                _ => None,
            };
            answer.attributes.iter().find_map(id)
        }
        _ => None,
    }
}
