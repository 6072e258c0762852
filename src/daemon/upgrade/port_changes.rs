//! The changes that a successor would make to existing ports. Another configuration file, profile
//! directory or version may take away what a guest has.
//!
//! The successor compares, because only it has read the new configuration. The predecessor decides,
//! because only it knows whose guests run.

use crate::config::PortConfig;
use crate::control::api::PortChange;

use crate::daemon::ports::{PortMap, PortRecord, Registry};

/// The differences between the ports of `registry`, of a successor that is ready, and the records
/// that it was told.
pub(super) fn compare(told: &[PortRecord], registry: &Registry) -> Vec<PortChange> {
    let (ports, refused) = (registry.ports(), registry.refused());
    let of_port = |before: &PortRecord| {
        let name = &before.config.name;
        match (ports.get(name), refused.get(name)) {
            (Some(after), _) => {
                let digest = before.bound.as_ref().map(|bound| &bound.digest);
                let other = digest.is_some_and(|digest| *digest != after.profile.digest());
                let (was, is) = (&before.config.profile, &after.config.profile);
                let profile = other.then(|| change(name, "profile", was, is));
                let mut changes = compare_config(&before.config, &after.config);
                changes.extend(profile);
                changes
            }
            (None, Some(after)) => vec![change(name, "state", &"served", &after.reason)],
            (None, None) => vec![change(name, "state", &"served", &"gone")],
        }
    };
    told.iter().filter(|before| before.served).flat_map(of_port).collect()
}

/// The settings by which a guest and its front-end reach their port. The socket's access rights are
/// not among them: a listening socket that is taken over keeps them.
fn compare_config(before: &PortConfig, after: &PortConfig) -> Vec<PortChange> {
    let said = said_of(before).into_iter().zip(said_of(after));
    let differing = said.filter(|(before, after)| before != after);
    differing.map(|((what, was), (_, is))| change(&before.name, what, &was, &is)).collect()
}

fn said_of(config: &PortConfig) -> [(&'static str, String); 6] {
    let queues = config.queues.as_ref().map(|queues| format!("{queues:?}"));
    [
        ("mac", config.mac().to_string()),
        ("uplink", config.uplink.clone()),
        ("attach", config.attach.to_string()),
        ("queues", queues.unwrap_or_else(|| "all".to_owned())),
        ("socket", config.socket.display().to_string()),
        ("mode", config.mode.to_string()),
    ]
}

fn change(port: &str, what: &str, before: &impl ToString, after: &impl ToString) -> PortChange {
    PortChange {
        port: port.to_owned(),
        what: what.to_owned(),
        before: before.to_string(),
        after: after.to_string(),
    }
}

/// Refuse losses of ports with a front-end: as far as we know, their guests run.
pub(super) fn refuse_losses(
    changes: &[PortChange],
    ports: &PortMap,
) -> Result<(), Vec<PortChange>> {
    let in_use = |change: &&PortChange| {
        ports.get(&change.port).is_some_and(|port| port.link.session().is_some())
    };
    let losses: Vec<_> = changes.iter().filter(in_use).cloned().collect();
    if losses.is_empty() { Ok(()) } else { Err(losses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(json: &serde_json::Value) -> PortConfig {
        let mut all = serde_json::json!({
            "name": "vm1", "socket": "/run/x.sock", "profile": "p", "uplink": "eth0",
            "mac": "52:54:00:00:00:01",
        });
        let more = json.as_object().expect("an object").clone();
        all.as_object_mut().expect("an object").extend(more);
        serde_json::from_value(all).expect("a port")
    }

    #[test]
    fn each_thing_that_a_guest_or_front_end_relies_on_is_compared_and_nothing_else() {
        let before = port(&serde_json::json!({}));
        for (what, after) in [
            ("mac", serde_json::json!({ "mac": "52:54:00:00:00:02" })),
            ("uplink", serde_json::json!({ "uplink": "eth1" })),
            ("attach", serde_json::json!({ "attach": "wire" })),
            ("socket", serde_json::json!({ "socket": "/run/y.sock" })),
            ("mode", serde_json::json!({ "mode": "client" })),
            ("queues", serde_json::json!({ "queues": [1] })),
        ] {
            let changes = compare_config(&before, &port(&after));
            assert_eq!(changes.len(), 1, "{what}: {changes:?}");
            assert_eq!(changes[0].what, what);
        }
        let harmless = serde_json::json!({ "owner": "me", "socket_permissions": "0660" });
        assert_eq!(compare_config(&before, &port(&harmless)), []);
    }
}
