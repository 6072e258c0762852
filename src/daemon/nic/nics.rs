//! The NICs: opened at start and again whenever they come back, their queues dealt to the workers,
//! their XDP programs kept in step with the ports.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::SystemTime;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use crate::config::{self, Config, UplinkConfig, UplinkMode, steering_note};
use crate::datapath::{Attachment, Handover, PACKET_BYTES_MAX, Route, Target, UplinkId, WorkerId};
use crate::device::mac::MacAddress;
use crate::metrics::{Published, SocketCounter};
use crate::packet::Offload;
use crate::profile::UplinkFacts;
use crate::report::chain;
use crate::xdp::nic::{Caution, Device};
use crate::xdp::{
    AttachMode, BusyPoll, Deferred, FRAME_PACKET_MAX, Handed, HostDevice, Interface, Link,
    ModeWish, MulticastTap, ProgramError, QueueUse, Redirect, Socket, SocketMode, Umem, Uplink,
    UplinkError, Verdicts,
};

use super::indirection_table::Steered;
use crate::daemon::host_port as host;
use crate::daemon::ports::KnownUplink;
use crate::daemon::upgrade::Estate;
use crate::daemon::workers::Fabric;

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

/// Whether packets move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicState {
    /// They do.
    Up,
    /// The link is down, by the administrator or for want of a carrier.
    Down,
    /// There is no such interface.
    Gone,
    /// It is there, and could not be opened again.
    Failed,
}

/// An uplink as it was opened last, and how it is now.
#[derive(Clone, Debug)]
pub struct NicStatus {
    /// The NIC, under its present name or the last that it had.
    pub interface: Interface,
    /// Where the program runs.
    pub attach_mode: AttachMode,
    /// How packets move.
    pub socket_mode: SocketMode,
    /// Why not something better.
    pub reason: String,
    /// The longest packet that every socket sends and receives, bytes.
    pub packet_max: u32,
    /// Our queues, and the worker that has each one's socket.
    pub queues: Vec<(u32, WorkerId)>,
    /// Whether packets move.
    pub state: NicState,
    /// Since when.
    pub since: SystemTime,
    /// Why it failed; empty if it has not.
    pub problem: String,
    /// What joins the host itself to the VMs, by name.
    pub host_device: Option<String>,
    /// Queues that receive and have no socket.
    pub unserved_queues: Vec<u32>,
    /// Whether its indirection table is one of ours.
    pub steering_set: bool,
    /// What its kind of device does to frames, and the remedies.
    pub cautions: Vec<Caution>,
}

impl NicStatus {
    /// Whether it is open: its sockets and its program are there.
    pub fn is_open(&self) -> bool {
        matches!(self.state, NicState::Up | NicState::Down)
    }

    /// Whether a packet may have several frames.
    pub fn multi_buffer(&self) -> bool {
        self.packet_max > FRAME_PACKET_MAX
    }

    /// The worker that has, or had, the socket of a queue.
    pub fn worker_of(&self, queue: u32) -> Option<WorkerId> {
        self.queues.iter().find(|&&(own, _)| own == queue).map(|&(_, worker)| worker)
    }
}

/// One NIC in use.
#[derive(Debug)]
pub struct Nic {
    /// Its number.
    pub id: UplinkId,
    /// As configured; the interface's name there is the uplink's.
    pub config: UplinkConfig,
    /// Where it is written down what its indirection table was, if that is set.
    steering_note: Option<PathBuf>,
    /// Where its interrupt settings are written down while it is busy polled.
    interrupt_notes: Option<PathBuf>,
    /// What the control plane counts of it.
    pub counters: Arc<Published<SocketCounter>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: NicStatus,
    /// While it is busy polled. Goes before the program, whose end may end NAPI instances.
    deferred: Option<Deferred>,
    /// None while it is not open, and where the program is a launcher's.
    redirect: Option<Redirect>,
    /// MACs in the program, so that only differences are written.
    macs: Vec<[u8; 6]>,
    /// What of the program's verdicts is in the counters.
    verdicts: Verdicts,
    /// None while it is not open.
    tap: Option<Arc<MulticastTap>>,
    /// The sockets' frame memory; None while it is not open.
    umem: Option<Arc<Umem>>,
    /// What joins the host itself to the VMs.
    host: Option<Arc<HostDevice>>,
    /// Which of its queues receive; puts the table back when dropped.
    steered: Steered,
    threads: Vec<NicThread>,
}

