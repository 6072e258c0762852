//! What was found of an interface, and how.

use crate::device::features::FeatureSet;

/// How a limit was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowFound {
    /// The backend said so.
    Told,
    /// It takes this and refuses what is beyond.
    Tried,
    /// It acknowledges everything, so nothing was learnt.
    EverythingAcknowledged,
    /// It has no message to ask with.
    NotAskable,
}

/// How the numbers of a profile were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// Of `ring_size_max`.
    pub ring_size: HowFound,
    /// Of `queue_pairs_max`.
    pub queue_pairs: HowFound,
    /// Of `mtu`.
    pub mtu: HowFound,
    /// Of `memory_slots`.
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
