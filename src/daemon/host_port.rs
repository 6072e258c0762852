//! The host's port of the forwarding table (`host = true`): the host is a neighbour of its VMs,
//! with the NIC's address. Its packets are carried by a thread (`nic/host_pump.rs`).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::datapath::{
    Attachment, ForwardingBuilder, Inbox, PACKET_BYTES_MAX, PortId, Route, UplinkId, WorkerId,
    frame_max,
};
use crate::metrics::{PortCounter, Published};
use crate::xdp::Interface;

/// Most ports of VMs, for which numbers, tables and flooding are dimensioned. The hosts' ports have
/// the numbers above.
pub const PORTS_MAX: usize = 1024;

/// Packets that can wait for the host. A larger number would take the workers' buffers for each
/// other when a VM sends more than the host takes.
const WAITING_MAX: usize = 256;

/// The host as the forwarding table knows it.
#[derive(Debug)]
pub struct HostPort {
    /// The uplink on which it is a port.
    pub uplink: UplinkId,
    /// Its number, above those of all VMs' ports.
    pub id: PortId,
    /// The packets that the workers hand over to it.
    pub inbox: Arc<Inbox>,
    /// The counters of the workers for it.
    pub counters: Vec<Arc<Published<PortCounter>>>,
    nic: Mutex<HostNic>,
    route: Route,
}

/// The address and MTU of the host's NIC, which may change when the NIC comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostNic {
    /// Its address.
    pub mac: [u8; 6],
    /// Its MTU, bytes: the host takes no longer frames from its VMs than from the wire.
    pub mtu: u32,
}

impl HostNic {
    /// The address and MTU of this interface.
    pub fn of(interface: &Interface) -> Self {
        Self { mac: interface.mac, mtu: interface.mtu }
    }

    fn frame_max(self) -> u32 {
        let longest = u32::try_from(PACKET_BYTES_MAX).expect("64 KiB");
        frame_max(self.mtu).min(longest)
    }
}

impl HostPort {
    /// The host's port on a NIC that the host shares; `place` is its inbox's place among the
    /// workers' inboxes.
    ///
    /// # Errors
    /// No descriptor left for the inbox.
    pub fn new(uplink: UplinkId, host: HostNic, place: usize) -> io::Result<Self> {
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

    /// Set the NIC's address and MTU; returns whether they have changed.
    pub fn set_nic(&self, nic: HostNic) -> bool {
        std::mem::replace(&mut *self.nic(), nic) != nic
    }

    /// Packets that the workers had for it and could not hand over.
    pub fn dropped(&self) -> u64 {
        let dropped = [PortCounter::ToGuestDroppedHandover, PortCounter::ToGuestDroppedOversize];
        let of = |counters: &Arc<Published<_>>| dropped.map(|reason| counters.get(reason));
        self.counters.iter().flat_map(of).sum()
    }
}
