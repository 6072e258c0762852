//! The work on a frame that one side may leave to the other (virtio 1.2, 5.1.3).

use crate::packet::{Offload, SegmentKind};

use super::features::{
    CSUM, FeatureSet, GSO, GUEST_CSUM, GUEST_ECN, GUEST_TSO4, GUEST_TSO6, GUEST_UFO, GUEST_USO4,
    GUEST_USO6, HOST_ECN, HOST_TSO4, HOST_TSO6, HOST_UFO, HOST_USO,
};

const CHECKSUM: u8 = 1;
const TSO4: u8 = 1 << 1;
const TSO6: u8 = 1 << 2;
const ECN: u8 = 1 << 3;
const UFO: u8 = 1 << 4;
const USO4: u8 = 1 << 5;
const USO6: u8 = 1 << 6;

/// The work that one side may leave to the other, decided when a ring starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(u8);

impl Offloads {
    /// None: every frame is complete.
    pub const NONE: Self = Self(0);

    /// All kinds of work.
    pub const ALL: Self = Self(CHECKSUM | TSO4 | TSO6 | ECN | UFO | USO4 | USO6);

    /// The work that a driver that acknowledged `features` may leave to us.
    #[must_use]
    pub fn sent(features: FeatureSet) -> Self {
        let map = [
            (CSUM, CHECKSUM),
            // 5.1.3.2: all types of segmentation of that time.
            (GSO, TSO4 | TSO6 | ECN | UFO),
            (HOST_TSO4, TSO4),
            (HOST_TSO6, TSO6),
            (HOST_ECN, ECN),
            (HOST_UFO, UFO),
            (HOST_USO, USO4 | USO6),
        ];
        Self::of(features, &map)
    }

    /// The work that we may leave to a driver that acknowledged `features`.
    #[must_use]
    pub fn accepted(features: FeatureSet) -> Self {
        let map = [
            (GUEST_CSUM, CHECKSUM),
            (GUEST_TSO4, TSO4),
            (GUEST_TSO6, TSO6),
            (GUEST_ECN, ECN),
            (GUEST_UFO, UFO),
            (GUEST_USO4, USO4),
            (GUEST_USO6, USO6),
        ];
        Self::of(features, &map)
    }

    fn of(features: FeatureSet, map: &[(u8, u8)]) -> Self {
        let of = |&(bit, offloads): &(u8, u8)| if features.has(bit) { offloads } else { 0 };
        Self(map.iter().map(of).fold(0, |all, offloads| all | offloads))
    }

    /// Whether a frame may be passed on with this work left to do.
    #[inline]
    #[must_use]
    pub fn allow(self, offload: &Offload) -> bool {
        let checksum = if offload.checksum.is_some() { CHECKSUM } else { 0 };
        let segmentation = offload.segmentation.map_or(0, |segmentation| {
            let ecn = if segmentation.ecn { ECN } else { 0 };
            bit_of(segmentation.kind) | ecn
        });
        let needed = checksum | segmentation;
        self.0 & needed == needed
    }

    /// Whether TCP segments may be merged at all: the merged frame has its checksum left to do.
    #[inline]
    #[must_use]
    pub fn allow_merging(self) -> bool {
        self.0 & CHECKSUM != 0 && self.0 & (TSO4 | TSO6) != 0
    }

    /// Whether frames may be cut (or were merged) this way.
    #[inline]
    #[must_use]
    pub fn allow_kind(self, kind: SegmentKind) -> bool {
        self.0 & bit_of(kind) != 0
    }
}

fn bit_of(kind: SegmentKind) -> u8 {
    match kind {
        SegmentKind::Tcp4 => TSO4,
        SegmentKind::Tcp6 => TSO6,
        SegmentKind::UdpFragments => UFO,
        SegmentKind::Udp4 => USO4,
        SegmentKind::Udp6 => USO6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{PartialChecksum, Segmentation};

    fn offload(kind: SegmentKind, ecn: bool) -> Offload {
        let segmentation =
            Segmentation { kind, ecn, size: 1448, header_len: 66, cut_at: 66, repeated_len: 66 };
        let checksum = Some(PartialChecksum { start: 34, offset: 16 });
        Offload { checksum, segmentation: Some(segmentation) }
    }

    #[test]
    fn each_needs_its_own_feature_and_the_two_directions_are_apart() {
        let tso4 = offload(SegmentKind::Tcp4, false);
        let features: FeatureSet = [CSUM, HOST_TSO4, GUEST_CSUM, GUEST_TSO6].into_iter().collect();
        assert!(Offloads::sent(features).allow(&tso4));
        assert!(!Offloads::sent(features).allow(&offload(SegmentKind::Tcp4, true)), "ECN");
        assert!(!Offloads::sent(features).allow(&offload(SegmentKind::Tcp6, false)));
        assert!(!Offloads::accepted(features).allow(&tso4));
        assert!(Offloads::accepted(features).allow(&offload(SegmentKind::Tcp6, false)));
        assert!(Offloads::NONE.allow(&Offload::PLAIN));
        assert!(!Offloads::NONE.allow(&Offload { segmentation: None, ..tso4 }));
    }

    #[test]
    fn segments_are_merged_for_whom_the_whole_can_be_left_to() {
        let merging = |bits: &[u8]| Offloads::accepted(bits.iter().copied().collect());
        for (bits, allowed) in [
            (&[GUEST_CSUM, GUEST_TSO4][..], true),
            (&[GUEST_CSUM, GUEST_TSO6], true),
            (&[GUEST_CSUM], false),
            (&[GUEST_TSO4, GUEST_TSO6], false),
            (&[GUEST_CSUM, GUEST_UFO, GUEST_USO4], false),
        ] {
            assert_eq!(merging(bits).allow_merging(), allowed, "{bits:?}");
        }
    }

    #[test]
    fn the_old_name_for_all_segmentation_covers_ecn_and_udp_fragments() {
        let old = Offloads::sent([CSUM, GSO].into_iter().collect());
        assert!(old.allow(&offload(SegmentKind::Tcp4, true)));
        assert!(old.allow(&offload(SegmentKind::UdpFragments, false)));
        assert!(!old.allow(&offload(SegmentKind::Udp4, false)));
    }
}
