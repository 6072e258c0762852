//! Why a NIC cannot be an uplink, and the program that is in the way.

use std::fmt;
use std::io;

use super::busy_poll::BusyPollError;
use super::host_device::HostDeviceError;
use super::launcher::SocketMapError;
use super::multicast::TapError;
use super::nic::{self, AttachedProgram, InterfaceError, SteeringError, Unfit};
use super::open_sockets::SocketError;
use super::program::ProgramError;

/// Queues that the XDP program has places for (`QUEUES_MAX` of bpf/redirect.bpf.c).
pub(super) const QUEUES_MAX: u32 = 256;

/// Why the NIC cannot be an uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Not there.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// Its kind of device cannot carry guests' frames.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The mode asked for would run a program where its sockets do not get the frames.
    #[error("{0}; use mode = \"auto\" or \"generic\", or one of its ports as the uplink")]
    GenericOnly(String),
    /// Down.
    #[error("interface {0} is down; bring it up with `ip link set dev {0} up`")]
    Down(String),
    /// A queue that it does not have.
    #[error("interface {interface} has no queue {queue}: it has {count} (0 to {})", .count - 1)]
    NoSuchQueue {
        /// NIC.
        interface: String,
        /// Asked for.
        queue: u32,
        /// Queues it has.
        count: u32,
    },
    /// More queues than the XDP program has places for.
    #[error(
        "queue {queue} of {interface}: queues 0 to {} can be served; choose some with `queues`",
        QUEUES_MAX - 1
    )]
    TooManyQueues {
        /// NIC.
        interface: String,
        /// Asked for.
        queue: u32,
    },
    /// A launcher's sockets without its program.
    #[error(
        "no XDP program is on {0}: whoever hands sockets over attaches one that redirects to them"
    )]
    NoProgram(String),
    /// A launcher's map.
    #[error(transparent)]
    Map(#[from] SocketMapError),
    /// The program is not in place.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Another program is in place.
    #[error("{0}")]
    Occupied(Box<Occupant>),
    /// No sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Frames would arrive on queues without a socket.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// No multicast.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The host cannot be joined to its VMs.
    #[error(transparent)]
    Host(#[from] HostDeviceError),
    /// No busy polling.
    #[error(transparent)]
    BusyPoll(#[from] BusyPollError),
    /// The descriptors of another process cannot be taken over.
    #[error("its sockets cannot be taken over; Linux before 6.4 does not allow it")]
    Inherit(#[source] io::Error),
    /// It is to have other queues than it had.
    #[error("it has sockets on queues {had:?}, and is to have them on {wanted:?}")]
    OtherQueues {
        /// Those of the process before.
        had: Vec<u32>,
        /// By the configuration.
        wanted: Vec<u32>,
    },
}

/// The holder of an XDP program that is in the way of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupant {
    /// The interface that we wanted.
    wanted: String,
    /// The one with the program: that one, or the device that it is a port of.
    interface: String,
    /// The program, if it can be seen.
    program: Option<AttachedProgram>,
}

impl Occupant {
    /// The program that keeps us from this interface.
    pub(super) fn of(wanted: &str) -> Self {
        let on = |interface: &str| nic::ask(nic::program_on(interface)).ok()?.ok();
        let (mut interface, mut program) = (wanted.to_owned(), None);
        if let Some((found, master)) = on(wanted) {
            program = found;
            if let Some(master) = master.filter(|_| program.is_none()) {
                program = on(&master.interface).and_then(|(found, _)| found);
                interface = if program.is_some() { master.interface } else { interface };
            }
        }
        Self { wanted: wanted.to_owned(), interface, program }
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, interface, program } = self;
        let holder = program.as_ref().and_then(|program| program.holder.as_ref());
        let holder = holder.map(|holder| format!(" ({holder})")).unwrap_or_default();
        if program.as_ref().is_some_and(AttachedProgram::is_ours) {
            return write!(
                f,
                "another isonic has {interface}{holder}: a NIC has one isonic; add ports to that \
                 one with `isonic port add`, or stop it first"
            );
        }
        write!(f, "another XDP program is attached to {interface}")?;
        if interface != wanted {
            write!(f, ", of which {wanted} is a port")?;
        }
        if let Some(program) = program {
            write!(f, ": {program}{holder}")?;
        }
        write!(f, "; see `bpftool net show dev {interface}` and detach it first")
    }
}

impl UplinkError {
    /// Whether the error may pass by itself: the NIC is absent or down, or its queues still have
    /// another process's sockets. The kernel releases the sockets of a killed process some time
    /// later, and only after the last frame was sent.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Socket(error) => error.is_busy(),
            Self::Down(_) => true,
            other => other.is_absence(),
        }
    }

    /// Whether the NIC is not there.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Interface(InterfaceError::NotFound(_)))
    }
}
