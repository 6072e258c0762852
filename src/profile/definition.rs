//! One profile: its values, its canonical form and digest, and the consequences of its features.

use std::collections::BTreeMap;
use std::fmt::Write;

use sha2::{Digest, Sha256};

use crate::device::features::{self, FeatureSet, LEGACY, Provider, TRANSPORT};

/// The version of the canonical form that [`Profile::canonical`] writes and digests are made of.
pub const CANONICAL_VERSION: u32 = 1;

/// One profile. Profiles are data (`profiles/*.toml`); a released one never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The opaque string that management stores, such as `org.isonic.net.v1`.
    pub name: String,
    /// One line for people.
    pub summary: String,
    /// The exact answer to GET_FEATURES (with bit 30).
    pub features: FeatureSet,
    /// The bits that the front-end's own command line adds, so that the guest sees both sets.
    pub frontend_features: FeatureSet,
    /// The exact answer to GET_PROTOCOL_FEATURES.
    pub protocol_features: FeatureSet,
    /// The largest SET_VRING_NUM, entries.
    pub ring_size_max: u16,
    /// The answer to GET_QUEUE_NUM, queue pairs.
    pub queue_pairs_max: u16,
    /// The MTU in the guest's configuration space, bytes.
    pub mtu: u16,
    /// The answer to GET_MAX_MEM_SLOTS.
    pub memory_slots: u16,
}

impl Profile {
    /// The interface that a list of values without a base starts from. It has virtio 1, the MAC
    /// that every front-end adds, one queue pair, rings of 256 entries, and MTU 1500. Values that
    /// no guest sees are those of `org.isonic.net.v1`. It never changes: stored lists depend on it.
    #[must_use]
    pub(crate) fn bare() -> Self {
        Self {
            name: String::new(),
            summary: "a list of values".to_owned(),
            features: FeatureSet(1 << features::PROTOCOL_FEATURES | 1 << features::VERSION_1),
            frontend_features: FeatureSet(1 << features::MAC),
            protocol_features: FeatureSet(0x1_a01d),
            ring_size_max: 256,
            queue_pairs_max: 1,
            mtu: 1500,
            memory_slots: 64,
        }
    }

    /// The bits that a guest sees: the backend's and the front-end's, without vhost-user's own and
    /// those that only a legacy driver is shown.
    #[must_use]
    pub fn guest_features(&self) -> FeatureSet {
        let both = self.features.union(self.frontend_features);
        both.without(bits_of(Provider::Protocol)).without(LEGACY)
    }

    /// Whether it is a transitional interface, for drivers from before virtio 1 too: it offers a
    /// bit that no other driver is shown.
    #[must_use]
    pub fn is_transitional(&self) -> bool {
        self.features.without(LEGACY) != self.features
    }

