//! The observations and actions of a NIC's life: here through the kernel, the workers and the
//! ports. The life's tests have another implementation.

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

/// The calls of NICs to the ports.
pub trait PortsOfNics: Send + Sync {
    /// Show the guests of an uplink that its link is down, or up again.
    fn show_link(&self, uplink: &str, up: bool);
    /// Keep the facts of the uplinks, for a start while one is away.
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
    /// An obstacle, which may pass.
    Problem(String),
    /// The daemon stops.
    WorkerGone,
}

impl From<WorkerGone> for NotOpened {
    fn from(WorkerGone: WorkerGone) -> Self {
        Self::WorkerGone
    }
}

/// An uplink, as its life observes and controls it.
pub trait NicControl {
    /// Its state.
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

    /// The number of queues on which an interface receives, if the kernel reports it.
    fn receive_queues(&self, interface: &str) -> Option<usize>;

    /// Whether somebody has detached our program from it.
    fn program_is_lost(&self) -> bool;

    /// Read its underlying device again. False if its program is now where its sockets get no
    /// frames.
    fn look_at_device(&self) -> bool;

    /// Read again which of its queues receive.
    fn look_at_steering(&self);

    /// Take over the name, MTU and MAC of its link.
    ///
    /// # Errors
    /// [`WorkerGone`].
    fn set_link(&self, link: &Link) -> Result<(), WorkerGone>;

    /// Set its state.
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

    /// Close sockets, program and packet socket. Frames in the sockets' rings are counted.
    ///
    /// # Errors
    /// [`WorkerGone`].
    fn close(&self) -> Result<(), WorkerGone>;

    /// Open it, and keep its sockets. Nothing of it may be open.
    ///
    /// # Errors
    /// [`NotOpened`]; nothing of it is open then.
    fn open(&self, how: Reopening<'_>) -> Result<(), NotOpened>;

    /// Count a stall of one of its sockets.
    fn count_stall(&self, counter: SocketCounter);

    /// Show its guests whether it is up, if the configuration wants that.
    fn show_link(&self, up: bool);
}

/// An uplink with its real NIC.
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
    /// Give the host's port its NIC's address and MTU.
    fn set_host_nic(&self) -> Result<(), WorkerGone> {
        let nic = HostNic::of(&self.nic.status().interface);
        self.workers.set_host_nic(self.nic.id, nic)
    }

    /// The NIC has another MAC now: frames for it go to the host, whichever address a port has.
    fn change_mac(&self, was: MacAddress, now: MacAddress) {
        let uplink = &self.nic.config.interface;
        tracing::info!(uplink, %now, %was, "the uplink's MAC was changed");
        if let Err(error) = self.nic.redirect(self.workers) {
            tracing::error!(uplink, error = chain(&error), "the ports' addresses are not in force");
        }
    }
}
