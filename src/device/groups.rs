//! Group addresses that end at the next bridge, 01-80-C2-00-00-00 to -0F (IEEE 802.1Q-2022, 8.6.3):
//! spanning tree, PAUSE, LACP, 802.1X, LLDP. A Linux bridge forwards none of them unless configured
//! to (`group_fwd_mask`); our switch does likewise.

use std::ops::BitOr;
use std::str::FromStr;

use super::mac;

/// The first of them; the last four bits number the group.
const FIRST: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
/// The group of PAUSE (IEEE 802.3, 31B).
const PAUSE: u64 = mac::number([0x01, 0x80, 0xc2, 0, 0, 1]);
/// The EtherType of MAC control: PAUSE and priority flow control (IEEE 802.3, 31).
const MAC_CONTROL: u16 = 0x8808;

/// The groups that may be forwarded, by what uses them.
const NAMES: [(&str, u16); 4] = [("stp", 0), ("lacp", 2), ("eapol", 3), ("lldp", 0xe)];

/// The reserved groups that are forwarded: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardGroups(u16);

/// A word that names no group to forward.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// Flow control between two ends of one cable.
    #[error("pause frames are never forwarded: one guest could stop the NIC for all")]
    Pause,
    /// None that we know.
    #[error("\"{0}\" is no group to forward; write stp, lacp, eapol or lldp")]
    Unknown(String),
}

impl ForwardGroups {
    /// None of them is forwarded.
    pub const NONE: Self = Self(0);

    /// Whether a frame to this address is forwarded: to any address that is no reserved group, or
    /// to one of these groups.
    #[inline]
    #[must_use]
    pub fn allow(self, destination: [u8; 6]) -> bool {
        group(destination).is_none_or(|group| self.0 & 1 << group != 0)
    }
}

impl BitOr for ForwardGroups {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl FromStr for ForwardGroups {
    type Err = GroupError;

    fn from_str(word: &str) -> Result<Self, GroupError> {
        match NAMES.iter().find(|(name, _)| *name == word) {
            Some((_, group)) => Ok(Self(1 << group)),
            None if word == "pause" => Err(GroupError::Pause),
            None => Err(GroupError::Unknown(word.to_owned())),
        }
    }
}

/// The number of the reserved group with this address.
#[inline]
fn group(destination: [u8; 6]) -> Option<u16> {
    let [front @ .., last] = destination;
    (front == FIRST[..5] && last < 16).then_some(u16::from(last))
}

/// Whether a frame that begins so is flow control. MAC control counts for any address, since a MAC
/// also obeys PAUSE to its own. All frames to the group of PAUSE count.
///
/// A guest's flow control never leaves its port. NICs drop it from their virtual functions likewise
/// (Linux, `i40e_add_filter_to_drop_tx_flow_control_frames`). Every packet is checked: two
/// comparisons.
#[inline]
#[must_use]
pub fn is_flow_control(ethernet: &[u8; 14]) -> bool {
    let [a, b, c, d, e, f, _, _, _, _, _, _, ether_type @ ..] = *ethernet;
    let destination = mac::number([a, b, c, d, e, f]);
    u16::from_be_bytes(ether_type) == MAC_CONTROL || destination == PAUSE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(last: u8) -> [u8; 6] {
        [0x01, 0x80, 0xc2, 0, 0, last]
    }

    #[test]
    fn only_the_sixteen_reserved_groups_are_held_back_and_each_by_its_own_bit() {
        for last in 0..16 {
            assert!(!ForwardGroups::NONE.allow(to(last)), "{last}");
        }
        for other in [to(16), to(0x21), [0x01, 0x80, 0xc2, 0, 1, 0], [0xff; 6], [0; 6]] {
            assert!(ForwardGroups::NONE.allow(other), "{other:x?}");
        }
        for (name, group) in NAMES {
            let groups: ForwardGroups = name.parse().unwrap();
            for last in 0..16 {
                assert_eq!(groups.allow(to(last)), u16::from(last) == group, "{name}, {last}");
            }
        }
        let both = "lldp".parse::<ForwardGroups>().unwrap() | "stp".parse().unwrap();
        assert!(both.allow(to(0)) && both.allow(to(14)) && !both.allow(to(2)));
    }

    #[test]
    fn pause_has_no_name_to_be_forwarded_by() {
        assert_eq!("pause".parse::<ForwardGroups>(), Err(GroupError::Pause));
        let unknown = "bpdu".parse::<ForwardGroups>().unwrap_err().to_string();
        assert!(unknown.contains("bpdu") && unknown.contains("stp, lacp, eapol or lldp"));
    }

    #[test]
    fn flow_control_is_known_by_its_ether_type_and_by_its_group() {
        let start = |destination: [u8; 6], ether_type: [u8; 2]| {
            let bytes = [&destination[..], &[2; 6], &ether_type].concat();
            bytes.try_into().unwrap()
        };
        assert!(is_flow_control(&start(to(1), MAC_CONTROL.to_be_bytes())));
        assert!(is_flow_control(&start(to(1), [8, 0])));
        assert!(
            is_flow_control(&start([2; 6], MAC_CONTROL.to_be_bytes())),
            "to a MAC's own address"
        );
        assert!(!is_flow_control(&start(to(0), [0, 38])));
        assert!(!is_flow_control(&start([2; 6], [8, 0])));
    }
}
