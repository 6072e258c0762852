//! What one process leaves to the next, as data: JSON, and beside it descriptors, which it names by
//! their place.
//!
//! Two documents. The [`Foundation`] is what stays as it is, and is given while packets still move:
//! the next process maps and makes all it can from it. The [`Traffic`] is where everything stood
//! when it stopped.
//!
//! Fields are added, with a default, and ignored by those who do not know them; [`VERSION`] changes
//! when that is not enough, and then the next process refuses. A session is a list of vhost-user
//! messages, whose form is not ours to change.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::platform::unix_socket::FileIdentity;
use crate::vhost_user::{RecordedMessage, SessionRecord};
use crate::xdp::{InheritedUplink, PausedSocket, XdpAttachment};

/// Of both documents.
pub(super) const VERSION: u32 = 1;

/// The place of a descriptor.
pub(super) type DescriptorIndex = usize;

/// What stays as it is.
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
    /// All ports, each a [`PortRecord`]. Whoever sends them waits for
    /// [`SuccessorAnswer::Prepared`] and not for [`SuccessorAnswer::Ready`], which is all that
    /// older versions know.
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
    /// The file of its name; None if that is not told, or if it has none.
    #[serde(default)]
    pub file: Option<FileIdentity>,
}

/// Where everything stood.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Traffic {
    pub version: u32,
    /// When, by CLOCK_MONOTONIC, nanoseconds.
    pub stopped_at: u64,
    /// By interface.
    pub sockets: Vec<(String, PausedSocket)>,
    /// When sessions were asked to pause, by the same clock; 0 if that is not told.
    #[serde(default)]
    pub asked_at: u64,
    /// Who takes it has everything; without it, who says `taken`.
    #[serde(default)]
    pub token: Option<DescriptorIndex>,
    /// Ports whose session did not pause.
    #[serde(default)]
    pub reconnecting: Vec<String>,
    /// Each a [`SessionPart`], on its own: what is not understood of one is that one's loss.
    pub sessions: Vec<serde_json::Value>,
}

/// One session.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SessionPart {
    pub port: String,
    pub stream: DescriptorIndex,
    pub said: Vec<SaidPart>,
    pub ran: Vec<Option<u16>>,
    /// The base that the front-end knows of each ring that is elsewhere. Older versions do not tell
    /// it, and take it to be where the ring is.
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

/// Descriptors on their way, each with its place.
#[derive(Debug, Default)]
pub(super) struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// As they came.
    pub fn of(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// Add one.
    pub fn put(&mut self, descriptor: OwnedFd) -> DescriptorIndex {
        self.0.push(Some(descriptor));
        self.0.len() - 1
    }

    /// Take the one at a place; none if the document is wrong about it.
    pub fn take(&mut self, place: DescriptorIndex) -> Option<OwnedFd> {
        self.0.get_mut(place)?.take()
    }

    /// All that are still there.
    pub fn iter(&self) -> impl Iterator<Item = &OwnedFd> {
        self.0.iter().flatten()
    }
}

impl UplinkPart {
    /// With its descriptors; None if they are not all there.
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
    /// Apart from its descriptors.
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
    /// With its descriptors: the port, the connection and what was said on it.
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
