//! Between workers: a packet whose ring belongs to another worker is handed over, never delivered
//! across.
//!
//! Each worker has one bounded inbox. A frame from an uplink is handed over as it is, and returns
//! to the socket that received it. A packet from a guest travels in one of the worker's own
//! buffers, of which each port has its share; the buffer returns too. A packet from the control
//! plane travels in a buffer of its pool.
//!
//! A sender drops and counts a packet that finds an inbox full. Placement makes handovers the
//! exception.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam::queue::ArrayQueue;

use crate::packet::{FRAME_MAX, Offload, checksum};
use crate::xdp::{Frame, Received};

use super::decision::Flood;
use super::ids::{PortId, QueuePair, UplinkId, WorkerId};
use super::shares::Shares;

/// Longest packet that is handed over in a buffer.
pub const PACKET_BYTES_MAX: usize = FRAME_MAX;

/// Packets that can wait in one inbox.
const INBOX_PACKETS: usize = 1024;

/// Buffers of each worker, as in the pool.
const BUFFERS: usize = 512;

/// Buffers in the control plane's pool. Each has room for the longest frame, but uses memory only
/// where packets have been. A pool that has carried only small packets uses a page per buffer.
const POOL_PACKETS: usize = 1024;

/// A packet in a buffer of ours.
#[derive(Debug)]
pub struct Packet {
    /// As long as the longest packet that it has held.
    bytes: Vec<u8>,
    len: usize,
    /// The work left to do on it.
    pub offload: Offload,
    /// The worker that owns the buffer, and the port that uses it; None for the control plane's.
    home: Option<(WorkerId, PortId)>,
}

impl Packet {
    fn new() -> Self {
        // Memory that is not touched costs nothing: zeroed, a pool takes tens of milliseconds.
        let bytes = Vec::with_capacity(PACKET_BYTES_MAX);
        Self { bytes, len: 0, offload: Offload::PLAIN, home: None }
    }

    /// Return it to its origin: to `pool`, or into the inbox of its worker.
    pub fn go_home<'i>(self, pool: &PacketPool, inbox: impl FnOnce(WorkerId) -> &'i Inbox) {
        match self.home {
            // As many places as buffers.
            Some((worker, _)) => drop(inbox(worker).buffers.push(self)),
            None => pool.put(self),
        }
    }

    /// The packet.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Complete a checksum that is not of the packet's transport. No receiver may do this: it may
    /// have decided something by the bytes that the checksum is written to.
    pub fn settle_checksum(&mut self) {
        let Self { bytes, len, offload, .. } = self;
        let bytes = &mut bytes[..*len];
        if let Some(checksum) = offload.checksum
            && offload.segmentation.is_none()
            && !checksum.is_of_transport(bytes)
        {
            let fits = checksum::complete(bytes, checksum);
            debug_assert!(fits, "checked when the header was read");
            offload.checksum = None;
        }
    }

    /// Make it a complete packet of `len` bytes, and give those to fill in.
    ///
    /// # Panics
    /// Above [`PACKET_BYTES_MAX`]; callers have checked the frame.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        assert!(len <= PACKET_BYTES_MAX, "a packet of {len} bytes");
        self.len = len;
        self.offload = Offload::PLAIN;
        if self.bytes.len() < len {
            // Within the capacity, and only for a packet longer than all before.
            self.bytes.resize(len, 0);
        }
        &mut self.bytes[..len]
    }
}

/// The buffers that are not under way. Any thread takes and returns them.
#[derive(Clone, Debug)]
pub struct PacketPool(Arc<ArrayQueue<Packet>>);

impl PacketPool {
    /// A full pool.
    #[must_use]
    pub fn new() -> Self {
        let pool = ArrayQueue::new(POOL_PACKETS);
        for _ in 0..POOL_PACKETS {
            let _ = pool.push(Packet::new());
        }
        Self(Arc::new(pool))
    }

    /// A buffer; None while all are under way.
    #[must_use]
    pub fn take(&self) -> Option<Packet> {
        self.0.pop()
    }

    /// Give a buffer back.
    pub fn put(&self, packet: Packet) {
        // As many places as buffers.
        let _ = self.0.push(packet);
    }
}

impl Default for PacketPool {
    fn default() -> Self {
        Self::new()
    }
}

/// A worker's own buffers, those that are not under way.
#[derive(Debug)]
pub(super) struct Buffers {
    worker: WorkerId,
    free: Vec<Packet>,
    shares: Shares,
}

impl Buffers {
    /// All of them.
    pub fn new(worker: WorkerId) -> Self {
        let free: Vec<_> = std::iter::repeat_with(Packet::new).take(BUFFERS).collect();
        // A small constant.
        #[allow(clippy::cast_possible_truncation)]
        let shares = Shares::new(BUFFERS as u32);
        Self { worker, free, shares }
    }

    /// Have shares for so many ports from now on.
    pub fn divide(&mut self, ports: u32) {
        self.shares.divide(ports);
    }

