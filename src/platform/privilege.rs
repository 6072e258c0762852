//! The capabilities that AF_XDP takes.

use caps::{CapSet, Capability};

/// The capabilities that we need and this process lacks, as setpriv(1) and systemd name them:
/// CAP_NET_RAW to make `sockets`, CAP_NET_ADMIN and CAP_BPF to put our `program` on a NIC.
#[must_use]
pub fn missing(sockets: bool, program: bool) -> Vec<String> {
    let wanted = [
        (Capability::CAP_NET_ADMIN, program),
        (Capability::CAP_NET_RAW, sockets),
        (Capability::CAP_BPF, program),
    ];
    let wanted = wanted.into_iter().filter_map(|(wanted, is_wanted)| is_wanted.then_some(wanted));
    // CAP_SYS_ADMIN includes CAP_BPF (capabilities(7)).
    let stands_in = |wanted| wanted == Capability::CAP_BPF && has(Capability::CAP_SYS_ADMIN);
    let missing = wanted.filter(|&wanted| !has(wanted) && !stands_in(wanted));
    missing.map(|capability| capability.to_string()).collect()
}

/// Whether locked memory is unlimited for this process (CAP_IPC_LOCK).
#[must_use]
pub fn may_lock_memory() -> bool {
    has(Capability::CAP_IPC_LOCK)
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}
