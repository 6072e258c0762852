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
    /// How many frames are its own, wherever they are.
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
    /// If busy polled with suspension: keeps the queue's interrupts off while packets are found.
    suspender: Option<OwnedFd>,
    /// Longest packet, bytes.
    packet_max: u32,
    /// Frames that came back from being transmitted.
    completed: u64,
    /// Packets received.
    received: u64,
    /// In the middle of a received packet of too many frames, whose remaining frames are dropped.
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

    /// A socket that changes nothing in its rings, which may be another process's.
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

    /// Give it its descriptor, for calls to the kernel.
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

    /// How packets move, as the kernel reports; None for a ring pair in memory.
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

    /// The kernel's counts for the socket; None for a ring pair in memory.
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

    /// Take up to `limit` received packets, the frames of each one after the other. The caller
    /// returns each frame with [`recycle`](Self::recycle). Returns the number of packets.
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

    /// How many of the `left` frames are the next packet; none while its last frame is missing. A
    /// packet of too many frames is dropped first, as far as it has arrived. The kernel shows whole
    /// packets (`xsk_flush` follows the last frame), but nothing here depends on it.
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

    /// Return the next received frame unread. The result tells whether its packet continues.
    fn drop_received(&mut self) -> bool {
        let Received { frame, more, .. } = self.parts.rx.take();
        self.parts.fill.put(frame);
        self.unflushed = true;
        more
    }

    /// Return a received frame to the kernel; [`flush`](Self::flush) shows it.
    #[inline]
    pub fn recycle(&mut self, frame: Frame) {
        self.parts.fill.put(frame);
        self.census.away -= 1;
        self.census.receiving += 1;
        self.unflushed = true;
    }

    // ---- transmitting ---------------------------------------------------------------------------

    /// Send a packet of `len` bytes. `fill` is called once per frame, in order, with the room to
    /// fill: [`FRAME_BYTES`] in each but the last. [`flush`](Self::flush) shows the packet to the
    /// kernel.
    ///
    /// A packet too short for Ethernet gets zeroes behind it: not all NICs pad, and the frame's
    /// memory holds another packet's bytes.
    ///
    /// False, and `fill` is not called, while too many transmit frames are in flight, and for a
    /// packet longer than [`packet_max`](Self::packet_max).
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

    /// Send a packet of several frames, whole or not at all.
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

    /// The socket's progress. The kernel is woken for frames that it still has to transmit, so
    /// frames that stand still afterwards were not merely forgotten.
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

    /// The frames in its rings, which are lost when it is dropped. The kernel may have sent some of
    /// the frames to transmit without reporting it yet.
    pub fn abandoned(&mut self) -> Abandoned {
        self.reclaim();
        let received = u64::from(self.parts.rx.acquire());
        Abandoned { received, transmitting: self.census.transmitting }
    }

    /// From now on, drive the NIC with a call at each flush, which takes at most `budget` packets.
    /// With `suspend`, the queue's interrupts are suspended while it finds some.
    pub(super) fn poll_busily(&mut self, budget: u16, suspend: bool) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        xsk_calls::set_busy_poll(fd.as_fd(), budget)?;
        self.busy_polled = true;
        self.suspender = suspend.then(|| xsk_calls::suspender(fd.as_fd())).transpose()?;
        Ok(())
    }

    /// Show the kernel the entries put since the last time, or not taken then, and wake it if it
    /// asks for that. Call this once a turn.
    #[inline]
    pub fn flush(&mut self) {
        self.pressed = false;
        self.show();
    }

    /// Call the kernel for free frames in the middle of a turn. Only the first call of a turn can
    /// bring new frames; false for a later one.
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

    /// Call the kernel again for frames that it did not take.
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
        // If busy polled, this call has the driver look at its queue.
        if self.parts.fill.needs_wakeup() || self.busy_polled {
            xsk_calls::wake_receive(fd.as_fd());
        }
        // Frames are still there: virtio_net transmits by another NAPI instance than it receives
        // by.
        if self.busy_polled && self.parts.tx.backlog() > 0 {
            xsk_calls::wake_polled_transmit(fd.as_fd());
        }
        // Frames not taken are offered again in the next turn, even if nothing else is sent.
        self.unflushed = self.parts.tx.needs_wakeup() && self.parts.tx.backlog() > 0;
    }
}

/// The mode of a bound socket, as the kernel reports it.
pub(super) fn mode_of(fd: BorrowedFd<'_>) -> io::Result<BindMode> {
    let zero_copy = xsk_calls::is_zero_copy(fd)?;
    Ok(if zero_copy { BindMode::ZeroCopy } else { BindMode::Copy })
}

/// Let one call transmit the whole ring, in copy mode. Linux before 6.17 cannot, and keeps its own
/// batch. Returns how many frames one call transmits.
fn widen_call_batch(fd: BorrowedFd<'_>) -> u32 {
    match xsk_calls::set_transmit_budget(fd, RING_ENTRIES) {
        Ok(()) => RING_ENTRIES,
        Err(_unknown) => COPY_MODE_BATCH,
    }
}

