//! One AF_XDP socket: one queue of a NIC, with its four rings and its frames.

use std::any::Any;
use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::ptr;
use std::str::FromStr;
use std::sync::Arc;

use xsk_rs::config::{
    BindFlags, FrameSize, Interface as XskInterface, LibxdpFlags, QueueSize, SocketConfig,
    UmemConfig,
};
use xsk_rs::socket::SocketCreateError;
use xsk_rs::{CompQueue, FillQueue, RxQueue, TxQueue};

use super::ring::{Completion, Fill, RingParts, Rx, Tx};
use super::umem::{FRAGMENTS_MAX, FRAME_BYTES, FRAME_PACKET_MAX, Frame, Received, Umem};

/// Entries of each of a socket's rings, and frames it has in each direction.
pub const RING_ENTRIES: u32 = 2048;

/// The kernel transmits at most this many frames per call in copy mode (TX_BATCH_SIZE of
/// net/xdp/xsk.c); a larger backlog takes more calls.
const COPY_MODE_BATCH: u32 = 32;

/// How packets move between the NIC and our frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketMode {
    /// The NIC reads and writes the frames itself.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The frame memory could not be registered.
    #[error("cannot create the frame memory ({bytes} bytes); see `ulimit -l` and free memory")]
    Umem {
        /// Wanted.
        bytes: u64,
        /// The kernel's reason.
        #[source]
        source: xsk_rs::umem::UmemCreateError,
    },
    /// The socket could not be created or bound.
    #[error("cannot bind an AF_XDP socket to queue {queue} of {interface} in {mode:?} mode")]
    Bind {
        /// NIC.
        interface: String,
        /// Queue.
        queue: u32,
        /// Mode tried.
        mode: SocketMode,
        /// The kernel's reason.
        #[source]
        source: SocketCreateError,
    },
    /// The kernel refused the second view of the rings.
    #[error("cannot map the rings of queue {queue} of {interface}")]
    Map {
        /// NIC.
        interface: String,
        /// Queue.
        queue: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// The four rings of a socket.
#[derive(Debug)]
pub struct SocketParts {
    /// Received packets.
    pub rx: Rx,
    /// Packets to transmit.
    pub tx: Tx,
    /// Empty frames for the kernel.
    pub fill: Fill,
    /// Transmitted frames.
    pub completion: Completion,
}

/// Where a socket's frames are, for the accounts: the sum is always the number it started with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameCensus {
    /// Ours, ready to transmit with.
    pub free: u64,
    /// With the kernel, to receive into.
    pub receiving: u64,
    /// With the kernel, being transmitted.
    pub transmitting: u64,
    /// Received and not yet given back: with this worker or lent to another.
    pub away: u64,
}

impl FrameCensus {
    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.free + self.receiving + self.transmitting + self.away
    }
}

/// What the kernel counts of a socket (struct xdp_statistics of linux/if_xdp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelStatistics {
    /// Packets dropped for other reasons than the two below.
    pub rx_dropped: u64,
    /// Packets dropped because the rx ring was full.
    pub rx_ring_full: u64,
    /// Times the fill ring was empty.
    pub fill_ring_empty: u64,
    /// Descriptors refused, rx and tx.
    pub invalid: u64,
}

/// One queue of an uplink. Owned by one worker.
#[derive(Debug)]
pub struct Socket {
    queue: u32,
    umem: Arc<Umem>,
    parts: SocketParts,
    free: Vec<Frame>,
    census: FrameCensus,
    /// Packets put since the last `flush`.
    unflushed: bool,
    /// Packets that the kernel transmits in one call.
    call_batch: u32,
    /// Longest packet, bytes.
    packet_max: u32,
    /// In the middle of a received packet of too many frames, whose rest is dropped.
    cutting: bool,
    /// Received packets of too many frames.
    dropped_fragments: u64,
    /// The socket's descriptor, to wake the kernel; None for a ring pair in memory.
    fd: Option<RawFd>,
    /// Closes the socket when dropped; after the rings, which are mapped from it.
    owner: Option<XskQueues>,
}

