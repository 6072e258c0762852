//! What a NIC's life sees of its uplink and has done to it: the kernel, the workers and the ports
//! as they are. Its tests have another.

use std::io;
use std::sync::Arc;

use crate::daemon::host_port::HostNic;
use crate::daemon::workers::Workers;
use crate::datapath::WorkerGone;
use crate::device::mac::MacAddress;
use crate::metrics::SocketCounter;
use crate::report::chain;
use crate::xdp::{Interface, Link, Links, ModeWish};

use super::nic_in_use::Nic;
use super::nic_status::{NicState, NicStatus};

/// What NICs need of the ports.
pub trait PortsOfNics: Send + Sync {
    /// Show the guests of an uplink that its link is down, or up again.
    fn show_link(&self, uplink: &str, up: bool);
    /// Keep what the uplinks are like, for a start while one is away.
    fn record_uplinks(&self);
}

/// How an uplink is to be opened again.
#[derive(Clone, Copy, Debug)]
pub struct Reopening<'l> {
    /// The NIC's link.
    pub link: &'l Link,
    /// How packets are to move.
    pub mode: ModeWish,
    /// Why, if it is not as configured.
    pub reason: Option<&'static str>,
}

/// Why an uplink was not opened again.
#[derive(Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// For this reason, which may pass.
    Problem(String),
    /// The daemon stops.
    WorkerGone,
}

impl From<WorkerGone> for NotOpened {
    fn from(WorkerGone: WorkerGone) -> Self {
        Self::WorkerGone
    }
}

/// An uplink, for the one that decides what becomes of it.
pub trait NicControl {
    /// How it is.
    fn status(&self) -> NicStatus;

    /// The link with this index, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer now.
    fn link_by_index(&self, index: u32) -> io::Result<Option<Link>>;

    /// The link of this name, if there is one.
    ///
    /// # Errors
    /// The kernel does not answer now.
    fn link_by_name(&self, name: &str) -> io::Result<Option<Link>>;

    /// How many queues an interface receives on, if the kernel says.
    fn receive_queues(&self, interface: &str) -> Option<usize>;

    /// Whether somebody has taken our program off it.
    fn program_is_lost(&self) -> bool;

    /// Look again at what lies below it. False if its program is now where its sockets get no
    /// frames.
    fn look_at_device(&self) -> bool;

    /// Look again at which of its queues receive.
    fn look_at_steering(&self);

    /// Its link is so now, by name, MTU and MAC.
    ///
    /// # Errors
    /// [`WorkerGone`].
    fn set_link(&self, link: &Link) -> Result<(), WorkerGone>;

    /// It has come to this state.
    fn set_state(&self, state: NicState, problem: &str);

    /// Take its sockets from the workers, and keep them.
    ///
    /// # Errors
    /// [`WorkerGone`].
    fn take_sockets(&self) -> Result<(), WorkerGone>;

    /// Give the workers the sockets that were kept.
    ///
    /// # Errors
    /// [`WorkerGone`].
    fn give_sockets(&self) -> Result<(), WorkerGone>;

    /// Close sockets, program and packet socket. What was in the sockets' rings is counted.
    ///
    /// # Errors
    /// [`WorkerGone`].
    fn close(&self) -> Result<(), WorkerGone>;

    /// Open it, of which nothing is open, and keep its sockets.
    ///
    /// # Errors
    /// [`NotOpened`]; nothing of it is open then.
    fn open(&self, how: Reopening<'_>) -> Result<(), NotOpened>;

    /// A socket of it stood still.
    fn count_stall(&self, counter: SocketCounter);

    /// Show its guests whether it is up, if they are to be shown.
    fn show_link(&self, up: bool);
}

/// An uplink in earnest.
pub struct LiveNic<'d> {
    /// The NIC.
    pub nic: &'d Nic,
    /// The workers.
    pub workers: &'d Arc<Workers>,
    /// The ports.
    pub ports: &'d dyn PortsOfNics,
    /// The kernel's links.
    pub links: &'d Links,
}

