//! The profile and MAC of a port: resolved when the port is made, and unchanged afterwards.
//!
//! The record decides. The catalog may have grown since, `latest` may mean another profile, a file
//! may have been edited or the daemon exchanged. A port whose recorded interface cannot be had any
//! more is refused, because its guest would find another NIC under the old name.

use std::sync::Arc;

use crate::config::{PortConfig, PortProblem, resolve_profile};
use crate::device::mac::MacAddress;
use crate::profile::{Catalog, Profile};

use super::port_record::BoundProfile;

/// Why a port cannot be bound to its record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// There is no such profile, or it cannot be kept here.
    #[error("{}", list(.0))]
    Problems(Vec<PortProblem>),
    /// The name stands for another interface now.
    #[error(
        "port \"{port}\" was bound to profile {profile} with digest {recorded}, and isonic {} has \
         a profile of that name, from {source_of_ours}, with digest {ours}: not the same \
         interface. Bring the old one back; or, when the VM is shut down, bind the port anew: \
         isonic port set-profile {port} {profile}",
        env!("CARGO_PKG_VERSION")
    )]
    Digest {
        /// The port.
        port: String,
        /// The profile.
        profile: String,
        /// The recorded digest.
        recorded: String,
        /// The digest of our profile.
        ours: String,
        /// The source of our profile.
        source_of_ours: String,
    },
    /// The configuration file asks for another profile than the port has.
    #[error(
        "port \"{port}\" is bound to profile {recorded}, and the configuration file asks for \
         {asked}: put the old one back there; or, when the VM is shut down, change the port: \
         isonic port set-profile {port} {asked}"
    )]
    Asked {
        /// The port.
        port: String,
        /// The recorded profile.
        recorded: String,
        /// The profile of the configuration file.
        asked: String,
    },
    /// The guest's driver has the address that it read when it started.
    #[error(
        "port \"{port}\" is bound to MAC {recorded}, and is to have {asked}: put the old one back; \
         or, when the VM is shut down, bind the port anew: isonic port set-profile {port} {profile}"
    )]
    Mac {
        /// The port.
        port: String,
        /// The recorded MAC.
        recorded: MacAddress,
        /// The MAC that the configuration gives it.
        asked: MacAddress,
        /// Its profile, which stays.
        profile: String,
    },
}

