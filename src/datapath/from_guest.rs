//! Bursts from guests: packets are taken off a ring, shown to an [`Outlet`], and completed.

use crate::guest_memory::GuestMemory;
use crate::metrics::PortCounter;
use crate::virtqueue::{DeviceRing, Direction, Fault, Layout, Ring, Run, Segments};

use super::ids::{RingId, pair_of};
use super::limits::BURST;
use super::outlet::{Outlet, TakenPackets};
use super::plane::Plane;

/// Descriptors of chains beyond the usual kind after which a ring's burst ends. Linux needs 19 for
/// the longest packet (MAX_SKB_FRAGS), so this is more than [`BYTES_MAX`] allows an honest guest. A
/// burst may exceed it by one chain, of at most 1024 descriptors.
const DESCRIPTORS_MAX: usize = 1024;

/// Bursts from all busy rings, and from a share of the quiet ones; from all quiet ones if there was
/// no other work.
#[inline]
pub(super) fn bursts(plane: &mut Plane, mut nothing_else: bool) -> usize {
    let (mut work, mut at) = (0, 0);
    plane.rotation.begin_turn();
    while let Some(ring) = plane.rotation.busy_at(at) {
        let taken = burst(plane, ring);
        work += taken;
        if plane.rotation.stays_busy(at, taken) {
            at += 1;
        } else {
            plane.want_kicks(ring, true);
        }
    }
    nothing_else &= work == 0;
    for _ in 0..plane.rotation.share(nothing_else) {
        let Some(ring) = plane.rotation.next_quiet() else { break };
        let taken = burst(plane, ring);
        if taken > 0 {
            work += taken;
            plane.rotation.wake();
            plane.want_kicks(ring, false);
        }
    }
    work
}

/// Take what the guest has made available, at most [`BURST`] packets, and forward it. Returns how
/// many were taken.
///
/// [`DESCRIPTORS_MAX`], and the copies and bytes of an [`Outlet`], also limit a burst; it exceeds
/// each by at most one packet.
fn burst(plane: &mut Plane, id: RingId) -> usize {
    let Some(ring) = plane.ports.ring(id) else { return 0 };
    if ring.broken.is_some() {
        return 0;
    }
    let (taken, fault) = match ring.queue.parts().1.has_available() {
        Ok(false) => return 0,
        Err(error) => (0, Some(error)),
        Ok(true) => {
            let Some(mut ring) = plane.ports.lift(id) else { return 0 };
            let served = serve(plane, id, &mut ring);
            plane.ports.lower(id, ring);
            served
        }
    };
    if let Some(fault) = fault {
        plane.ports.break_ring(id, fault);
    }
    usize::from(taken)
}

/// Take a burst of packets, and forward or discard them. The guest sees their completion at the end
/// of the turn.
fn serve(plane: &mut Plane, id: RingId, ring: &mut Ring) -> (u16, Option<Fault>) {
    let outlet =
        if ring.enabled { Outlet::new(plane, id.port, pair_of(id.index), ring.kind) } else { None };
    let mut taken = 0;
    let result = match outlet {
        Some(mut outlet) => {
            let result = each_packet(ring, &mut taken, |packets| outlet.forward(packets));
            outlet.finish();
            result
        }
        None => {
            let result = each_packet(ring, &mut taken, |packets| packets.count());
            let reason = if ring.enabled {
                PortCounter::FromGuestDroppedUnrouted
            } else {
                PortCounter::FromGuestDroppedDisabled
            };
            plane.ports.count(id.port, reason, u64::from(taken));
            result
        }
    };
    if ring.queue.parts().1.has_unpublished() {
        plane.ports.publish_later(id);
    }
    (taken, result.err())
}

/// Take up to [`BURST`] packets, show them to `forward`, and complete them. `forward` returns how
/// many it has forwarded; if not all, the burst ends.
#[inline]
fn each_packet(
    ring: &mut Ring,
    taken: &mut u16,
    forward: impl FnMut(TakenPackets<'_, '_>) -> usize,
) -> Result<(), Fault> {
    match ring.queue.parts() {
        (memory, DeviceRing::Split(ring)) => each_packet_of(memory, ring, taken, forward),
        (memory, DeviceRing::Packed(ring)) => each_packet_of(memory, ring, taken, forward),
    }
}

#[inline]
fn each_packet_of(
    memory: &GuestMemory,
    ring: &mut impl Layout,
    taken: &mut u16,
    mut forward: impl FnMut(TakenPackets<'_, '_>) -> usize,
) -> Result<(), Fault> {
    let (mut run, mut segments, mut walked) = (Run::new(), Segments::new(), 0);
    while *taken < BURST && walked < DESCRIPTORS_MAX {
        ring.take_run(memory, Direction::FromGuest, usize::from(BURST - *taken), &mut run);
        if run.is_empty() {
            if !ring.has_available()? {
                break;
            }
            segments.clear();
            let chain = ring.take(memory, Direction::FromGuest, &mut segments)?;
            walked += segments.len();
            if forward(TakenPackets::Single(&mut segments)) == 0 {
                ring.untake(chain);
                break;
            }
            ring.complete(chain, 0);
            *taken += 1;
            continue;
        }
        // Another core has just written them: fetch the lines of all while the first is read.
        run.iter().for_each(|(_, piece)| piece.prefetch(usize::MAX));
        let done = forward(TakenPackets::Run(&run));
        let enough = done < run.len();
        while run.len() > done {
            run.pop().into_iter().for_each(|(chain, _)| ring.untake(chain));
        }
        for (chain, _) in run.drain(..) {
            ring.complete(chain, 0);
            *taken += 1;
        }
        if enough {
            break;
        }
    }
    Ok(())
}
