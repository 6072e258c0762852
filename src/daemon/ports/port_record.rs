//! What is on record of a port: in the state file, and for a successor.

use serde::{Deserialize, Serialize};

use crate::config::PortConfig;
use crate::device::mac::MacAddress;

/// What a port is bound to, from when it is made until that is changed by command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundProfile {
    /// As it was asked for, perhaps as `latest`; of a port in the configuration file, to see
    /// whether that has changed.
    pub asked: String,
    /// What it was resolved to.
    pub profile: String,
    /// The profile's digest then.
    pub digest: String,
    /// The guest's MAC; None in files of older versions, which did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
}

/// One port, as it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PortRecord {
    /// As configured.
    pub config: PortConfig,
    /// What is on record of its interface.
    pub bound: Option<BoundProfile>,
    /// The configuration file has it.
    pub permanent: bool,
    /// It is not refused.
    pub served: bool,
}
