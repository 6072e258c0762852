//! The forwarding table: an immutable snapshot that the control plane replaces whole.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::device::groups::ForwardGroups;
use crate::device::offloads::Offloads;

use super::flows::FlowTable;
use super::ids::{PortId, QueuePair, UplinkId, WorkerId};

/// How a port is attached to its uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// By destination MAC, among others.
    Switch {
        /// Its address.
        mac: [u8; 6],
    },
    /// These queues of the uplink are the port's: queue pair `n` uses queue `n` modulo their
    /// number.
    Wire {
        /// Queue numbers of the NIC.
        queues: Vec<u32>,
    },
}

/// Where a port's packets go and come from.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its uplink.
    pub uplink: UplinkId,
    /// How.
    pub attachment: Attachment,
    /// The longest frame of its MTU, bytes: see [`frame_max`](super::limits::frame_max).
    pub frame_max: u32,
    /// Which worker serves each queue pair.
    pub workers: Vec<WorkerId>,
    /// The queue pairs that can receive: started and enabled. Ascending.
    pub ready: Vec<u16>,
    /// The large packets that its guest takes, for which TCP segments from the wire are merged;
    /// none on an uplink that does not coalesce.
    pub coalesce: Offloads,
    /// Which queue pair each flow was last sent on.
    pub flows: Arc<FlowTable>,
}

impl Route {
    /// The route of a port that has no queue pair ready yet.
    #[must_use]
    pub fn new(
        uplink: UplinkId,
        attachment: Attachment,
        frame_max: u32,
        workers: Vec<WorkerId>,
    ) -> Self {
        let (ready, coalesce, flows) = (Vec::new(), Offloads::NONE, Arc::default());
        Self { uplink, attachment, frame_max, workers, ready, coalesce, flows }
    }

    /// The queue pair to deliver a frame to, of those that are ready. It is the pair that its flow
    /// was last sent on.
    ///
    /// For an unknown flow, the hash picks a pair, always the same for one flow. Pairs that worker
    /// `here` serves come first, so that nothing is handed over.
    #[inline]
    #[must_use]
    pub fn pair(&self, here: WorkerId, flow_hash: impl FnOnce() -> u32) -> Option<u16> {
        if let [only] = *self.ready {
            return Some(only);
        }
        let hash = flow_hash();
        let sent_on = self.flows.pair(hash);
        if let Some(pair) = sent_on.filter(|pair| self.ready.binary_search(pair).is_ok()) {
            return Some(pair);
        }
        let near = |&&pair: &&u16| self.worker(pair) == here;
        let hash = hash as usize;
        match self.ready.iter().filter(near).count() {
            0 => self.ready.get(hash.checked_rem(self.ready.len())?).copied(),
            count => self.ready.iter().filter(near).nth(hash % count).copied(),
        }
    }

    /// The worker that serves a queue pair.
    #[inline]
    #[must_use]
    pub fn worker(&self, pair: u16) -> WorkerId {
        self.workers[usize::from(pair) % self.workers.len()]
    }
}

/// A port that frames may be for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Receiver<'t> {
    pub port: PortId,
    pub route: &'t Route,
}

impl Receiver<'_> {
    /// One of its queue pairs.
    #[inline]
    pub fn pair(&self, pair: u16) -> QueuePair {
        QueuePair { uplink: self.route.uplink, port: self.port, pair }
    }
}

/// The whole table.
#[derive(Debug, Default)]
pub struct Forwarding {
    routes: Vec<Option<Route>>,
    by_mac: HashMap<u64, PortId, BuildHasherDefault<MacHasher>>,
    /// The ports of `by_mac` whose guest can receive, and the host's.
    guests: HashMap<u64, PortId, BuildHasherDefault<MacHasher>>,
    wires: HashMap<(UplinkId, u32), PortId>,
    switched: Vec<Vec<PortId>>,
    /// By uplink: the workers that serve switched ports with a guest.
    receivers: Vec<Vec<WorkerId>>,
    hosts: HashMap<UplinkId, PortId>,
    /// By uplink; the groups not in here are not forwarded.
    forward_groups: Vec<ForwardGroups>,
    /// How many ports with a guest send on an uplink by each worker.
    senders: HashMap<(UplinkId, WorkerId), u32>,
    by_flow: bool,
}

/// Gathers routes and makes the table.
#[derive(Debug, Default)]
pub struct ForwardingBuilder(Forwarding);

impl ForwardingBuilder {
    /// Add the host itself, as a port that its VMs reach by its MAC and that nothing reaches from
    /// the wire.
    pub fn add_host(&mut self, port: PortId, mac: [u8; 6], route: Route) {
        let table = &mut self.0;
        table.guests.insert(mac_key(route.uplink, mac), port);
        table.hosts.insert(route.uplink, port);
        table.set_route(port, route);
    }