#[cfg(test)]
mod tests {
    use super::paused_socket::PausedSocket;
    use super::*;
    use crate::test_support::ring_pair::{Wire, ring_pair};
    use crate::xdp::umem_frame::FRAME_PACKET_MAX;
    use crate::xdp::xsk_ring::{Completion, Fill, Rx, Tx};

    const FRAMES: u32 = 64;
    const EACH_WAY: usize = FRAMES as usize / 2;

    fn bytes(len: usize, seed: u8) -> Vec<u8> {
        (0..len).map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap())).collect()
    }

    /// Take up to `limit` packets, their pieces joined, and return the frames.
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

    /// A second view of the same rings, as another process has them.
    fn successor(socket: &Socket) -> Socket {
        let SocketParts { rx, tx, fill, completion } = &socket.parts;
        // SAFETY: the first view is not used any more where this one is.
        let parts = unsafe {
            SocketParts {
                rx: Rx::new(rx.parts()),
                tx: Tx::new(tx.parts()),
                fill: Fill::new(fill.parts()),
                completion: Completion::new(completion.parts()),
            }
        };
        let umem = Arc::clone(&socket.umem);
        let mut other = Socket::without_frames(socket.queue, umem, parts, socket.packet_max);
        other.frames = socket.frames;
        other
    }

    #[test]
    fn another_process_resumes_where_a_socket_was_paused() {
        let (mut first, mut wire) = ring_pair(0, FRAMES);
        for seed in 0..100 {
            assert!(wire.arrive(&bytes(60, seed)));
            receive(&mut first, 1);
            assert!(send(&mut first, &bytes(5000, seed)));
            first.flush();
            wire.departed();
        }
        // Received and not taken yet; sent, and neither transmitted nor given back.
        assert!(wire.arrive(&bytes(9000, 7)));
        assert!(send(&mut first, &bytes(70, 8)));
        // The second socket exists before the first one pauses, and touches nothing.
        let mut second = successor(&first);
        let paused = first.rest();
        assert!(second.resume(&paused));
        assert_eq!(second.census().total(), u64::from(FRAMES));
        assert_eq!(receive(&mut second, 8), [bytes(9000, 7)]);
        assert_eq!(wire.departed(), [bytes(70, 8)]);
        assert!(send(&mut second, &bytes(80, 9)));
        second.flush();
        assert_eq!(wire.departed(), [bytes(80, 9)]);
        assert_home(&mut second, &mut wire);
    }

    #[test]
    fn frames_that_cannot_be_where_they_are_said_to_be_are_not_gone_on_with() {
        let (mut socket, _wire) = ring_pair(0, FRAMES);
        let paused = socket.rest();
        let wrong = |change: fn(&mut PausedSocket)| {
            let mut changed = paused.clone();
            change(&mut changed);
            changed
        };
        for wrong in [
            wrong(|left| left.free[1] = left.free[0]),
            wrong(|left| left.free[1] += 1),
            wrong(|left| left.free[1] = u64::from(FRAMES * FRAME_BYTES)),
            wrong(|left| left.free.truncate(1)),
            wrong(|left| left.transmitting += 1),
        ] {
            assert!(!socket.resume(&wrong), "{wrong:?}");
        }
        assert!(socket.resume(&paused));
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
        for len in [1, 59, 60, 61, 4095, 4096, 4097, 8192, 9022, 65557] {
            let packet = bytes(len, 1);
            assert!(send(&mut socket, &packet));
            let frames = u64::try_from(len.div_ceil(FRAME_BYTES as usize)).unwrap();
            assert_eq!(socket.census().transmitting, frames);
            socket.flush();
            let mut padded = packet;
            padded.resize(len.max(60), 0);
            assert_eq!(wire.departed(), [padded]);
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
    fn the_kernel_is_called_for_frames_once_between_two_flushes() {
        let (mut socket, _wire) = ring_pair(0, FRAMES);
        for _ in 0..2 {
            assert!(socket.press());
            assert!(!socket.press(), "it was called");
            socket.flush();
        }
    }

    #[test]
    fn a_packet_that_the_kernel_would_refuse_is_not_sent() {
        let (mut socket, mut wire) = ring_pair(0, FRAMES);
        let too_long = bytes(socket.packet_max() as usize + 1, 1);
        assert!(!send(&mut socket, &too_long));
        socket.packet_max = packet_max(BindMode::ZeroCopy, 1);
        assert!(!send(&mut socket, &bytes(4097, 1)));
        assert_home(&mut socket, &mut wire);
    }

    #[test]
    fn the_longest_packet_depends_on_the_mode_and_on_what_the_driver_takes() {
        assert_eq!(packet_max(BindMode::Copy, 1), 3840);
        assert_eq!(packet_max(BindMode::ZeroCopy, 1), 3840);
        assert_eq!(packet_max(BindMode::ZeroCopy, 5), 5 * 3456);
        // The largest MTU with an Ethernet header and two VLAN tags. To send, it takes no more than
        // the 17 frames that every driver accepts.
        let longest = packet_max(BindMode::Copy, FRAGMENTS_MAX);
        assert!(longest >= 65535 + 14 + 8);
        assert!(longest.div_ceil(FRAME_BYTES) <= 17);
        assert_eq!(packet_max(BindMode::Copy, 100), longest);
    }
}