impl Inner {
    fn new(
        uplink: Uplink,
        umem: Arc<Umem>,
        (host, steered): (Option<HostDevice>, Steered),
        queues: Vec<(u32, WorkerId)>,
    ) -> Self {
        let host_device = host.as_ref().map(|device| device.name.clone());
        let Uplink {
            interface,
            attach_mode,
            socket_mode,
            reason,
            packet_max,
            deferred,
            redirect,
            tap,
        } = uplink;
        tracing::info!(
            interface = interface.name, attach = ?attach_mode, socket = ?socket_mode, packet_max,
            reason, queues = queues.len(), host_device, "uplink is open"
        );
        let cautions = interface.device.cautions(attach_mode == AttachMode::Generic);
        tell(&interface.name, &cautions);
        let (state, since, problem) = (NicState::Up, SystemTime::now(), String::new());
        let status = NicStatus {
            interface,
            attach_mode,
            socket_mode,
            reason,
            packet_max,
            queues,
            state,
            since,
            problem,
            host_device,
            unserved_queues: steered.unserved.clone(),
            steering_set: steered.is_set(),
            cautions,
        };
        let (umem, tap, host) = (Some(umem), tap.map(Arc::new), host.map(Arc::new));
        let (macs, verdicts, threads) = (Vec::new(), Verdicts::default(), Vec::new());
        Self { status, deferred, redirect, macs, verdicts, tap, umem, host, steered, threads }
    }
}

impl Inner {
    /// Of an uplink whose NIC cannot be opened for this reason, and that was so before.
    fn away(
        name: &str,
        known: &KnownUplink,
        error: &UplinkError,
        worker_at: impl Fn(usize) -> WorkerId,
    ) -> Self {
        let reason = chain(error);
        tracing::error!(
            uplink = name,
            reason,
            "the uplink cannot be opened yet: its ports are served without it until it can"
        );
        let interface = Interface {
            name: name.to_owned(),
            index: 0,
            driver: known.driver.clone(),
            mac: known.mac.0,
            mtu: known.mtu,
            up: false,
            receive_queues: 0,
            zero_copy_frames: 0,
            device: Device::default(),
        };
        let queues = known.queues.iter().enumerate();
        let there = !error.is_absence();
        let status = NicStatus {
            interface,
            attach_mode: known.attach_mode,
            socket_mode: known.socket_mode,
            reason: "as it was before isonic was started".to_owned(),
            packet_max: known.packet_max,
            queues: queues.map(|(place, &queue)| (queue, worker_at(place))).collect(),
            state: if there { NicState::Failed } else { NicState::Gone },
            since: SystemTime::now(),
            problem: if there { reason } else { String::new() },
            host_device: None,
            unserved_queues: Vec::new(),
            steering_set: false,
            cautions: Vec::new(),
        };
        Self {
            status,
            deferred: None,
            redirect: None,
            macs: Vec::new(),
            verdicts: Verdicts::default(),
            tap: None,
            umem: None,
            host: None,
            steered: Steered::default(),
            threads: Vec::new(),
        }
    }
}

/// What is left of an uplink to another process, but for its sockets.
#[derive(Debug)]
pub struct LeftUplink {
    /// How it is.
    pub status: NicStatus,
    /// The program's link, the packet socket, and the frame memory.
    pub descriptors: [OwnedFd; 3],
}