/// The longest packet of a socket in this mode with at most `frames` frames to a packet.
///
/// What limits it is what a frame holds of a received packet. In zero-copy mode that is less where
/// packets have several: the kernel keeps 320 bytes at the end of each for itself, struct
/// skb_shared_info, and gives drivers a multiple of 128 (`xsk_pool_get_rx_frame_size`).
fn packet_max(mode: SocketMode, frames: usize) -> u32 {
    const SHARED_INFO: u32 = 320;
    let frames = u32::try_from(frames.min(FRAGMENTS_MAX)).expect("a small constant");
    match mode {
        SocketMode::ZeroCopy if frames > 1 => {
            frames * ((FRAME_PACKET_MAX - SHARED_INFO) / 128 * 128)
        }
        SocketMode::ZeroCopy | SocketMode::Copy => frames * FRAME_PACKET_MAX,
    }
}

/// What xsk-rs made; held for its destructors.
#[derive(Debug)]
struct XskQueues {
    tx: TxQueue,
    _rx: RxQueue,
    _fill: FillQueue,
    _completion: CompQueue,
}

impl Socket {
    /// A socket of these rings, with half of `frames` to transmit with and half to receive into.
    fn new(
        queue: u32,
        umem: Arc<Umem>,
        parts: SocketParts,
        frames: impl IntoIterator<Item = Frame>,
        packet_max: u32,
    ) -> Self {
        let mut socket = Self {
            queue,
            umem,
            parts,
            free: frames.into_iter().collect(),
            census: FrameCensus::default(),
            unflushed: false,
            call_batch: COPY_MODE_BATCH,
            packet_max,
            cutting: false,
            dropped_fragments: 0,
            fd: None,
            owner: None,
        };
        for frame in socket.free.split_off(socket.free.len() / 2) {
            socket.parts.fill.put(frame);
            socket.census.receiving += 1;
        }
        socket.parts.fill.release();
        socket.census.free = socket.free.len() as u64;
        socket
    }

    /// A socket that has all frames of its own UMEM, for packets of many frames.
    #[must_use]
    pub fn of_whole(queue: u32, umem: Arc<Umem>, parts: SocketParts) -> Self {
        let frames: Vec<_> = umem.divide().collect();
        Self::new(queue, umem, parts, frames, packet_max(SocketMode::Copy, FRAGMENTS_MAX))
    }

    /// Which queue of the NIC.
    #[must_use]
    pub fn queue(&self) -> u32 {
        self.queue
    }