fn list(problems: &[PortProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The profile and the new record of a port: those of `recorded`, if there is one.
///
/// # Errors
/// [`BindingError`].
pub fn bind(
    config: &PortConfig,
    catalog: &Catalog,
    recorded: Option<&BoundProfile>,
) -> Result<(Arc<Profile>, BoundProfile), BindingError> {
    let Some(recorded) = recorded else { return resolve(config, catalog) };
    let (profile, bound) = bind_profile(config, catalog, recorded)?;
    let asked = config.mac();
    match recorded.mac.filter(|&mac| mac != asked) {
        Some(mac) => Err(BindingError::Mac {
            port: config.name.clone(),
            recorded: mac,
            asked,
            profile: bound.profile,
        }),
        None => Ok((profile, BoundProfile { mac: Some(asked), ..bound })),
    }
}

fn bind_profile(
    config: &PortConfig,
    catalog: &Catalog,
    recorded: &BoundProfile,
) -> Result<(Arc<Profile>, BoundProfile), BindingError> {
    let known = [&recorded.asked, &recorded.profile];
    if !known.contains(&&config.profile) {
        // Another name for the same interface is no change.
        let other = resolve(config, catalog)?;
        if other.1.digest == recorded.digest {
            return Ok(other);
        }
        return Err(BindingError::Asked {
            port: config.name.clone(),
            recorded: recorded.profile.clone(),
            asked: config.profile.clone(),
        });
    }
    let stored = PortConfig { profile: recorded.profile.clone(), ..config.clone() };
    let (profile, bound) = resolve(&stored, catalog)?;
    if bound.digest != recorded.digest {
        let base = recorded.profile.split(',').next().unwrap_or_default();
        let source = catalog.source(base).map(ToString::to_string);
        return Err(BindingError::Digest {
            port: config.name.clone(),
            profile: recorded.profile.clone(),
            recorded: recorded.digest.clone(),
            ours: bound.digest,
            source_of_ours: source.unwrap_or_else(|| "a list of values".to_owned()),
        });
    }
    Ok((profile, recorded.clone()))
}

fn resolve(
    config: &PortConfig,
    catalog: &Catalog,
) -> Result<(Arc<Profile>, BoundProfile), BindingError> {
    let profile = resolve_profile(config, catalog).map_err(BindingError::Problems)?.profile;
    let bound = BoundProfile {
        asked: config.profile.clone(),
        profile: profile.name.clone(),
        digest: profile.digest(),
        mac: Some(config.mac()),
    };
    Ok((profile, bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = include_str!("../../../profiles/org.isonic.net.v1.toml");

    fn port(profile: &str) -> PortConfig {
        let json = serde_json::json!({
            "name": "vm1", "socket": "/run/x.sock", "profile": profile, "uplink": "eth0",
        });
        serde_json::from_value(json).unwrap()
    }

    /// A catalog with com.x.v1 of these ring sizes, and com.x.v2 if there is a second.
    fn catalog(ring_sizes: &[u16]) -> Catalog {
        let directory = tempfile::tempdir().unwrap();
        for (version, size) in (1..).zip(ring_sizes) {
            let text = V1
                .replace("org.isonic.net.v1", &format!("com.x.v{version}"))
                .replace("= 1024", &format!("= {size}"));
            std::fs::write(directory.path().join(format!("{version}.toml")), text).unwrap();
        }
        Catalog::load(Some(directory.path())).unwrap()
    }

    #[test]
    fn latest_is_what_it_was_when_the_port_was_made() {
        let (profile, bound) = bind(&port("com.x.latest"), &catalog(&[512]), None).unwrap();
        assert_eq!((profile.name.as_str(), bound.profile.as_str()), ("com.x.v1", "com.x.v1"));
        let grown = catalog(&[512, 256]);
        let (profile, again) = bind(&port("com.x.latest"), &grown, Some(&bound)).unwrap();
        assert_eq!((profile.name.as_str(), &again), ("com.x.v1", &bound));
        assert_eq!(bind(&port("com.x.latest"), &grown, None).unwrap().0.name, "com.x.v2");
    }

    #[test]
    fn another_interface_under_the_same_name_is_refused_and_both_are_told() {
        for asked in ["com.x.v1", "com.x.v1,mq=off,queue_pairs=1"] {
            let (_, bound) = bind(&port(asked), &catalog(&[512]), None).unwrap();
            let error = bind(&port(asked), &catalog(&[256]), Some(&bound)).unwrap_err();
            let message = error.to_string();
            let BindingError::Digest { recorded, ours, .. } = error else { panic!("{message}") };
            assert_eq!(recorded, bound.digest);
            for told in [&recorded, &ours, "1.toml", &format!("set-profile vm1 {}", bound.profile)]
            {
                assert!(message.contains(told), "{message}");
            }
        }
    }

    #[test]
    fn another_mac_is_refused_and_a_record_without_one_is_completed() {
        let catalog = catalog(&[512]);
        let with_mac =
            |mac| PortConfig { mac: Some(MacAddress([2, 0, 0, 0, 0, mac])), ..port("com.x.v1") };
        let (_, bound) = bind(&with_mac(1), &catalog, None).unwrap();
        assert_eq!(bind(&with_mac(1), &catalog, Some(&bound)).unwrap().1, bound);
        let message = bind(&with_mac(2), &catalog, Some(&bound)).unwrap_err().to_string();
        for told in ["02:00:00:00:00:01", "02:00:00:00:00:02", "set-profile vm1 com.x.v1"] {
            assert!(message.contains(told), "{message}");
        }
        let old = BoundProfile { mac: None, ..bound };
        let completed = bind(&with_mac(2), &catalog, Some(&old)).unwrap().1;
        assert_eq!(completed.mac, with_mac(2).mac);
    }

    #[test]
    fn a_configuration_that_asks_for_another_profile_is_refused_and_other_words_are_not() {
        let catalog = catalog(&[512, 256]);
        let (_, bound) = bind(&port("com.x.v1"), &catalog, None).unwrap();
        let error = bind(&port("com.x.v2"), &catalog, Some(&bound)).unwrap_err();
        assert!(matches!(error, BindingError::Asked { .. }), "{error}");
        let same = "com.x.v2,max_ring=512";
        assert_eq!(bind(&port(same), &catalog, Some(&bound)).unwrap().1.profile, same);
    }
}
