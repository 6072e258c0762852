//! Why a profile cannot be kept here: by this version, or on one uplink.

use std::fmt;
use std::io;
use std::path::Path;

use crate::device::features::{self, FeatureSet, IMPLEMENTED, PROTOCOL_IMPLEMENTED, Provider};
use crate::guest_memory::REGIONS_MAX;

use super::definition::{Profile, bits_of};

/// The properties of an uplink that profiles depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkFacts {
    /// The interface's name.
    pub name: String,
    /// Its MTU, bytes.
    pub mtu: u32,
}

impl UplinkFacts {
    /// The facts of an interface of this host, from sysfs (`Documentation/ABI/testing/
    /// sysfs-class-net` of the kernel).
    ///
    /// # Errors
    /// There is no such interface.
    pub fn of_interface(name: &str) -> io::Result<Self> {
        let text = std::fs::read_to_string(Path::new("/sys/class/net").join(name).join("mtu"))?;
        let mtu = text.trim().parse().map_err(io::Error::other)?;
        Ok(Self { name: name.to_owned(), mtu })
    }
}

/// One reason why a profile cannot be kept on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocker {
    /// The datapath of this version does not do these.
    NotImplemented(FeatureSet),
    /// The session of this version does not answer the messages of these protocol features.
    ProtocolNotImplemented(FeatureSet),
    /// The profile promises more memory slots than a session serves.
    MemorySlots {
        /// The profile's.
        wanted: u16,
    },
    /// Frames of the profile's MTU do not fit the uplink.
    Mtu {
        /// The profile's, bytes.
        wanted: u16,
        /// The uplink and its MTU.
        uplink: UplinkFacts,
    },
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotImplemented(bits) => {
                write!(f, "this version of isonic does not do {}", bits.names().join(", "))
            }
            Self::ProtocolNotImplemented(bits) => {
                let names = features::protocol_names(*bits).join(", ");
                write!(f, "this version of isonic does not speak vhost-user's {names}")
            }
            Self::MemorySlots { wanted } => {
                write!(
                    f,
                    "it promises {wanted} memory slots, and this version serves {REGIONS_MAX}"
                )
            }
            Self::Mtu { wanted, uplink } => write!(
                f,
                "its MTU is {wanted}, and uplink {name} carries {mtu}; raise it with \
                 `ip link set dev {name} mtu {wanted}` or choose another profile",
                name = uplink.name,
                mtu = uplink.mtu
            ),
        }
    }
}

impl Profile {
    /// Why no uplink of this host could keep the profile; empty if some may.
    #[must_use]
    pub fn host_blockers(&self) -> Vec<Blocker> {
        let mut blockers = Vec::new();
        // The backend only offers the features that the front-end implements; it does nothing for
        // them.
        let missing = self.features.without(IMPLEMENTED).without(bits_of(Provider::Frontend));
        if !missing.is_empty() {
            blockers.push(Blocker::NotImplemented(missing));
        }
        let missing = self.protocol_features.without(PROTOCOL_IMPLEMENTED);
        if !missing.is_empty() {
            blockers.push(Blocker::ProtocolNotImplemented(missing));
        }
        if usize::from(self.memory_slots) > REGIONS_MAX {
            blockers.push(Blocker::MemorySlots { wanted: self.memory_slots });
        }
        blockers
    }

    /// Why this profile cannot be kept on `uplink`: every reason; empty if it can.
    #[must_use]
    pub fn blockers(&self, uplink: &UplinkFacts) -> Vec<Blocker> {
        let mut blockers = self.host_blockers();
        if u32::from(self.mtu) > uplink.mtu {
            blockers.push(Blocker::Mtu { wanted: self.mtu, uplink: uplink.clone() });
        }
        blockers
    }
}

#[cfg(test)]
mod tests {
    use super::super::Catalog;
    use super::*;

    fn v1() -> Profile {
        Catalog::embedded().get("org.isonic.net.v1").unwrap().as_ref().clone()
    }

    #[test]
    fn v1_is_within_what_the_datapath_does() {
        let v1 = v1();
        assert!(v1.features.without(IMPLEMENTED).is_empty());
        assert!(v1.protocol_features.without(PROTOCOL_IMPLEMENTED).is_empty());
        assert_eq!(usize::from(v1.memory_slots), REGIONS_MAX);
        assert_eq!(v1.host_blockers(), []);
    }

    #[test]
    fn every_reason_against_a_host_is_told() {
        let iommu = FeatureSet(features::by_name("access_platform").unwrap().mask());
        let offered = iommu.union(FeatureSet(1 << features::CTRL_VQ));
        let config = FeatureSet(1 << 9);
        let profile = Profile {
            features: v1().features.union(offered),
            protocol_features: v1().protocol_features.union(config),
            mtu: 9000,
            memory_slots: 509,
            ..v1()
        };
        let uplink = UplinkFacts { name: "eth0".into(), mtu: 1500 };
        assert_eq!(
            profile.blockers(&uplink),
            [
                Blocker::NotImplemented(iommu),
                Blocker::ProtocolNotImplemented(config),
                Blocker::MemorySlots { wanted: 509 },
                Blocker::Mtu { wanted: 9000, uplink: uplink.clone() },
            ]
        );
        assert_eq!(v1().blockers(&uplink), []);
    }
}
