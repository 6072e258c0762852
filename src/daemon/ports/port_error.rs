//! Why a port is not made, changed or removed.

use std::io;

use crate::config::PortProblem;
use crate::daemon::host_port::PORTS_MAX;
use crate::daemon::ownership::DaemonBusy;
use crate::datapath::{WorkerGone, frame_max};
use crate::platform::unix_socket::{AccessError, ClaimError};
use crate::profile::Blocker;
use crate::virtqueue::JournalError;
use crate::xdp::ProgramError;

use super::profile_choice::BindingError;
use super::state_file::StateFileError;

/// Why a port was not added or removed; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The requested port conflicts with the configuration or other ports.
    #[error("{}", list(.0))]
    Problems(Vec<PortProblem>),
    /// Another port has the name.
    #[error("there is already a port \"{0}\"; remove it first or choose another name")]
    Exists(String),
    /// The port exists, and differs from the requested one.
    #[error(
        "port \"{port}\" is there with another content: {}; remove it first, or ask for what is \
         there",
        list(differences)
    )]
    Differs {
        /// The port.
        port: String,
        /// Every difference.
        differences: Vec<String>,
    },
    /// No port has the name.
    #[error("there is no port \"{0}\"; see `isonic port list`")]
    NotFound(String),
    /// A port of the configuration file cannot be removed by command.
    #[error("port \"{0}\" is in the configuration file; remove it there and restart the daemon")]
    Permanent(String),
    /// The port cannot have the interface of its record.
    #[error(transparent)]
    Binding(Box<BindingError>),
    /// It is being removed or changed, and its session has not ended yet.
    #[error("port \"{0}\" is being removed or changed; ask again when that is done")]
    Changing(String),
    /// Its front-end would not notice the change of its interface.
    #[error(
        "port \"{0}\" has a front-end connected; shut the VM down first: a guest keeps its \
         interface as long as it runs"
    )]
    Connected(String),
    /// The configuration file decides.
    #[error(
        "port \"{port}\" is in the configuration file, which asks for {configured}; write \
         {asked} there, restart the daemon, and give this command again"
    )]
    Configured {
        /// The port.
        port: String,
        /// By the configuration file.
        configured: String,
        /// By the command.
        asked: String,
    },
    /// The uplink's device drops frames for any address but its own.
    #[error(
        "uplink {uplink} is a {kind} that passes unicast for its own MAC only, so that a switch \
         port would receive none; make it anew with `mode passthru`, or use attach = \"wire\" and \
         its MAC for the guest"
    )]
    OwnMacOnly {
        /// The uplink.
        uplink: String,
        /// The kind of its device.
        kind: String,
    },
    /// The profile cannot be kept on this uplink.
    #[error("profile {profile} cannot be kept on uplink {uplink}: {}", list(blockers))]
    Blocked {
        /// The profile.
        profile: String,
        /// The uplink.
        uplink: String,
        /// Every reason.
        blockers: Vec<Blocker>,
    },
    /// The profile's frames are longer than the uplink's sockets take.
    #[error(
        "profile {profile} has MTU {mtu}, and AF_XDP on uplink {uplink} carries at most {}: \
         {reason}; {way_out}, or choose another profile",
        packet_max - frame_max(0)
    )]
    FrameSize {
        /// The profile.
        profile: String,
        /// Its MTU, bytes.
        mtu: u16,
        /// The uplink.
        uplink: String,
        /// Its longest packet, bytes.
        packet_max: u32,
        /// Why the uplink is as it is.
        reason: String,
        /// The way to make it longer.
        way_out: &'static str,
    },
    /// A queue that is not ours.
    #[error(
        "uplink {uplink} has no AF_XDP socket on queue {queue}; it has them on {}",
        list(present)
    )]
    NoSuchQueue {
        /// The uplink.
        uplink: String,
        /// The requested queue.
        queue: u32,
        /// The queues that have a socket.
        present: Vec<u32>,
    },
    /// The limit of ports is reached.
    #[error("this daemon serves {PORTS_MAX} ports already, which is its limit")]
    TooMany,
    /// The socket's name.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The socket's group or permissions.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The XDP program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// The positions of its rings.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The socket's thread.
    #[error("cannot start the port's thread")]
    Thread(#[source] io::Error),
    /// The daemon is stopping.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// This process must not change anything now.
    #[error(transparent)]
    Busy(#[from] DaemonBusy),
}

impl PortError {
    /// Each reason alone, where there can be several; else empty.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Problems(problems) => strings(problems),
            Self::Binding(error) => match &**error {
                BindingError::Problems(problems) => strings(problems),
                _ => Vec::new(),
            },
            Self::Blocked { blockers, .. } => strings(blockers),
            Self::Differs { differences, .. } => differences.clone(),
            _ => Vec::new(),
        }
    }

    /// Whether the obstacle is the host's, and so may pass without a command.
    pub fn may_pass(&self) -> bool {
        let of_socket = matches!(self, Self::Claim(_) | Self::Access(_) | Self::Journal(_));
        let of_host = matches!(self, Self::Thread(_) | Self::Program(_));
        let of_uplink = matches!(
            self,
            Self::Blocked { .. } | Self::FrameSize { .. } | Self::NoSuchQueue { .. }
        );
        of_socket || of_host || of_uplink
    }
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    strings(items).join("; ")
}
