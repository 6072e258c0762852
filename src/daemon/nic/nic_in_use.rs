//! One NIC in use: opened at the start and again whenever it comes back, its XDP program in step
//! with the routes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::config::UplinkConfig;
use crate::daemon::workers::Workers;
use crate::datapath::{Route, UplinkId, WorkerId};
use crate::device::mac::MacAddress;
use crate::metrics::{Published, SocketCounter};
use crate::profile::UplinkFacts;
use crate::report::chain;
use crate::xdp::nic::{Caution, Device};
use crate::xdp::{
    DeferredInterrupts, HostDevice, InheritedUplink, Interface, Link, ModeWish, MulticastTap,
    ProgramError, Redirect, Socket, Umem, Uplink, UplinkError, Verdicts, XdpAttachment,
};

use super::host_pump;
use super::indirection_table::Steered;
use super::nic_status::{ExportedUplink, KnownUplink, NicError, NicState, NicStatus};
use super::open_nic::{ReopenError, join_host, open, steer, wish, worker_at};
use super::pump::{PumpSide, PumpThread, bring_multicast};
use super::redirects::{SwitchMacs, queue_use, set_macs, shared_queues};

/// The settings with which a NIC is opened.
#[derive(Debug)]
pub struct NicStart<'c> {
    /// Its number.
    pub id: UplinkId,
    /// As configured.
    pub config: &'c UplinkConfig,
    /// How many workers there are.
    pub workers: usize,
    /// The file that keeps its earlier indirection table, if a table is set.
    pub steering_note: Option<PathBuf>,
    /// The directory that keeps its interrupt settings while it is busy polled.
    pub interrupt_notes: Option<PathBuf>,
}

/// One NIC in use.
#[derive(Debug)]
pub struct Nic {
    /// Its number.
    pub id: UplinkId,
    /// As configured; the interface's name there is the uplink's.
    pub config: UplinkConfig,
    /// The file that keeps its earlier indirection table, if a table is set.
    steering_note: Option<PathBuf>,
    /// The directory that keeps its interrupt settings while it is busy polled.
    interrupt_notes: Option<PathBuf>,
    /// The control plane's counters of it.
    pub counters: Arc<Published<SocketCounter>>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    status: NicStatus,
    /// Set while it is busy polled. Dropped before the program, whose end may end NAPI instances.
    deferred: Option<DeferredInterrupts>,
    /// None while it is not open, and where the program is a launcher's.
    redirect: Option<Redirect>,
    /// MACs in the program, so that only differences are written.
    macs: Vec<[u8; 6]>,
    /// The program's verdicts that are already in the counters.
    verdicts: Verdicts,
    /// None while it is not open.
    tap: Option<Arc<MulticastTap>>,
    /// The sockets' frame memory; None while it is not open.
    umem: Option<Arc<Umem>>,
    /// The device that joins the host itself to the VMs.
    host: Option<Arc<HostDevice>>,
    /// The queues that receive; puts the table back when dropped.
    steered: Steered,
    threads: Vec<PumpThread>,
    /// Its sockets, while the link is down.
    held: Vec<(WorkerId, Socket)>,
}

/// All parts of an opened uplink except its sockets.
struct OpenParts {
    uplink: Uplink,
    umem: Arc<Umem>,
    host: Option<HostDevice>,
    steered: Steered,
    queues: Vec<(u32, WorkerId)>,
}