    /// The memory of its frames.
    #[must_use]
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }

    /// The descriptor to wait on; None for a ring pair in memory.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is open while `owner` lives, which is as long as `self`.
        self.fd.map(|fd| unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The longest packet that this socket sends and receives, bytes.
    #[must_use]
    pub fn packet_max(&self) -> u32 {
        self.packet_max
    }

    /// Received packets that were dropped for having more than [`FRAGMENTS_MAX`] frames.
    #[must_use]
    pub fn dropped_fragments(&self) -> u64 {
        self.dropped_fragments
    }

    /// Where the frames are.
    #[must_use]
    pub fn census(&self) -> FrameCensus {
        self.census
    }

    /// What the kernel counts of the socket; None for a ring pair in memory.
    #[must_use]
    pub fn kernel_statistics(&self) -> Option<KernelStatistics> {
        let statistics = self.owner.as_ref()?.tx.fd().xdp_statistics().ok()?;
        Some(KernelStatistics {
            rx_dropped: statistics.rx_dropped(),
            rx_ring_full: statistics.rx_ring_full(),
            fill_ring_empty: statistics.rx_fill_ring_empty_descs(),
            invalid: statistics.rx_invalid_descs() + statistics.tx_invalid_descs(),
        })
    }

    // ---- receiving ------------------------------------------------------------------------------

    /// Take up to `limit` received packets, all frames of each one after the other; give each frame
    /// back with [`recycle`](Self::recycle). Returns the number of packets.
    #[inline]
    pub fn receive(&mut self, limit: u32, mut each: impl FnMut(Received)) -> u32 {
        let there = self.parts.rx.acquire();
        let (mut left, mut packets, mut taken) = (there, 0, 0);
        while left > 0 && packets < limit {
            let alone = !self.parts.rx.goes_on(0) && !self.cutting;
            let frames = if alone { 1 } else { self.frames_of_next(&mut left) };
            if frames == 0 {
                break;
            }
            for _ in 0..frames {
                each(self.parts.rx.take());
            }
            left -= frames;
            taken += frames;
            packets += 1;
        }
        if left < there {
            self.parts.rx.release();
            self.census.receiving -= u64::from(taken);
            self.census.away += u64::from(taken);
        }
        packets
    }

    /// How many of the `left` frames are the next packet; none while its rest is not there. One of
    /// too many frames is dropped before, as far as it is there. The kernel shows whole packets
    /// (`xsk_flush` follows the last frame), but nothing here rests on it.
    #[cold]
    fn frames_of_next(&mut self, left: &mut u32) -> u32 {
        // A small constant.
        #[allow(clippy::cast_possible_truncation)]
        const MOST: u32 = FRAGMENTS_MAX as u32;
        while *left > 0 {
            if self.cutting {
                self.cutting = self.drop_received();
                *left -= 1;
                continue;
            }
            let looked_at = (*left).min(MOST);
            if let Some(last) = (0..looked_at).find(|&ahead| !self.parts.rx.goes_on(ahead)) {
                return last + 1;
            }
            if looked_at < MOST {
                return 0;
            }
            self.dropped_fragments += 1;
            self.cutting = true;
        }
        0
    }

    /// Give the next received frame back unread; whether its packet goes on.
    fn drop_received(&mut self) -> bool {
        let Received { frame, more, .. } = self.parts.rx.take();
        self.parts.fill.put(frame);
        self.unflushed = true;
        more
    }

    /// Give a received frame back to the kernel; [`flush`](Self::flush) shows it.
    #[inline]
    pub fn recycle(&mut self, frame: Frame) {
        self.parts.fill.put(frame);
        self.census.away -= 1;
        self.census.receiving += 1;
        self.unflushed = true;
    }

    // ---- transmitting ---------------------------------------------------------------------------

    /// Send a packet of `len` bytes: `fill` is called once per frame, in order, with the room to
    /// fill, [`FRAME_BYTES`] in each but the last; [`flush`](Self::flush) shows it to the kernel.
    /// False, and nothing is called, while too many transmit frames are in flight, and for a packet
    /// longer than [`packet_max`](Self::packet_max).
    #[inline]
    pub fn send(&mut self, len: u32, mut fill: impl FnMut(&mut [u8])) -> bool {
        if len > FRAME_BYTES {
            return self.send_long(len, fill);
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        let Some(frame) = self.free.pop() else { return false };
        self.put(frame, len, false, &mut fill);
        true
    }

    /// A packet of several frames, which is sent whole or not at all.
    #[inline(never)]
    fn send_long(&mut self, len: u32, mut fill: impl FnMut(&mut [u8])) -> bool {
        let frames = len.div_ceil(FRAME_BYTES) as usize;
        if self.free.len() < frames {
            self.reclaim();
        }
        if len > self.packet_max || self.free.len() < frames {
            return false;
        }
        let mut left = len;
        while left > 0 {
            let frame = self.free.pop().expect("counted above");
            let here = left.min(FRAME_BYTES);
            left -= here;
            self.put(frame, here, left > 0, &mut fill);
        }
        true
    }

    #[inline]
    fn put(&mut self, mut frame: Frame, len: u32, more: bool, fill: &mut impl FnMut(&mut [u8])) {
        fill(self.umem.room(&mut frame, len));
        self.parts.tx.put(frame, len, more);
        self.census.transmitting += 1;
        self.census.free -= 1;
        self.unflushed = true;
    }

    /// Take transmitted frames back.
    fn reclaim(&mut self) {
        let count = self.parts.completion.acquire();
        for _ in 0..count {
            self.free.push(self.parts.completion.take());
        }
        self.parts.completion.release();
        self.census.transmitting -= u64::from(count);
        self.census.free += u64::from(count);
    }

    /// Show the kernel what was put since the last time, and wake it if it asks for that.
    #[inline]
    pub fn flush(&mut self) {
        if !std::mem::take(&mut self.unflushed) {
            return;
        }
        self.parts.fill.release();
        self.parts.tx.release();
        if let Some(fd) = self.fd {
            self.wake(fd);
        }
        self.reclaim();
    }

    /// Whether frames wait that the kernel did not take at the last call.
    pub fn has_backlog(&mut self) -> bool {
        self.fd.is_some() && self.parts.tx.backlog() > 0
    }

    /// Call the kernel again for what it did not take.
    pub fn retry(&mut self) {
        self.unflushed = true;
        self.flush();
    }

    #[inline(never)]
    fn wake(&mut self, fd: RawFd) {
        if self.parts.tx.needs_wakeup() {
            let calls = self.parts.tx.backlog().div_ceil(self.call_batch);
            for _ in 0..calls {
                if !wake_transmit(fd) {
                    break;
                }
            }
        }
        if self.parts.fill.needs_wakeup() {
            // SAFETY: a receive of nothing into nothing on our own socket.
            unsafe {
                libc::recvfrom(
                    fd,
                    ptr::null_mut(),
                    0,
                    libc::MSG_DONTWAIT,
                    ptr::null_mut(),
                    ptr::null_mut(),
                )
            };
        }
    }
}

/// One wake-up call. False when more of them are useless now: EBUSY and ENOBUFS say that the
/// driver's queue is full, ENETDOWN and ENXIO that the NIC is down or gone. What was not taken
/// stays in the ring for the next turn. EAGAIN says that the batch limit was reached.
fn wake_transmit(fd: RawFd) -> bool {
    // SAFETY: a send of nothing on our own socket.
    let sent = unsafe { libc::sendto(fd, ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
    sent >= 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

// ---- opening ------------------------------------------------------------------------------------

/// Open one socket per queue in `mode`, on one UMEM, for packets of at most `frames` frames.
pub(super) fn open_all(
    interface: &str,
    queues: &[u32],
    mode: SocketMode,
    frames: usize,
) -> Result<Vec<Socket>, SocketError> {
    let packet_max = packet_max(mode, frames);
    let flags = bind_flags(mode, frames);
    let frames_per_socket = 2 * RING_ENTRIES;
    let count = u32::try_from(queues.len()).unwrap_or(u32::MAX).saturating_mul(frames_per_socket);
    let (xsk_umem, umem) = create_umem(count)?;
    let umem = Arc::new(umem);
    let mut undealt = umem.divide();
    let mut sockets = Vec::with_capacity(queues.len());
    for &queue in queues {
        let bind_error = |source| {
            let interface = interface.to_owned();
            SocketError::Bind { interface, queue, mode, source }
        };
        let owner = bind(&xsk_umem, interface, queue, flags).map_err(bind_error)?;
        let fd = owner.tx.fd().as_raw_fd();
        let map_error =
            |source| SocketError::Map { interface: interface.to_owned(), queue, source };
        let parts = map_rings(fd).map_err(map_error)?;
        let own = undealt.by_ref().take(frames_per_socket as usize);
        let mut socket = Socket::new(queue, Arc::clone(&umem), parts, own, packet_max);
        socket.fd = Some(fd);
        socket.call_batch = widen_call_batch(fd);
        socket.owner = Some(owner);
        sockets.push(socket);
    }
    Ok(sockets)
}

/// Let one call transmit all that the ring holds, in copy mode. Linux before 6.17 cannot, and goes
/// on with its own batch. Answers what one call transmits.
fn widen_call_batch(fd: RawFd) -> u32 {
    /// XDP_MAX_TX_SKB_BUDGET of linux/if_xdp.h.
    const MAX_TX_SKB_BUDGET: libc::c_int = 9;
    let (value, len) = (RING_ENTRIES, libc::socklen_t::try_from(size_of::<u32>()).expect("4"));
    let pointer = (&raw const value).cast();
    // SAFETY: the value outlives the call and is `len` bytes long.
    let result = unsafe { libc::setsockopt(fd, libc::SOL_XDP, MAX_TX_SKB_BUDGET, pointer, len) };
    if result == 0 { RING_ENTRIES } else { COPY_MODE_BATCH }
}

fn create_umem(frames: u32) -> Result<(xsk_rs::Umem, Umem), SocketError> {
    let size = QueueSize::new(RING_ENTRIES).expect("a power of two");
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(FRAME_BYTES).expect("a power of two above 2048"))
        .fill_queue_size(size)
        .comp_queue_size(size)
        .build()
        .expect("the frame has room for the headroom");
    let frames = NonZeroU32::new(frames.max(1)).expect("at least 1");
    let bytes = u64::from(frames.get()) * u64::from(FRAME_BYTES);
    let (xsk_umem, descriptors) = xsk_rs::Umem::new(config, frames, false)
        .map_err(|source| SocketError::Umem { bytes, source })?;
    // SAFETY: the descriptor is this UMEM's, and nothing else touches the fresh memory.
    let data = unsafe { xsk_umem.data(&descriptors[0]) };
    let base = data.contents().as_ptr().cast_mut().wrapping_sub(descriptors[0].addr());
    let bytes = usize::try_from(bytes).expect("it was just mapped");
    // SAFETY: `base` is where xsk-rs mapped `bytes` bytes, which stay while a clone of its handle
    // lives; the descriptors it made are dropped here, so only our tokens name frames.
    let umem = unsafe { Umem::new(base, bytes, Box::new(xsk_umem.clone())) };
    Ok((xsk_umem, umem))
}

/// Of the first socket of a UMEM; the kernel takes them over for the others that share it.
fn bind_flags(mode: SocketMode, frames: usize) -> BindFlags {
    let copy = match mode {
        SocketMode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
        SocketMode::Copy => BindFlags::XDP_COPY,
    };
    let several = if frames > 1 { BindFlags::XDP_USE_SG } else { BindFlags::empty() };
    copy | several | BindFlags::XDP_USE_NEED_WAKEUP
}

fn bind(
    umem: &xsk_rs::Umem,
    interface: &str,
    queue: u32,
    flags: BindFlags,
) -> Result<XskQueues, SocketCreateError> {
    let size = QueueSize::new(RING_ENTRIES).expect("a power of two");
    let config = SocketConfig::builder()
        .rx_queue_size(size)
        .tx_queue_size(size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(flags)
        .build();
    let name = XskInterface::from_str(interface).expect("an existing interface's name has no NUL");
    // SAFETY: each queue is bound once per UMEM, and the program load is inhibited.
    let (tx, rx, own) = unsafe { xsk_rs::Socket::new(config, umem, &name, queue) }?;
    let (fill, completion) = own.expect("a queue bound once has its own fill and completion rings");
    Ok(XskQueues { tx, _rx: rx, _fill: fill, _completion: completion })
}

/// Map the socket's four rings a second time. Our view takes over from here: xsk-rs never moves
/// an index of the rings it made.
fn map_rings(fd: RawFd) -> io::Result<SocketParts> {
    let offsets = mmap_offsets(fd)?;
    let frame_ring = size_of::<u64>();
    let packet_ring = size_of::<libc::xdp_desc>();
    let rx = map_ring(fd, libc::XDP_PGOFF_RX_RING, &offsets.rx, packet_ring)?;
    let tx = map_ring(fd, libc::XDP_PGOFF_TX_RING, &offsets.tx, packet_ring)?;
    let fill = map_ring(fd, fill_offset(), &offsets.fr, frame_ring)?;
    let completion = map_ring(fd, completion_offset(), &offsets.cr, frame_ring)?;
    // SAFETY: the kernel laid the rings out so, and nobody else moves our side's indices.
    unsafe {
        Ok(SocketParts {
            rx: Rx::new(rx),
            tx: Tx::new(tx),
            fill: Fill::new(fill),
            completion: Completion::new(completion),
        })
    }
}

// linux/if_xdp.h gives these two as 64-bit constants; off_t has their size on the 64-bit hosts we
// serve.
#[allow(clippy::cast_possible_wrap)]
fn fill_offset() -> libc::off_t {
    libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t
}

#[allow(clippy::cast_possible_wrap)]
fn completion_offset() -> libc::off_t {
    libc::XDP_UMEM_PGOFF_COMPLETION_RING as libc::off_t
}

fn mmap_offsets(fd: RawFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: a struct of integers, for which zeroes are valid.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut len = libc::socklen_t::try_from(size_of_val(&offsets)).expect("a few dozen bytes");
    // SAFETY: the buffer is as long as `len` says and outlives the call.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            libc::XDP_MMAP_OFFSETS,
            (&raw mut offsets).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(offsets) } else { Err(io::Error::last_os_error()) }
}

/// A mapping of one ring; unmapped when the last part of it is dropped.
#[derive(Debug)]
struct RingMapping {
    base: *mut libc::c_void,
    bytes: usize,
}

// SAFETY: an address range that is only unmapped through this value.
unsafe impl Send for RingMapping {}
// SAFETY: as above; nothing is reachable through a shared reference.
unsafe impl Sync for RingMapping {}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `map_ring` mapped.
        unsafe { libc::munmap(self.base, self.bytes) };
    }
}

fn map_ring(
    fd: RawFd,
    page: libc::off_t,
    offset: &libc::xdp_ring_offset,
    entry_bytes: usize,
) -> io::Result<RingParts> {
    let at = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
    let bytes = at(offset.desc)? + RING_ENTRIES as usize * entry_bytes;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
    // SAFETY: a new mapping chosen by the kernel.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, prot, flags, fd, page) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let keep = Arc::new(RingMapping { base, bytes });
    let part = |offset: usize| base.cast::<u8>().wrapping_add(offset);
    Ok(RingParts {
        producer: part(at(offset.producer)?).cast(),
        consumer: part(at(offset.consumer)?).cast(),
        flags: part(at(offset.flags)?).cast(),
        entries: part(at(offset.desc)?),
        size: RING_ENTRIES,
        keep: keep as Arc<dyn Any + Send + Sync>,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::ring_pair::{Wire, ring_pair};

    const FRAMES: u32 = 64;
    const EACH_WAY: usize = FRAMES as usize / 2;

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap())).collect()
    }

    /// Take up to `limit` packets, their pieces joined, and give the frames back.
    fn receive(socket: &mut Socket, limit: u32) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        let count = socket.receive(limit, |received| taken.push(received));
        let (mut packets, mut packet) = (Vec::new(), Vec::new());
        for received in taken {
            packet.extend_from_slice(socket.umem().packet(&received));
            if !received.more {
                packets.push(std::mem::take(&mut packet));
            }
            socket.recycle(received.frame);
        }
        assert!(packet.is_empty(), "a packet without its end was given");
        assert_eq!(packets.len(), count as usize);
        socket.flush();
        packets
    }

    fn send(socket: &mut Socket, packet: &[u8]) -> bool {
        let mut rest = packet;
        let sent = socket.send(u32::try_from(packet.len()).unwrap(), |room| {
            let (here, after) = rest.split_at(room.len());
            room.copy_from_slice(here);
            rest = after;
        });
        assert_eq!(rest.is_empty(), sent, "all of it, or nothing");
        sent
    }

    /// All frames are at home: half to transmit with, half with the kernel to receive into.
    fn assert_home(socket: &mut Socket, wire: &mut Wire) {
        assert!(wire.departed().is_empty());
        socket.reclaim();
        let half = u64::from(FRAMES / 2);
        let home = FrameCensus { free: half, receiving: half, transmitting: 0, away: 0 };
        assert_eq!(socket.census(), home);
        let longest = bytes(FRAME_PACKET_MAX as usize * EACH_WAY, 0);
        assert!(wire.arrive(&longest), "a receive frame was lost");
    }

    #[test]
    fn a_packet_of_several_frames_is_received_whole_and_counts_once() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        let sent = [bytes(9022, 1), bytes(60, 2), bytes(3840, 3), bytes(3841, 4)];
        for packet in &sent {
            assert!(wire.arrive(packet));
        }
        assert_eq!(receive(&mut socket, 1), sent[..1]);
        assert_eq!(receive(&mut socket, 2), sent[1..3]);
        assert_eq!(receive(&mut socket, 8), sent[3..]);
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn a_packet_whose_rest_is_not_there_yet_waits_for_it() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        assert!(wire.arrive(&bytes(60, 1)));
        assert!(wire.arrive_piece(&bytes(3840, 2), true));
        assert_eq!(receive(&mut socket, 8), [bytes(60, 1)]);
        assert!(receive(&mut socket, 8).is_empty());
        assert!(wire.arrive_piece(&bytes(10, 3), false));
        assert_eq!(receive(&mut socket, 8), [[bytes(3840, 2), bytes(10, 3)].concat()]);
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn a_packet_of_too_many_frames_is_dropped_with_its_late_end_and_counted_once() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        assert!(wire.arrive(&bytes(60, 1)));
        for _ in 0..FRAGMENTS_MAX {
            assert!(wire.arrive_piece(&bytes(100, 2), true));
        }
        assert_eq!(receive(&mut socket, 8), [bytes(60, 1)]);
        assert!(wire.arrive_piece(&bytes(100, 2), true));
        assert!(receive(&mut socket, 8).is_empty());
        assert!(wire.arrive_piece(&bytes(100, 2), false));
        assert!(wire.arrive(&bytes(9000, 3)));
        assert_eq!(receive(&mut socket, 8), [bytes(9000, 3)]);
        assert_eq!(socket.dropped_fragments(), 1);
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn as_many_frames_as_are_allowed_are_received() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        let longest = bytes(FRAME_PACKET_MAX as usize * FRAGMENTS_MAX, 1);
        assert_eq!(longest.len(), socket.packet_max() as usize);
        assert!(wire.arrive(&longest));
        assert_eq!(receive(&mut socket, 1), [longest]);
        assert_eq!(socket.dropped_fragments(), 0);
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn a_packet_is_sent_in_as_many_frames_as_it_takes() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        for len in [1, 4095, 4096, 4097, 8192, 9022, 65557] {
            let packet = bytes(len, 1);
            assert!(send(&mut socket, &packet));
            let frames = u64::try_from(len.div_ceil(FRAME_BYTES as usize)).unwrap();
            assert_eq!(socket.census().transmitting, frames);
            socket.flush();
            assert_eq!(wire.departed(), [packet]);
            socket.reclaim();
        }
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn a_packet_that_finds_too_few_frames_is_not_sent_in_part() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        for _ in 0..EACH_WAY - 2 {
            assert!(send(&mut socket, &bytes(60, 1)));
        }
        assert!(!send(&mut socket, &bytes(9000, 2)), "three frames of two");
        assert!(send(&mut socket, &bytes(5000, 3)));
        assert!(!send(&mut socket, &bytes(60, 4)));
        socket.flush();
        assert_eq!(wire.departed().last(), Some(&bytes(5000, 3)));
        assert!(send(&mut socket, &bytes(9000, 5)), "the frames are back");
        socket.flush();
        assert_eq!(wire.departed(), [bytes(9000, 5)]);
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn a_packet_that_the_kernel_would_refuse_is_not_sent() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        let too_long = bytes(socket.packet_max() as usize + 1, 1);
        assert!(!send(&mut socket, &too_long));
        socket.packet_max = packet_max(SocketMode::ZeroCopy, 1);
        assert!(!send(&mut socket, &bytes(4097, 1)));
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn the_longest_packet_depends_on_the_mode_and_on_what_the_driver_takes() {
        assert_eq!(packet_max(SocketMode::Copy, 1), 3840);
        assert_eq!(packet_max(SocketMode::ZeroCopy, 1), 3840);
        assert_eq!(packet_max(SocketMode::ZeroCopy, 5), 5 * 3456);
        // The largest MTU with an Ethernet header and two VLAN tags; and no more than 17 frames to
        // send, which is what every driver takes.
        let longest = packet_max(SocketMode::Copy, FRAGMENTS_MAX);
        assert!(longest >= 65535 + 14 + 8);
        assert!(longest.div_ceil(FRAME_BYTES) <= 17);
        assert_eq!(packet_max(SocketMode::Copy, 100), longest);
    }
}