    /// Add a port.
    pub fn add(&mut self, port: PortId, route: Route) {
        let table = &mut self.0;
        table.by_flow |= route.ready.len() > 1;
        if !route.ready.is_empty() {
            let mut workers = route.workers.clone();
            workers.sort_unstable();
            workers.dedup();
            for worker in workers {
                *table.senders.entry((route.uplink, worker)).or_default() += 1;
            }
        }
        match &route.attachment {
            Attachment::Switch { mac } => {
                table.by_mac.insert(mac_key(route.uplink, *mac), port);
                if !route.ready.is_empty() {
                    table.guests.insert(mac_key(route.uplink, *mac), port);
                }
                let uplink = route.uplink.index();
                if table.switched.len() <= uplink {
                    table.switched.resize_with(uplink + 1, Vec::new);
                    table.receivers.resize_with(uplink + 1, Vec::new);
                }
                for &pair in &route.ready {
                    let worker = route.worker(pair);
                    if !table.receivers[uplink].contains(&worker) {
                        table.receivers[uplink].push(worker);
                    }
                }
                table.switched[uplink].push(port);
            }
            Attachment::Wire { queues } => {
                table.wires.extend(queues.iter().map(|&queue| ((route.uplink, queue), port)));
            }
        }
        table.set_route(port, route);
    }

    /// Forward these reserved groups between the switch ports of an uplink and its wire.
    pub fn forward_groups(&mut self, uplink: UplinkId, groups: ForwardGroups) {
        let table = &mut self.0;
        if table.forward_groups.len() <= uplink.index() {
            table.forward_groups.resize(uplink.index() + 1, ForwardGroups::NONE);
        }
        table.forward_groups[uplink.index()] = groups;
    }

    /// The table.
    #[must_use]
    pub fn build(self) -> Forwarding {
        self.0
    }
}

impl Forwarding {
    fn set_route(&mut self, port: PortId, route: Route) {
        if self.routes.len() <= port.index() {
            self.routes.resize_with(port.index() + 1, || None);
        }
        self.routes[port.index()] = Some(route);
    }

    /// A port's route.
    #[inline]
    #[must_use]
    pub fn route(&self, port: PortId) -> Option<&Route> {
        self.routes.get(port.index())?.as_ref()
    }

    #[inline]
    pub(super) fn receiver(&self, port: PortId) -> Option<Receiver<'_>> {
        Some(Receiver { port, route: self.route(port)? })
    }

    /// The switched port with this MAC on this uplink.
    #[inline]
    pub(super) fn by_mac(&self, uplink: UplinkId, mac: [u8; 6]) -> Option<Receiver<'_>> {
        self.receiver(*self.by_mac.get(&mac_key(uplink, mac))?)
    }

    /// The port with this MAC on this uplink, if its guest can receive; or the host's.
    #[inline]
    pub(super) fn guest(&self, uplink: UplinkId, mac: [u8; 6]) -> Option<Receiver<'_>> {
        self.receiver(*self.guests.get(&mac_key(uplink, mac))?)
    }

    /// The port that a queue belongs to whole.
    #[inline]
    pub(super) fn owner(&self, uplink: UplinkId, queue: u32) -> Option<Receiver<'_>> {
        self.receiver(*self.wires.get(&(uplink, queue))?)
    }

    /// The host's port on an uplink that it shares with its VMs.
    pub(super) fn host(&self, uplink: UplinkId) -> Option<Receiver<'_>> {
        self.receiver(*self.hosts.get(&uplink)?)
    }

    /// All switched ports of an uplink, for flooding.
    pub(super) fn switched(&self, uplink: UplinkId) -> &[PortId] {
        self.switched.get(uplink.index()).map_or(&[], Vec::as_slice)
    }

    /// Whether any port has several queue pairs to choose from by flow.
    #[inline]
    #[must_use]
    pub fn by_flow(&self) -> bool {
        self.by_flow
    }

    /// How many ports with a guest send on this uplink by this worker.
    #[must_use]
    pub fn senders(&self, uplink: UplinkId, worker: WorkerId) -> u32 {
        self.senders.get(&(uplink, worker)).copied().unwrap_or(0)
    }

    /// How many ports with a guest send on this uplink by other workers. One that sends by several
    /// is counted for each.
    #[must_use]
    pub fn senders_elsewhere(&self, uplink: UplinkId, worker: WorkerId) -> u32 {
        let elsewhere = |&(&(on, by), _): &(&(UplinkId, WorkerId), _)| on == uplink && by != worker;
        self.senders.iter().filter(elsewhere).map(|(_, count)| count).sum()
    }

    /// The reserved groups that are forwarded on an uplink.
    #[inline]
    #[must_use]
    pub fn forward_groups(&self, uplink: UplinkId) -> ForwardGroups {
        self.forward_groups.get(uplink.index()).copied().unwrap_or_default()
    }

    /// The workers that serve switched ports of an uplink that have a guest.
    #[must_use]
    pub fn receivers(&self, uplink: UplinkId) -> &[WorkerId] {
        self.receivers.get(uplink.index()).map_or(&[], Vec::as_slice)
    }

    /// How many ports with a guest send by this worker.
    #[must_use]
    pub fn senders_of(&self, worker: WorkerId) -> u32 {
        let of_worker = self.senders.iter().filter(|((_, of), _)| *of == worker);
        of_worker.map(|(_, count)| count).sum()
    }
}

fn mac_key(uplink: UplinkId, mac: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = mac;
    let [x, y] = uplink.0.to_be_bytes();
    u64::from_be_bytes([x, y, a, b, c, d, e, f])
}

/// One multiplication per lookup. Guests cannot choose the keys in the table: only an operator
/// could cause collisions.
#[derive(Default)]
struct MacHasher(u64);

impl Hasher for MacHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        // 2^64 divided by the golden ratio (Knuth's multiplicative hashing), high half mixed down.
        let product = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
