//! PROFILE: a named, immutable description of a guest-visible interface.

#![forbid(unsafe_code)]

use crate::device::features::FeatureSet;

/// One profile. Profiles are data (`profiles/*.toml`); a released one never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The opaque string that management stores, such as `org.isonic.net.v1`.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// What the backend's GET_FEATURES answers, exactly (with bit 30).
    pub features: FeatureSet,
    /// What the front-end adds by its own command line, so that the guest sees both.
    pub frontend_features: FeatureSet,
    /// What GET_PROTOCOL_FEATURES answers, exactly.
    pub protocol_features: FeatureSet,
    /// The largest SET_VRING_NUM, entries.
    pub ring_size_max: u16,
    /// What GET_QUEUE_NUM answers, queue pairs.
    pub queue_pairs_max: u16,
    /// The MTU in the guest's configuration space, bytes.
    pub mtu: u16,
    /// What GET_MAX_MEM_SLOTS answers.
    pub memory_slots: u16,
}
