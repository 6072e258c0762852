//! The backend to capture, and the reasons why there may be no profile of it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

use crate::device::features::FeatureSet;
use crate::platform::unix_socket::ClaimError;
use crate::toml_document::Problems;

/// Who connects to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The backend listens, and we connect.
    Connect,
    /// We listen, and wait for the backend to connect.
    Listen,
}

/// The backend to capture, and how.
#[derive(Clone, Debug)]
pub struct CaptureTarget {
    /// The vhost-user socket.
    pub socket: PathBuf,
    /// Who connects.
    pub side: Side,
    /// How long each answer, and the first connection, may take.
    pub timeout: Duration,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The backend's socket cannot be connected to.
    #[error(
        "cannot connect to {}; is the backend running, and does it listen there? For a backend \
         that connects by itself use --listen",
        socket.display()
    )]
    Connect {
        /// Which.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket to listen on cannot be made.
    #[error(transparent)]
    Listen(#[from] ClaimError),
    /// No backend connected to us.
    #[error("no backend has connected to {} in {seconds} s", socket.display())]
    NobodyConnected {
        /// Where we listened.
        socket: PathBuf,
        /// How long.
        seconds: u64,
    },
    /// A request was not answered in time.
    #[error(
        "{request:?} was not answered in {seconds} s: another front-end is connected to the \
         backend, or it does not speak vhost-user"
    )]
    Silent {
        /// The request.
        request: FrontendReq,
        /// How long.
        seconds: u64,
    },
    /// The connection was closed before the first answer.
    #[error(
        "the connection was closed before the first answer: another front-end is connected to \
         the backend, or it does not speak vhost-user"
    )]
    Turned,
    /// The connection was closed on a request that every backend has to serve.
    #[error("the backend closed the connection on {0:?}")]
    Closed(FrontendReq),
    /// The backend refused a request that every front-end needs.
    #[error("the backend refused {0:?}, without which no front-end can use it")]
    Refused(FrontendReq),
    /// Bytes that are no answer.
    #[error("the answer to {request:?} is no vhost-user message: {found}")]
    NotVhostUser {
        /// The request.
        request: FrontendReq,
        /// The answer that came instead.
        found: String,
    },
    /// The kernel's word.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// Bits without a name.
    #[error(
        "the backend offers {kind} that this version of isonic has no name for ({}); a profile \
         without them would not be its interface. Use a newer isonic",
        bits.bits().map(|bit| format!("bit {bit}")).collect::<Vec<_>>().join(", ")
    )]
    UnknownBits {
        /// "features" or "protocol features".
        kind: &'static str,
        /// Which.
        bits: FeatureSet,
    },
    /// A number that does not fit its message's meaning.
    #[error("the backend answers {request:?} with {value}")]
    Absurd {
        /// The request.
        request: FrontendReq,
        /// The answer.
        value: u64,
    },
    /// The measured interface is no profile that this version can hold.
    #[error(
        "what the backend offers cannot be a profile: {}",
        .0.list.iter().map(|problem| problem.message.as_str()).collect::<Vec<_>>().join("; ")
    )]
    NoProfile(Problems),
}
