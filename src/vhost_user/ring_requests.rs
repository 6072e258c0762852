//! The vring messages: the settings of each ring until it can start, and the changes while it runs.
//!
//! A ring starts once its size, addresses and kick, the features and the memory have all come, in
//! any order. QEMU sends NUM, BASE, ADDR, KICK, CALL. DPDK's virtio-user sends CALL first, then
//! NUM, BASE, ADDR, KICK, and ENABLE last. A ring stops with GET_VRING_BASE. Enabled and disabled
//! are independent of that (vhost-user, "Ring states").

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::fd::OwnedFd;

use vhost::vhost_user::message::{VhostUserVringAddr, VhostUserVringAddrFlags};

use crate::device::features::{FeatureSet, LOG_ALL, MRG_RXBUF, PROTOCOL_FEATURES};
use crate::device::net_header;
use crate::device::offloads::Offloads;
use crate::guest_memory::{FrontendAddress, GuestAddress};
use crate::virtqueue::{
    ActivateError, EventFd, EventFdError, EventKind, Journal, QueueAddresses, QueueSetup, Ring,
    RingKind, check_size,
};

use super::deferred_close::DeferredClose;
use super::device::Device;
use super::refusal::Refusal;
use super::requests::NO_DESCRIPTOR;
use super::ring_state::{Kick, number};
use super::transport::Message;

/// VHOST_VRING_F_LOG: writes to the ring are to be logged.
pub(super) const RING_LOGGED: u32 = VhostUserVringAddrFlags::VHOST_VRING_F_LOG.bits();

// ---- checks before a request is passed on -------------------------------------------------------

impl Device {
    /// The ring a request names, if the profile has it. Compared with all bits of the number: a
    /// truncated index would be another ring's (CVE-2020-10723).
    pub(super) fn ring_index(&self, ring: u64) -> Result<usize, Refusal> {
        let limit = self.rings.len();
        match usize::try_from(ring) {
            Ok(index) if index < limit => Ok(index),
            _ => Err(Refusal::NoSuchRing { ring, limit, profile: self.profile.name.clone() }),
        }
    }

    /// SET_VRING_KICK, CALL, ERR: bits 0 to 7 the ring, bit 8 that no descriptor comes with it.
    pub(super) fn check_event(&self, message: &Message) -> Result<(), Refusal> {
        let body: u64 = message.body();
        self.ring_index(body & !NO_DESCRIPTOR)?;
        let (flag, count) = (body & NO_DESCRIPTOR != 0, message.descriptors.len());
        if flag == (count == 0) {
            return Ok(());
        }
        Err(Refusal::DescriptorFlag { flag, count })
    }

    /// SET_VRING_ADDR, before any of it is kept.
    pub(super) fn check_addresses(&self, message: &Message) -> Result<(), Refusal> {
        let said: VhostUserVringAddr = message.body();
        let ring = self.ring_index(u64::from(said.index))?;
        let flags = said.flags;
        let offered = if self.profile.features.has(LOG_ALL) { RING_LOGGED } else { 0 };
        if flags & !offered != 0 {
            return Err(Refusal::AddressFlags { ring, flags, offered });
        }
        for (part, address, alignment) in [
            ("descriptor table", said.descriptor, 16),
            ("used ring", said.used, 4),
            ("available ring", said.available, 2),
        ] {
            if !address.is_multiple_of(alignment) {
                let source = ActivateError::Alignment { part, address, alignment };
                return Err(Refusal::Activate { ring, source });
            }
        }
        Ok(())
    }
}

// ---- requests -----------------------------------------------------------------------------------