    /// A buffer for a packet of this port. None while the port holds its share and the others leave
    /// it no more.
    pub fn take(&mut self, port: PortId) -> Option<Packet> {
        // At most BUFFERS.
        #[allow(clippy::cast_possible_truncation)]
        let free = self.free.len() as u32;
        if self.shares.allowance(port, free) == 0 {
            return None;
        }
        let mut packet = self.free.pop()?;
        packet.home = Some((self.worker, port));
        self.shares.take(port, 1);
        Some(packet)
    }

    /// Take a buffer back.
    pub fn put(&mut self, packet: Packet) {
        if let Some((_, port)) = packet.home {
            self.shares.give_back(port, 1);
        }
        self.free.push(packet);
    }
}

/// Where a handed-over packet goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One queue pair of a port, served by the receiving worker.
    Pair(QueuePair),
    /// The switched port of an uplink that it is for, or all of them, as if it came from the wire.
    Arrival {
        /// The uplink.
        uplink: UplinkId,
    },
    /// The receiving worker's part of the ports that a frame is for.
    Flood(Flood),
    /// The wire and all other switched ports, as if it came from this port.
    FloodFrom {
        /// The port.
        port: PortId,
    },
}

/// A handover from one worker to another.
#[derive(Debug)]
pub enum Handover {
    /// A received frame, to be returned when it is delivered.
    Frame {
        /// Whose frame it is.
        home: WorkerId,
        /// The home worker's place of the socket that received it.
        place: usize,
        /// The packet, in the memory of that uplink.
        received: Received,
        /// Where to.
        to: QueuePair,
    },
    /// A packet in a buffer.
    Packet {
        /// The packet.
        packet: Packet,
        /// Where to.
        target: Target,
    },
}

/// A worker's inbox, shared with all threads that hand packets to it.
#[derive(Debug)]
pub struct Inbox {
    handovers: ArrayQueue<Handover>,
    /// Returning frames, with their socket's place and the port that they were lent for; room for
    /// all that may be away.
    homecoming: ArrayQueue<(usize, PortId, Frame)>,
    /// Returning buffers; room for all there are.
    buffers: ArrayQueue<Packet>,
    /// Set while the worker sleeps or is about to.
    sleeping: AtomicBool,
    wake: File,
}

impl Inbox {
    /// Places for all packets that so many workers can have under way to one worker. With up to 16
    /// workers the inbox is never full.
    #[must_use]
    pub fn places_for(workers: usize) -> usize {
        INBOX_PACKETS * workers.clamp(1, 16)
    }

    /// An empty one, for a worker that lends no more than `frames` frames at a time.
    ///
    /// # Errors
    /// No descriptor left for the eventfd.
    pub fn new(frames: usize) -> std::io::Result<Self> {
        Self::with_places(INBOX_PACKETS, frames)
    }

    /// As [`new`](Self::new), for at most `packets` packets.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_places(packets: usize, frames: usize) -> std::io::Result<Self> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        Ok(Self {
            handovers: ArrayQueue::new(packets),
            homecoming: ArrayQueue::new(frames.max(1)),
            buffers: ArrayQueue::new(BUFFERS),
            sleeping: AtomicBool::new(false),
            wake: rustix::event::eventfd(0, flags)?.into(),
        })
    }

    /// Hand a packet over.
    ///
    /// # Errors
    /// The packet, if the inbox is full.
    // The error is the argument itself, which the caller must dispose of.
    #[allow(clippy::result_large_err)]
    pub fn hand_over(&self, handover: Handover) -> Result<(), Handover> {
        self.handovers.push(handover)?;
        self.wake_if_asleep();
        Ok(())
    }

    /// Whether nothing waits in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.handovers.is_empty() && self.homecoming.is_empty()
    }

    pub(super) fn send_home(&self, place: usize, port: PortId, frame: Frame) {
        let sent = self.homecoming.push((place, port, frame));
        assert!(sent.is_ok(), "more frames came home than ever left");
        self.wake_if_asleep();
    }

    // Looked at every turn and nearly always empty: to pop from an empty queue costs a fence.

    #[inline]
    /// The next packet, if there is one.
    pub fn next(&self) -> Option<Handover> {
        if self.handovers.is_empty() { None } else { self.handovers.pop() }
    }

    #[inline]
    pub(super) fn next_home(&self) -> Option<(usize, PortId, Frame)> {
        if self.homecoming.is_empty() { None } else { self.homecoming.pop() }
    }

    #[inline]
    pub(super) fn next_buffer(&self) -> Option<Packet> {
        if self.buffers.is_empty() { None } else { self.buffers.pop() }
    }

    /// Announce that the worker sleeps; it must look at everything once more before it does.
    pub fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, Ordering::SeqCst);
        // Pairs with the fence in `wake_if_asleep`: either the sender sees us asleep, or we see
        // what was sent.
        fence(Ordering::SeqCst);
    }

    fn wake_if_asleep(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    /// Wake the worker.
    pub fn wake(&self) {
        // The only failure is a full counter, which has woken it already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Readable once it was woken.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