/// The sockets of one worker, each with its uplink.
pub type Dealt = Vec<(UplinkId, Socket)>;

/// All NICs, by number.
#[derive(Debug)]
pub struct Nics(Vec<Nic>);

impl Nics {
    /// Open all uplinks of the configuration, or go on with those that another process leaves; one
    /// that is `known` may be away or busy for now. Returns their sockets dealt to its workers,
    /// round robin, starting one worker later for each uplink.
    ///
    /// # Errors
    /// [`NicError`]; those opened before are given back.
    pub fn open(
        config: &Config,
        estate: &mut Option<Estate>,
        known: &BTreeMap<String, KnownUplink>,
    ) -> Result<(Self, Vec<Dealt>), NicError> {
        let (workers, runtime_dir) = (config.workers, config.runtime_dir.as_deref());
        let interrupt_notes = interrupt_notes(config);
        let mut dealt = Vec::new();
        dealt.resize_with(workers, Dealt::new);
        let mut nics = Vec::new();
        for (id, config) in (0u16..).map(UplinkId).zip(&config.uplinks) {
            let failed = |source| NicError { interface: config.interface.clone(), source };
            let (name, mode) = (&config.interface, wish(config.mode));
            let opened = match estate.as_mut().and_then(|estate| estate.take_uplink(name)) {
                Some(inherited) => Uplink::inherit(name, config.queues.as_deref(), inherited),
                None => open(name, config, mode, interrupt_notes.as_deref()),
            };
            let note = runtime_dir.map(|directory| steering_note(directory, &config.interface));
            let inner = match (opened, known.get(name)) {
                (Err(error), Some(known)) if error.may_pass() => {
                    Inner::away(name, known, &error, |place| worker_at(id, place, workers))
                }
                (opened, _) => opened
                    .and_then(|opened| deal(id, config, opened, note.clone(), &mut dealt))
                    .map_err(failed)?,
            };
            let (config, counters, inner) = (config.clone(), Arc::default(), Mutex::new(inner));
            let (steering_note, interrupt_notes) = (note, interrupt_notes.clone());
            nics.push(Nic { id, config, steering_note, interrupt_notes, counters, inner });
        }
        Ok((Self(nics), dealt))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Nic> {
        self.0.iter()
    }

    /// The queues whose sockets a worker is to get when their uplink is back.
    pub fn expected(&self, worker: WorkerId) -> Vec<(UplinkId, u32)> {
        let away = self.0.iter().map(|nic| (nic.id, nic.status()));
        let away = away.filter(|(_, status)| !status.is_open());
        let of_worker = |(id, status): (UplinkId, NicStatus)| {
            let queues = status.queues.into_iter().filter(move |&(_, other)| other == worker);
            queues.map(move |(queue, _)| (id, queue))
        };
        away.flat_map(of_worker).collect()
    }

    /// What they are like, for a start while one is away.
    pub fn known(&self) -> BTreeMap<String, KnownUplink> {
        self.0.iter().map(|nic| (nic.config.interface.clone(), nic.known())).collect()
    }

    /// What profiles need to know of them.
    pub fn facts(&self) -> Vec<UplinkFacts> {
        self.0.iter().map(Nic::facts).collect()
    }

    /// The addresses that are the host's own: of the NICs, those that are away too, and of its
    /// other interfaces, which may lie on them (a macvlan, a bridge).
    pub fn host_addresses(&self) -> Vec<(String, MacAddress)> {
        let of_nic = |nic: &Nic| {
            let status = nic.status();
            (status.interface.name, MacAddress(status.interface.mac))
        };
        // What the kernel does not tell now is no reason to refuse a port.
        let others = Interface::macs().unwrap_or_default().into_iter();
        let others = others.map(|(name, mac)| (name, MacAddress(mac)));
        self.0.iter().map(of_nic).chain(others).collect()
    }

    /// The NIC whose own address this is, by the name of its interface.
    pub fn with_mac(&self, mac: MacAddress) -> Option<String> {
        let interface = |nic: &Nic| nic.status().interface;
        let mut interfaces = self.0.iter().map(interface);
        interfaces.find(|interface| interface.mac == mac.0).map(|interface| interface.name)
    }

    /// By the name in the configuration.
    pub fn by_name(&self, name: &str) -> Option<&Nic> {
        self.0.iter().find(|nic| nic.config.interface == name)
    }

    /// Start bringing broadcast and multicast from every NIC of ours to its workers, and joining
    /// the host where it is to be.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start_threads(&self, fabric: &Arc<Fabric>) -> io::Result<()> {
        self.0.iter().try_for_each(|nic| nic.start_threads(fabric))
    }

