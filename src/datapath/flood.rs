//! A frame for all switched ports of an uplink: broadcast, multicast.
//!
//! Who has it delivers it to those of the ports that its own worker serves, and hands it over once
//! to each other worker, which does the same. What some of them do not take as it is, is completed
//! once for all of them.

use std::sync::Arc;

use crate::metrics::PortCounter;
use crate::packet::flow_hash;

use super::dispatch::hand_over;
use super::forwarding::Forwarding;
use super::frame::FrameView;
use super::handover::{Buffers, Inbox, Target};
use super::ids::{PortId, UplinkId, WorkerId};
use super::ports::Ports;

/// Most copies that a worker makes of one frame, segments of it counted: four for each port there
/// may be.
const COPIES_MAX: usize = 4096;
/// Most bytes that a worker copies of one frame, which takes some half a millisecond: of an MTU of
/// 1500 more than there may be ports.
const BYTES_MAX: u64 = 4 << 20;

/// Whose buffers take what comes from the wire: nobody's, and so no port's number.
const NOBODY: PortId = PortId(4095);

/// Which frame it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// To the switched ports of this uplink,
    pub uplink: UplinkId,
    /// but for the one that it comes from.
    pub from: Option<PortId>,
    /// The worker that had it first, by which queue pairs are chosen.
    pub by: WorkerId,
}

/// What may still be copied of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub copies: usize,
    pub bytes: u64,
}

impl Room {
    const WHOLE: Self = Self { copies: COPIES_MAX, bytes: BYTES_MAX };

    /// Whether there is some; a copy of so many bytes then uses it up.
    pub fn take(&mut self, bytes: u32) -> bool {
        if self.copies == 0 || self.bytes == 0 {
            return false;
        }
        self.copies -= 1;
        self.bytes = self.bytes.saturating_sub(bytes.into());
        true
    }
}

impl Flood {
    /// Deliver to the ports that worker `here` serves. Answers how many copies were made.
    pub(super) fn deliver(
        self,
        here: WorkerId,
        ports: &mut Ports,
        table: &Forwarding,
        frame: &FrameView<'_>,
    ) -> usize {
        let mut room = Room::WHOLE;
        let hash = flow_hash(frame.start());
        for port in self.ports(table) {
            match self.place(table, port, (hash, frame)) {
                Ok((pair, worker)) if worker == here => {
                    ports.deliver_flooded((port, pair), frame, &mut room);
                }
                Ok(_) => (),
                Err(reason) if here == self.by => ports.count(port, reason, 1),
                Err(_counted_there) => (),
            }
        }
        ports.deliver_completed(frame, &mut room);
        COPIES_MAX - room.copies
    }

    /// Hand it over, once to each worker other than `here` that serves some of the ports.
    pub(super) fn hand_over(
        self,
        here: WorkerId,
        (ports, buffers): (&mut Ports, &mut Buffers),
        (table, inboxes): (&Forwarding, &[Arc<Inbox>]),
        frame: &FrameView<'_>,
    ) {
        for &worker in table.receivers(self.uplink) {
            let from = self.from.unwrap_or(NOBODY);
            let target = Target::Flood(self);
            if worker == here || hand_over(buffers, &inboxes[worker.index()], (from, target), frame)
            {
                continue;
            }
            let hash = flow_hash(frame.start());
            for port in self.ports(table) {
                if self.place(table, port, (hash, frame)).is_ok_and(|(_, of)| of == worker) {
                    ports.count(port, PortCounter::ToGuestDroppedHandover, 1);
                }
            }
        }
    }

    /// The ports that it is for.
    fn ports(self, table: &Forwarding) -> impl Iterator<Item = PortId> {
        table.switched(self.uplink).iter().copied().filter(move |&port| Some(port) != self.from)
    }

    /// Which queue pair of a port it is for, and the worker that serves that; or why for none.
    fn place(
        self,
        table: &Forwarding,
        port: PortId,
        (hash, frame): (u32, &FrameView<'_>),
    ) -> Result<(u16, WorkerId), PortCounter> {
        let route = table.route(port).ok_or(PortCounter::ToGuestDroppedNotReady)?;
        if !frame.is_within(route.frame_max) {
            return Err(PortCounter::ToGuestDroppedOversize);
        }
        let pair = route.pair(self.by, || hash).ok_or(PortCounter::ToGuestDroppedNotReady)?;
        Ok((pair, route.worker(pair)))
    }
}
