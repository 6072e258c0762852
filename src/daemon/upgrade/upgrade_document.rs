//! The data that one process hands to the next: JSON, and beside it descriptors, which it names by
//! their place.
//!
//! There are two documents. The [`Foundation`] does not change, and is given while packets still
//! move: the next process maps and makes all it can from it. The [`Traffic`] has the state at the
//! pause.
//!
//! Fields are added, with a default, and readers ignore those that they do not know. [`VERSION`]
//! changes when that is not enough, and then the next process refuses. A session is a list of
//! vhost-user messages, whose form is not ours to change.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::platform::unix_socket::FileIdentity;
use crate::vhost_user::{RecordedMessage, SessionRecord};
use crate::xdp::{InheritedUplink, PausedSocket, XdpAttachment};

/// The version of both documents.
pub(super) const VERSION: u32 = 1;

/// The place of a descriptor.
pub(super) type DescriptorIndex = usize;

/// The part of the state that does not change.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Foundation {
    pub version: u32,
    pub uplinks: Vec<UplinkPart>,
    /// The API's listening socket.
    pub api: Option<DescriptorIndex>,
    /// The file of its name.
    #[serde(default)]
    pub api_file: Option<FileIdentity>,
    /// The lock of the state directory.
    #[serde(default)]
    pub state_lock: Option<DescriptorIndex>,
    /// The lock of the runtime directory; older versions have none.
    #[serde(default)]
    pub runtime_lock: Option<DescriptorIndex>,
    pub listeners: Vec<ListenerPart>,
    /// All ports, each a [`PortRecord`]. A sender of them waits for [`SuccessorAnswer::Prepared`]
    /// and not for [`SuccessorAnswer::Ready`], the only one that older versions know.
    ///
    /// [`PortRecord`]: crate::daemon::ports::PortRecord
    /// [`SuccessorAnswer::Prepared`]: super::successor_answer::SuccessorAnswer::Prepared
    /// [`SuccessorAnswer::Ready`]: super::successor_answer::SuccessorAnswer::Ready
    #[serde(default)]
    pub ports: Option<Vec<serde_json::Value>>,
}

/// One NIC.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct UplinkPart {
    pub interface: String,
    pub index: u32,
    #[serde(flatten)]
    pub attachment: XdpAttachment,
    pub link: DescriptorIndex,
    pub tap: DescriptorIndex,
    pub umem: DescriptorIndex,
    /// By queue.
    pub sockets: Vec<(u32, DescriptorIndex)>,
}

/// One port's listening socket.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ListenerPart {
    pub port: String,
    pub path: PathBuf,
    pub listener: DescriptorIndex,
    /// The file of its name; None if it is unknown, or if it has none.
    #[serde(default)]
    pub file: Option<FileIdentity>,
}

/// The state at the pause.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Traffic {
    pub version: u32,
    /// The time of the pause, by CLOCK_MONOTONIC, nanoseconds.
    pub stopped_at: u64,
    /// By interface.
    pub sockets: Vec<(String, PausedSocket)>,
    /// The time when sessions were asked to pause, by the same clock; 0 if unknown.
    #[serde(default)]
    pub asked_at: u64,
    /// The process that takes it owns everything; without it, the process that answers `taken`.
    #[serde(default)]
    pub token: Option<DescriptorIndex>,
    /// Ports whose session did not pause.
    #[serde(default)]
    pub reconnecting: Vec<String>,
    /// Each a [`SessionPart`], read on its own: one that cannot be read costs only its own session.
    pub sessions: Vec<serde_json::Value>,
}

/// One session.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SessionPart {
    pub port: String,
    pub stream: DescriptorIndex,
    pub said: Vec<SaidPart>,
    pub ran: Vec<Option<u16>>,
    /// The base that the front-end knows of each ring whose position differs. Older versions do not
    /// send it, and take it to be the position.
    #[serde(default)]
    pub named: Vec<Option<u32>>,
}

/// One message.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SaidPart {
    pub code: u32,
    pub body: Vec<u8>,
    pub descriptors: Vec<DescriptorIndex>,
}

/// Descriptors to be sent, each with its place.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// The received descriptors, in their order.
    pub fn of(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// Add one.
    pub fn put(&mut self, descriptor: OwnedFd) -> DescriptorIndex {
        self.0.push(Some(descriptor));
        self.0.len() - 1
    }

    /// Take the descriptor at a place; None if the document names a wrong one.
    pub fn take(&mut self, place: DescriptorIndex) -> Option<OwnedFd> {
        self.0.get_mut(place)?.take()
    }

    /// All that were not taken.
    pub fn iter(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().flatten()
    }
}

impl UplinkPart {
    /// The uplink with its descriptors; None if they are not all there.
    pub fn join(self, descriptors: &mut Descriptors) -> Option<InheritedUplink> {
        let sockets = self.sockets.into_iter();
        let sockets = sockets.map(|(queue, place)| Some((queue, descriptors.take(place)?)));
        Some(InheritedUplink {
            index: self.index,
            attachment: self.attachment,
            sockets: sockets.collect::<Option<_>>()?,
            link: descriptors.take(self.link)?,
            tap: descriptors.take(self.tap)?,
            umem: descriptors.take(self.umem)?,
        })
    }
}

impl SaidPart {
    /// The message as a part, with its descriptors put aside.
    pub fn part(said: RecordedMessage, descriptors: &mut Descriptors) -> Self {
        let RecordedMessage { code, body, descriptors: own } = said;
        let places = own.into_iter().map(|own| descriptors.put(own)).collect();
        Self { code, body, descriptors: places }
    }

    fn join(self, descriptors: &mut Descriptors) -> Option<RecordedMessage> {
        let own = self.descriptors.into_iter().map(|place| descriptors.take(place));
        Some(RecordedMessage {
            code: self.code,
            body: self.body,
            descriptors: own.collect::<Option<_>>()?,
        })
    }
}

impl SessionPart {
    /// The port, the connection and its messages, with their descriptors.
    pub fn join(self, descriptors: &mut Descriptors) -> Option<(String, OwnedFd, SessionRecord)> {
        let stream = descriptors.take(self.stream)?;
        let said = self.said.into_iter().map(|said| said.join(descriptors));
        let said = said.collect::<Option<_>>()?;
        let record = SessionRecord { messages: said, ran: self.ran, named: self.named };
        Some((self.port, stream, record))
    }
}

/// CLOCK_MONOTONIC, which all processes share, in nanoseconds.
pub(super) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or_default();
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_older_version_does_not_say_is_no_mistake() {
        let session = r#"{"port": "vm1", "stream": 0, "said": [], "ran": [null]}"#;
        let session: SessionPart = serde_json::from_str(session).unwrap();
        assert!(session.named.is_empty());
        let foundation = r#"{"version": 1, "uplinks": [], "api": null, "listeners": []}"#;
        let foundation: Foundation = serde_json::from_str(foundation).unwrap();
        assert_eq!((foundation.state_lock, foundation.runtime_lock), (None, None));
    }
}
