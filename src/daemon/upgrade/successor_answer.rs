//! The answers of the successor to its predecessor.

use serde::{Deserialize, Serialize};

use crate::control::api::PortChange;

/// Tells a process that its standard input leads to its predecessor.
pub(super) const PREDECESSOR_VARIABLE: &str = "ISONIC_PREDECESSOR";

/// An answer of the successor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SuccessorAnswer {
    /// Everything possible is made, and nothing is taken.
    Ready,
    /// [`Ready`](Self::Ready), to a predecessor that has told its ports.
    Prepared {
        /// The changes that it would make.
        changes: Vec<PortChange>,
    },
    /// Everything is taken. Sent before any packet moves.
    Taken,
    /// Packets move again.
    Running(Running),
    /// It cannot take over; nothing is taken.
    Refused {
        /// Why.
        reason: String,
    },
}

/// The result of a take-over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    /// The successor's version.
    pub version: String,
    /// From when the workers paused until they resumed.
    pub outage_nanoseconds: u64,
    /// From when sessions were asked to pause until they resumed; 0 if unknown.
    #[serde(default)]
    pub unanswered_nanoseconds: u64,
    /// Sessions that were taken over.
    pub sessions: usize,
    /// Ports whose front-end has to connect anew.
    pub reconnecting: Vec<String>,
}