    /// The lines of `ethtool -k` in a Linux guest that follow from the features (`virtnet_probe` in
    /// Linux 6.1, `drivers/net/virtio_net.c`). `rx-checksumming` is left out: newer drivers show it
    /// on whatever the device says.
    #[must_use]
    pub fn linux_offloads(&self) -> BTreeMap<&'static str, bool> {
        let seen = self.guest_features();
        let has = |bit| seen.has(bit);
        let segments = has(features::HOST_TSO4) || has(features::HOST_TSO6);
        let merged = has(features::GUEST_TSO4) || has(features::GUEST_TSO6);
        BTreeMap::from([
            ("rx-gro-hw", merged),
            ("rx-vlan-filter", has(features::CTRL_VLAN)),
            ("scatter-gather", has(features::CSUM)),
            ("tcp-segmentation-offload", has(features::CSUM) && segments),
            ("tx-checksumming", has(features::CSUM)),
            ("tx-tcp-ecn-segmentation", has(features::CSUM) && segments && has(features::HOST_ECN)),
            ("tx-tcp-segmentation", has(features::CSUM) && has(features::HOST_TSO4)),
            ("tx-tcp6-segmentation", has(features::CSUM) && has(features::HOST_TSO6)),
        ])
    }

    /// The features for which a Linux guest loads no native XDP program (`virtnet_xdp_set` in
    /// `drivers/net/virtio_net.c`); none if it does.
    #[must_use]
    pub fn xdp_obstacles(&self) -> FeatureSet {
        let seen = self.guest_features();
        if seen.has(features::CTRL_GUEST_OFFLOADS) {
            // It turns them off by a command.
            return FeatureSet::default();
        }
        features::GUEST_OFFLOADS.into_iter().filter(|&bit| seen.has(bit)).collect()
    }

    /// The interface in its canonical form, version [`CANONICAL_VERSION`]: one `key=value` line for
    /// each pinned value, in this order, the bits in hexadecimal. Name and summary are left out.
    #[must_use]
    pub fn canonical(&self) -> String {
        format!(
            "features={:#018x}\nfrontend_features={:#018x}\nprotocol_features={:#018x}\n\
             ring_size_max={}\nqueue_pairs_max={}\nmtu={}\nmemory_slots={}\n",
            self.features.0,
            self.frontend_features.0,
            self.protocol_features.0,
            self.ring_size_max,
            self.queue_pairs_max,
            self.mtu,
            self.memory_slots
        )
    }

    /// The digest of the canonical form: two profiles have the same if and only if they describe
    /// the same interface.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.canonical())
    }

    /// [`family_of`] its name.
    #[must_use]
    pub fn family(&self) -> Option<(&str, Vec<u32>)> {
        family_of(&self.name)
    }
}

/// A profile's name up to its `.vN` or `.vN.M`, and the numbers, which order the versions; None for
/// a name that does not end so.
#[must_use]
pub fn family_of(name: &str) -> Option<(&str, Vec<u32>)> {
    let (family, version) = name.rsplit_once(".v")?;
    let number = |part: &str| {
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        if digits { part.parse().ok() } else { None }
    };
    let numbers: Option<Vec<u32>> = version.split('.').map(number).collect();
    numbers.map(|numbers| (family, numbers))
}

/// The fingerprint of a session, a SHA-256. It covers the profile's digest, the acknowledged device
/// features (without vhost-user's own), the size of each started ring, and the queue pairs in use.
#[must_use]
pub fn fingerprint(
    profile_digest: &str,
    acknowledged: FeatureSet,
    ring_sizes: &[Option<u16>],
    queue_pairs: u16,
) -> String {
    let sizes = ring_sizes.iter().enumerate();
    let sizes = sizes.filter_map(|(ring, size)| Some(format!("{ring}:{}", (*size)?)));
    digest(&format!(
        "profile={profile_digest}\nacknowledged={:#018x}\nring_sizes={}\nqueue_pairs={}\n",
        acknowledged.without(TRANSPORT).0,
        sizes.collect::<Vec<_>>().join(","),
        queue_pairs
    ))
}

