//! The ports and rings of one worker.

use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::Sender;

use crate::metrics::{Counters, PortCounter, Published};
use crate::virtqueue::{Fault, Ring, settle};

use super::complete::Completer;
use super::deliver::{Undelivered, WALK_MAX, deliver, deliver_run};
use super::flood_budget::FloodBudget;
use super::frame::{CompleteFrame, FrameView};
use super::guest_signals::{Signaller, Signalling};
use super::ids::{PortId, QueuePair, RingId, UplinkId};
use super::survey::{PortSight, RingReport, RingSight, Sources};

/// A queue pair that gets a flooded frame once it is completed.
#[derive(Debug)]
struct FloodReceiver {
    to: QueuePair,
    /// How many of the frames made from the flooded one were offered to it.
    offered: u64,
    /// No further frames are offered: it has no buffers, or is broken.
    done: bool,
}

/// A port in the hands of a worker: those of its rings that the worker serves.
#[derive(Debug)]
struct WorkerPort {
    name: Arc<str>,
    rings: Vec<Option<Box<Ring>>>,
    /// The cost of walking each ring's descriptors.
    walks: Vec<Walk>,
    signalling: Signalling,
    counters: Counters<PortCounter>,
    sources: Sources,
}

impl WorkerPort {
    fn report(&self) -> impl Iterator<Item = RingReport> {
        let report = |(index, ring): (usize, &Ring)| RingReport {
            index: u16::try_from(index).unwrap_or(u16::MAX),
            size: ring.queue.ring().size(),
            enabled: ring.enabled,
            broken: ring.broken,
        };
        let rings = self.rings.iter().enumerate();
        rings.filter_map(move |(index, ring)| Some(report((index, ring.as_deref()?))))
    }
}

/// How many descriptors of a ring may still be walked in a turn.
#[derive(Clone, Copy, Debug, Default)]
struct Walk {
    turn: u64,
    left: usize,
}

impl Walk {
    #[inline]
    fn left(&mut self, turn: u64) -> &mut usize {
        if self.turn != turn {
            *self = Self { turn, left: WALK_MAX };
        }
        &mut self.left
    }
}

/// The ports and rings of a worker, apart from its sockets so that both can be borrowed at once.
#[derive(Debug)]
pub(super) struct WorkerPorts {
    slots: Vec<Option<Box<WorkerPort>>>,
    /// Rings with completions that their guests have not been shown.
    to_publish: Vec<RingId>,
    lost: Sender<PortId>,
    /// Sends the signals of ports whose signals have cost too much.
    signaller: Signaller,
    /// Counts turns from 1.
    turn: u64,
    /// The receivers of a flooded frame once it is completed.
    receivers: Vec<FloodReceiver>,
    /// Completes frames that their receiver does not accept as they are.
    pub completer: Completer,
    /// Frames for ports that were removed, by uplink, until a socket counts them.
    for_removed: Vec<(UplinkId, u64)>,
}

