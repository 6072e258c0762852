//! The place of a port: whether its uplink can keep its profile, and which workers and queues serve
//! it.

use crate::config::{Attach, PortConfig};
use crate::daemon::nic::{Nic, NicStatus};
use crate::datapath::{Attachment, PortId, Route, WorkerId, frame_max};
use crate::profile::Profile;
use crate::xdp::{BindMode, XdpAttachment};

use super::port_error::PortError;

/// Check that a profile can be kept on this uplink.
///
/// # Errors
/// [`PortError::Blocked`], [`PortError::FrameSize`].
pub fn check_profile(profile: &Profile, nic: &Nic) -> Result<(), PortError> {
    let blockers = profile.blockers(&nic.facts());
    if !blockers.is_empty() {
        let (profile, uplink) = (profile.name.clone(), nic.config.interface.clone());
        return Err(PortError::Blocked { profile, uplink, blockers });
    }
    check_frame_size(profile, &nic.config.interface, &nic.status())
}

/// Check that the uplink of this name takes the profile's frames.
fn check_frame_size(profile: &Profile, uplink: &str, status: &NicStatus) -> Result<(), PortError> {
    let XdpAttachment { packet_max, socket_mode, reason, .. } = &status.attachment;
    if frame_max(u32::from(profile.mtu)) <= *packet_max {
        return Ok(());
    }
    Err(PortError::FrameSize {
        profile: profile.name.clone(),
        mtu: profile.mtu,
        uplink: uplink.to_owned(),
        packet_max: *packet_max,
        reason: reason.clone(),
        way_out: match socket_mode {
            BindMode::ZeroCopy => "give the uplink `mode = \"copy\"`",
            BindMode::Copy => "use Linux 6.6 or later",
        },
    })
}

/// The port's route, with no queue pair ready yet. Each pair is served by a worker that has a
/// socket for sending. A wire port's pair takes the worker of its own queue, a switch port's any
/// worker of the uplink.
///
/// # Errors
/// [`PortError`].
pub fn route(
    id: PortId,
    config: &PortConfig,
    profile: &Profile,
    nic: &Nic,
) -> Result<Route, PortError> {
    let status = nic.status();
    let device = &status.interface.device;
    let (attachment, workers) = match config.attach {
        Attach::Switch if device.own_mac_only() => {
            let (uplink, kind) = (nic.config.interface.clone(), device.kind.clone());
            return Err(PortError::OwnMacOnly { uplink, kind });
        }
        Attach::Switch => {
            let mut workers: Vec<WorkerId> =
                status.queues.iter().map(|&(_, worker)| worker).collect();
            workers.sort_unstable();
            workers.dedup();
            // Guests with one queue, the common kind, are spread over the workers too.
            let turn = id.index() % workers.len().max(1);
            workers.rotate_left(turn);
            (Attachment::Switch { mac: config.mac().0 }, workers)
        }
        Attach::Wire => {
            let all = || status.queues.iter().map(|&(queue, _)| queue).collect();
            let queues: Vec<u32> = config.queues.clone().unwrap_or_else(all);
            let workers = queues.iter().map(|&queue| worker_of(nic, &status, queue));
            let workers = workers.collect::<Result<_, _>>()?;
            (Attachment::Wire { queues }, workers)
        }
    };
    let frame_max = frame_max(u32::from(profile.mtu));
    Ok(Route::new(nic.id, attachment, frame_max, workers))
}

fn worker_of(nic: &Nic, status: &NicStatus, queue: u32) -> Result<WorkerId, PortError> {
    status.worker_of(queue).ok_or_else(|| PortError::NoSuchQueue {
        uplink: nic.config.interface.clone(),
        queue,
        present: status.queues.iter().map(|&(queue, _)| queue).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Catalog;

    #[test]
    fn an_mtu_that_the_sockets_do_not_take_is_refused_with_limit_cause_and_way_out() {
        let catalog = Catalog::embedded();
        let check = |mtu, mode| {
            let profile = catalog.resolve(&format!("org.isonic.net.v1,mtu={mtu}")).unwrap();
            let mut status = NicStatus::sample();
            status.attachment.socket_mode = mode;
            check_frame_size(&profile.profile, "eth0", &status)
        };
        for mode in [BindMode::ZeroCopy, BindMode::Copy] {
            check(3818, mode).unwrap();
        }
        let refused = check(3819, BindMode::ZeroCopy).unwrap_err().to_string();
        for word in ["3819", "eth0", "3818", "old driver", "mode = \"copy\""] {
            assert!(refused.contains(word), "{word} is not in: {refused}");
        }
        let refused = check(9000, BindMode::Copy).unwrap_err().to_string();
        assert!(refused.contains("Linux 6.6"), "{refused}");
    }
}