/// SHA-256 of `text`, in hexadecimal.
#[must_use]
pub fn digest(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All bits made true by `provider`.
pub(super) fn bits_of(provider: Provider) -> FeatureSet {
    let of_provider = features::FEATURES.iter().filter(|feature| feature.provider == provider);
    of_provider.fold(FeatureSet::default(), |set, feature| set.union(FeatureSet(feature.mask())))
}

#[cfg(test)]
mod tests {
    use super::super::Catalog;
    use super::*;
    use crate::device::features::{LOG_ALL, PROTOCOL_FEATURES, VERSION_1};

    fn v1() -> Profile {
        Catalog::embedded().get("org.isonic.net.v1").unwrap().as_ref().clone()
    }

    #[test]
    fn a_guest_sees_both_halves_and_no_bit_of_the_transport() {
        let mut v1 = v1();
        v1.features = v1.features.union(FeatureSet(1 << LOG_ALL | 1 << features::ANY_LAYOUT));
        let seen = v1.guest_features();
        assert!(!seen.has(features::ANY_LAYOUT));
        assert!(seen.has(VERSION_1) && seen.has(features::CTRL_VQ));
        assert!(!seen.has(PROTOCOL_FEATURES) && !seen.has(LOG_ALL));
    }

    #[test]
    fn the_digest_follows_the_interface_and_not_the_words() {
        let v1 = v1();
        let renamed = Profile { name: "x".into(), summary: "y".into(), ..v1.clone() };
        assert_eq!(renamed.digest(), v1.digest());
        for other in [
            Profile { features: FeatureSet(0), ..v1.clone() },
            Profile { frontend_features: FeatureSet(0), ..v1.clone() },
            Profile { protocol_features: FeatureSet(0), ..v1.clone() },
            Profile { ring_size_max: 512, ..v1.clone() },
            Profile { queue_pairs_max: 8, ..v1.clone() },
            Profile { mtu: 9000, ..v1.clone() },
            Profile { memory_slots: 8, ..v1.clone() },
        ] {
            assert_ne!(other.digest(), v1.digest(), "{other:?}");
        }
    }

    #[test]
    fn a_family_is_the_name_up_to_its_version() {
        let named = |name: &str| Profile { name: name.into(), ..v1() };
        assert_eq!(named("org.isonic.net.v12").family(), Some(("org.isonic.net", vec![12])));
        assert_eq!(named("org.dpdk.v22.11").family(), Some(("org.dpdk", vec![22, 11])));
        for name in ["plain", "a.v", "a.v1.", "a.v1.x", "a.v+1"] {
            assert_eq!(named(name).family(), None, "{name}");
        }
    }

    #[test]
    fn the_canonical_form_is_as_documented() {
        assert_eq!(
            v1().canonical(),
            "features=0x0000000170408008\nfrontend_features=0x00000000009f0020\n\
             protocol_features=0x000000000001a01d\nring_size_max=1024\nqueue_pairs_max=16\n\
             mtu=1500\nmemory_slots=64\n"
        );
    }

    #[test]
    fn offloads_follow_from_the_features() {
        let on = |profile: &Profile| -> Vec<&str> {
            let offloads = profile.linux_offloads().into_iter();
            offloads.filter_map(|(name, on)| on.then_some(name)).collect()
        };
        assert_eq!(on(&v1()), ["rx-vlan-filter"]);
        let sends = FeatureSet(1 << features::CSUM | 1 << features::HOST_TSO4);
        assert_eq!(
            on(&Profile { features: sends, frontend_features: FeatureSet(0), ..v1() }),
            [
                "scatter-gather",
                "tcp-segmentation-offload",
                "tx-checksumming",
                "tx-tcp-segmentation",
            ]
        );
        // Linux drops offloads that lack the segmentation they belong to (`netdev_fix_features`).
        let ecn = FeatureSet(1 << features::CSUM | 1 << features::HOST_ECN);
        let ecn = Profile { features: ecn, frontend_features: FeatureSet(0), ..v1() };
        assert_eq!(on(&ecn), ["scatter-gather", "tx-checksumming"]);
        let v3 = Catalog::embedded().get("org.isonic.net.v3").unwrap().as_ref().clone();
        assert_eq!(on(&v3).len(), v3.linux_offloads().len(), "all of them");
    }

    #[test]
    fn a_linux_guest_loads_xdp_where_nothing_is_merged_for_it() {
        let catalog = Catalog::embedded();
        let names = |profile: &str| {
            let profile = catalog.resolve(profile).unwrap().profile;
            profile.xdp_obstacles().names()
        };
        for profile in ["org.isonic.net.v1", "org.isonic.net.v2", "org.dpdk.v22.11"] {
            assert_eq!(names(profile), Vec::<String>::new(), "{profile}");
        }
        let receive = ["guest_csum", "guest_tso4", "guest_tso6", "guest_ecn"];
        for profile in ["org.isonic.net.v3", "org.isonic.net.v4"] {
            assert_eq!(names(profile), receive, "{profile}");
        }
        let without = receive.map(|name| format!("{name}=off")).join(",");
        assert_eq!(names(&format!("org.isonic.net.v3,{without}")), Vec::<String>::new());
    }
}
