//! The NICs: opened at start, their queues dealt to the workers, their XDP programs kept in step
//! with the ports.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::config::{UplinkConfig, UplinkMode};
use crate::datapath::{Attachment, Handover, PACKET_BYTES_MAX, Route, Target, UplinkId, WorkerId};
use crate::metrics::{Published, SocketCounter};
use crate::profile::UplinkFacts;
use crate::xdp::{
    Interface, ModeWish, ProgramError, QueueUse, Redirect, Socket, Umem, Uplink, UplinkError,
};

use super::fabric::Fabric;

/// A NIC that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("uplink {interface} cannot be used")]
pub struct NicError {
    /// Its name.
    pub interface: String,
    /// Why.
    #[source]
    pub source: UplinkError,
}

/// One NIC in use.
#[derive(Debug)]
pub struct Nic {
    /// Its number.
    pub id: UplinkId,
    /// As opened.
    pub uplink: Uplink,
    /// Our queues, and the worker that has each one's socket.
    pub queues: Vec<(u32, WorkerId)>,
    /// The sockets' frame memory.
    pub umem: Arc<Umem>,
    /// What the control plane counts of it.
    pub counters: Arc<Published<SocketCounter>>,
    /// Merge received TCP segments for guests that take large packets.
    pub coalesce: bool,
    /// MACs in the program, so that only differences are written.
    macs: Mutex<Vec<[u8; 6]>>,
}

/// The sockets of one worker, each with its uplink.
pub type Dealt = Vec<(UplinkId, Socket)>;

/// All NICs, by number.
#[derive(Debug)]
pub struct Nics(Vec<Nic>);

impl Nics {
    /// Open all uplinks of the configuration. Returns their sockets dealt to `workers` workers,
    /// round robin, starting one worker later for each uplink.
    ///
    /// # Errors
    /// [`NicError`]; those opened before are given back.
    pub fn open(configs: &[UplinkConfig], workers: usize) -> Result<(Self, Vec<Dealt>), NicError> {
        let mut dealt = Vec::new();
        dealt.resize_with(workers, Dealt::new);
        let mut nics = Vec::new();
        for (id, config) in (0u16..).map(UplinkId).zip(configs) {
            let failed = |source| NicError { interface: config.interface.clone(), source };
            let (uplink, sockets) =
                Uplink::open(&config.interface, config.queues.as_deref(), wish(config.mode))
                    .map_err(failed)?;
            let umem = Arc::clone(sockets[0].umem());
            let mut queues = Vec::new();
            for (place, socket) in sockets.into_iter().enumerate() {
                let worker = (place + id.index()) % workers;
                queues.push((socket.queue(), worker_id(worker)));
                dealt[worker].push((id, socket));
            }
            tracing::info!(
                interface = config.interface, attach = ?uplink.attach_mode,
                socket = ?uplink.socket_mode, packet_max = uplink.packet_max,
                reason = uplink.reason, queues = queues.len(),
                "uplink is open"
            );
            let (counters, macs) = (Arc::default(), Mutex::default());
            let coalesce = config.coalesce;
            nics.push(Nic { id, uplink, queues, umem, counters, coalesce, macs });
        }
        Ok((Self(nics), dealt))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Nic> {
        self.0.iter()
    }

    /// What profiles need to know of them.
    pub fn facts(&self) -> Vec<UplinkFacts> {
        self.0.iter().map(Nic::facts).collect()
    }

    /// By name.
    pub fn by_name(&self, name: &str) -> Option<&Nic> {
        self.0.iter().find(|nic| nic.uplink.interface.name == name)
    }

    /// Start bringing broadcast and multicast from every NIC to its workers.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start_taps(self: &Arc<Self>, fabric: &Arc<Fabric>) -> io::Result<Vec<TapThread>> {
        let start = |nic: &Nic| TapThread::start(Arc::clone(self), nic.id, Arc::clone(fabric));
        self.0.iter().map(start).collect()
    }
}

impl Nic {
    /// What profiles need to know of it, as it is now: an administrator may change the MTU.
    pub fn facts(&self) -> UplinkFacts {
        let Interface { name, mtu, .. } = &self.uplink.interface;
        let now = UplinkFacts::of_interface(name);
        now.unwrap_or_else(|_gone| UplinkFacts { name: name.clone(), mtu: *mtu })
    }

