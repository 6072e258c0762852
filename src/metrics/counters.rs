//! Counters named by what they count. Every packet ends in exactly one of a port's `…packets` or
//! `…dropped…` counters of its direction.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

/// Most counters of one kind.
const COUNTERS_MAX: usize = 48;

/// A kind of counters: an enum whose variants are numbered from 0 in the order of `NAMES`.
pub trait Counter: Copy {
    /// As shown by the API.
    const NAMES: &'static [&'static str];

    /// The place in `NAMES`.
    fn index(self) -> usize;
}

/// The counters of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum PortCounter {
    /// Taken from the guest and forwarded.
    FromGuestPackets,
    /// Their bytes, without the virtio-net header.
    FromGuestBytes,
    /// Frames for the wire beyond these, into which software cut large ones.
    FromGuestSegments,
    /// Header asks for an offload that was not negotiated, or is malformed.
    FromGuestDroppedHeader,
    /// Shorter than an Ethernet header.
    FromGuestDroppedRunt,
    /// Longer than the profile's MTU allows.
    FromGuestDroppedOversize,
    /// Flow control, or to a group that ends at the next bridge.
    FromGuestDroppedReserved,
    /// The ring is disabled: taken and discarded.
    FromGuestDroppedDisabled,
    /// The uplink's transmit frames are all in flight.
    FromGuestDroppedUplinkFull,
    /// The uplink's NIC is down or gone.
    FromGuestDroppedUplinkDown,
    /// Addressed to itself, or no uplink queue on its worker.
    FromGuestDroppedNoRoute,
    /// Its port is in no forwarding table, since it is being added or removed.
    FromGuestDroppedUnrouted,
    /// Delivered to the guest.
    ToGuestPackets,
    /// Their bytes, without the virtio-net header.
    ToGuestBytes,
    /// Frames from the wire beyond these, merged with one of them.
    ToGuestCoalesced,
    /// No receive ring is started and enabled.
    ToGuestDroppedNotReady,
    /// The guest has not posted enough buffers.
    ToGuestDroppedNoBuffers,
    /// A buffer is smaller than the frame and buffers may not be merged.
    ToGuestDroppedBufferSize,
    /// Longer than the profile's MTU allows.
    ToGuestDroppedOversize,
    /// The worker that owns the ring has too much waiting.
    ToGuestDroppedHandover,
    /// Interrupts sent.
    Notifications,
    /// Interrupts that the guest did not want.
    NotificationsSuppressed,
    /// Rings broken by a fault of the guest.
    RingFaults,
    /// Descriptors that a backend before us had used and its dirty log had lost, given back empty.
    RingDescriptorsGivenBack,
}

impl Counter for PortCounter {
    const NAMES: &'static [&'static str] = &[
        "from_guest_packets",
        "from_guest_bytes",
        "from_guest_segments",
        "from_guest_dropped_header",
        "from_guest_dropped_runt",
        "from_guest_dropped_oversize",
        "from_guest_dropped_reserved",
        "from_guest_dropped_disabled",
        "from_guest_dropped_uplink_full",
        "from_guest_dropped_uplink_down",
        "from_guest_dropped_no_route",
        "from_guest_dropped_unrouted",
        "to_guest_packets",
        "to_guest_bytes",
        "to_guest_coalesced",
        "to_guest_dropped_not_ready",
        "to_guest_dropped_no_buffers",
        "to_guest_dropped_buffer_size",
        "to_guest_dropped_oversize",
        "to_guest_dropped_handover",
        "notifications",
        "notifications_suppressed",
        "ring_faults",
        "ring_descriptors_given_back",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// The counters of an AF_XDP socket; `rx` and `tx` are the kernel's words. The `frames_…` are not
/// sums but the present whereabouts of the socket's frames. The `kernel_…` are the kernel's own
/// (XDP_STATISTICS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SocketCounter {
    /// Received.
    RxPackets,
    /// Their bytes.
    RxBytes,
    /// Given to a socket by the XDP program.
    XdpRedirected,
    /// Not for a VM: passed to the host by the XDP program.
    XdpPassed,
    /// For a VM, on a queue without a socket: passed to the host by the XDP program.
    XdpNoSocket,
    /// Received, or sent by the host, for a MAC or queue that no port has (any more).
    RxDroppedNoPort,
    /// Received shorter than an Ethernet header.
    RxDroppedRunt,
    /// Multicast of the wire or the host to a group that ends at the next bridge.
    RxDroppedReserved,
    /// Received in more frames than a packet may have.
    RxDroppedFragments,
    /// On its way to a port, or an announcement of one, when the port was removed.
    DroppedPortRemoved,
    /// Given to the kernel to transmit.
    TxPackets,
    /// Their bytes.
    TxBytes,
    /// Could not be transmitted: all frames in flight.
    TxDroppedFull,
    /// Could not be transmitted: the NIC is down or gone.
    TxDroppedDown,
    /// Were with the kernel to be transmitted when their socket was closed.
    TxFramesAbandoned,
    /// Had been received and not been taken when their socket was closed.
    RxFramesAbandoned,
    /// Times that no frame came back from being transmitted.
    TxStalls,
    /// Times that the kernel found no frame to receive into, though it had got them.
    RxStalls,
    /// Broadcast and multicast taken from the packet socket.
    MulticastPackets,
    /// Broadcast and multicast lost between the packet socket and the worker.
    MulticastDropped,
    /// Given to the host by its VMs.
    ToHostPackets,
    /// Lost on the way to the host.
    ToHostDropped,
    /// Brought to the workers from the host.
    FromHostPackets,
    /// Lost on the way from the host.
    FromHostDropped,
    /// All frames.
    FramesTotal,
    /// Ready to transmit with.
    FramesFree,
    /// With the kernel, to receive into.
    FramesReceiving,
    /// With the kernel, being transmitted.
    FramesTransmitting,
    /// Received and lent to another worker.
    FramesAway,
    /// The kernel's count: dropped for want of room for the packet.
    KernelRxDropped,
    /// The kernel's count: dropped because we were too slow to take packets.
    KernelRxRingFull,
    /// The kernel's count: times it found no frame to receive into.
    KernelFillRingEmpty,
    /// The kernel's count: descriptors of ours that it refused, a bug of ours.
    KernelInvalid,
}

