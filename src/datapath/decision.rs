//! Where a frame goes. [`decide`] names the way by where the frame comes from and its destination.
//! [`choose`] picks the queue pair of a port, or the reason why there is none. Both return data and
//! change nothing. [`Dispatch`](super::dispatch::Dispatch) carries it out.
//!
//! All frames are decided here: those of guests, of the wire and of the host. The control plane
//! brings the wire's multicast, and sends frames of its own in the name of a port.

use crate::metrics::PortCounter;

use super::forwarding::{Attachment, Forwarding, Receiver, Route};
use super::frame::FrameView;
use super::ids::{PortId, UplinkId, WorkerId};

/// Where a frame comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum FrameOrigin<'t> {
    /// The guest of a port with this route.
    Guest(PortId, &'t Route),
    /// A queue of an uplink, and the port that has the whole queue, if one has.
    Queue(UplinkId, Option<Receiver<'t>>),
    /// The control plane, which brings an uplink's multicast and the host's frames to VMs.
    ControlPlane(UplinkId),
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Decision<'t> {
    /// Out of the uplink.
    Wire,
    /// To one port, which may be the host's.
    Port(Receiver<'t>),
    /// To all switched ports; a guest's also to the wire and to the host.
    Flood,
    /// Nowhere: its guest has sent it to itself.
    Own,
    /// Nowhere: its group ends at the next bridge, which is this one.
    Reserved,
    /// Nowhere: no port has its destination.
    NoPort,
}

/// Where a frame goes that comes from `origin`.
///
/// Flow control is not seen here, since it has no address of its own: the reader of a guest's frame
/// drops it first.
// Each caller has one origin, so that one arm is left when this is inlined: 70 instructions a run.
#[inline(always)]
pub(super) fn decide<'t>(
    table: &'t Forwarding,
    origin: FrameOrigin<'t>,
    destination: [u8; 6],
) -> Decision<'t> {
    match origin {
        FrameOrigin::Guest(port, route) => match route.attachment {
            Attachment::Wire { .. } => Decision::Wire,
            Attachment::Switch { .. } if is_group(destination) => {
                flood_unless_reserved(table, route.uplink, destination)
            }
            // A port whose guest cannot receive does not count. Its guest may have migrated, or not
            // have arrived yet, and is reached by the wire.
            Attachment::Switch { .. } => match table.guest(route.uplink, destination) {
                Some(receiver) if receiver.port == port => Decision::Own,
                Some(receiver) => Decision::Port(receiver),
                None => Decision::Wire,
            },
        },
        FrameOrigin::Queue(_, Some(owner)) => Decision::Port(owner),
        FrameOrigin::ControlPlane(uplink) if is_group(destination) => {
            flood_unless_reserved(table, uplink, destination)
        }
        // The frame came from the wire and cannot go back: a port without a guest counts its drop.
        FrameOrigin::Queue(uplink, None) | FrameOrigin::ControlPlane(uplink) => {
            table.by_mac(uplink, destination).map_or(Decision::NoPort, Decision::Port)
        }
    }
}

fn flood_unless_reserved(
    table: &Forwarding,
    uplink: UplinkId,
    destination: [u8; 6],
) -> Decision<'_> {
    if table.forward_groups(uplink).allow(destination) {
        Decision::Flood
    } else {
        Decision::Reserved
    }
}

/// Whether an address is a group's: multicast and broadcast.
#[inline]
fn is_group(address: [u8; 6]) -> bool {
    address[0] & 1 != 0
}

/// Which queue pair of a port a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// This queue pair, which the choosing worker serves.
    Here(u16),
    /// This queue pair, which another worker serves.
    There(WorkerId, u16),
    /// None; the frame is counted here.
    Drop(PortCounter),
}

/// The choice of worker `here` for a frame. `hash` is of the frame's flow.
#[inline]
pub(super) fn choose(
    route: &Route,
    here: WorkerId,
    frame: &FrameView<'_>,
    hash: impl FnOnce() -> u32,
) -> Choice {
    if !frame.is_within(route.frame_max) {
        return Choice::Drop(PortCounter::ToGuestDroppedOversize);
    }
    choose_pair(route, here, hash)
}

/// The choice for a frame whose length the caller checks.
#[inline]
pub(super) fn choose_pair(route: &Route, here: WorkerId, hash: impl FnOnce() -> u32) -> Choice {
    let Some(pair) = route.pair(here, hash) else {
        return Choice::Drop(PortCounter::ToGuestDroppedNotReady);
    };
    match route.worker(pair) {
        worker if worker == here => Choice::Here(pair),
        worker => Choice::There(worker, pair),
    }
}

/// The queue pair of all frames, whatever their flow, if worker `here` serves it.
#[inline]
pub(super) fn choose_for_all(route: &Route, here: WorkerId) -> Option<u16> {
    let [pair] = *route.ready else { return None };
    (route.worker(pair) == here).then_some(pair)
}

