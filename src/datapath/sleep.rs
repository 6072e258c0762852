//! Sleep of a worker: it waits for its inbox, its sockets and the kicks of its rings. Some changes
//! come without an event, so the worker polls for those.

use std::os::fd::OwnedFd;

use rustix::event::{Timespec, epoll};

use crate::virtqueue::EventFd;
use crate::xdp::Socket;

use super::handover::Inbox;
use super::ids::{PortId, RingId};
use super::plane::Plane;

/// Longest sleep, in milliseconds, while something must be polled: a ring without a kick
/// descriptor, or a transmit ring that the kernel did not empty.
const POLL_MS: i64 = 1;

/// An event source of a sleeping worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// Commands and handovers of other threads.
    Inbox,
    /// A socket, by its place.
    Socket(u32),
    /// A ring.
    Kick(RingId),
}

impl Awaited {
    /// As the data of an epoll event: the kind in the upper half, which of it in the lower.
    fn data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Inbox => 0,
            Self::Socket(socket) => 1 << 32 | u64::from(socket),
            Self::Kick(RingId { port, index }) => {
                2 << 32 | u64::from(port.0) << 16 | u64::from(index)
            }
        })
    }

    // Each part is as wide as its type.
    #[allow(clippy::cast_possible_truncation)]
    fn from_data(data: u64) -> Self {
        match data >> 32 {
            0 => Self::Inbox,
            1 => Self::Socket(data as u32),
            _ => Self::Kick(RingId { port: PortId((data >> 16) as u16), index: data as u16 }),
        }
    }
}

/// Waits.
#[derive(Debug)]
pub(super) struct Sleeper {
    epoll: OwnedFd,
}

impl Sleeper {
    /// One that waits for this inbox.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn new(inbox: &Inbox) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, inbox.wake_fd(), Awaited::Inbox.data(), edge)?;
        Ok(Self { epoll })
    }

    /// Start or stop waking up when the driver of a ring kicks.
    pub fn await_kicks(&self, ring: RingId, kick: &EventFd, wanted: bool) {
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let done = if wanted {
            epoll::add(&self.epoll, kick, Awaited::Kick(ring).data(), edge)
        } else {
            epoll::delete(&self.epoll, kick)
        };
        if let Err(error) = done {
            let RingId { port, index } = ring;
            tracing::error!(?port, index, %error, "cannot wait for the ring's kicks");
        }
    }

    /// Wait for an event: of all of `plane`, or of the inbox alone.
    pub fn wait(&self, plane: &mut Plane, inbox_alone: bool) {
        if inbox_alone {
            return self.wait_for_events(plane, false);
        }
        self.await_sockets(plane, true);
        let poll = must_poll(plane);
        self.wait_for_events(plane, poll);
        self.await_sockets(plane, false);
    }

    fn wait_for_events(&self, plane: &mut Plane, poll: bool) {
        let milliseconds = Timespec { tv_sec: 0, tv_nsec: POLL_MS * 1_000_000 };
        let timeout = poll.then_some(&milliseconds);
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        // An interrupted wait is a wake-up like any other.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, timeout) else { return };
        for event in events {
            let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            let flags = event.flags;
            match Awaited::from_data(event.data.u64()) {
                // Looked at first, among so many that may be quiet.
                Awaited::Kick(ring) => plane.rotation.kicked(ring),
                Awaited::Socket(socket) if flags.intersects(broken) => {
                    self.stop_waiting_for(plane, socket);
                }
                Awaited::Socket(_) | Awaited::Inbox => {}
            }
        }
    }

    /// Start or stop waking up when a socket receives.
    ///
    /// Sockets are awaited only while asleep. The kernel calls each waiter of a socket for every
    /// packet transmitted, wanted or not (sock_wfree, sock_def_write_space): some 150 cycles each.
    fn await_sockets(&self, plane: &Plane, wanted: bool) {
        for (index, place) in (0..).zip(&plane.sockets.places) {
            let socket = place.socket.as_ref().filter(|_| !place.failed);
            let Some(fd) = socket.and_then(Socket::fd) else { continue };
            let done = if wanted {
                let data = Awaited::Socket(index).data();
                epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)
            } else {
                epoll::delete(&self.epoll, fd)
            };
            if let Err(error) = done {
                tracing::error!(queue = place.queue, %error, "cannot wait for the socket");
            }
        }
    }

    /// Stop waiting for a socket that reports an error for ever, since its NIC is gone. The control
    /// plane asks workers for such sockets.
    #[cold]
    fn stop_waiting_for(&self, plane: &mut Plane, place: u32) {
        let place = &mut plane.sockets.places[place as usize];
        place.failed = true;
        if let Some(fd) = place.socket.as_ref().and_then(Socket::fd) {
            // It was added just now; a failure would be reported by the next attempt to add it.
            let _ = epoll::delete(&self.epoll, fd);
        }
    }
}

/// Whether something must be polled, since no event announces it. Packets that the kernel did not
/// take are offered to it again.
fn must_poll(plane: &mut Plane) -> bool {
    let mut backlog = plane.ports.signals_wait();
    for socket in plane.sockets.places.iter_mut().filter_map(|place| place.socket.as_mut()) {
        if socket.has_backlog() {
            socket.retry();
            backlog |= socket.has_backlog();
        }
    }
    let polled = |ring| {
        let ring = plane.ports.ring(ring);
        ring.is_some_and(|ring| ring.kick.is_none() && ring.broken.is_none())
    };
    backlog || plane.rotation.all().any(polled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_awaited_is_found_again_by_an_event_s_data() {
        let last = RingId { port: PortId(u16::MAX), index: u16::MAX };
        for awaited in [
            Awaited::Inbox,
            Awaited::Socket(0),
            Awaited::Socket(u32::MAX),
            Awaited::Kick(RingId { port: PortId(0), index: 1 }),
            Awaited::Kick(last),
        ] {
            assert_eq!(Awaited::from_data(awaited.data().u64()), awaited);
        }
    }
}
