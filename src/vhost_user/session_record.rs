//! A session as the messages that make it, so that another process can continue with its
//! connection.
//! It is handed over as the messages that would make it anew, in the protocol's own form. So the
//! successor checks each message against its own profiles, as if the front-end had just sent it. No
//! other format has to be kept stable from version to version. A message that the successor cannot
//! follow ends that session, and its front-end connects anew.
//!
//! The worker of a started ring knows more of it than the session: [`WorkerRing`] has that part.

#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use vhost::vhost_user::message::{
    FrontendReq, VhostUserLog, VhostUserMemory, VhostUserMemoryRegion, VhostUserSingleMemoryRegion,
    VhostUserVringAddr, VhostUserVringState,
};
use vm_memory::ByteValued;

use crate::device::features::{PROTOCOL_CONFIGURE_MEM_SLOTS, PROTOCOL_FEATURES, PROTOCOL_STATUS};
use crate::guest_memory::RegionSpec;
use crate::virtqueue::EventKind;

use super::deferred_close::{DeferredClose, DescriptorCloser};
use super::device::Device;
use super::requests::NO_DESCRIPTOR;
use super::ring_requests::RING_LOGGED;
use super::ring_state::{Kick, RingState, number};
use super::transport::{Message, VERSION};

/// A message that was sent, or could have been.
#[derive(Debug)]
pub struct RecordedMessage {
    /// The request's number.
    pub code: u32,
    /// Its body.
    pub body: Vec<u8>,
    /// Its descriptors.
    pub descriptors: Vec<OwnedFd>,
}

/// A session, between two messages.
#[derive(Debug)]
pub struct SessionRecord {
    /// The messages that make the session, in order.
    pub messages: Vec<RecordedMessage>,
    /// Entries of each ring of the last run; a stopped device has them in its state.
    pub ran: Vec<Option<u16>>,
    /// The base that the front-end knows of each ring whose SET_VRING_BASE here has another
    /// position. If we die, the front-end names the former.
    pub named: Vec<Option<u32>>,
}

impl RecordedMessage {
    fn new(code: FrontendReq, body: &impl ByteValued) -> Self {
        Self { body: body.as_slice().to_vec(), ..Self::bare(code) }
    }

    /// Without a body.
    fn bare(code: FrontendReq) -> Self {
        Self { code: code.into(), body: Vec::new(), descriptors: Vec::new() }
    }

    fn of_ring(code: FrontendReq, index: u16, value: u32) -> Self {
        Self::new(code, &VhostUserVringState::new(index.into(), value))
    }

    fn of_event(kind: EventKind, index: u16, event: Option<OwnedFd>) -> Self {
        let code = match kind {
            EventKind::Kick => FrontendReq::SET_VRING_KICK,
            EventKind::Call => FrontendReq::SET_VRING_CALL,
            EventKind::Err => FrontendReq::SET_VRING_ERR,
        };
        let no_descriptor = if event.is_some() { 0 } else { NO_DESCRIPTOR };
        Self::new(code, &(u64::from(index) | no_descriptor)).with(event)
    }

    fn with(mut self, descriptors: impl IntoIterator<Item = OwnedFd>) -> Self {
        self.descriptors.extend(descriptors);
        self
    }

    /// The message as if it had just come.
    pub(super) fn into_message(self, closer: &Arc<DescriptorCloser>) -> Message {
        let Self { code, body, descriptors } = self;
        let descriptors =
            descriptors.into_iter().map(|fd| DeferredClose::new(fd, closer)).collect();
        Message { code, flags: VERSION, body, descriptors, descriptors_cut: false }
    }
}

/// The state of a started ring that only its worker has.
#[derive(Debug)]
pub struct WorkerRing {
    /// Ring index.
    pub index: u16,
    /// As in SET_VRING_BASE.
    pub position: u32,
    /// It is broken: only its front-end may start it again.
    pub broken: bool,
    /// Kick, call and err.
    pub events: [Option<OwnedFd>; 3],
}

impl WorkerRing {
    /// The messages that start the ring, after those that its session has recorded.
    pub fn messages(self) -> impl Iterator<Item = RecordedMessage> {
        let Self { index, position, broken, events: [kick, call, err] } = self;
        let base = RecordedMessage::of_ring(FrontendReq::SET_VRING_BASE, index, position);
        let event = |kind, event: Option<OwnedFd>| {
            event.map(|event| RecordedMessage::of_event(kind, index, Some(event)))
        };
        let (call, err) = (event(EventKind::Call, call), event(EventKind::Err, err));
        // Last, since with it the ring starts.
        let kick = (!broken).then(|| RecordedMessage::of_event(EventKind::Kick, index, kick));
        [Some(base), call, err, kick].into_iter().flatten()
    }
}

