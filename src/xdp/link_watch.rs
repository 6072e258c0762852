//! Changes of a NIC while it is in use, as the kernel reports them (rtnetlink(7)).
//!
//! A message says only when to look; the link's present state decides. So a lost message does no
//! harm beyond the next look. Only the removal of a link is taken from the message: another link
//! may have its index by then.

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use super::nic::mac_of;

/// A link as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// Up, and with a carrier.
    pub running: bool,
    /// MTU, bytes.
    pub mtu: u32,
    /// Its own MAC; zero if it has none.
    pub mac: [u8; 6],
}

/// The result of a wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkNews {
    /// Something has changed, of whatever link.
    pub any: bool,
    /// The indices of links that were removed.
    pub removed: Vec<u32>,
}

/// One message: the index of the link that it reports as removed, if it does.
type Removed = Option<u32>;

/// The links of this network namespace.
pub struct Links {
    runtime: Runtime,
    handle: Handle,
    messages: BoxStream<'static, Removed>,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Links {
    /// Start to listen.
    ///
    /// # Errors
    /// No socket to be had.
    pub fn listen() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (handle, messages) = connect(&runtime)?;
        Ok(Self { runtime, handle, messages })
    }

    /// Wait for news, for `limit`, or for `stop`: then None.
    ///
    /// # Errors
    /// The socket failed, most likely since messages came faster than they were read. It has been
    /// replaced then, and something may have changed.
    pub fn wait(&mut self, limit: Duration, stop: &Notify) -> io::Result<Option<LinkNews>> {
        let Self { runtime, messages, .. } = self;
        let woken = runtime.block_on(async {
            tokio::select! {
                () = stop.notified() => None,
                message = messages.next() => Some(Some(message)),
                () = tokio::time::sleep(limit) => Some(None),
            }
        });
        let mut next = match woken {
            None => return Ok(None),
            Some(None) => return Ok(Some(LinkNews::default())),
            Some(Some(message)) => message,
        };
        let mut news = LinkNews { any: true, removed: Vec::new() };
        loop {
            match next {
                Some(removed) => news.removed.extend(removed),
                None => {
                    (self.handle, self.messages) = connect(&self.runtime)?;
                    return Ok(Some(news));
                }
            }
            match self.messages.next().now_or_never() {
                Some(message) => next = message,
                None => return Ok(Some(news)),
            }
        }
    }

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// The socket failed.
    pub fn by_index(&self, index: u32) -> io::Result<Option<Link>> {
        self.ask(self.handle.link().get().match_index(index).execute())
    }

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// The socket failed.
    pub fn by_name(&self, name: &str) -> io::Result<Option<Link>> {
        self.ask(self.handle.link().get().match_name(name.to_owned()).execute())
    }

    fn ask(
        &self,
        answers: impl futures_util::Stream<Item = Result<LinkMessage, rtnetlink::Error>>,
    ) -> io::Result<Option<Link>> {
        let mut answers = std::pin::pin!(answers);
        match self.runtime.block_on(answers.try_next()) {
            Ok(message) => Ok(message.as_ref().map(link)),
            Err(rtnetlink::Error::NetlinkError(error))
                if error.to_io().raw_os_error() == Some(libc::ENODEV) =>
            {
                Ok(None)
            }
            Err(error) => Err(io::Error::other(error)),
        }
    }
}

fn connect(runtime: &Runtime) -> io::Result<(Handle, BoxStream<'static, Removed>)> {
    let _inside = runtime.enter();
    let (connection, handle, messages) = new_multicast_connection(&[MulticastGroup::Link])?;
    runtime.spawn(connection);
    let removed = messages.map(|(message, _)| match message.payload {
        // A bridge reports a port that leaves it in the same way, except for the family.
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))
            if link.header.interface_family == AddressFamily::Unspec =>
        {
            Some(link.header.index)
        }
        _ => None,
    });
    Ok((handle, removed.boxed()))
}

fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let up = flags.contains(LinkFlags::Up);
    let running = up && flags.contains(LinkFlags::LowerUp);
    let (index, name, mac) = (message.header.index, String::new(), mac_of(message));
    let mut link = Link { index, name, up, running, mtu: 0, mac };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}
