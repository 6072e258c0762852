//! The counts of a socket: where its frames are, the kernel's statistics, and its progress.

use std::ops::Add;

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

/// The kernel's counts for a socket (struct xdp_statistics of linux/if_xdp.h).
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

impl Add for KernelStatistics {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rx_dropped: self.rx_dropped + other.rx_dropped,
            rx_ring_full: self.rx_ring_full + other.rx_ring_full,
            fill_ring_empty: self.fill_ring_empty + other.fill_ring_empty,
            invalid: self.invalid + other.invalid,
        }
    }
}

/// A socket's progress: counts that do not change while it stands still.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketProgress {
    /// Frames that are with the kernel to be transmitted.
    pub transmitting: u64,
    /// Frames that came back from that.
    pub completed: u64,
    /// Packets received.
    pub received: u64,
    /// Times the kernel found no frame to receive into.
    pub fill_ring_empty: u64,
}

/// Frames in the rings of a socket that is about to be closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Received and not taken.
    pub received: u64,
    /// With the kernel to be transmitted.
    pub transmitting: u64,
}