impl Device {
    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, index: usize, entries: u32) -> Result<(), Refusal> {
        let limit = self.profile.ring_size_max;
        if entries > u32::from(limit) {
            let profile = self.profile.name.clone();
            return Err(Refusal::RingTooLarge { ring: index, entries, limit, profile });
        }
        let size = check_size(entries, self.options().packed)
            .map_err(|source| Refusal::Activate { ring: index, source })?;
        let state = &mut self.rings[index];
        if state.started && state.size != Some(size) {
            return Err(Refusal::Started(index));
        }
        state.size = Some(size);
        self.start_if_ready(index)
    }

    /// SET_VRING_ADDR, checked. While the ring runs only its logging may change.
    pub(super) fn set_addresses(
        &mut self,
        index: usize,
        said: &VhostUserVringAddr,
    ) -> Result<(), Refusal> {
        let addresses = parts(said);
        let log = (said.flags & RING_LOGGED != 0).then_some(GuestAddress(said.log));
        let state = &mut self.rings[index];
        if state.started {
            if state.addresses != Some(addresses) {
                return Err(Refusal::Started(index));
            }
            return self.log_ring(index, log);
        }
        (state.addresses, state.log) = (Some(addresses), log);
        self.start_if_ready(index)
    }

    /// SET_VRING_BASE. Only a packed ring uses the upper half.
    pub(super) fn set_base(&mut self, index: usize, base: u32) -> Result<(), Refusal> {
        if !self.options().packed && u16::try_from(base).is_err() {
            return Err(Refusal::Base { ring: index, base });
        }
        let state = &mut self.rings[index];
        if state.started {
            return Err(Refusal::Started(index));
        }
        state.base = base;
        let known = self.known_bases.get(index).copied().flatten();
        state.named = known.unwrap_or(base);
        Ok(())
    }

    /// SET_VRING_KICK, CALL, ERR, checked. A ring that runs keeps running: QEMU gives another call
    /// descriptor each time the guest masks or unmasks an interrupt.
    pub(super) fn set_event(
        &mut self,
        index: usize,
        kind: EventKind,
        message: &mut Message,
    ) -> Result<(), Refusal> {
        let event = message.descriptors.pop().map(event).transpose();
        let event = event.map_err(|source| Refusal::Event { ring: index, source })?;
        let state = &mut self.rings[index];
        if state.started {
            return Ok(self.backend.exchange(number(index), kind, event)?);
        }
        match kind {
            EventKind::Kick => state.kick = event.into(),
            EventKind::Call => state.call = event,
            EventKind::Err => state.err = event,
        }
        // A kick can start a ring. A call descriptor can start only one that waits for it after a
        // refusal.
        self.start_if_ready(index)
    }

    /// SET_VRING_ENABLE. QEMU sends it before SET_FEATURES when a device comes up
    /// (hw/net/vhost_net.c, `vhost_set_vring_enable`). So it is enough that bit 30 was offered.
    pub(super) fn set_enable(&mut self, index: usize, value: u32) -> Result<(), Refusal> {
        if self.acknowledged.is_some_and(|features| !features.has(PROTOCOL_FEATURES)) {
            return Err(Refusal::AlwaysEnabled);
        }
        match value {
            0 | 1 => self.enable(index, value == 1)?,
            value => return Err(Refusal::Enable { ring: index, value }),
        }
        self.publish();
        Ok(())
    }

    /// Enable or disable the ring; on return the worker acts accordingly.
    pub(super) fn enable(&mut self, index: usize, enabled: bool) -> Result<(), Refusal> {
        if self.rings[index].enabled == enabled {
            return Ok(());
        }
        self.rings[index].enabled = enabled;
        match self.take(index)? {
            Some(ring) => self.give(index, Ring { enabled, ..ring }),
            None => Ok(()),
        }
    }

    /// GET_VRING_BASE: on return nobody has the ring, and the answer is the next entry to take.
    /// Kick and call are dropped, as in other backends: both known front-ends send them anew.
    pub(super) fn stop(&mut self, index: usize) -> Result<u32, Refusal> {
        let ring = self.take(index)?;
        let state = &mut self.rings[index];
        if let Some(mut ring) = ring {
            state.base = ring.queue.ring_mut().retire();
            state.err = ring.err;
        }
        state.kick = Kick::Unset;
        state.call = None;
        state.named = state.base;
        Ok(state.base)
    }
}

/// The index where a ring starts: the lower half of a packed ring's base, from where available
/// entries are taken. When a ring is stopped, ours or another backend's, used entries are marked up
/// to there. DPDK reads no more of the base either (lib/vhost/vhost_user.c,
/// `vhost_user_set_vring_base`).
fn low_half(base: u32) -> u16 {
    let [low, high, ..] = base.to_le_bytes();
    u16::from_le_bytes([low, high])
}

// ---- starting, giving, taking -------------------------------------------------------------------

impl Device {
    /// The settings to run the ring, if all are there.
    pub(super) fn setup(&self, index: usize) -> Option<QueueSetup> {
        let state = &self.rings[index];
        self.acknowledged?;
        Some(QueueSetup {
            size: state.size?,
            addresses: state.addresses?,
            base: low_half(state.base),
            named: low_half(state.named),
            options: self.options(),
            log: state.log,
        })
    }

    /// Where the ring's position is kept.
    fn journal(&self, index: usize) -> Journal {
        let journals = self.backend.journals();
        journals.map_or_else(Journal::private, |journals| journals.ring(number(index)))
    }

