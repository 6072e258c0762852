//! One AF_XDP socket: one queue of a NIC, with its four rings and its frames.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::census::{Abandoned, FrameCensus, KernelStatistics, SocketProgress};
use super::umem::Umem;
use super::umem_frame::{FRAGMENTS_MAX, FRAME_BYTES, Frame, Received};
use super::xdp_attachment::{BindMode, packet_max};
use super::xsk_calls;
use super::xsk_ring::SocketParts;

pub(super) mod paused_socket;
#[cfg(test)]
mod tests;

/// Bytes of Ethernet's shortest frame, without its frame check sequence (IEEE 802.3, 4A.4.2).
const FRAME_BYTES_MIN: u32 = 60;

/// Entries of each of a socket's rings, and frames it has in each direction.
pub const RING_ENTRIES: u32 = 2048;
/// Frames of one socket, in both directions.
pub const FRAMES_PER_SOCKET: usize = 2 * RING_ENTRIES as usize;

/// The kernel transmits at most this many frames per call in copy mode (TX_BATCH_SIZE of
/// net/xdp/xsk.c); a larger backlog takes more calls.
const COPY_MODE_BATCH: u32 = 32;

/// One queue of an uplink. Owned by one worker.
#[derive(Debug)]
pub struct Socket {
    queue: u32,
    umem: Arc<Umem>,
    parts: SocketParts,
    /// How many there are of its own, wherever they are.
    frames: u64,
    free: Vec<Frame>,
    census: FrameCensus,
    /// Packets put since the last `flush`, or not taken by the kernel in it.
    unflushed: bool,
    /// The kernel was called for free frames since the last `flush`.
    pressed: bool,
    /// Packets that the kernel transmits in one call.
    call_batch: u32,
    /// Our calls drive the NIC: one each turn.
    busy_polled: bool,
    /// What keeps the queue's interrupts off while packets are found, if they are busy polled for.
    suspender: Option<OwnedFd>,
    /// Longest packet, bytes.
    packet_max: u32,
    /// Frames that came back from being transmitted.
    completed: u64,
    /// Packets received.
    received: u64,
    /// In the middle of a received packet of too many frames, whose rest is dropped.
    cutting: bool,
    /// Received packets of too many frames.
    dropped_fragments: u64,
    /// The socket itself; None for a ring pair in memory.
    fd: Option<OwnedFd>,
}

impl Socket {
    /// A socket of these rings, with half of `frames` to transmit with and half to receive into.
    pub(super) fn new(
        queue: u32,
        umem: Arc<Umem>,
        parts: SocketParts,
        frames: impl IntoIterator<Item = Frame>,
        packet_max: u32,
    ) -> Self {
        let mut socket = Self::without_frames(queue, umem, parts, packet_max);
        socket.free = frames.into_iter().collect();
        socket.frames = socket.free.len() as u64;
        for frame in socket.free.split_off(socket.free.len() / 2) {
            socket.parts.fill.put(frame);
            socket.census.receiving += 1;
        }
        socket.parts.fill.release();
        socket.census.free = socket.free.len() as u64;
        socket
    }

    /// A socket that moves nothing in its rings, which may be another process's.
    fn without_frames(queue: u32, umem: Arc<Umem>, parts: SocketParts, packet_max: u32) -> Self {
        Self {
            queue,
            umem,
            parts,
            frames: 0,
            free: Vec::new(),
            census: FrameCensus::default(),
            unflushed: false,
            pressed: false,
            call_batch: COPY_MODE_BATCH,
            busy_polled: false,
            suspender: None,
            packet_max,
            completed: 0,
            received: 0,
            cutting: false,
            dropped_fragments: 0,
            fd: None,
        }
    }

    /// A socket that has all frames of its own UMEM, for packets of many frames.
    #[must_use]
    pub fn of_whole(queue: u32, umem: Arc<Umem>, parts: SocketParts) -> Self {
        let frames: Vec<_> = umem.divide().collect();
        Self::new(queue, umem, parts, frames, packet_max(BindMode::Copy, FRAGMENTS_MAX))
    }