impl NicControl for LiveNic<'_> {
    fn status(&self) -> NicStatus {
        self.nic.status()
    }

    fn link_by_index(&self, index: u32) -> io::Result<Option<Link>> {
        self.links.by_index(index)
    }

    fn link_by_name(&self, name: &str) -> io::Result<Option<Link>> {
        self.links.by_name(name)
    }

    fn receive_queues(&self, interface: &str) -> Option<usize> {
        Interface::read(interface).map(|interface| interface.receive_queues as usize).ok()
    }

    fn program_is_lost(&self) -> bool {
        self.nic.program_is_lost()
    }

    fn look_at_device(&self) -> bool {
        self.nic.look_at_device()
    }

    fn look_at_steering(&self) {
        self.nic.look_at_steering();
    }

    fn set_link(&self, link: &Link) -> Result<(), WorkerGone> {
        let was = self.nic.status().interface.mac;
        self.nic.set_link(link);
        self.set_host_nic()?;
        if was != link.mac {
            self.change_mac(MacAddress(was), MacAddress(link.mac));
        }
        Ok(())
    }

    fn set_state(&self, state: NicState, problem: &str) {
        self.nic.set_state(state, problem);
    }

    fn take_sockets(&self) -> Result<(), WorkerGone> {
        self.nic.hold(self.workers.take_sockets(self.nic.id)?);
        Ok(())
    }

    fn give_sockets(&self) -> Result<(), WorkerGone> {
        self.workers.give_sockets(self.nic.id, self.nic.take_held())
    }

    fn close(&self) -> Result<(), WorkerGone> {
        let Self { nic, workers, .. } = self;
        let mut sockets = workers.take_sockets(nic.id)?;
        sockets.append(&mut nic.take_held());
        for (_, socket) in &mut sockets {
            let abandoned = socket.abandoned();
            nic.counters.add(SocketCounter::RxFramesAbandoned, abandoned.received);
            nic.counters.add(SocketCounter::TxFramesAbandoned, abandoned.transmitting);
        }
        workers.set_memory(nic.id, None)?;
        nic.close();
        Ok(())
    }

    fn open(&self, Reopening { link, mode, reason }: Reopening<'_>) -> Result<(), NotOpened> {
        let Self { nic, workers, ports, .. } = self;
        let opened = nic.open_again(&link.name, mode, workers.entries().len());
        let sockets = opened.map_err(|error| NotOpened::Problem(chain(&error)))?;
        if let Some(reason) = reason {
            nic.set_reason(reason);
        }
        self.set_host_nic()?;
        let prepared = nic.redirect(workers).map_err(|error| chain(&error));
        let prepared =
            prepared.and_then(|()| nic.start_threads(workers).map_err(|error| error.to_string()));
        if let Err(problem) = prepared {
            drop(sockets);
            nic.close();
            return Err(NotOpened::Problem(problem));
        }
        ports.record_uplinks();
        let umem = sockets.first().map(|(_, socket)| Arc::clone(socket.umem()));
        workers.set_memory(nic.id, umem.as_ref())?;
        nic.hold(sockets);
        Ok(())
    }

    fn count_stall(&self, counter: SocketCounter) {
        self.nic.counters.add(counter, 1);
    }

    fn show_link(&self, up: bool) {
        if self.nic.config.link_to_guests {
            self.ports.show_link(&self.nic.config.interface, up);
        }
    }
}

impl LiveNic<'_> {
    /// How the host's port finds its NIC.
    fn set_host_nic(&self) -> Result<(), WorkerGone> {
        let nic = HostNic::of(&self.nic.status().interface);
        self.workers.set_host_nic(self.nic.id, nic)
    }

    /// The host is reached by another address: by that and no other, whichever a port has.
    fn change_mac(&self, was: MacAddress, now: MacAddress) {
        let uplink = &self.nic.config.interface;
        tracing::info!(uplink, %now, %was, "the uplink's MAC was changed");
        if let Err(error) = self.nic.redirect(self.workers) {
            tracing::error!(uplink, error = chain(&error), "the ports' addresses are not in force");
        }
    }
}