impl Inner {
    fn new(parts: OpenParts) -> Self {
        let OpenParts { uplink, umem, host, steered, queues } = parts;
        let host_device = host.as_ref().map(|device| device.name.clone());
        let Uplink { interface, attachment, deferred, redirect, tap } = uplink;
        let XdpAttachment { attach_mode, socket_mode, packet_max, reason } = &attachment;
        tracing::info!(
            interface = interface.name, attach = ?attach_mode, socket = ?socket_mode, packet_max,
            reason, queues = queues.len(), host_device, "uplink is open"
        );
        let cautions = interface.device.cautions(attachment.is_generic());
        tell(&interface.name, &cautions);
        let (state, since, problem) = (NicState::Up, SystemTime::now(), String::new());
        let status = NicStatus {
            interface,
            attachment,
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
        let (macs, verdicts) = (Vec::new(), Verdicts::default());
        let (threads, held) = (Vec::new(), Vec::new());
        Self { status, deferred, redirect, macs, verdicts, tap, umem, host, steered, threads, held }
    }

    /// The state of an uplink that was just opened at the start, with its sockets and their
    /// workers.
    fn opened(
        start: &NicStart<'_>,
        (uplink, sockets): (Uplink, Vec<Socket>),
    ) -> Result<(Self, Vec<(WorkerId, Socket)>), UplinkError> {
        let NicStart { id, config, workers, .. } = *start;
        // No socket, if the link went down while they were handed over.
        let umem = sockets.first().map(|socket| Arc::clone(socket.umem()));
        let umem = umem.ok_or_else(|| UplinkError::Down(config.interface.clone()))?;
        let host = join_host(config, &uplink)?;
        let steered = steer(config, &uplink, &sockets, start.steering_note.clone())?;
        let place = |(place, socket)| (worker_at(id, place, workers), socket);
        let sockets: Vec<_> = sockets.into_iter().enumerate().map(place).collect();
        let queues = sockets.iter().map(|(worker, socket)| (socket.queue(), *worker)).collect();
        Ok((Self::new(OpenParts { uplink, umem, host, steered, queues }), sockets))
    }

    /// The state of a known uplink whose NIC cannot be opened yet.
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
            attachment: known.attachment(),
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
            held: Vec::new(),
        }
    }
}

impl Nic {
    /// Open an uplink of the configuration, or continue with it as another process had it. Its
    /// sockets are given to the workers in turn, the first to the worker with the uplink's number.
    /// An uplink that is `known` may be away or busy for now.
    ///
    /// # Errors
    /// [`NicError`]; nothing is left open.
    pub fn open(
        start: NicStart<'_>,
        inherited: Option<InheritedUplink>,
        known: Option<&KnownUplink>,
    ) -> Result<(Self, Vec<(WorkerId, Socket)>), NicError> {
        let NicStart { id, config, workers, .. } = start;
        let (name, mode) = (&config.interface, wish(config.mode));
        let opened = match inherited {
            Some(inherited) => Uplink::inherit(name, config.queues.as_deref(), inherited),
            None => open(name, config, mode, start.interrupt_notes.as_deref()),
        };
        let (inner, sockets) = match (opened, known) {
            (Err(error), Some(known)) if error.may_pass() => {
                let worker = |place| worker_at(id, place, workers);
                (Inner::away(name, known, &error, worker), Vec::new())
            }
            (opened, _) => opened
                .and_then(|opened| Inner::opened(&start, opened))
                .map_err(|source| NicError { interface: name.clone(), source })?,
        };
        let NicStart { steering_note, interrupt_notes, .. } = start;
        let (config, counters, inner) = (config.clone(), Arc::default(), Mutex::new(inner));
        Ok((Self { id, config, steering_note, interrupt_notes, counters, inner }, sockets))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its state.
    pub fn status(&self) -> NicStatus {
        self.inner().status.clone()
    }

    /// Its facts, for a start while it is away.
    pub fn known(&self) -> KnownUplink {
        let status = self.status();
        let XdpAttachment { attach_mode, socket_mode, packet_max, .. } = status.attachment;
        KnownUplink {
            driver: status.interface.driver,
            mac: MacAddress(status.interface.mac),
            mtu: status.interface.mtu,
            packet_max,
            attach_mode,
            socket_mode,
            queues: status.queues.iter().map(|&(queue, _)| queue).collect(),
        }
    }

    /// Its present facts for profiles: an administrator may change the MTU.
    pub fn facts(&self) -> UplinkFacts {
        let Interface { name, mtu, .. } = self.status().interface;
        let mtu = UplinkFacts::of_interface(&name).map_or(mtu, |facts| facts.mtu);
        UplinkFacts { name: self.config.interface.clone(), mtu }
    }

    /// Bring the XDP program's maps in step with the routes: the use of queues, and our MACs. Does
    /// nothing while the NIC is not open: opening it does this.
    ///
    /// # Errors
    /// [`ProgramError`].
    pub fn redirect(&self, workers: &Workers) -> Result<(), ProgramError> {
        let mut inner = self.inner();
        let routes = workers.routes();
        let routes: Vec<&Route> = routes.values().filter(|route| route.uplink == self.id).collect();
        let Inner { status, redirect, macs, steered, .. } = &mut *inner;
        let Some(redirect) = redirect else { return Ok(()) };
        for &(queue, _) in &status.queues {
            redirect.set_queue(queue, queue_use(queue, &routes))?;
        }
        steered.spread(&shared_queues(&status.queues, &routes));
        status.steering_set = steered.is_set();
        set_macs(redirect, macs, &SwitchMacs { routes: &routes, of_nic: status.interface.mac })
    }

    /// Start to bring broadcast and multicast to the worker of its first queue, and join the host
    /// if it shares the NIC.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start_threads(&self, workers: &Arc<Workers>) -> io::Result<()> {
        let mut inner = self.inner();
        let Some(&(_, worker)) = inner.status.queues.first() else { return Ok(()) };
        if let Some(tap) = inner.tap.as_ref().map(Arc::clone) {
            let side = self.side(worker, workers);
            let work = move |stop: &OwnedFd| bring_multicast(&side, &tap, stop);
            inner.threads.push(PumpThread::start("multicast", self.id, work)?);
        }
        if let Some(device) = inner.host.as_ref().map(Arc::clone) {
            let side = self.side(worker, workers);
            let work = move |stop: &OwnedFd| host_pump::join(&side, &device, stop);
            inner.threads.push(PumpThread::start("host", self.id, work)?);
        }
        Ok(())
    }