    /// Give it its descriptor, by which the kernel is called.
    pub(super) fn with_descriptor(mut self, fd: OwnedFd) -> Self {
        self.call_batch = widen_call_batch(fd.as_fd());
        self.fd = Some(fd);
        self
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

    /// How packets move, by the kernel's word; None for a ring pair in memory.
    pub(super) fn mode(&self) -> Option<BindMode> {
        mode_of(self.fd()?).ok()
    }

    /// The descriptor to wait on; None for a ring pair in memory.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
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

    /// How many frames are its own, with it or away, here or still with another process.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// How many frames there are to send with, in flight or not.
    #[must_use]
    pub fn transmit_frames(&self) -> u64 {
        self.census.free + self.census.transmitting
    }

    /// How many frames ever came back from being transmitted.
    #[must_use]
    pub fn completed(&self) -> u64 {
        self.completed
    }

    /// Where the frames are.
    #[must_use]
    pub fn census(&self) -> FrameCensus {
        self.census
    }

    /// What the kernel counts of the socket; None for a ring pair in memory.
    #[must_use]
    pub fn kernel_statistics(&self) -> Option<KernelStatistics> {
        let statistics = xsk_calls::statistics(self.fd()?).ok()?;
        Some(KernelStatistics {
            rx_dropped: statistics.rx_dropped,
            rx_ring_full: statistics.rx_ring_full.unwrap_or_default(),
            fill_ring_empty: statistics.rx_fill_ring_empty_descs.unwrap_or_default(),
            invalid: statistics.rx_invalid_descs + statistics.tx_invalid_descs,
        })
    }

    // ---- receiving ------------------------------------------------------------------------------

    /// Take up to `limit` received packets, all frames of each one after the other; give each frame
    /// back with [`recycle`](Self::recycle). Returns the number of packets.
    #[inline]
    pub fn receive(&mut self, limit: u32, mut each: impl FnMut(Received)) -> u32 {
        let there = self.parts.rx.acquire();
        if there > 0
            && let Some(suspender) = &self.suspender
        {
            xsk_calls::suspend_interrupts(suspender.as_fd());
        }
        let (mut left, mut packets, mut taken) = (there, 0, 0);
        while left > 0 && packets < limit {
            let alone = !self.parts.rx.continues(0) && !self.cutting;
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
            self.received += u64::from(packets);
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
            if let Some(last) = (0..looked_at).find(|&ahead| !self.parts.rx.continues(ahead)) {
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

    /// Give the next received frame back unread; whether its packet continues.
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
    /// One that is too short for Ethernet gets zeroes behind it: not all NICs pad, and what is in
    /// the frame's memory is another's.
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
        if len < FRAME_BYTES_MIN {
            self.put_padded(frame, len, fill);
        } else {
            self.put(frame, len, false, &mut fill);
        }
        true
    }

    #[inline(never)]
    fn put_padded(&mut self, frame: Frame, len: u32, mut fill: impl FnMut(&mut [u8])) {
        self.put(frame, FRAME_BYTES_MIN, false, &mut |room: &mut [u8]| {
            let (packet, padding) = room.split_at_mut(len as usize);
            fill(packet);
            padding.fill(0);
        });
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
    pub fn reclaim(&mut self) {
        let count = self.parts.completion.acquire();
        for _ in 0..count {
            self.free.push(self.parts.completion.take());
        }
        self.parts.completion.release();
        self.census.transmitting -= u64::from(count);
        self.census.free += u64::from(count);
        self.completed += u64::from(count);
    }

    /// How far it is. The kernel is woken for what it still has to transmit, so that what stands
    /// still after this was not merely forgotten.
    pub fn examine(&mut self) -> SocketProgress {
        self.reclaim();
        if self.census.transmitting > 0 {
            self.retry();
        }
        SocketProgress {
            transmitting: self.census.transmitting,
            completed: self.completed,
            received: self.received,
            fill_ring_empty: self.kernel_statistics().unwrap_or_default().fill_ring_empty,
        }
    }

    /// What is in its rings and will be lost when it is dropped. Of the frames to be transmitted
    /// the kernel may have sent some and not said so yet.
    pub fn abandoned(&mut self) -> Abandoned {
        self.reclaim();
        let received = u64::from(self.parts.rx.acquire());
        Abandoned { received, transmitting: self.census.transmitting }
    }

    /// Drive the NIC with a call at each flush from now on, which has it take at most so many
    /// packets; with the queue's interrupts suspended while it finds some, if that is wanted.
    pub(super) fn poll_busily(&mut self, budget: u16, suspend: bool) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        xsk_calls::set_busy_poll(fd.as_fd(), budget)?;
        self.busy_polled = true;
        self.suspender = suspend.then(|| xsk_calls::suspender(fd.as_fd())).transpose()?;
        Ok(())
    }

    /// Show the kernel what was put since the last time, or not taken then, and wake it if it asks
    /// for that. Once a turn.
    #[inline]
    pub fn flush(&mut self) {
        self.pressed = false;
        self.show();
    }

    /// Call the kernel for frames to send with, in the middle of a turn: once, since it has nothing
    /// new the second time. False if that was done.
    pub fn press(&mut self) -> bool {
        if std::mem::replace(&mut self.pressed, true) {
            return false;
        }
        self.show();
        true
    }

    #[inline]
    fn show(&mut self) {
        if !std::mem::take(&mut self.unflushed) && !self.busy_polled {
            return;
        }
        self.parts.fill.release();
        self.parts.tx.release();
        if self.fd.is_some() {
            self.wake();
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
    fn wake(&mut self) {
        let Some(fd) = &self.fd else { return };
        if self.parts.tx.needs_wakeup() {
            let calls = self.parts.tx.backlog().div_ceil(self.call_batch);
            for _ in 0..calls {
                if !xsk_calls::wake_transmit(fd.as_fd()) {
                    break;
                }
            }
        }
        // Busy polled, it is this call that has the driver look at its queue.
        if self.parts.fill.needs_wakeup() || self.busy_polled {
            xsk_calls::wake_receive(fd.as_fd());
        }
        // Still there: virtio_net transmits by another NAPI instance than it receives by.
        if self.busy_polled && self.parts.tx.backlog() > 0 {
            xsk_calls::wake_polled_transmit(fd.as_fd());
        }
        // What was not taken is offered again in the next turn, though nothing else may be sent.
        self.unflushed = self.parts.tx.needs_wakeup() && self.parts.tx.backlog() > 0;
    }
}

/// What the kernel says of a bound socket.
pub(super) fn mode_of(fd: BorrowedFd<'_>) -> io::Result<BindMode> {
    let zero_copy = xsk_calls::is_zero_copy(fd)?;
    Ok(if zero_copy { BindMode::ZeroCopy } else { BindMode::Copy })
}

/// Let one call transmit all that the ring holds, in copy mode. Linux before 6.17 cannot, and goes
/// on with its own batch. Answers what one call transmits.
fn widen_call_batch(fd: BorrowedFd<'_>) -> u32 {
    match xsk_calls::set_transmit_budget(fd, RING_ENTRIES) {
        Ok(()) => RING_ENTRIES,
        Err(_unknown) => COPY_MODE_BATCH,
    }
}
