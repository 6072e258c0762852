//! The values found of an interface, and how each was found.

use crate::device::features::FeatureSet;

/// How a limit was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowFound {
    /// The backend said so.
    Told,
    /// The backend takes this value and refuses larger ones.
    Tried,
    /// The backend acknowledges everything, so nothing was learnt.
    EverythingAcknowledged,
    /// The protocol has no message to ask with.
    NotAskable,
}

/// How the numbers of a profile were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// How `ring_size_max` was found.
    pub ring_size: HowFound,
    /// How `queue_pairs_max` was found.
    pub queue_pairs: HowFound,
    /// How `mtu` was found.
    pub mtu: HowFound,
    /// How `memory_slots` was found.
    pub memory_slots: HowFound,
}

/// All numbers found, each with how.
#[derive(Clone, Copy, Debug)]
pub(super) struct MeasuredInterface {
    pub features: FeatureSet,
    pub protocol_features: FeatureSet,
    pub ring_size: (u16, HowFound),
    pub queue_pairs: (u16, HowFound),
    pub mtu: (u16, HowFound),
    pub memory_slots: (u16, HowFound),
}