    /// Stop these threads.
    pub fn stop_threads(&self) {
        let threads = std::mem::take(&mut self.inner().threads);
        // The lock is not held while the threads are waited for.
        drop(threads);
    }

    fn side(&self, worker: WorkerId, workers: &Arc<Workers>) -> PumpSide {
        let (counters, workers) = (Arc::clone(&self.counters), Arc::clone(workers));
        PumpSide { uplink: self.id, worker, counters, workers }
    }

    /// Send the host all packets that the workers still have for it, after its thread has stopped.
    pub fn finish_host(&self, workers: &Arc<Workers>) {
        let inner = self.inner();
        if let (Some(device), Some(&(_, worker))) = (&inner.host, inner.status.queues.first()) {
            host_pump::finish(&self.side(worker, workers), device);
        }
    }

    /// Open it again as the interface `name`, in mode `wish`. Returns its sockets; queues that it
    /// had before go to the workers that had them.
    ///
    /// # Errors
    /// The reason; it is then as it was.
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
        // The earlier settings are put back first.
        drop(std::mem::take(&mut self.inner().steered));
        let steered = steer(&self.config, &uplink, &sockets, self.steering_note.clone())?;
        let place = |(place, socket): (usize, Socket)| {
            let worker = before.worker_of(socket.queue());
            (worker.unwrap_or_else(|| worker_at(self.id, place, workers)), socket)
        };
        let umem = Arc::clone(sockets[0].umem());
        let sockets: Vec<_> = sockets.into_iter().enumerate().map(place).collect();
        let queues = sockets.iter().map(|(worker, socket)| (socket.queue(), *worker)).collect();
        let mut opened = Inner::new(OpenParts { uplink, umem, host, steered, queues });
        // It is up only when the workers have its sockets.
        opened.status.state = NicState::Down;
        *self.inner() = opened;
        Ok(sockets)
    }

    /// Keep sockets that no worker may have now.
    pub fn hold(&self, sockets: Vec<(WorkerId, Socket)>) {
        self.inner().held = sockets;
    }

    /// The sockets that were kept.
    pub fn take_held(&self) -> Vec<(WorkerId, Socket)> {
        std::mem::take(&mut self.inner().held)
    }

    /// Why another process cannot continue with it; None if it can. It must be up. Settings that we
    /// or others have made on the NIC are not handed over.
    pub fn obstacle(&self) -> Option<&'static str> {
        match &*self.inner() {
            Inner { status, .. } if status.state != NicState::Up => Some("it is not up"),
            Inner { redirect: None, .. } => Some("a launcher has its program on it"),
            Inner { deferred: Some(_), .. } => Some("it is busy polled"),
            Inner { steered, .. } if steered.is_set() => Some("its indirection table is set"),
            _ => None,
        }
    }

    /// The descriptors and state with which another process can continue.
    ///
    /// # Errors
    /// It is not open, or no descriptor is left.
    pub fn export(&self) -> io::Result<ExportedUplink> {
        let Inner { status, redirect, tap, umem, .. } = &*self.inner();
        let link = redirect.as_ref().and_then(Redirect::link);
        let umem = umem.as_ref().and_then(|umem| umem.file());
        let (Some(link), Some(umem), Some(tap)) = (link, umem, tap) else {
            return Err(io::Error::other("the uplink is not whole"));
        };
        let own = BorrowedFd::try_clone_to_owned;
        let descriptors = [own(&link)?, own(&tap.as_fd())?, own(&umem)?];
        Ok(ExportedUplink { status: status.clone(), descriptors })
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

    /// Read again which of its queues receive.
    pub fn look_at_steering(&self) {
        let Inner { status, steered, .. } = &mut *self.inner();
        let queues: Vec<u32> = status.queues.iter().map(|&(queue, _)| queue).collect();
        steered.look(&status.interface, &queues);
        status.unserved_queues.clone_from(&steered.unserved);
    }

    /// Read its underlying device again: members come and go, and their offloads change. False if
    /// the program is now where its sockets get no frames.
    pub fn look_at_device(&self) -> bool {
        let name = self.status().interface.name;
        // It may be going away just now; the life notices that elsewhere.
        let Ok(Interface { device, .. }) = Interface::read(&name) else { return true };
        let status = &mut self.inner().status;
        let generic = status.attachment.is_generic();
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

    /// Whether somebody has detached our program from it.
    pub fn program_is_lost(&self) -> bool {
        self.inner().redirect.as_ref().is_some_and(|redirect| !redirect.is_attached())
    }

    /// Add the kernel's counts since the last time: the XDP program's verdicts, and multicast
    /// frames for which the packet socket had no room.
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

    /// Detach the program from the NIC and stop bringing multicast. Its status stays known.
    pub fn close(&self) {
        let mut inner = self.inner();
        self.count_kernels(&mut inner);
        let threads = std::mem::take(&mut inner.threads);
        let (steered, deferred) = (std::mem::take(&mut inner.steered), inner.deferred.take());
        let nic = (inner.host.take(), inner.tap.take(), inner.redirect.take());
        let parts = (deferred, nic, steered, inner.umem.take());
        inner.macs.clear();
        // The lock is not held while the threads are waited for.
        drop(inner);
        drop(threads);
        drop(parts);
    }

    /// Set its state.
    pub fn set_state(&self, state: NicState, problem: &str) {
        let mut inner = self.inner();
        let status = &mut inner.status;
        if status.state != state {
            (status.state, status.since) = (state, SystemTime::now());
        }
        problem.clone_into(&mut status.problem);
    }

    /// Set name, MTU and MAC; the host's device gets the same MTU.
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

    /// Set the reason for its modes.
    pub fn set_reason(&self, reason: &str) {
        reason.clone_into(&mut self.inner().status.attachment.reason);
    }
}

/// Log the effects of a kind of device on frames.
fn tell<'c>(interface: &str, cautions: impl IntoIterator<Item = &'c Caution>) {
    for Caution { found, meaning, remedy, .. } in cautions {
        tracing::warn!(interface, found, meaning, remedy, "the uplink's device changes frames");
    }
}