    /// Start the ring if nothing is missing any more.
    fn start_if_ready(&mut self, index: usize) -> Result<(), Refusal> {
        let state = &self.rings[index];
        let waits = matches!(state.kick, Kick::Unset) || self.memory.regions().len() == 0;
        let waits = waits || self.waits_for_refused(index);
        if state.started || waits {
            return Ok(());
        }
        let Some(setup) = self.setup(index) else { return Ok(()) };
        let queue = setup
            .activate(&self.memory, self.journal(index))
            .map_err(|source| Refusal::Activate { ring: index, source })?;
        let kind = ring_kind(self.acknowledged.unwrap_or_default(), index);
        let state = &mut self.rings[index];
        let ring = Ring {
            queue,
            kick: std::mem::take(&mut state.kick).into_event(),
            call: state.call.take(),
            err: state.err.take(),
            enabled: state.enabled,
            kind,
            broken: None,
        };
        self.give(index, ring)?;
        self.publish();
        Ok(())
    }

    /// Whether a setting that the ring depends on was refused.
    fn waits_for_refused(&self, index: usize) -> bool {
        self.features_refused || self.memory_refused || !self.rings[index].refused.is_empty()
    }

    /// Start all rings that waited for the setting that has just come. Returns the first failure.
    pub(super) fn start_waiting(&mut self) -> Option<Refusal> {
        let mut first = None;
        for index in 0..self.rings.len() {
            if let Err(refusal) = self.start_if_ready(index) {
                first.get_or_insert(refusal);
            }
        }
        first
    }

    /// Have a ring, if it runs, continue in the memory that is now in force.
    pub(super) fn move_ring(&mut self, index: usize) -> Result<(), Refusal> {
        if !self.rings[index].started {
            return Ok(());
        }
        let setup = self.setup(index).expect("a ring that ran has all its settings");
        if self.backend.relocate(number(index), setup, &self.memory)? {
            return Ok(());
        }
        match self.take(index)? {
            Some(ring) => self.strand(index, ring),
            None => Ok(()),
        }
    }

    /// Stop a ring, taken from its worker, that cannot run in the memory that is now in force. The
    /// front-end is told by the ring's error descriptor. The ring starts again by itself if its
    /// memory comes back: front-ends remove and add a region to change it.
    fn strand(&mut self, index: usize, ring: Ring) -> Result<(), Refusal> {
        let position = ring.queue.ring().position();
        self.rings[index].base = position;
        let setup = self.setup(index).expect("a ring that ran has all its settings");
        match setup.activate(&self.memory, self.journal(index)) {
            Ok(queue) => self.give(index, Ring { queue, ..ring }),
            Err(source) => {
                if let Some(err) = &ring.err {
                    // The ring has stopped even if the signal fails.
                    let _ = err.signal();
                }
                let state = &mut self.rings[index];
                if ring.broken.is_none() {
                    state.kick = ring.kick.into();
                }
                (state.call, state.err) = (ring.call, ring.err);
                Err(Refusal::Activate { ring: index, source })
            }
        }
    }

    /// Hand the ring to its worker.
    pub(super) fn give(&mut self, index: usize, ring: Ring) -> Result<(), Refusal> {
        self.backend.give(number(index), ring)?;
        self.rings[index].started = true;
        Ok(())
    }

    /// Take the ring back from its worker, if it is there.
    pub(super) fn take(&mut self, index: usize) -> Result<Option<Ring>, Refusal> {
        if !std::mem::take(&mut self.rings[index].started) {
            return Ok(None);
        }
        Ok(self.backend.take(number(index))?)
    }
}

/// The offloads of a ring by these features (virtio 1.2, 5.1.2 and 5.1.6.1). A ring to the guest
/// (even) accepts them; a ring from it (odd) may send them.
fn ring_kind(features: FeatureSet, index: usize) -> RingKind {
    RingKind {
        header_len: net_header::len_of(features),
        mergeable: features.has(MRG_RXBUF),
        offloads: if index.is_multiple_of(2) {
            Offloads::accepted(features)
        } else {
            Offloads::sent(features)
        },
    }
}

/// An event descriptor that came with a message; anything else is closed by the port's closer.
fn event(descriptor: DeferredClose<OwnedFd>) -> Result<EventFd, EventFdError> {
    EventFd::check(&*descriptor)?;
    EventFd::new(File::from(descriptor.keep()))
}

/// The parts of a ring.
fn parts(said: &VhostUserVringAddr) -> QueueAddresses {
    QueueAddresses {
        descriptors: FrontendAddress(said.descriptor),
        available: FrontendAddress(said.available),
        used: FrontendAddress(said.used),
    }
}