impl Counter for SocketCounter {
    const NAMES: &'static [&'static str] = &[
        "rx_packets",
        "rx_bytes",
        "xdp_redirected",
        "xdp_passed",
        "xdp_no_socket",
        "rx_dropped_no_port",
        "rx_dropped_runt",
        "rx_dropped_reserved",
        "rx_dropped_fragments",
        "dropped_port_removed",
        "tx_packets",
        "tx_bytes",
        "tx_dropped_full",
        "tx_dropped_down",
        "tx_frames_abandoned",
        "rx_frames_abandoned",
        "tx_stalls",
        "rx_stalls",
        "multicast_packets",
        "multicast_dropped",
        "to_host_packets",
        "to_host_dropped",
        "from_host_packets",
        "from_host_dropped",
        "frames_total",
        "frames_free",
        "frames_receiving",
        "frames_transmitting",
        "frames_away",
        "kernel_rx_dropped",
        "kernel_rx_ring_full",
        "kernel_fill_ring_empty",
        "kernel_invalid",
    ];

    fn index(self) -> usize {
        self as usize
    }
}

/// A worker's own counters of one port or socket, and where it publishes them.
#[derive(Debug)]
pub struct Counters<C> {
    values: [u64; COUNTERS_MAX],
    published: std::sync::Arc<Published<C>>,
}

impl<C: Counter> Counters<C> {
    /// All zero, with a place to publish.
    #[must_use]
    pub fn new() -> Self {
        Self { values: [0; COUNTERS_MAX], published: std::sync::Arc::default() }
    }

    /// Where readers look.
    #[must_use]
    pub fn published(&self) -> &std::sync::Arc<Published<C>> {
        &self.published
    }

    /// Count.
    #[inline]
    pub fn add(&mut self, counter: C, amount: u64) {
        self.values[counter.index()] += amount;
    }

    /// Set a value that is not a sum.
    pub fn set(&mut self, counter: C, value: u64) {
        self.values[counter.index()] = value;
    }

    /// The worker's own value.
    #[must_use]
    pub fn get(&self, counter: C) -> u64 {
        self.values[counter.index()]
    }

    /// Let readers see the present values.
    pub fn publish(&self) {
        for (cell, &value) in self.published.values.iter().zip(&self.values) {
            cell.store(value, Ordering::Relaxed);
        }
    }
}

impl<C: Counter> Default for Counters<C> {
    fn default() -> Self {
        Self::new()
    }
}

/// Counters as last published; one writer, any number of readers.
#[derive(Debug)]
pub struct Published<C> {
    values: CachePadded<[AtomicU64; COUNTERS_MAX]>,
    kind: PhantomData<fn() -> C>,
}

impl<C> Default for Published<C> {
    fn default() -> Self {
        let values = [const { AtomicU64::new(0) }; COUNTERS_MAX];
        Self { values: CachePadded::new(values), kind: PhantomData }
    }
}

impl<C: Counter> Published<C> {
    /// The value as last published.
    #[must_use]
    pub fn get(&self, counter: C) -> u64 {
        self.values[counter.index()].load(Ordering::Relaxed)
    }

    /// Count from a control thread, in a place that no worker writes.
    pub fn add(&self, counter: C, amount: u64) {
        self.values[counter.index()].fetch_add(amount, Ordering::Relaxed);
    }
}

/// The sum over several writers, by name.
pub fn sum<'p, C: Counter + 'p>(
    parts: impl IntoIterator<Item = &'p Published<C>>,
) -> BTreeMap<String, u64> {
    let mut totals = vec![0u64; C::NAMES.len()];
    for part in parts {
        for (total, value) in totals.iter_mut().zip(part.values.iter()) {
            *total += value.load(Ordering::Relaxed);
        }
    }
    C::NAMES.iter().map(|&name| name.to_owned()).zip(totals).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_variant_has_the_last_name() {
        let last = PortCounter::RingDescriptorsGivenBack;
        assert_eq!(PortCounter::NAMES[last.index()], "ring_descriptors_given_back");
        assert_eq!(PortCounter::NAMES.len(), last.index() + 1);
        assert_eq!(SocketCounter::NAMES.len(), SocketCounter::KernelInvalid.index() + 1);
        assert!(PortCounter::NAMES.len() <= COUNTERS_MAX);
        assert!(SocketCounter::NAMES.len() <= COUNTERS_MAX);
    }

    #[test]
    fn readers_see_the_sum_of_what_was_published() {
        let (mut one, mut two) = (Counters::<PortCounter>::new(), Counters::new());
        one.add(PortCounter::ToGuestPackets, 3);
        two.add(PortCounter::ToGuestPackets, 4);
        two.publish();
        let read = || sum([&**one.published(), &**two.published()])["to_guest_packets"];
        assert_eq!(read(), 4);
        one.publish();
        assert_eq!(sum([&**one.published(), &**two.published()])["to_guest_packets"], 7);
    }
}
