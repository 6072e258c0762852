//! The host as a neighbour of its VMs (`host = true`): a port of the forwarding table whose worker
//! is the thread of a TAP device, one for each uplink.
//!
//! It is a system call for each packet, on a control thread; but a packet may have 64 KiB, since
//! host and guests leave segmentation to each other.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::datapath::{
    Attachment, ETHERNET_BYTES, ForwardingBuilder, Handover, Inbox, PACKET_BYTES_MAX, PortId,
    Route, Target, UplinkId, WorkerId, frame_max,
};
use crate::device::net_header::{self, NetHeader};
use crate::device::offloads::Offloads;
use crate::metrics::{PortCounter, Published, SocketCounter};
use crate::xdp::{HostDevice, Interface};

use super::nic::{Nic, NicSide};
use super::ports::PORTS_MAX;

/// Packets of one way before those of the other have their turn.
const BURST: usize = 64;

/// Packets that can wait for the host: not so many that the workers have no buffers left for each
/// other when a VM sends more than the host takes.
const WAITING_MAX: usize = 256;

/// The host as the forwarding table knows it.
#[derive(Debug)]
pub struct HostPort {
    /// Where it is a port.
    pub uplink: UplinkId,
    /// Its number, above those of all VMs' ports.
    pub id: PortId,
    /// What the workers have for it.
    pub inbox: Arc<Inbox>,
    /// What the workers count for it.
    pub counters: Vec<Arc<Published<PortCounter>>>,
    nic: Mutex<HostNic>,
    route: Route,
}

/// What the host's port has of its NIC, which may come back with another address or MTU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNic {
    /// Its address.
    pub mac: [u8; 6],
    /// Its MTU, bytes: the host takes no longer frames from its VMs than from the wire.
    pub mtu: u32,
}

impl HostNic {
    /// Of this interface.
    pub fn of(interface: &Interface) -> Self {
        Self { mac: interface.mac, mtu: interface.mtu }
    }

    fn frame_max(self) -> u32 {
        let longest = u32::try_from(PACKET_BYTES_MAX).expect("64 KiB");
        frame_max(self.mtu).min(longest)
    }
}

impl HostPort {
    /// Of a NIC that the host shares; `place` is that of its inbox among the workers'.
    ///
    /// # Errors
    /// No descriptor left for the inbox.
    pub fn new(nic: &Nic, place: usize) -> io::Result<Self> {
        let (uplink, host) = (nic.id, HostNic::of(&nic.status().interface));
        let number = u16::try_from(PORTS_MAX).expect("a small number") + uplink.0;
        let worker = WorkerId(u16::try_from(place).expect("a small number"));
        let attachment = Attachment::Switch { mac: host.mac };
        let route = Route::new(uplink, attachment, host.frame_max(), vec![worker]);
        let route = Route { ready: vec![0], ..route };
        let (id, inbox) = (PortId(number), Arc::new(Inbox::with_places(WAITING_MAX, 0)?));
        Ok(Self { uplink, id, inbox, counters: Vec::new(), nic: Mutex::new(host), route })
    }

    /// Enter it in a table.
    pub fn enter(&self, table: &mut ForwardingBuilder) {
        let nic = *self.nic();
        let (mac, frame_max) = (nic.mac, nic.frame_max());
        let attachment = Attachment::Switch { mac };
        table.add_host(self.id, mac, Route { attachment, frame_max, ..self.route.clone() });
    }

    fn nic(&self) -> MutexGuard<'_, HostNic> {
        self.nic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The NIC is so; whether it was another way before.
    pub fn set_nic(&self, nic: HostNic) -> bool {
        std::mem::replace(&mut *self.nic(), nic) != nic
    }

    /// What the workers had for it and could not hand over.
    pub fn dropped(&self) -> u64 {
        let dropped = [PortCounter::ToGuestDroppedHandover, PortCounter::ToGuestDroppedOversize];
        let of = |counters: &Arc<Published<_>>| dropped.map(|reason| counters.get(reason));
        self.counters.iter().flat_map(of).sum()
    }
}

/// Carry packets between the host and its VMs until told to stop.
pub fn join(side: &NicSide, device: &HostDevice, stop: &OwnedFd) {
    let Some(HostPort { inbox, .. }) = side.fabric.host(side.uplink) else { return };
    let mut buffer = vec![0; net_header::LEN + PACKET_BYTES_MAX];
    let mut exchange = || to_host(side, device, inbox) + from_host(side, device, &mut buffer);
    let mut busy = true;
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(inbox.wake_fd(), PollFlags::IN),
        ];
        // Interrupted: look again.
        let _ = poll(&mut ready, busy.then_some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        if !ready[0].revents().is_empty() {
            return;
        }
        if ready[1].revents().contains(PollFlags::ERR) {
            let device = &device.name;
            tracing::error!(device, "somebody has deleted the device: the host is not reached");
            return;
        }
        if !ready[2].revents().is_empty() {
            let _ = rustix::io::read(inbox.wake_fd(), &mut [0; 8]);
        }
        inbox.set_sleeping(false);
        busy = exchange() > 0;
        if !busy {
            // What came before this is found by looking once more; what comes after it wakes us.
            inbox.set_sleeping(true);
            busy = exchange() > 0;
        }
    }
}

/// Give the host all that the workers have for it, when they have no more.
pub fn finish(side: &NicSide, device: &HostDevice) {
    if let Some(port) = side.fabric.host(side.uplink) {
        while to_host(side, device, &port.inbox) > 0 {}
    }
}

/// What the workers have for the host. Answers how many packets.
fn to_host(side: &NicSide, device: &HostDevice, inbox: &Inbox) -> usize {
    let mut count = 0;
    while count < BURST
        && let Some(handover) = inbox.next()
    {
        let Handover::Packet { mut packet, .. } = handover else {
            unreachable!("frames of an uplink go to the VMs of the wire")
        };
        packet.settle_checksum();
        let header = net_header::emit(&packet.offload, 1);
        let counter = match device.send(&header, packet.bytes()) {
            Ok(()) => SocketCounter::ToHostPackets,
            Err(_refused) => SocketCounter::ToHostDropped,
        };
        side.counters.add(counter, 1);
        side.fabric.give_back(packet);
        count += 1;
    }
    count
}

/// What the host has for its VMs. Answers how many packets.
fn from_host(side: &NicSide, device: &HostDevice, buffer: &mut [u8]) -> usize {
    let mut count = 0;
    // An error is that the device is down, which somebody else has made it.
    while count < BURST
        && let Ok(Some(length)) = device.receive(buffer)
    {
        let counter = match bring(side, &buffer[..length]) {
            Some(()) => SocketCounter::FromHostPackets,
            None => SocketCounter::FromHostDropped,
        };
        side.counters.add(counter, 1);
        count += 1;
    }
    count
}

/// None if it is lost.
fn bring(side: &NicSide, packet: &[u8]) -> Option<()> {
    let (header, frame) = packet.split_at_checked(net_header::LEN)?;
    let length = u32::try_from(frame.len()).ok().filter(|&length| length >= ETHERNET_BYTES)?;
    let header = NetHeader::parse(header.first_chunk()?);
    let offload = header.offload(frame, length, Offloads::ALL).ok()?;
    let target = Target::Arrival { uplink: side.uplink };
    let arrived = side.fabric.hand_over(side.worker, (frame, offload), target);
    arrived.then_some(())
}