impl Device {
    /// All messages of the session, except the workers' part.
    pub(super) fn record(&self) -> io::Result<SessionRecord> {
        let mut messages = self.feature_messages();
        // A refused setting is left out, so that it must come again, unless rings run with the
        // setting before it.
        let idle = self.started() == 0;
        if !(idle && self.memory_refused) {
            messages.extend(self.memory_messages()?);
        }
        // The log comes before the features that enable logging. Replayed in this order it marks
        // nothing anew: the log's file has the marks so far.
        if let Some(log) = &self.log {
            let body = VhostUserLog::new(log.size(), log.file_offset());
            let file = OwnedFd::from(log.file().try_clone()?);
            messages.push(RecordedMessage::new(FrontendReq::SET_LOG_BASE, &body).with([file]));
        }
        let features_hold = !(idle && self.features_refused);
        if let Some(acknowledged) = self.acknowledged.filter(|_| features_hold) {
            messages.push(RecordedMessage::new(FrontendReq::SET_FEATURES, &acknowledged.0));
        }
        if self.protocol.has(PROTOCOL_STATUS) && self.status != 0 {
            messages.push(RecordedMessage::new(FrontendReq::SET_STATUS, &u64::from(self.status)));
        }
        if let Some(channel) = &self.backend_channel {
            let channel = channel.try_clone()?;
            messages.push(RecordedMessage::bare(FrontendReq::SET_BACKEND_REQ_FD).with([channel]));
        }
        for (index, ring) in self.rings.iter().enumerate() {
            messages.extend(self.ring_messages(number(index), ring)?);
        }
        let ran = self.last_run.ring_sizes().to_vec();
        // Only the worker knows the position of a ring that runs.
        let elsewhere = |ring: &RingState| ring.started || ring.named != ring.base;
        let named = |ring: &RingState| elsewhere(ring).then_some(ring.named);
        Ok(SessionRecord { messages, ran, named: self.rings.iter().map(named).collect() })
    }

    fn feature_messages(&self) -> Vec<RecordedMessage> {
        let mut messages = vec![
            RecordedMessage::bare(FrontendReq::SET_OWNER),
            RecordedMessage::bare(FrontendReq::GET_FEATURES),
        ];
        if !self.protocol.is_empty() {
            messages.push(RecordedMessage::bare(FrontendReq::GET_PROTOCOL_FEATURES));
            messages
                .push(RecordedMessage::new(FrontendReq::SET_PROTOCOL_FEATURES, &self.protocol.0));
        }
        messages
    }

    fn memory_messages(&self) -> io::Result<Vec<RecordedMessage>> {
        let mut regions = Vec::new();
        for (spec, file) in self.memory.files() {
            regions.push((spec, OwnedFd::from(file.try_clone()?)));
        }
        if self.protocol.has(PROTOCOL_CONFIGURE_MEM_SLOTS) {
            let add = |(spec, file): (&RegionSpec, OwnedFd)| {
                let RegionSpec { guest, frontend, size, file_offset } = *spec;
                let body = VhostUserSingleMemoryRegion::new(guest.0, size, frontend.0, file_offset);
                RecordedMessage::new(FrontendReq::ADD_MEM_REG, &body).with([file])
            };
            return Ok(regions.into_iter().map(add).collect());
        }
        if regions.is_empty() {
            return Ok(Vec::new());
        }
        let count = u32::try_from(regions.len()).expect("a table has at most 64 regions");
        let mut table =
            RecordedMessage::new(FrontendReq::SET_MEM_TABLE, &VhostUserMemory::new(count));
        for (spec, file) in regions {
            let RegionSpec { guest, frontend, size, file_offset } = *spec;
            let region = VhostUserMemoryRegion::new(guest.0, size, frontend.0, file_offset);
            table.body.extend_from_slice(region.as_slice());
            table.descriptors.push(file);
        }
        Ok(vec![table])
    }

    fn ring_messages(&self, index: u16, ring: &RingState) -> io::Result<Vec<RecordedMessage>> {
        let mut messages = Vec::new();
        // A running ring's settings are in force. For other rings a refused setting must come
        // again.
        let holds = |code| ring.started || !ring.refused.contains(&code);
        if let Some(size) = ring.size.filter(|_| holds(FrontendReq::SET_VRING_NUM)) {
            messages.push(RecordedMessage::of_ring(FrontendReq::SET_VRING_NUM, index, size.into()));
        }
        if let Some(addresses) = ring.addresses.filter(|_| holds(FrontendReq::SET_VRING_ADDR)) {
            let flags = if ring.log.is_some() { RING_LOGGED } else { 0 };
            let body = VhostUserVringAddr {
                index: index.into(),
                flags,
                descriptor: addresses.descriptors.0,
                used: addresses.used.0,
                available: addresses.available.0,
                log: ring.log.map_or(0, |log| log.0),
            };
            messages.push(RecordedMessage::new(FrontendReq::SET_VRING_ADDR, &body));
        }
        let has_enable = self.acknowledged.is_none_or(|features| features.has(PROTOCOL_FEATURES));
        if ring.enabled && has_enable {
            messages.push(RecordedMessage::of_ring(FrontendReq::SET_VRING_ENABLE, index, 1));
        }
        if ring.started {
            return Ok(messages);
        }
        if ring.base != 0 {
            messages.push(RecordedMessage::of_ring(FrontendReq::SET_VRING_BASE, index, ring.base));
        }
        for (kind, event) in [(EventKind::Call, &ring.call), (EventKind::Err, &ring.err)] {
            if let Some(event) = event {
                messages.push(RecordedMessage::of_event(kind, index, Some(event.duplicate()?)));
            }
        }
        match &ring.kick {
            _ if !ring.refused.is_empty() => {}
            Kick::Unset => {}
            Kick::Polling => messages.push(RecordedMessage::of_event(EventKind::Kick, index, None)),
            Kick::Event(event) => {
                messages.push(RecordedMessage::of_event(
                    EventKind::Kick,
                    index,
                    Some(event.duplicate()?),
                ));
            }
        }
        Ok(messages)
    }
}
