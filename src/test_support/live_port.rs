//! A port as the daemon makes one, with a worker on a thread of its own and an in-memory wire. A
//! session needs both for its packets to move.

#![forbid(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use crossbeam::channel::unbounded;

use crate::datapath::{
    Attachment, Forwarding, ForwardingBuilder, Inbox, PacketPool, PortId, Route, Setup, UplinkId,
    Worker, WorkerHandle, WorkerId, frame_max, is_from_guest, pair_of,
};
use crate::guest_memory::GuestMemory;
use crate::vhost_user::{PortBackend, PortBackendError, SessionBinding};
use crate::virtqueue::{EventFd, EventKind, QueueSetup, Ring};

use super::ring_pair::{Wire, ring_pair};

/// Frames of the wire's queue.
const FRAMES: u32 = 256;
const PORT: PortId = PortId(0);

/// One port, attached to its wire whole: everything goes through unparsed.
#[derive(Debug)]
pub struct LivePort {
    handle: WorkerHandle,
    wire: Mutex<Wire>,
    route: Mutex<Route>,
    worker: Option<JoinHandle<()>>,
}

impl LivePort {
    /// A port for frames of this MTU, whose worker runs.
    #[must_use]
    pub fn start(mtu: u16) -> Self {
        let (socket, wire) = ring_pair(0, FRAMES);
        let inbox = Arc::new(Inbox::new(FRAMES as usize).unwrap());
        let (handle, mailbox) = WorkerHandle::new(Arc::clone(&inbox));
        let setup = Setup {
            id: WorkerId(0),
            sockets: vec![(UplinkId(0), socket)],
            umems: vec![Some(Arc::clone(wire.umem()))],
            inboxes: vec![inbox],
            pool: PacketPool::new(),
            lost: unbounded().0,
            mailbox,
        };
        let worker = Worker::new(setup).unwrap();
        let worker = std::thread::spawn(move || worker.run());
        handle.add_port(PORT, "port0".into()).unwrap();
        let attachment = Attachment::Wire { queues: vec![0] };
        let (frame_max, workers) = (frame_max(u32::from(mtu)), vec![WorkerId(0)]);
        let route = Route::new(UplinkId(0), attachment, frame_max, workers);
        let (wire, route) = (Mutex::new(wire), Mutex::new(route));
        Self { handle, wire, route, worker: Some(worker) }
    }

    /// A frame arrives from the wire.
    pub fn arrive(&self, frame: &[u8]) {
        assert!(self.try_arrive(frame), "the wire has frames to receive into");
    }

    /// As [`arrive`](Self::arrive); false if it was lost for want of a frame to receive into.
    pub fn try_arrive(&self, frame: &[u8]) -> bool {
        let arrived = self.wire().arrive(frame);
        // A socket in memory sends no wake-up.
        self.handle.inbox().wake();
        arrived
    }

    /// Take the frames that were transmitted.
    #[must_use]
    pub fn departed(&self) -> Vec<Vec<u8>> {
        self.wire().departed()
    }

    fn wire(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap()
    }

    /// Deliver to the queue pair of ring `index`, or do so no more.
    fn set_ready(&self, index: u16, ready: bool) {
        if is_from_guest(index) {
            return;
        }
        let mut route = self.route.lock().unwrap();
        route.ready.retain(|&pair| pair != pair_of(index));
        if ready {
            route.ready.push(pair_of(index));
            route.ready.sort_unstable();
        }
        let mut builder = ForwardingBuilder::default();
        builder.add(PORT, route.clone());
        let table: Arc<Forwarding> = Arc::new(builder.build());
        self.handle.set_forwarding(table).unwrap();
    }
}

impl PortBackend for LivePort {
    fn give(&self, index: u16, ring: Ring) -> Result<(), PortBackendError> {
        let ready = ring.enabled && ring.broken.is_none();
        self.handle.give(PORT, index, ring).unwrap();
        self.set_ready(index, ready);
        Ok(())
    }

    fn take(&self, index: u16) -> Result<Option<Ring>, PortBackendError> {
        self.set_ready(index, false);
        Ok(self.handle.take(PORT, index).unwrap())
    }

    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), PortBackendError> {
        self.handle.exchange((PORT, index), kind, event).unwrap();
        Ok(())
    }

    fn relocate(
        &self,
        index: u16,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<bool, PortBackendError> {
        Ok(self.handle.relocate((PORT, index), setup, memory).unwrap().is_some())
    }

    fn announce(&self, _mac: [u8; 6]) {}

    fn bound(&self, _binding: SessionBinding) {}
}

impl Drop for LivePort {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(worker) = self.worker.take() {
            // A worker that panicked has said so; the test that drops the port fails by itself.
            let _ = worker.join();
        }
    }
}
