//! What routes mean to the XDP program and the indirection table: which queues are whose, and which
//! MACs are ours.

use crate::datapath::{Attachment, Route, WorkerId};
use crate::xdp::{ProgramError, QueueUse, Redirect};

/// What decides which MACs the program has.
#[derive(Clone, Copy, Debug)]
pub struct SwitchMacs<'r> {
    /// All routes of the uplink.
    pub routes: &'r [&'r Route],
    /// The NIC's own address.
    pub of_nic: [u8; 6],
}

/// Have the program know all switch ports' addresses, but not that of the NIC itself, which it may
/// have got since the port was made: the host must not be cut off.
///
/// # Errors
/// [`ProgramError`]; `present` says what the program has then.
pub fn set_macs(
    redirect: &Redirect,
    present: &mut Vec<[u8; 6]>,
    &SwitchMacs { routes, of_nic }: &SwitchMacs<'_>,
) -> Result<(), ProgramError> {
    let mac_of = |route: &&Route| match route.attachment {
        Attachment::Switch { mac } => Some(mac),
        Attachment::Wire { .. } => None,
    };
    let wanted: Vec<_> = routes.iter().filter_map(mac_of).filter(|mac| *mac != of_nic).collect();
    // Step by step, so that after a failure the list still says what the program has.
    for mac in wanted.iter().copied() {
        if !present.contains(&mac) {
            redirect.add_mac(mac)?;
            present.push(mac);
        }
    }
    while let Some(place) = present.iter().position(|mac| !wanted.contains(mac)) {
        redirect.remove_mac(present[place])?;
        present.remove(place);
    }
    Ok(())
}

/// A wire port's queue is its own; the others are the host's and of all switch ports.
pub fn queue_use(queue: u32, routes: &[&Route]) -> QueueUse {
    let owns = |route: &&Route| match &route.attachment {
        Attachment::Wire { queues } => queues.contains(&queue),
        Attachment::Switch { .. } => false,
    };
    if routes.iter().any(owns) { QueueUse::Wire } else { QueueUse::Shared }
}

/// The queues that are no wire port's; all, if that leaves none. A wire port gets its frames by
/// flow rules.
pub fn shared_queues(queues: &[(u32, WorkerId)], routes: &[&Route]) -> Vec<u32> {
    let all = queues.iter().map(|&(queue, _)| queue);
    let shared = |queue: &u32| queue_use(*queue, routes) != QueueUse::Wire;
    let queues: Vec<u32> = all.clone().filter(shared).collect();
    if queues.is_empty() { all.collect() } else { queues }
}
