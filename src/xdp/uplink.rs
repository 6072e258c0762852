//! An uplink: a NIC with our program on it and a socket on each of its queues.

use std::error::Error as _;

use xsk_rs::socket::SocketCreateError;

use super::interface::{Interface, InterfaceError};
use super::multicast::{MulticastTap, TapError};
use super::program::{AttachMode, ProgramError, Redirect};
use super::socket::{Socket, SocketError, SocketMode, open_all};
use super::umem::{FRAGMENTS_MAX, FRAME_PACKET_MAX};

/// What the operator wants of the NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeWish {
    /// The fastest that works.
    #[default]
    Auto,
    /// Zero-copy, or fail.
    ZeroCopy,
    /// Copy mode under a native program, or fail.
    Copy,
    /// Copy mode under a generic program.
    Generic,
}

/// Queues that the XDP program has places for (`QUEUES_MAX` of bpf/redirect.bpf.c).
const QUEUES_MAX: u32 = 256;

/// Why the NIC cannot be an uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Not there.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
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
    /// The program is not in place.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// No sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// No multicast.
    #[error(transparent)]
    Tap(#[from] TapError),
}

/// A NIC in use. Its sockets are handed to the workers; all else stays with the control plane.
#[derive(Debug)]
pub struct Uplink {
    /// The NIC as it was when opened.
    pub interface: Interface,
    /// Where the program runs.
    pub attach_mode: AttachMode,
    /// How packets move.
    pub socket_mode: SocketMode,
    /// Why not something better.
    pub reason: String,
    /// The longest packet that every socket sends and receives, bytes.
    pub packet_max: u32,
    /// The program.
    pub redirect: Redirect,
    /// Broadcast and multicast.
    pub tap: MulticastTap,
}

impl Uplink {
    /// Open the NIC `name` with sockets on `queues` (None: all it has).
    ///
    /// # Errors
    /// [`UplinkError`]; the NIC is then as it was.
    pub fn open(
        name: &str,
        queues: Option<&[u32]>,
        wish: ModeWish,
    ) -> Result<(Self, Vec<Socket>), UplinkError> {
        let interface = Interface::read(name)?;
        if !interface.up {
            return Err(UplinkError::Down(name.to_owned()));
        }
        let queues = chosen_queues(&interface, queues)?;
        let mut redirect = Redirect::load()?;
        let tap = MulticastTap::open(name, interface.index)?;
        let (attach_mode, attach_reason) = attach(&mut redirect, &interface, wish)?;
        let (socket_mode, socket_reason, sockets) = bind(&interface, &queues, wish, attach_mode)?;
        for socket in &sockets {
            let fd = socket.fd().expect("a bound socket has a descriptor");
            redirect.set_socket(socket.queue(), fd)?;
        }
        let reason = sentence(&[&attach_reason, &socket_reason]);
        let longest = sockets.iter().map(Socket::packet_max).min();
        let packet_max = longest.expect("a NIC has a queue");
        let uplink =
            Self { interface, attach_mode, socket_mode, reason, packet_max, redirect, tap };
        Ok((uplink, sockets))
    }

    /// Whether a packet may have several frames (XDP_USE_SG).
    #[must_use]
    pub fn multi_buffer(&self) -> bool {
        self.packet_max > FRAME_PACKET_MAX
    }
}

fn chosen_queues(interface: &Interface, queues: Option<&[u32]>) -> Result<Vec<u32>, UplinkError> {
    let count = interface.receive_queues;
    let queues = queues.map_or_else(|| (0..count).collect(), <[u32]>::to_vec);
    let name = || interface.name.clone();
    if let Some(&queue) = queues.iter().find(|&&queue| queue >= count) {
        return Err(UplinkError::NoSuchQueue { interface: name(), queue, count });
    }
    if let Some(&queue) = queues.iter().find(|&&queue| queue >= QUEUES_MAX) {
        return Err(UplinkError::TooManyQueues { interface: name(), queue });
    }
    Ok(queues)
}

/// Native unless it was not asked for; generic where the driver refuses and any mode will do.
fn attach(
    redirect: &mut Redirect,
    interface: &Interface,
    wish: ModeWish,
) -> Result<(AttachMode, String), ProgramError> {
    if wish == ModeWish::Generic {
        redirect.attach(&interface.name, interface.index, AttachMode::Generic)?;
        return Ok((AttachMode::Generic, "generic mode as configured".to_owned()));
    }
    match redirect.attach(&interface.name, interface.index, AttachMode::Native) {
        Ok(()) => Ok((AttachMode::Native, String::new())),
        Err(ProgramError::Attach { source, .. }) if wish == ModeWish::Auto => {
            redirect.attach(&interface.name, interface.index, AttachMode::Generic)?;
            let driver = &interface.driver;
            Ok((AttachMode::Generic, format!("driver {driver} takes no native XDP: {source}")))
        }
        Err(error) => Err(error),
    }
}

/// Zero-copy where the wish and the program's mode allow it and the driver has it, else copy.
fn bind(
    interface: &Interface,
    queues: &[u32],
    wish: ModeWish,
    attached: AttachMode,
) -> Result<(SocketMode, String, Vec<Socket>), SocketError> {
    let zero_copy =
        attached == AttachMode::Native && matches!(wish, ModeWish::Auto | ModeWish::ZeroCopy);
    if !zero_copy {
        let asked = if wish == ModeWish::Copy { "copy mode as configured" } else { "" };
        let (sockets, limit) = open_widest(interface, queues, SocketMode::Copy)?;
        return Ok((SocketMode::Copy, sentence(&[asked, &limit]), sockets));
    }
    match open_widest(interface, queues, SocketMode::ZeroCopy) {
        Ok((sockets, limit)) => {
            Ok((SocketMode::ZeroCopy, sentence(&["the driver has zero-copy", &limit]), sockets))
        }
        Err(SocketError::Bind { source, .. }) if wish == ModeWish::Auto => {
            let refused = format!("the driver refused zero-copy: {}", cause(&source));
            let (sockets, limit) = open_widest(interface, queues, SocketMode::Copy)?;
            Ok((SocketMode::Copy, sentence(&[&refused, &limit]), sockets))
        }
        Err(error) => Err(error),
    }
}

/// For packets of several frames where kernel and driver take them, else of one, and why.
fn open_widest(
    interface: &Interface,
    queues: &[u32],
    mode: SocketMode,
) -> Result<(Vec<Socket>, String), SocketError> {
    let name = &interface.name;
    let frames = match mode {
        SocketMode::ZeroCopy => interface.zero_copy_frames as usize,
        SocketMode::Copy => FRAGMENTS_MAX,
    };
    let why = if frames > 1 {
        match open_all(name, queues, mode, frames) {
            Ok(sockets) => return Ok((sockets, String::new())),
            // A kernel before 6.6 does not know the flag.
            Err(SocketError::Bind { source, .. }) => cause(&source),
            Err(error) => return Err(error),
        }
    } else {
        "the driver takes no more in this mode".to_owned()
    };
    let sockets = open_all(name, queues, mode, 1)?;
    Ok((sockets, format!("a packet is one frame of {FRAME_PACKET_MAX} bytes at most: {why}")))
}

/// The parts that say something, one after the other.
fn sentence(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}

fn cause(error: &SocketCreateError) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}