    /// Bring no more.
    pub fn stop_threads(&self) {
        for nic in &self.0 {
            let threads = std::mem::take(&mut nic.inner().threads);
            drop(threads);
        }
    }
}

impl Nic {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it is.
    pub fn status(&self) -> NicStatus {
        self.inner().status.clone()
    }

    fn known(&self) -> KnownUplink {
        let status = self.status();
        KnownUplink {
            driver: status.interface.driver,
            mac: MacAddress(status.interface.mac),
            mtu: status.interface.mtu,
            packet_max: status.packet_max,
            attach_mode: status.attach_mode,
            socket_mode: status.socket_mode,
            queues: status.queues.iter().map(|&(queue, _)| queue).collect(),
        }
    }

    /// What profiles need to know of it, as it is now: an administrator may change the MTU.
    pub fn facts(&self) -> UplinkFacts {
        let Interface { name, mtu, .. } = self.status().interface;
        let mtu = UplinkFacts::of_interface(&name).map_or(mtu, |facts| facts.mtu);
        UplinkFacts { name: self.config.interface.clone(), mtu }
    }

    /// Make the XDP program's maps say what these routes (of all ports of this NIC) mean: which
    /// queues are whose, which MACs are ours. Of a NIC that is not open they are what is to be
    /// said when it is.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn redirect(&self, routes: &[&Route]) -> Result<(), ProgramError> {
        let mut inner = self.inner();
        let Inner { status, redirect, macs, steered, .. } = &mut *inner;
        let Some(redirect) = redirect else { return Ok(()) };
        for &(queue, _) in &status.queues {
            redirect.set_queue(queue, queue_use(queue, routes))?;
        }
        steered.spread(&shared_queues(&status.queues, routes));
        status.steering_set = steered.is_set();
        set_macs(redirect, macs, (routes, status.interface.mac))
    }

    /// Start bringing broadcast and multicast to the worker of its first queue, and joining the
    /// host where it is to be.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start_threads(&self, fabric: &Arc<Fabric>) -> io::Result<()> {
        let mut inner = self.inner();
        let Some(&(_, worker)) = inner.status.queues.first() else { return Ok(()) };
        if let Some(tap) = inner.tap.as_ref().map(Arc::clone) {
            let side = self.side(worker, fabric);
            let work = move |stop: &OwnedFd| bring_multicast(&side, &tap, stop);
            inner.threads.push(NicThread::start("multicast", self.id, work)?);
        }
        if let Some(device) = inner.host.as_ref().map(Arc::clone) {
            let side = self.side(worker, fabric);
            let work = move |stop: &OwnedFd| host::join(&side, &device, stop);
            inner.threads.push(NicThread::start("host", self.id, work)?);
        }
        Ok(())
    }

    fn side(&self, worker: WorkerId, fabric: &Arc<Fabric>) -> NicSide {
        let (counters, fabric) = (Arc::clone(&self.counters), Arc::clone(fabric));
        NicSide { uplink: self.id, worker, counters, fabric }
    }

    /// Give the host what the workers still have for it, when nobody else does.
    pub fn finish_host(&self, fabric: &Arc<Fabric>) {
        let inner = self.inner();
        if let (Some(device), Some(&(_, worker))) = (&inner.host, inner.status.queues.first()) {
            host::finish(&self.side(worker, fabric), device);
        }
    }

    /// Open it again, as the interface `name`. Its sockets come dealt: those of queues that it had
    /// to the workers that had them. `wish` is how.
    ///
    /// # Errors
    /// Why not; it is then as it was.
    pub fn open_again(
        &self,
        name: &str,
        wish: ModeWish,
        workers: usize,
    ) -> Result<Vec<(WorkerId, Socket)>, ReopenError> {
        let before = self.status();
        let (uplink, sockets) = open(name, &self.config, wish, self.interrupt_notes.as_deref())?;
        let has = |queue: u32| sockets.iter().any(|socket| socket.queue() == queue);
        if let Some(&(queue, _)) = before.queues.iter().find(|&&(queue, _)| !has(queue)) {
            return Err(ReopenError::QueueMissing(queue));
        }
        let host = join_host(&self.config, &uplink)?;
        // What was set before is put back first.
        drop(std::mem::take(&mut self.inner().steered));
        let steered = steer(&self.config, &uplink, &sockets, self.steering_note.clone())?;
        let deal = |(place, socket): (usize, Socket)| {
            let worker = before.worker_of(socket.queue());
            (worker.unwrap_or_else(|| worker_at(self.id, place, workers)), socket)
        };
        let umem = Arc::clone(sockets[0].umem());
        let dealt: Vec<_> = sockets.into_iter().enumerate().map(deal).collect();
        let queues = dealt.iter().map(|(worker, socket)| (socket.queue(), *worker)).collect();
        let mut opened = Inner::new(uplink, umem, (host, steered), queues);
        // It is up when the workers have its sockets, and not before.
        opened.status.state = NicState::Down;
        *self.inner() = opened;
        Ok(dealt)
    }

    /// Why another process cannot go on with it; None if it can. It has to be there, and what was
    /// set on the NIC for it, or by others, does not go over.
    pub fn obstacle(&self) -> Option<&'static str> {
        match &*self.inner() {
            Inner { status, .. } if status.state != NicState::Up => Some("it is not up"),
            Inner { redirect: None, .. } => Some("a launcher has its program on it"),
            Inner { deferred: Some(_), .. } => Some("it is busy polled"),
            Inner { steered, .. } if steered.is_set() => Some("its indirection table is set"),
            _ => None,
        }
    }

    /// What another process needs to go on with it.
    ///
    /// # Errors
    /// It is not open, or no descriptor is left.
    pub fn leave(&self) -> io::Result<LeftUplink> {
        let Inner { status, redirect, tap, umem, .. } = &*self.inner();
        let link = redirect.as_ref().and_then(Redirect::link);
        let umem = umem.as_ref().and_then(|umem| umem.file());
        let (Some(link), Some(umem), Some(tap)) = (link, umem, tap) else {
            return Err(io::Error::other("the uplink is not whole"));
        };
        let own = BorrowedFd::try_clone_to_owned;
        let descriptors = [own(&link)?, own(&tap.as_fd())?, own(&umem)?];
        Ok(LeftUplink { status: status.clone(), descriptors })
    }

    /// Put our program in the place of another process's.
    ///
    /// # Errors
    /// [`ProgramError::Replace`].
    pub fn replace_program(&self) -> Result<(), ProgramError> {
        let Inner { status, redirect, .. } = &*self.inner();
        let Some(redirect) = redirect else { return Ok(()) };
        redirect.replace(&status.interface.name)
    }

    /// Look again at which of its queues receive.
    pub fn look_at_steering(&self) {
        let Inner { status, steered, .. } = &mut *self.inner();
        let queues: Vec<u32> = status.queues.iter().map(|&(queue, _)| queue).collect();
        steered.look(&status.interface, &queues);
        status.unserved_queues.clone_from(&steered.unserved);
    }

    /// Look again at what lies below it: members come and go, and their offloads change. False if
    /// the program is now where its sockets get no frames.
    pub fn look_at_device(&self) -> bool {
        let name = self.status().interface.name;
        // It may be going away just now, which is looked at elsewhere.
        let Ok(Interface { device, .. }) = Interface::read(&name) else { return true };
        let status = &mut self.inner().status;
        let generic = status.attach_mode == AttachMode::Generic;
        let cautions = device.cautions(generic);
        let is_new = |caution: &&Caution| !status.cautions.contains(caution);
        tell(&name, cautions.iter().filter(is_new));
        let reached = generic || device.generic_only().is_none();
        (status.cautions, status.interface.device) = (cautions, device);
        reached
    }

    /// The identifier of our program on it.
    pub fn program_id(&self) -> Option<u32> {
        self.inner().redirect.as_ref().and_then(Redirect::id)
    }

    /// Whether somebody has taken our program off it.
    pub fn program_is_lost(&self) -> bool {
        self.inner().redirect.as_ref().is_some_and(|redirect| !redirect.is_attached())
    }

    /// Count what the kernel has since: the XDP program's verdicts, and the multicast that the
    /// packet socket had no room for.
    pub fn count(&self) {
        self.count_kernels(&mut self.inner());
    }

    fn count_kernels(&self, inner: &mut Inner) {
        let lost = inner.tap.as_ref().and_then(|tap| tap.lost().ok());
        self.counters.add(SocketCounter::MulticastDropped, lost.unwrap_or_default());
        let Some(Ok(now)) = inner.redirect.as_ref().map(Redirect::verdicts) else { return };
        let counted = std::mem::replace(&mut inner.verdicts, now);
        let counters = [
            (SocketCounter::XdpRedirected, now.redirected - counted.redirected),
            (SocketCounter::XdpPassed, now.passed - counted.passed),
            (SocketCounter::XdpNoSocket, now.no_socket - counted.no_socket),
        ];
        counters.into_iter().for_each(|(counter, more)| self.counters.add(counter, more));
    }

    /// Take the program off the NIC and bring no more multicast. What it was is still known.
    pub fn close(&self) {
        let mut inner = self.inner();
        self.count_kernels(&mut inner);
        let threads = std::mem::take(&mut inner.threads);
        let (steered, deferred) = (std::mem::take(&mut inner.steered), inner.deferred.take());
        let nic = (inner.host.take(), inner.tap.take(), inner.redirect.take());
        let parts = (deferred, nic, steered, inner.umem.take());
        inner.macs.clear();
        // The threads are waited for without the lock.
        drop(inner);
        drop(threads);
        drop(parts);
    }

    /// It has come to this state.
    pub fn set_state(&self, state: NicState, problem: &str) {
        let mut inner = self.inner();
        let status = &mut inner.status;
        if status.state != state {
            (status.state, status.since) = (state, SystemTime::now());
        }
        problem.clone_into(&mut status.problem);
    }

    /// Name, MTU and MAC are these now; the host's device has the same MTU.
    pub fn set_link(&self, link: &Link) {
        let mut inner = self.inner();
        let interface = &mut inner.status.interface;
        interface.name.clone_from(&link.name);
        interface.mac = link.mac;
        let before = std::mem::replace(&mut interface.mtu, link.mtu);
        if let Some(device) = inner.host.as_ref().filter(|_| before != link.mtu)
            && let Err(error) = device.set_mtu(link.mtu)
        {
            let device = &device.name;
            tracing::warn!(device, %error, "the host's device keeps another MTU than the uplink");
        }
    }

    /// Say why it is used as it is.
    pub fn set_reason(&self, reason: &str) {
        reason.clone_into(&mut self.inner().status.reason);
    }

    /// How it is to be used.
    pub fn wish(&self) -> ModeWish {
        wish(self.config.mode)
    }
}

