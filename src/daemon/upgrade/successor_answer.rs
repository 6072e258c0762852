//! What the successor says to its predecessor.

use serde::{Deserialize, Serialize};

use crate::control::api::PortChange;

/// Says to a process that its standard input leads to the one before it.
pub(super) const PREDECESSOR_VARIABLE: &str = "ISONIC_PREDECESSOR";

/// What the successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SuccessorAnswer {
    /// All is made that can be, and nothing is taken.
    Ready,
    /// The same, to a predecessor that has said what its ports are.
    Prepared {
        /// What would be otherwise.
        changes: Vec<PortChange>,
    },
    /// All is taken. Sent before anything moves.
    Taken,
    /// Packets move again.
    Running(Running),
    /// It cannot be; nothing is taken.
    Refused {
        /// Why.
        reason: String,
    },
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Running {
    /// The successor's version.
    pub version: String,
    /// From when the workers paused until they resumed.
    pub outage_nanoseconds: u64,
    /// From when sessions were asked to pause until they resumed; 0 if that is not told.
    #[serde(default)]
    pub unanswered_nanoseconds: u64,
    /// Sessions that were taken over.
    pub sessions: usize,
    /// Ports whose front-end has to connect anew.
    pub reconnecting: Vec<String>,
}