/// A frame for all switched ports of an uplink: broadcast, multicast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// To the switched ports of this uplink,
    pub uplink: UplinkId,
    /// but for the one that it comes from.
    pub from: Option<PortId>,
    /// The worker that had it first, which chooses the queue pairs.
    pub by: WorkerId,
}

impl Flood {
    /// The ports that it is for.
    pub(super) fn receivers(self, table: &Forwarding) -> impl Iterator<Item = Receiver<'_>> {
        let ports = table.switched(self.uplink).iter().copied();
        let others = ports.filter(move |&port| Some(port) != self.from);
        others.filter_map(|port| table.receiver(port))
    }

    /// The worker and the queue pair that deliver it to one of these ports, or why there is none.
    #[inline]
    pub(super) fn choose(
        self,
        route: &Route,
        frame: &FrameView<'_>,
        hash: u32,
    ) -> Result<(WorkerId, u16), PortCounter> {
        match choose(route, self.by, frame, || hash) {
            Choice::Here(pair) => Ok((self.by, pair)),
            Choice::There(worker, pair) => Ok((worker, pair)),
            Choice::Drop(reason) => Err(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::device::groups::ForwardGroups;
    use crate::device::offloads::Offloads;

    use super::super::flows::FlowTable;
    use super::super::forwarding::ForwardingBuilder;
    use super::super::limits::frame_max;
    use super::*;

    const UPLINK: UplinkId = UplinkId(0);
    const ELSEWHERE: UplinkId = UplinkId(1);
    const OTHER: PortId = PortId(1);
    const ABSENT: PortId = PortId(2);
    const WIRE: PortId = PortId(3);
    const HOST: PortId = PortId(4);
    const SENDER: PortId = PortId(0);
    const BROADCAST: [u8; 6] = [0xff; 6];
    const LLDP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
    const STP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
    const UNKNOWN: [u8; 6] = mac(77);

    const fn mac(number: u8) -> [u8; 6] {
        [0x52, 0x54, 0, 0, 0, number]
    }

    fn mac_of(port: PortId) -> [u8; 6] {
        mac(u8::try_from(port.0).unwrap())
    }

    fn route(attachment: Attachment, ready: Vec<u16>, workers: &[u16]) -> Route {
        let workers = workers.iter().copied().map(WorkerId).collect();
        Route { ready, ..Route::new(UPLINK, attachment, frame_max(1500), workers) }
    }

    /// Two guests, a port without one, a wire port on queue 7, and the host; LLDP is forwarded.
    fn table() -> Forwarding {
        let mut builder = ForwardingBuilder::default();
        let switch = |port| Attachment::Switch { mac: mac_of(port) };
        builder.add(SENDER, route(switch(SENDER), vec![0], &[0]));
        builder.add(OTHER, route(switch(OTHER), vec![0], &[0]));
        builder.add(ABSENT, route(switch(ABSENT), vec![], &[0]));
        builder.add(WIRE, route(Attachment::Wire { queues: vec![7] }, vec![0], &[0]));
        builder.add_host(HOST, mac_of(HOST), route(switch(HOST), vec![0], &[5]));
        builder.forward_groups(UPLINK, "lldp".parse::<ForwardGroups>().unwrap());
        builder.build()
    }

    /// A decision that can be compared.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Way {
        Wire,
        Port(PortId),
        Flood,
        Own,
        Reserved,
        NoPort,
    }

    fn way(decision: Decision<'_>) -> Way {
        match decision {
            Decision::Wire => Way::Wire,
            Decision::Port(receiver) => Way::Port(receiver.port),
            Decision::Flood => Way::Flood,
            Decision::Own => Way::Own,
            Decision::Reserved => Way::Reserved,
            Decision::NoPort => Way::NoPort,
        }
    }

    #[test]
    fn every_frame_goes_where_its_origin_and_its_destination_say() {
        let table = table();
        let guest = |port| FrameOrigin::Guest(port, table.route(port).unwrap());
        let (switched, wired) = (guest(SENDER), guest(WIRE));
        let queue = |queue| FrameOrigin::Queue(UPLINK, table.owner(UPLINK, queue));
        let (shared, owned) = (queue(0), queue(7));
        let strange = FrameOrigin::Queue(ELSEWHERE, table.owner(ELSEWHERE, 7));
        let brought = FrameOrigin::ControlPlane(UPLINK);
        let cases = [
            // A guest of the switch sends.
            (switched, mac_of(SENDER), Way::Own),
            (switched, mac_of(OTHER), Way::Port(OTHER)),
            (switched, mac_of(ABSENT), Way::Wire),
            (switched, mac_of(WIRE), Way::Wire),
            (switched, mac_of(HOST), Way::Port(HOST)),
            (switched, UNKNOWN, Way::Wire),
            (switched, BROADCAST, Way::Flood),
            (switched, LLDP, Way::Flood),
            (switched, STP, Way::Reserved),
            // The guest of a wire port sends: all of it goes to the wire.
            (wired, mac_of(OTHER), Way::Wire),
            (wired, mac_of(HOST), Way::Wire),
            (wired, BROADCAST, Way::Wire),
            (wired, STP, Way::Wire),
            // The wire brings frames on a queue of the switch.
            (shared, mac_of(OTHER), Way::Port(OTHER)),
            (shared, mac_of(ABSENT), Way::Port(ABSENT)),
            (shared, mac_of(WIRE), Way::NoPort),
            (shared, mac_of(HOST), Way::NoPort),
            (shared, UNKNOWN, Way::NoPort),
            (shared, BROADCAST, Way::NoPort),
            // The wire brings frames on a wire port's queue.
            (owned, mac_of(OTHER), Way::Port(WIRE)),
            (owned, UNKNOWN, Way::Port(WIRE)),
            (owned, BROADCAST, Way::Port(WIRE)),
            (owned, STP, Way::Port(WIRE)),
            // Another uplink has ports of its own.
            (strange, mac_of(OTHER), Way::NoPort),
            // The control plane brings frames.
            (brought, mac_of(OTHER), Way::Port(OTHER)),
            (brought, mac_of(ABSENT), Way::Port(ABSENT)),
            (brought, mac_of(HOST), Way::NoPort),
            (brought, UNKNOWN, Way::NoPort),
            (brought, BROADCAST, Way::Flood),
            (brought, LLDP, Way::Flood),
            (brought, STP, Way::Reserved),
        ];
        for (origin, destination, expected) in cases {
            let found = way(decide(&table, origin, destination));
            assert_eq!(found, expected, "{destination:02x?} from {origin:?}");
        }
    }

    #[test]
    fn a_queue_pair_is_chosen_by_readiness_length_flow_and_worker() {
        let (short, long) = ([0; 60], [0; 2000]);
        let switch = || Attachment::Switch { mac: mac(1) };
        let cases = [
            (vec![], &[0][..], &short[..], Choice::Drop(PortCounter::ToGuestDroppedNotReady)),
            (vec![], &[0], &long, Choice::Drop(PortCounter::ToGuestDroppedOversize)),
            (vec![0], &[0], &long, Choice::Drop(PortCounter::ToGuestDroppedOversize)),
            (vec![0], &[0], &short, Choice::Here(0)),
            (vec![0], &[1], &short, Choice::There(WorkerId(1), 0)),
            // This worker serves pair 1, so new flows are taken there.
            (vec![0, 1], &[1, 0], &short, Choice::Here(1)),
            (vec![0, 1], &[1, 2], &short, Choice::There(WorkerId(2), 1)),
        ];
        for (ready, workers, frame, expected) in cases {
            let route = route(switch(), ready, workers);
            let found = choose(&route, WorkerId(0), &FrameView::whole(frame), || 1);
            assert_eq!(found, expected, "{route:?}");
        }
    }

    #[test]
    fn a_flow_goes_where_its_guest_sent_it_while_that_pair_is_ready() {
        let flows = Arc::new(FlowTable::default());
        flows.learn(9, 0);
        let attachment = Attachment::Switch { mac: mac(1) };
        let of = |ready| Route {
            flows: Arc::clone(&flows),
            coalesce: Offloads::NONE,
            ..route(attachment.clone(), ready, &[1, 0])
        };
        let chosen = |ready, hash| choose_pair(&of(ready), WorkerId(0), || hash);
        assert_eq!(chosen(vec![0, 1], 9), Choice::There(WorkerId(1), 0));
        assert_eq!(chosen(vec![0, 1], 8), Choice::Here(1));
        assert_eq!(chosen(vec![1], 9), Choice::Here(1));
        assert_eq!(choose_for_all(&of(vec![1]), WorkerId(0)), Some(1));
        assert_eq!(choose_for_all(&of(vec![0]), WorkerId(0)), None);
        assert_eq!(choose_for_all(&of(vec![0, 1]), WorkerId(0)), None);
    }

    #[test]
    fn a_flood_is_for_all_switched_ports_but_the_one_it_comes_from() {
        let table = table();
        let flood = Flood { uplink: UPLINK, from: Some(OTHER), by: WorkerId(0) };
        let ports = |flood: Flood| flood.receivers(&table).map(|it| it.port).collect::<Vec<_>>();
        assert_eq!(ports(flood), [SENDER, ABSENT]);
        assert_eq!(ports(Flood { from: None, ..flood }), [SENDER, OTHER, ABSENT]);
        assert!(ports(Flood { uplink: ELSEWHERE, ..flood }).is_empty());
    }
}
