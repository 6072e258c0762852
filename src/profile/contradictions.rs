//! The rules for an interface that a device may have: limits, and the bits that each bit needs.
//!
//! Profile files and lists of values share these rules; each adds the place of the mistake.

use std::ops::RangeInclusive;

use crate::device::features::{
    self, FeatureSet, MQ, PROTOCOL_FEATURES, PROTOCOL_MQ, RING_PACKED, VERSION_1,
};

use super::definition::Profile;

/// Entries of a ring (virtio 1.2, 2.7 and 2.8.10.1).
pub(super) const RING_SIZES: RangeInclusive<i64> = 1..=32768;
/// Queue pairs that the 8-bit ring index of SET_VRING_KICK reaches.
pub(super) const QUEUE_PAIRS: RangeInclusive<i64> = 1..=128;
/// Memory slots a front-end can use: QEMU's limit, KVM's 509.
pub(super) const MEMORY_SLOTS: RangeInclusive<i64> = 1..=509;
/// The MTU, bytes (virtio 1.2, 5.1.4.1).
pub(super) const MTUS: RangeInclusive<i64> = 68..=65535;

/// One way in which an interface contradicts the specification or itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// A backend's bit that must not be offered without another (virtio 1.2, 5.1.3.1).
    #[error("\"{feature}\" needs {}", any_of(*needs))]
    Backend {
        /// The bit's name.
        feature: &'static str,
        /// Any one of these.
        needs: FeatureSet,
    },
    /// A front-end's bit that must not be offered without another (virtio 1.2, 5.1.3.1).
    #[error("\"{feature}\" needs {}", any_of(*needs))]
    Frontend {
        /// The bit's name.
        feature: &'static str,
        /// Any one of these.
        needs: FeatureSet,
    },
    /// No bit says that the device follows virtio 1.
    #[error("features lacks \"version_1\": isonic serves no legacy interface alone")]
    Legacy,
    /// Protocol features that no front-end would ask for.
    #[error("protocol_features are negotiated only with the feature \"protocol_features\"")]
    ProtocolFeatures,
    /// Sizes of split rings are powers of two (virtio 1.2, 2.7); those of packed rings need not be
    /// (2.8.10.1).
    #[error("ring_size_max is {0}, no power of two")]
    RingSize(u16),
    /// A second queue pair needs the bit that announces it.
    #[error("queue_pairs_max is {0} without the feature mq")]
    QueuePairs(u16),
    /// Front-ends ask for the number of queue pairs with that protocol feature (GET_QUEUE_NUM), and
    /// else take it for 1. A QEMU that is to have more pairs connects again and again.
    #[error(
        "queue_pairs_max is {0} without the protocol feature mq, by which front-ends learn the \
         number; leave it on, or make queue_pairs_max 1"
    )]
    QueueNumber(u16),
}

impl Contradiction {
    /// The bit that lacks a prerequisite, if that is the contradiction.
    pub(super) fn without_prerequisite(&self) -> Option<&'static str> {
        match self {
            Self::Backend { feature, .. } | Self::Frontend { feature, .. } => Some(feature),
            _ => None,
        }
    }
}

fn any_of(bits: FeatureSet) -> String {
    bits.names().join(" or ")
}

/// Everything that contradicts itself in this interface; empty if nothing does.
pub(super) fn contradictions(profile: &Profile) -> Vec<Contradiction> {
    let (backend, frontend) = (profile.features, profile.frontend_features);
    let both = backend.union(frontend);
    let missing = |half| features::unmet(half, both).map(|(feature, needs)| (feature.name, needs));
    let mut found: Vec<Contradiction> = missing(backend)
        .map(|(feature, needs)| Contradiction::Backend { feature, needs })
        .chain(missing(frontend).map(|(feature, needs)| Contradiction::Frontend { feature, needs }))
        .collect();
    let (ring_size, pairs) = (profile.ring_size_max, profile.queue_pairs_max);
    let checks = [
        (!backend.has(VERSION_1), Contradiction::Legacy),
        (
            !profile.protocol_features.is_empty() && !backend.has(PROTOCOL_FEATURES),
            Contradiction::ProtocolFeatures,
        ),
        (
            !ring_size.is_power_of_two() && !backend.has(RING_PACKED),
            Contradiction::RingSize(ring_size),
        ),
        (pairs > 1 && !backend.has(MQ), Contradiction::QueuePairs(pairs)),
        (
            pairs > 1 && !profile.protocol_features.has(PROTOCOL_MQ),
            Contradiction::QueueNumber(pairs),
        ),
    ];
    found.extend(checks.into_iter().filter_map(|(broken, it)| broken.then_some(it)));
    found
}
