//! The meaning of routes for the XDP program and the indirection table: the use of each queue, and
//! our MACs.

use crate::datapath::{Attachment, Route, WorkerId};
use crate::xdp::{ProgramError, QueueUse, Redirect};

/// The inputs that decide which MACs the program has.
#[derive(Clone, Copy, Debug)]
pub struct SwitchMacs<'r> {
    /// All routes of the uplink.
    pub routes: &'r [&'r Route],
    /// The NIC's own address.
    pub of_nic: [u8; 6],
}

/// Have the program know all switch ports' addresses except the NIC's own: the host must not be cut
/// off. The NIC may have got that address after the port was made.
///
/// # Errors
/// [`ProgramError`]; `present` then has the addresses in the program.
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
    // One by one, so that after a failure the list still matches the program.
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

/// The use of a queue: a wire port's queue is its own; all others are shared by the host and the
/// switch ports.
pub fn queue_use(queue: u32, routes: &[&Route]) -> QueueUse {
    let owns = |route: &&Route| match &route.attachment {
        Attachment::Wire { queues } => queues.contains(&queue),
        Attachment::Switch { .. } => false,
    };
    if routes.iter().any(owns) { QueueUse::Wire } else { QueueUse::Shared }
}

/// The queues that no wire port owns; all queues, if there is none. A wire port gets its frames by
/// flow rules.
pub fn shared_queues(queues: &[(u32, WorkerId)], routes: &[&Route]) -> Vec<u32> {
    let all = queues.iter().map(|&(queue, _)| queue);
    let shared = |queue: &u32| queue_use(*queue, routes) != QueueUse::Wire;
    let queues: Vec<u32> = all.clone().filter(shared).collect();
    if queues.is_empty() { all.collect() } else { queues }
}