impl WorkerPorts {
    /// No ports yet. `lost` reports ports whose memory is gone.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn new(lost: Sender<PortId>) -> std::io::Result<Self> {
        Ok(Self {
            slots: Vec::new(),
            to_publish: Vec::new(),
            lost,
            signaller: Signaller::start()?,
            turn: 1,
            receivers: Vec::new(),
            completer: Completer::new(),
            for_removed: Vec::new(),
        })
    }

    /// Make room for a port; returns where its counters are published.
    pub fn add(&mut self, port: PortId, name: Arc<str>) -> Arc<Published<PortCounter>> {
        if self.slots.len() <= port.index() {
            self.slots.resize_with(port.index() + 1, || None);
        }
        let slot = WorkerPort {
            name,
            rings: Vec::new(),
            walks: Vec::new(),
            signalling: Signalling::default(),
            counters: Counters::new(),
            sources: Sources::default(),
        };
        let published = Arc::clone(slot.counters.published());
        self.slots[port.index()] = Some(Box::new(slot));
        published
    }

    pub fn remove(&mut self, port: PortId) {
        if let Some(slot) = self.slots.get_mut(port.index()) {
            *slot = None;
        }
    }

    #[inline]
    fn slot(&mut self, port: PortId) -> Option<&mut WorkerPort> {
        self.slots.get_mut(port.index())?.as_deref_mut()
    }

    #[inline]
    pub fn ring(&mut self, id: RingId) -> Option<&mut Ring> {
        self.slot(id.port)?.rings.get_mut(usize::from(id.index))?.as_deref_mut()
    }

    pub fn put(&mut self, id: RingId, ring: Box<Ring>) {
        let Some(slot) = self.slot(id.port) else { return };
        let index = usize::from(id.index);
        if slot.rings.len() <= index {
            slot.rings.resize_with(index + 1, || None);
            slot.walks.resize(index + 1, Walk::default());
        }
        slot.rings[index] = Some(ring);
    }

    /// Take a ring out of its place, to work on it while the others are reached too.
    #[inline]
    pub fn lift(&mut self, id: RingId) -> Option<Box<Ring>> {
        self.slot(id.port)?.rings.get_mut(usize::from(id.index))?.take()
    }

    /// Put a lifted ring back.
    #[inline]
    pub fn lower(&mut self, id: RingId, ring: Box<Ring>) {
        if let Some(slot) = self.slot(id.port) {
            slot.rings[usize::from(id.index)] = Some(ring);
        }
    }

    /// Count for a port.
    #[inline]
    pub fn count(&mut self, port: PortId, counter: PortCounter, amount: u64) {
        if let Some(slot) = self.slot(port) {
            slot.counters.add(counter, amount);
        }
    }

    /// Count a frame for a port that was removed.
    #[cold]
    fn count_removed(&mut self, uplink: UplinkId) {
        match self.for_removed.iter_mut().find(|(of, _)| *of == uplink) {
            Some((_, count)) => *count += 1,
            None => self.for_removed.push((uplink, 1)),
        }
    }

    /// How many frames for removed ports were counted since the last call, by uplink.
    pub fn take_removed(&mut self) -> impl Iterator<Item = (UplinkId, u64)> {
        self.for_removed.drain(..)
    }

    /// A frame of a port's guest came from `source`; the port has the address `own`.
    #[inline]
    pub fn note_source(&mut self, port: PortId, source: [u8; 6], own: [u8; 6]) {
        if let Some(slot) = self.slot(port) {
            slot.sources.note(source, own);
        }
    }

    /// Deliver a frame to a queue pair that this worker serves, or drop it and count why: at its
    /// uplink if the port was removed. A frame that the guest does not accept as it is, is
    /// completed first. Returns how many frames it became.
    #[inline]
    pub fn deliver(&mut self, to: QueuePair, frame: &FrameView<'_>) -> usize {
        let id = to.to_guest();
        let Some(slot) = self.slots.get_mut(id.port.index()).and_then(Option::as_deref_mut) else {
            self.count_removed(to.uplink);
            return 1;
        };
        let WorkerPort { rings, walks, counters, .. } = slot;
        let ring = rings.get_mut(usize::from(id.index)).and_then(Option::as_deref_mut);
        let Some(ring) = ring.filter(|ring| ring.enabled && ring.broken.is_none()) else {
            counters.add(PortCounter::ToGuestDroppedNotReady, 1);
            return 1;
        };
        let first = !ring.queue.parts().1.has_unpublished();
        let walk = walks[usize::from(id.index)].left(self.turn);
        let (mut result, mut frames) = (Ok(()), 1);
        if frame.can_be_left_to(ring.kind.offloads) {
            result = put(ring, counters, frame, walk);
        } else {
            let mut left_out = 0;
            frames = 0;
            self.completer.complete(frame, |frame| {
                frames += 1;
                if result.is_ok() {
                    result = put(ring, counters, frame, &mut *walk);
                } else {
                    left_out += 1;
                }
            });
            counters.add(PortCounter::ToGuestDroppedNoBuffers, left_out);
        }
        if first && ring.queue.parts().1.has_unpublished() {
            self.to_publish.push(id);
        }
        if let Err(Undelivered::Fault(fault)) = result {
            self.break_ring(id, fault);
        }
        frames
    }

    /// As [`deliver`](Self::deliver), within `budget`. If the guest does not accept the frame as it
    /// is, [`deliver_completed`](Self::deliver_completed) delivers it.
    pub fn deliver_flooded(
        &mut self,
        to: QueuePair,
        frame: &FrameView<'_>,
        budget: &mut FloodBudget,
    ) {
        let ring = self.ring(to.to_guest());
        if ring.is_some_and(|ring| !frame.can_be_left_to(ring.kind.offloads)) {
            self.receivers.push(FloodReceiver { to, offered: 0, done: false });
        } else if budget.take(frame.len()) {
            self.deliver(to, frame);
        } else {
            self.count(to.port, PortCounter::ToGuestDroppedHandover, 1);
        }
    }

    /// Complete a flooded frame once and deliver the results to all receivers that wait for them,
    /// each until it has no buffers, and within `budget`.
    pub fn deliver_completed(&mut self, frame: &FrameView<'_>, budget: &mut FloodBudget) {
        if self.receivers.is_empty() {
            return;
        }
        let mut receivers = std::mem::take(&mut self.receivers);
        let mut completer = std::mem::take(&mut self.completer);
        let mut frames = 0;
        completer.complete(frame, |frame| {
            frames += 1;
            for receiver in receivers.iter_mut().filter(|receiver| !receiver.done) {
                if !budget.take(frame.len()) {
                    return;
                }
                receiver.offered += 1;
                receiver.done = !self.try_deliver(receiver.to, frame);
            }
        });
        for FloodReceiver { to, offered, done } in receivers.drain(..) {
            let reason = if done {
                PortCounter::ToGuestDroppedNoBuffers
            } else {
                PortCounter::ToGuestDroppedHandover
            };
            self.count(to.port, reason, frames - offered);
        }
        (self.receivers, self.completer) = (receivers, completer);
    }

    /// Deliver a complete frame; false if the next one would fail too.
    fn try_deliver(&mut self, to: QueuePair, frame: &FrameView<'_>) -> bool {
        let before = self.delivered(to.port);
        self.deliver(to, frame);
        self.delivered(to.port) > before
    }

    fn delivered(&mut self, port: PortId) -> u64 {
        self.slot(port).map_or(0, |slot| slot.counters.get(PortCounter::ToGuestPackets))
    }

    /// Deliver complete frames to a queue pair that this worker serves. It stops at the first that
    /// is longer than `frame_max` allows or otherwise unusual. Returns how many were delivered; the
    /// others are for [`deliver`](Self::deliver).
    #[inline]
    pub fn deliver_run(
        &mut self,
        to: QueuePair,
        frames: &[impl CompleteFrame],
        frame_max: u32,
    ) -> usize {
        let id = to.to_guest();
        let Some(WorkerPort { rings, counters, .. }) =
            self.slots.get_mut(id.port.index()).and_then(Option::as_deref_mut)
        else {
            return 0;
        };
        let ring = rings.get_mut(usize::from(id.index)).and_then(Option::as_deref_mut);
        let Some(ring) = ring.filter(|ring| ring.enabled && ring.broken.is_none()) else {
            return 0;
        };
        let first = !ring.queue.parts().1.has_unpublished();
        let delivered = deliver_run(ring, frames, frame_max);
        counters.add(PortCounter::ToGuestPackets, delivered.frames as u64);
        counters.add(PortCounter::ToGuestBytes, delivered.bytes);
        if first && delivered.frames > 0 {
            self.to_publish.push(id);
        }
        delivered.frames
    }

    /// Stop serving a ring: one log line, one count, and a signal to the front-end.
    #[cold]
    pub fn break_ring(&mut self, id: RingId, fault: Fault) {
        let RingId { port, index } = id;
        let slot = self.slots.get_mut(port.index()).and_then(Option::as_deref_mut);
        let Some(slot) = slot else { return };
        let Some(Some(ring)) = slot.rings.get_mut(usize::from(index)) else { return };
        if ring.broken.is_none() {
            tracing::error!(
                port = &*slot.name, ring = index, %fault,
                "the guest broke its ring, which is served no more until it is started again"
            );
            slot.counters.add(PortCounter::RingFaults, 1);
            if let Some(err) = ring.break_with(fault) {
                let now = &mut Instant::now();
                // A failure changes nothing: the ring is broken already.
                let _ = slot.signalling.signal(&mut self.signaller, index, err, now);
            }
            if fault == Fault::MemoryGone {
                // The receiver is gone only when the daemon stops.
                let _ = self.lost.send(port);
            }
        }
    }

    /// Note that a ring has completions which its guest is to be shown.
    #[inline]
    pub fn publish_later(&mut self, id: RingId) {
        self.to_publish.push(id);
    }

    /// Show the guests what was completed in this turn. Each ring costs one index store and at most
    /// one interrupt. All share one barrier, which waits for every write before it.
    pub fn publish_and_notify(&mut self) {
        self.turn += 1;
        let mut rings = std::mem::take(&mut self.to_publish);
        if rings.is_empty() {
            return;
        }
        for &id in &rings {
            if let Some(ring) = self.ring(id) {
                ring.queue.ring_mut().publish();
            }
        }
        settle();
        let mut now = Instant::now();
        for id in rings.drain(..) {
            let notified = self.notify(id, &mut now);
            let Some(ring) = self.ring(id) else { continue };
            let gone = ring.queue.memory_gone().then_some(Fault::MemoryGone);
            let given_back = ring.queue.ring_mut().take_given_back();
            if given_back > 0 {
                self.tell_given_back(id, given_back);
            }
            self.count_notification(id.port, notified == Ok(true));
            if let Some(fault) = gone.or(notified.err()) {
                self.break_ring(id, fault);
            }
        }
        self.to_publish = rings;
    }

    /// Log once per ring that a driver waited for descriptors that the backend before us had used.
    #[cold]
    fn tell_given_back(&mut self, id: RingId, descriptors: u16) {
        let Some(slot) = self.slot(id.port) else { return };
        slot.counters.add(PortCounter::RingDescriptorsGivenBack, u64::from(descriptors));
        tracing::warn!(
            port = &*slot.name,
            ring = id.index,
            descriptors,
            "the guest waited for descriptors that the backend before this one had used without \
             logging them; they are given back without a packet"
        );
    }

    /// Signal a driver if it wants to know of the published completions; returns whether it did.
    /// The clock was read at `now`.
    #[inline]
    fn notify(&mut self, id: RingId, now: &mut Instant) -> Result<bool, Fault> {
        let RingId { port, index } = id;
        let slot = self.slots.get_mut(port.index()).and_then(Option::as_deref_mut);
        let Some(WorkerPort { rings, signalling, .. }) = slot else { return Ok(false) };
        let ring = rings.get_mut(usize::from(index)).and_then(Option::as_deref_mut);
        let Some(call) = ring.and_then(Ring::wants_signal) else { return Ok(false) };
        signalling.signal(&mut self.signaller, index, call, now).map(|()| true)
    }

    /// Signal a driver whether or not there is news. An earlier signal may have used a descriptor
    /// that nobody reads any more. The driver looks, and finds what there is.
    pub fn remind(&mut self, id: RingId) {
        let RingId { port, index } = id;
        let slot = self.slots.get_mut(port.index()).and_then(Option::as_deref_mut);
        let Some(WorkerPort { rings, signalling, .. }) = slot else { return };
        let ring = rings.get(usize::from(index)).and_then(Option::as_deref);
        let Some(call) = ring.and_then(|ring| ring.call.as_ref()) else { return };
        let now = &mut Instant::now();
        if let Err(fault) = signalling.signal(&mut self.signaller, index, call, now) {
            self.break_ring(id, fault);
        }
    }

    /// Whether signals wait to be sent by the other thread.
    pub fn signals_wait(&mut self) -> bool {
        self.signaller.is_behind()
    }

    /// Count a notification decision.
    #[inline]
    fn count_notification(&mut self, port: PortId, notified: bool) {
        let counter = if notified {
            PortCounter::Notifications
        } else {
            PortCounter::NotificationsSuppressed
        };
        self.count(port, counter, 1);
    }

    /// All rings there are.
    pub fn rings(&self) -> impl Iterator<Item = (RingId, &Ring)> {
        let ports = (0u16..).map(PortId).zip(&self.slots);
        ports.filter_map(|(port, slot)| Some((port, slot.as_deref()?))).flat_map(|(port, slot)| {
            let rings = (0u16..).zip(&slot.rings);
            rings.filter_map(move |(index, ring)| Some((RingId { port, index }, ring.as_deref()?)))
        })
    }

    /// All rings, to change them.
    pub fn rings_mut(&mut self) -> impl Iterator<Item = &mut Ring> {
        let slots = self.slots.iter_mut().filter_map(|slot| slot.as_deref_mut());
        slots.flat_map(|slot| slot.rings.iter_mut().filter_map(|ring| ring.as_deref_mut()))
    }

    pub fn publish_counters(&self) {
        for slot in self.slots.iter().flatten() {
            slot.counters.publish();
        }
    }

    /// Look at a port, at its kick descriptors too if `kicks` are asked for.
    pub fn survey(&mut self, port: PortId, kicks: bool) -> PortSight {
        let Some(slot) = self.slot(port) else { return PortSight::default() };
        let rings = (0u16..).zip(&slot.rings);
        let rings = rings.filter_map(|(index, ring)| Some((index, ring.as_deref()?)));
        let rings = rings.map(|(index, ring)| RingSight::new(index, ring, kicks)).collect();
        PortSight { rings, sources: std::mem::take(&mut slot.sources) }
    }

    pub fn report(&mut self, port: PortId) -> Vec<RingReport> {
        self.slot(port).map(|slot| slot.report().collect()).unwrap_or_default()
    }

    pub fn report_all(&self) -> Vec<(PortId, RingReport)> {
        let slots = (0..).map(PortId).zip(&self.slots);
        let of_slot = |(port, slot): (PortId, &Option<Box<WorkerPort>>)| {
            slot.iter().flat_map(|slot| slot.report()).map(|ring| (port, ring)).collect::<Vec<_>>()
        };
        slots.flat_map(of_slot).collect()
    }
}

/// Put one frame into a receive ring and count what became of it.
#[inline]
fn put(
    ring: &mut Ring,
    counters: &mut Counters<PortCounter>,
    frame: &FrameView<'_>,
    walk: &mut usize,
) -> Result<(), Undelivered> {
    let result = deliver(ring, frame, walk);
    match result {
        Ok(()) => {
            counters.add(PortCounter::ToGuestPackets, 1);
            counters.add(PortCounter::ToGuestBytes, u64::from(frame.len()));
        }
        Err(Undelivered::NoBuffers) => counters.add(PortCounter::ToGuestDroppedNoBuffers, 1),
        Err(Undelivered::BufferSize) => counters.add(PortCounter::ToGuestDroppedBufferSize, 1),
        Err(Undelivered::Fault(_)) => counters.add(PortCounter::ToGuestDroppedNotReady, 1),
    }
    result
}
