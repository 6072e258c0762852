//! The ways of packets in a run, and the rings that they take.

use crate::common::PROFILE;
use crate::wire::FarEnd;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// Between two ports, and back.
    GuestToGuest,
    /// Out, and gone.
    GuestToWire,
    /// In from the far end.
    WireToGuest,
    /// Out, reflected at the far end, and in again.
    RoundTrip,
}

/// The rings that the front-end asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rings {
    /// Split.
    Split,
    /// Packed.
    Packed,
    /// Packed and used in order.
    InOrder,
}

impl Rings {
    /// The profile of isonic's port.
    pub fn profile(self) -> &'static str {
        match self {
            Self::Split => PROFILE,
            Self::Packed => "org.isonic.net.v2",
            Self::InOrder => "org.isonic.net.v2,in_order=on",
        }
    }

    /// For virtio-user.
    pub fn options(self) -> &'static str {
        match self {
            Self::Split => "",
            Self::Packed => ",packed_vq=1,mrg_rxbuf=1",
            Self::InOrder => ",packed_vq=1,mrg_rxbuf=1,in_order=1",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Split => "",
            Self::Packed => ", packed",
            Self::InOrder => ", packed in order",
        }
    }
}

/// One thing to measure, for each frame length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Case {
    /// Which way.
    pub scenario: Scenario,
    /// The rings.
    pub rings: Rings,
    /// Queue pairs of each port.
    pub pairs: u32,
    /// Further ports, whose front-ends are connected and do nothing.
    pub idle: usize,
}

impl Case {
    /// All of them. Two pairs are compared between guests only: DPDK 22.11 opens one queue of a
    /// veth, which has no "combined" channels.
    pub const ALL: [Self; 7] = [
        Self::new(Scenario::GuestToGuest, Rings::Split, 1),
        Self::new(Scenario::GuestToWire, Rings::Split, 1),
        Self::new(Scenario::WireToGuest, Rings::Split, 1),
        Self::new(Scenario::RoundTrip, Rings::Split, 1),
        Self::new(Scenario::GuestToGuest, Rings::Packed, 1),
        Self::new(Scenario::GuestToGuest, Rings::InOrder, 1),
        Self::new(Scenario::GuestToGuest, Rings::Split, 2),
    ];

    /// A case without idle ports.
    pub const fn new(scenario: Scenario, rings: Rings, pairs: u32) -> Self {
        Self { scenario, rings, pairs, idle: 0 }
    }

    /// For tables.
    pub fn name(&self) -> String {
        let scenario = match self.scenario {
            Scenario::GuestToGuest => "guest to guest",
            Scenario::GuestToWire => "guest to wire",
            Scenario::WireToGuest => "wire to guest",
            Scenario::RoundTrip => "round trip",
        };
        let pairs = if self.pairs == 1 { "" } else { ", two pairs" };
        format!("{scenario}{}{pairs}", self.rings.name())
    }

    /// Ports whose guests send or receive.
    pub fn ports(&self) -> usize {
        if self.scenario == Scenario::GuestToGuest { 2 } else { 1 }
    }

    /// The work of the far end of the wire; None where the front-end has it.
    pub fn far_end(&self) -> Option<FarEnd> {
        match self.scenario {
            Scenario::GuestToGuest | Scenario::GuestToWire => Some(FarEnd::Sink),
            Scenario::RoundTrip => Some(FarEnd::Reflect),
            Scenario::WireToGuest => None,
        }
    }
}
