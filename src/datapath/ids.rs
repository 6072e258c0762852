//! The numbers by which the control plane and the workers name ports, uplinks, workers and rings.

/// A port's number on this host, its place in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// An uplink's number on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UplinkId(pub u16);

/// A worker's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u16);

impl PortId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl UplinkId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl WorkerId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A ring of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingId {
    /// The port.
    pub port: PortId,
    /// Its number there.
    pub index: u16,
}

impl From<(PortId, u16)> for RingId {
    fn from((port, index): (PortId, u16)) -> Self {
        Self { port, index }
    }
}

/// A queue pair of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePair {
    /// The uplink of the port, by which a frame is counted if the port was removed meanwhile.
    pub uplink: UplinkId,
    /// The port.
    pub port: PortId,
    /// Its number there.
    pub pair: u16,
}

impl QueuePair {
    /// Its receive ring.
    #[inline]
    pub(super) fn to_guest(self) -> RingId {
        RingId { port: self.port, index: to_guest_ring(self.pair) }
    }
}

/// The receive ring of a queue pair (virtio 1.2, 5.1.2: receiveqN is queue 2(N-1)).
#[must_use]
pub const fn to_guest_ring(pair: u16) -> u16 {
    2 * pair
}

/// The queue pair of a ring.
#[must_use]
pub const fn pair_of(ring: u16) -> u16 {
    ring / 2
}

/// Whether packets of a ring come from the guest (transmitqN is queue 2(N-1)+1).
#[must_use]
pub const fn is_from_guest(ring: u16) -> bool {
    ring % 2 == 1
}