/// Log what a kind of device does to frames.
fn tell<'c>(interface: &str, cautions: impl IntoIterator<Item = &'c Caution>) {
    for Caution { found, meaning, remedy, .. } in cautions {
        tracing::warn!(interface, found, meaning, remedy, "the uplink's device changes frames");
    }
}

/// Why a NIC was not opened again.
#[derive(Debug, thiserror::Error)]
pub enum ReopenError {
    /// As at the start.
    #[error(transparent)]
    Uplink(#[from] UplinkError),
    /// Ports were placed by a queue that is not there any more.
    #[error(
        "it has no queue {0} any more, by which ports are placed; give it back with `ethtool -L`, \
         or restart isonic"
    )]
    QueueMissing(u32),
}

/// All switch ports' addresses but for that of the NIC itself, which it may have got since the port
/// was made: the host must not be cut off.
fn set_macs(
    redirect: &Redirect,
    present: &mut Vec<[u8; 6]>,
    (routes, of_nic): (&[&Route], [u8; 6]),
) -> Result<(), ProgramError> {
    let mac_of = |route: &&Route| match route.attachment {
        Attachment::Switch { mac } => Some(mac),
        Attachment::Wire { .. } => None,
    };
    let wanted: Vec<_> = routes.iter().filter_map(mac_of).filter(|mac| *mac != of_nic).collect();
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

/// A wire port's queue is its own; the others are the host's and of all switch ports.
fn queue_use(queue: u32, routes: &[&Route]) -> QueueUse {
    let owns = |route: &&Route| match &route.attachment {
        Attachment::Wire { queues } => queues.contains(&queue),
        Attachment::Switch { .. } => false,
    };
    if routes.iter().any(owns) { QueueUse::Wire } else { QueueUse::Shared }
}

fn open(
    name: &str,
    config: &UplinkConfig,
    mode: ModeWish,
    notes: Option<&Path>,
) -> Result<(Uplink, Vec<Socket>), UplinkError> {
    let (queues, busy_poll) = (config.queues.as_deref(), busy_poll(config, notes));
    match &config.handed {
        None => Uplink::open(name, queues, mode, busy_poll.as_ref()),
        Some(handed) => {
            let handed = match handed.clone() {
                config::Handed::Sockets(numbers) => Handed::Sockets(numbers),
                config::Handed::Map(path) => Handed::Map(path),
                config::Handed::DevicePlugin(path) => Handed::DevicePlugin(path),
            };
            Uplink::adopt(name, queues, &handed, mode, busy_poll.as_ref())
        }
    }
}

/// Deal the sockets of an uplink that has just been opened to the workers, of whom each has a place
/// in `dealt`.
fn deal(
    id: UplinkId,
    config: &UplinkConfig,
    (uplink, sockets): (Uplink, Vec<Socket>),
    note: Option<PathBuf>,
    dealt: &mut [Dealt],
) -> Result<Inner, UplinkError> {
    // None, if the link went down while they were handed over.
    let umem = sockets.first().map(|socket| Arc::clone(socket.umem()));
    let umem = umem.ok_or_else(|| UplinkError::Down(config.interface.clone()))?;
    let host = join_host(config, &uplink)?;
    let steered = steer(config, &uplink, &sockets, note)?;
    let mut queues = Vec::new();
    for (place, socket) in sockets.into_iter().enumerate() {
        let worker = worker_at(id, place, dealt.len());
        queues.push((socket.queue(), worker));
        dealt[worker.index()].push((id, socket));
    }
    Ok(Inner::new(uplink, umem, (host, steered), queues))
}

/// Where the interrupt settings of NICs that are busy polled are written down.
pub fn interrupt_notes(config: &Config) -> Option<PathBuf> {
    Some(config.runtime_dir.as_ref()?.join("interrupts"))
}

fn busy_poll(config: &UplinkConfig, notes: Option<&Path>) -> Option<BusyPoll> {
    let notes = notes.map(Path::to_owned);
    config.busy_poll.map(|budget| BusyPoll { budget, suspend: config.irq_suspend, notes })
}

fn wish(mode: UplinkMode) -> ModeWish {
    match mode {
        UplinkMode::Auto => ModeWish::Auto,
        UplinkMode::Zerocopy => ModeWish::ZeroCopy,
        UplinkMode::Copy => ModeWish::Copy,
        UplinkMode::Generic => ModeWish::Generic,
    }
}

/// The worker of an uplink's queue in this place among them.
fn worker_at(id: UplinkId, place: usize, workers: usize) -> WorkerId {
    let worker = u16::try_from((place + id.index()) % workers);
    WorkerId(worker.expect("the configuration limits the number of workers"))
}

/// Join the host to the VMs of a NIC that has just been opened, if it is to be.
fn join_host(config: &UplinkConfig, uplink: &Uplink) -> Result<Option<HostDevice>, UplinkError> {
    Ok(config.host.then(|| uplink.join_host()).transpose()?.flatten())
}

/// See that what is to come to a NIC that has just been opened comes on queues with sockets.
fn steer(
    config: &UplinkConfig,
    uplink: &Uplink,
    sockets: &[Socket],
    note: Option<PathBuf>,
) -> Result<Steered, UplinkError> {
    let queues: Vec<u32> = sockets.iter().map(Socket::queue).collect();
    Ok(Steered::begin(config, &uplink.interface, &queues, note)?)
}

/// The queues that are no wire port's; all, if that leaves none. A wire port gets its frames by
/// flow rules.
fn shared_queues(queues: &[(u32, WorkerId)], routes: &[&Route]) -> Vec<u32> {
    let all = queues.iter().map(|&(queue, _)| queue);
    let shared = |queue: &u32| queue_use(*queue, routes) != QueueUse::Wire;
    let queues: Vec<u32> = all.clone().filter(shared).collect();
    if queues.is_empty() { all.collect() } else { queues }
}

/// What the control threads of a NIC need of it.
#[derive(Debug)]
pub struct NicSide {
    /// Its number.
    pub uplink: UplinkId,
    /// Where frames are brought to.
    pub worker: WorkerId,
    /// Where they are counted.
    pub counters: Arc<Published<SocketCounter>>,
    /// The workers.
    pub fabric: Arc<Fabric>,
}

/// A control thread of a NIC.
#[derive(Debug)]
struct NicThread {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl NicThread {
    /// What `work` does until the descriptor says stop.
    fn start(
        name: &str,
        id: UplinkId,
        work: impl FnOnce(&OwnedFd) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name(format!("{name} {}", id.0))
            .spawn(move || work(&stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for NicThread {
    fn drop(&mut self) {
        // An eventfd's first write cannot fail.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a thread of a NIC has panicked");
        }
    }
}

/// One frame after the other to the worker, which floods it.
fn bring_multicast(side: &NicSide, tap: &MulticastTap, stop: &OwnedFd) {
    let NicSide { uplink, worker, counters, fabric } = side;
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
        if !fabric.floods(*uplink) {
            continue;
        }
        let target = Target::Arrival { uplink: *uplink };
        let brought = received
            .is_some_and(|len| fabric.hand_over(*worker, (&buffer[..len], Offload::PLAIN), target));
        let counter =
            if brought { SocketCounter::MulticastPackets } else { SocketCounter::MulticastDropped };
        counters.add(counter, 1);
    }
}

impl Fabric {
    /// Copy a frame of the control plane into a worker's inbox; false if it is full.
    pub fn hand_over(
        &self,
        worker: WorkerId,
        (bytes, offload): (&[u8], Offload),
        target: Target,
    ) -> bool {
        let Some(mut packet) = self.pool().take() else { return false };
        packet.room(bytes.len()).copy_from_slice(bytes);
        packet.offload = offload;
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
