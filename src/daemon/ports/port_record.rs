//! The record of a port: in the state file, and for a successor.

use serde::{Deserialize, Serialize};

use crate::config::PortConfig;
use crate::device::mac::MacAddress;

/// The interface to which a port is bound, from when it is made until a command changes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundProfile {
    /// The requested profile, perhaps as `latest`; for a port in the configuration file, to detect
    /// that the file has changed.
    pub asked: String,
    /// The name to which it was resolved.
    pub profile: String,
    /// The profile's digest then.
    pub digest: String,
    /// The guest's MAC; None in files of older versions, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// One port in its present state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRecord {
    /// As configured.
    pub config: PortConfig,
    /// The record of its interface.
    pub bound: Option<BoundProfile>,
    /// The configuration file has it.
    pub permanent: bool,
    /// It is not refused.
    pub served: bool,
}