    /// Make the XDP program's maps say what these routes (of all ports of this NIC) mean: which
    /// queues are whose, which MACs are ours.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn redirect(&self, routes: &[&Route]) -> Result<(), ProgramError> {
        let redirect = &self.uplink.redirect;
        for &(queue, _) in &self.queues {
            redirect.set_queue(queue, queue_use(queue, routes))?;
        }
        self.set_macs(redirect, routes)
    }

    fn set_macs(&self, redirect: &Redirect, routes: &[&Route]) -> Result<(), ProgramError> {
        let mac_of = |route: &&Route| match route.attachment {
            Attachment::Switch { mac } => Some(mac),
            Attachment::Wire { .. } => None,
        };
        let wanted: Vec<_> = routes.iter().filter_map(mac_of).collect();
        let mut present = self.macs.lock().unwrap_or_else(PoisonError::into_inner);
        // Step by step, so that after a failure the list still says what the program has.
        for mac in wanted.iter().copied() {
            if !present.contains(&mac) {
                redirect.add_mac(mac)?;
                present.push(mac);
            }
        }
        while let Some(place) = present.iter().position(|mac| !wanted.contains(mac)) {
            redirect.remove_mac(present[place])?;
            present.remove(place);
        }
        Ok(())
    }
}

/// A wire port's queue is its own; the others are switched if there is anybody to switch to.
fn queue_use(queue: u32, routes: &[&Route]) -> QueueUse {
    let owns = |route: &&Route| match &route.attachment {
        Attachment::Wire { queues } => queues.contains(&queue),
        Attachment::Switch { .. } => false,
    };
    if routes.iter().any(owns) {
        QueueUse::Wire
    } else if routes.iter().any(|route| matches!(route.attachment, Attachment::Switch { .. })) {
        QueueUse::Switch
    } else {
        QueueUse::Kernel
    }
}

fn wish(mode: UplinkMode) -> ModeWish {
    match mode {
        UplinkMode::Auto => ModeWish::Auto,
        UplinkMode::Zerocopy => ModeWish::ZeroCopy,
        UplinkMode::Copy => ModeWish::Copy,
        UplinkMode::Generic => ModeWish::Generic,
    }
}

fn worker_id(index: usize) -> WorkerId {
    WorkerId(u16::try_from(index).expect("the configuration limits the number of workers"))
}

/// The thread that brings one NIC's broadcast and multicast to the workers.
#[derive(Debug)]
pub struct TapThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl TapThread {
    fn start(nics: Arc<Nics>, id: UplinkId, fabric: Arc<Fabric>) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let name = format!("multicast {}", id.0);
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(move || bring_multicast(&nics.0[id.index()], &fabric, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for TapThread {
    fn drop(&mut self) {
        // An eventfd's first write cannot fail.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that brings multicast has panicked");
        }
    }
}

/// One frame after the other to the worker of the NIC's first queue, which floods it.
fn bring_multicast(nic: &Nic, fabric: &Fabric, stop: &OwnedFd) {
    let tap = &nic.uplink.tap;
    let mut buffer = vec![0; PACKET_BYTES_MAX];
    loop {
        let mut ready = [
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN),
        ];
        // Interrupted: look again.
        let _ = poll(&mut ready, None);
        if !ready[0].revents().is_empty() {
            return;
        }
        // ENETDOWN while the NIC is down is told once per change of state; the socket lives on.
        let Ok(received) = tap.receive(&mut buffer) else { continue };
        if !fabric.floods(nic.id) {
            continue;
        }
        let brought = received.is_some_and(|len| send(fabric, nic, &buffer[..len]));
        let counter =
            if brought { SocketCounter::MulticastPackets } else { SocketCounter::MulticastDropped };
        nic.counters.add(counter, 1);
    }
}

fn send(fabric: &Fabric, nic: &Nic, bytes: &[u8]) -> bool {
    let Some((_, worker)) = nic.queues.first() else { return false };
    fabric.hand_over(*worker, bytes, Target::Flood { uplink: nic.id })
}

impl Fabric {
    /// Copy a frame of the control plane into a worker's inbox; false if it is full.
    pub fn hand_over(&self, worker: WorkerId, bytes: &[u8], target: Target) -> bool {
        let Some(mut packet) = self.pool().take() else { return false };
        packet.room(bytes.len()).copy_from_slice(bytes);
        match self.inbox(worker).hand_over(Handover::Packet { packet, target }) {
            Ok(()) => true,
            Err(Handover::Packet { packet, .. }) => {
                self.pool().put(packet);
                false
            }
            Err(Handover::Frame { .. }) => unreachable!("a packet went in"),
        }
    }
}
