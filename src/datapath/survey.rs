//! The results of a look at a port: how far its rings are, and which addresses its guest sends
//! from. They are for people: the data path decides nothing by them.

use std::os::fd::OwnedFd;

use crate::virtqueue::{Fault, Glance, Ring};

/// The source addresses of a guest's frames since the last look. One frame of each burst is looked
/// at, its first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// The port's own was among them.
    pub own: bool,
    /// The last one that was another.
    pub other: Option<[u8; 6]>,
}

impl Sources {
    /// A frame came from `source`, and the port has the address `own`.
    #[inline]
    pub fn note(&mut self, source: [u8; 6], own: [u8; 6]) {
        if source == own {
            self.own = true;
        } else {
            self.other = Some(source);
        }
    }
}

/// A worker's report of one of its rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingReport {
    /// Ring number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The fault that broke it.
    pub broken: Option<Fault>,
}

/// One ring, as its worker sees it.
#[derive(Debug)]
pub struct RingSight {
    /// Ring number.
    pub index: u16,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The fault that broke it.
    pub broken: Option<Fault>,
    /// The next entry to take, as in SET_VRING_BASE.
    pub position: u32,
    /// The driver's part of the ring.
    pub glance: Glance,
    /// The driver's signal, if it was asked for and there is one.
    pub kick: Option<OwnedFd>,
}

impl RingSight {
    pub(super) fn new(index: u16, ring: &Ring, kicks: bool) -> Self {
        let kick = ring.kick.as_ref().filter(|_| kicks);
        let layout = ring.queue.ring();
        Self {
            index,
            enabled: ring.enabled,
            broken: ring.broken,
            position: layout.position(),
            glance: layout.glance(),
            // Without a descriptor left there is less to tell.
            kick: kick.and_then(|kick| kick.duplicate().ok()),
        }
    }
}

/// One port, as one worker sees it.
#[derive(Debug, Default)]
pub struct PortSight {
    /// Its rings.
    pub rings: Vec<RingSight>,
    /// Where its guest's frames came from.
    pub sources: Sources,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_own_source_and_another_are_both_remembered() {
        let (own, one, two) = ([2; 6], [4; 6], [6; 6]);
        let mut sources = Sources::default();
        for source in [one, own, two] {
            sources.note(source, own);
        }
        assert_eq!(sources, Sources { own: true, other: Some(two) });
    }
}
