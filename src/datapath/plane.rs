//! What a worker moves packets with: its rings, its sockets, the forwarding table, and the ways to
//! other workers. The bursts work on this alone, so that they need neither the loop nor its sleep.

use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::metrics::SocketCounter;
use crate::xdp::{Socket, Umem};

use super::dispatch::Dispatch;
use super::forwarding::Forwarding;
use super::handover::{Buffers, Inbox, PacketPool};
use super::ids::{PortId, RingId, UplinkId, WorkerId};
use super::rotation::Rotation;
use super::sockets::{Sockets, WorkerSocket};
use super::worker_ports::Ports;

/// What a worker's packets come from and go to. Everything in it is its thread's alone.
#[derive(Debug)]
pub(super) struct Plane {
    pub id: WorkerId,
    pub sockets: Sockets,
    /// Of each uplink; None while it is gone.
    pub umems: Vec<Option<Arc<Umem>>>,
    /// Every worker's, its own too, by number.
    pub inboxes: Vec<Arc<Inbox>>,
    /// Where the control plane's buffers go back to.
    pub pool: PacketPool,
    /// Its own buffers for handing packets over.
    pub buffers: Buffers,
    pub ports: Ports,
    pub table: Arc<Forwarding>,
    /// The rings to take packets from.
    pub rotation: Rotation,
    /// Frames and packets of other workers that were accepted.
    pub accepted: u64,
}

/// What a plane starts with.
#[derive(Debug)]
pub(super) struct PlaneSetup {
    pub id: WorkerId,
    pub sockets: Vec<(UplinkId, Socket)>,
    pub umems: Vec<Option<Arc<Umem>>>,
    pub inboxes: Vec<Arc<Inbox>>,
    pub pool: PacketPool,
    /// Where it reports ports whose memory is gone.
    pub lost: Sender<PortId>,
}

impl Plane {
    /// Without ports, and with a table that knows none.
    ///
    /// # Errors
    /// No thread to be had for signals.
    pub fn new(setup: PlaneSetup) -> std::io::Result<Self> {
        let PlaneSetup { id, sockets, umems, inboxes, pool, lost } = setup;
        Ok(Self {
            id,
            sockets: Sockets::new(sockets),
            umems,
            inboxes,
            pool,
            buffers: Buffers::new(id),
            ports: Ports::new(lost)?,
            table: Arc::default(),
            rotation: Rotation::default(),
            accepted: 0,
        })
    }

    /// This worker's inbox.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inboxes[self.id.index()]
    }

    /// The ways to the ports, for what the guest of `sender` sends or somebody else, and apart from
    /// them the sockets.
    #[inline]
    pub fn ways(&mut self, sender: Option<PortId>) -> (Dispatch<'_>, &mut Sockets) {
        let Self { id, sockets, ports, table, inboxes, buffers, .. } = self;
        (Dispatch { here: *id, table, ports, inboxes, buffers, sender }, sockets)
    }

    /// Use another table; answers the one before.
    pub fn set_table(&mut self, table: Arc<Forwarding>) -> Arc<Forwarding> {
        self.buffers.divide(table.senders_of(self.id));
        let before = std::mem::replace(&mut self.table, table);
        self.divide_sockets();
        before
    }

    /// Have each port's share of every socket's frames, after the table or the sockets changed.
    pub fn divide_sockets(&mut self) {
        self.sockets.divide(&self.table, self.id);
    }

    /// Have a ring's driver kick when it makes something available, or not.
    pub fn want_kicks(&mut self, ring: RingId, wanted: bool) {
        if let Some(ring) = self.ports.ring(ring) {
            ring.queue.ring_mut().want_kicks(wanted);
        }
    }

    /// The same for the busy rings: quiet ones ask for kicks all the time.
    pub fn want_busy_kicks(&mut self, wanted: bool) {
        for ring in self.rotation.busy() {
            if let Some(ring) = self.ports.ring(ring) {
                ring.queue.ring_mut().want_kicks(wanted);
            }
        }
    }

    /// Give the kernel what the sockets have for it.
    pub fn flush_sockets(&mut self) {
        for socket in self.sockets.places.iter_mut().filter_map(|place| place.socket.as_mut()) {
            socket.flush();
        }
    }

    /// Let readers see what is counted.
    pub fn publish_counters(&mut self) {
        for (uplink, count) in self.ports.take_removed() {
            self.sockets.count(Some(uplink), SocketCounter::DroppedPortRemoved, count);
        }
        self.ports.publish_counters();
        self.sockets.places.iter_mut().for_each(WorkerSocket::publish);
    }

    /// What the kernel counts costs a call of it for each socket, so it is read when asked for.
    pub fn read_kernel_statistics(&mut self) {
        self.sockets.places.iter_mut().for_each(WorkerSocket::read_kernel_statistics);
    }
}
