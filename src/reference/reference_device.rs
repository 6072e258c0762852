//! One connection's device: the backend that `vhost-user-backend` calls, and its wire.

use std::io;
use std::sync::{Arc, Mutex};

use crossbeam::channel::{Receiver, Sender, unbounded};
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost_user_backend::{VhostUserBackendMut, VhostUserDaemon, VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use crate::device::features::MRG_RXBUF;
use crate::profile::Profile;

use super::ring_loop::RingLoop;

/// Bytes of a frame beyond its MTU: an Ethernet header and two VLAN tags.
const FRAME_OVERHEAD: usize = 14 + 8;

/// The protocol features of profiles that `vhost-user-backend` 0.24 can keep. It has no RARP, MTU
/// or STATUS.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// Why there is no reference device.
#[derive(Debug, thiserror::Error)]
pub enum ReferenceError {
    /// No eventfd, or no room for one in the epoll set.
    #[error("cannot make the reference device's events")]
    Events(#[from] io::Error),
    /// The daemon did not start. Its error type is not a [`std::error::Error`].
    #[error("the reference device did not start: {0}")]
    Daemon(vhost_user_backend::Error),
}

/// The state of one connection's device.
struct Backend {
    profile: Arc<Profile>,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    ring_loop: RingLoop,
    departing: Sender<Vec<u8>>,
    arriving: Receiver<Vec<u8>>,
    arrival: Arc<EventConsumer>,
}

impl Backend {
    /// The event data of the wire: the first above the rings' and the exit event's.
    fn wire_event(profile: &Profile) -> u16 {
        2 * profile.queue_pairs_max + 1
    }

    /// A transmit ring was kicked: all of it to the wire.
    fn transmit(&mut self, vring: &VringMutex) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        let departing = &self.departing;
        let mut state = vring.get_mut();
        let given_back = self.ring_loop.from_guest(state.get_queue_mut(), &memory, |frame| {
            // A test that does not look at the wire any more loses nothing.
            let _ = departing.send(frame.to_vec());
        });
        if given_back > 0 && state.needs_notification()? {
            // A front-end that has closed its end does not wait for interrupts.
            let _ = state.signal_used_queue();
        }
        Ok(())
    }

    /// Frames arrived: all of them to the first receive ring, or dropped.
    fn receive(&mut self, vring: &VringMutex) -> Result<(), virtio_queue::Error> {
        let memory = self.memory.memory();
        let mut state = vring.get_mut();
        let mut delivered = false;
        while let Ok(frame) = self.arriving.try_recv() {
            if state.is_enabled() && state.get_queue().ready() {
                delivered |= self.ring_loop.to_guest(state.get_queue_mut(), &memory, &frame)?;
            }
        }
        if delivered && state.needs_notification()? {
            // As in `transmit`.
            let _ = state.signal_used_queue();
        }
        Ok(())
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        2 * usize::from(self.profile.queue_pairs_max)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.profile.ring_size_max)
    }

    fn features(&self) -> u64 {
        self.profile.features.0
    }

    fn acked_features(&mut self, features: u64) {
        self.ring_loop.mergeable = features & (1 << MRG_RXBUF) != 0;
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let offered = VhostUserProtocolFeatures::from_bits_retain(self.profile.protocol_features.0);
        offered.intersection(PROTOCOL)
    }

    fn set_event_idx(&mut self, _enabled: bool) {}

    fn update_memory(&mut self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        // Without one the daemon's thread would never end.
        new_event_consumer_and_notifier(EventFlag::CLOEXEC).ok()
    }

    fn handle_event(
        &mut self,
        event: u16,
        _set: EventSet,
        vrings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        let done = if event == Self::wire_event(&self.profile) {
            self.arrival.consume()?;
            self.receive(&vrings[0])
        } else if event % 2 == 1 {
            self.transmit(&vrings[usize::from(event)])
        } else {
            // New receive buffers need no action: packets without one were dropped.
            Ok(())
        };
        // An error here would end the thread, and with it every ring.
        if let Err(error) = done {
            tracing::warn!(event, %error, "the reference device gave up a burst");
        }
        Ok(())
    }
}

/// The far end of the device: the packets that left it, and those that arrive at it.
#[derive(Debug)]
pub struct ReferenceWire {
    departed: Receiver<Vec<u8>>,
    arriving: Sender<Vec<u8>>,
    arrival: EventNotifier,
}

impl ReferenceWire {
    /// A frame arrives.
    pub fn arrive(&self, frame: &[u8]) {
        // A device that has ended receives nothing.
        let _ = self.arriving.send(frame.to_vec());
        // A counter that is full is an event already.
        let _ = self.arrival.notify();
    }

    /// Take the frames that the device has transmitted.
    #[must_use]
    pub fn departed(&self) -> Vec<Vec<u8>> {
        self.departed.try_iter().collect()
    }
}

/// The device of one connection; ends it when dropped.
pub struct ReferenceDevice {
    wire: ReferenceWire,
    // Before the event, which its thread may be waiting for.
    _daemon: VhostUserDaemon<Arc<Mutex<Backend>>>,
    _arrival: Arc<EventConsumer>,
}

impl std::fmt::Debug for ReferenceDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReferenceDevice").field("wire", &self.wire).finish_non_exhaustive()
    }
}

impl ReferenceDevice {
    /// Wait for a front-end at `listener` and serve it with the interface of `profile`.
    ///
    /// # Errors
    /// [`ReferenceError`].
    pub fn serve(profile: Profile, listener: &mut Listener) -> Result<Self, ReferenceError> {
        let (departing, departed) = unbounded();
        let (arriving, arrived) = unbounded();
        let (consumer, arrival) =
            new_event_consumer_and_notifier(EventFlag::CLOEXEC | EventFlag::NONBLOCK)?;
        let consumer = Arc::new(consumer);
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::default());
        let wire_event = u64::from(Backend::wire_event(&profile));
        let frame_max = usize::from(profile.mtu) + FRAME_OVERHEAD;
        let backend = Backend {
            ring_loop: RingLoop::new(frame_max),
            profile: Arc::new(profile),
            memory: memory.clone(),
            departing,
            arriving: arrived,
            arrival: Arc::clone(&consumer),
        };
        let backend = Arc::new(Mutex::new(backend));
        let mut daemon = VhostUserDaemon::new("reference".to_owned(), backend, memory)
            .map_err(ReferenceError::Daemon)?;
        for handler in daemon.get_epoll_handlers() {
            let descriptor = std::os::fd::AsRawFd::as_raw_fd(&*consumer);
            handler.register_listener(descriptor, EventSet::IN, wire_event)?;
        }
        daemon.start(listener).map_err(ReferenceError::Daemon)?;
        let wire = ReferenceWire { departed, arriving, arrival };
        Ok(Self { wire, _daemon: daemon, _arrival: consumer })
    }

    /// The far end.
    #[must_use]
    pub fn wire(&self) -> &ReferenceWire {
        &self.wire
    }
}
