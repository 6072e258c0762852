//! Which queues of a NIC receive which frames, and whether each has a socket.
//!
//! AF_XDP gives a socket only packets that arrive on its own queue. The NIC chooses the queue: by a
//! flow rule, else by the entry of its indirection table that the frame's hash points at (RSS). A
//! frame for a VM that arrives on a queue without a socket passes to the host, which drops it.

use std::collections::BTreeMap;
use std::io;

use serde::Serialize;

use super::ioctl;

/// The settings that decide on which queue a frame arrives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Steering {
    /// The queue by hash; None where the NIC has no such table, and any queue may receive.
    pub table: Option<Vec<u32>>,
    /// Rules that take precedence over the table.
    pub rules: Vec<FlowRule>,
    /// The hashed fields of a packet, by the type of its flow.
    pub hashed: BTreeMap<&'static str, Vec<&'static str>>,
}

/// One rule for a kind of frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FlowRule {
    /// Its number, `ethtool -N IF delete` takes it.
    pub location: u32,
    /// The queue; None for a rule that drops.
    pub queue: Option<u32>,
}

/// Why the queues that receive cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum SteeringError {
    /// The NIC has no table to set.
    #[error(
        "steering = \"set\": {0} has no indirection table; leave out `queues`, to take all, or use \
         steering = \"check\""
    )]
    NoTable(String),
    /// The driver did not take it, or it could not be noted.
    #[error(
        "cannot set the indirection table of {interface}; see `ethtool --show-rxfh {interface}`"
    )]
    Set {
        /// NIC.
        interface: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// ethtool_rxnfc's flow types.
const FLOWS: [(&str, u32); 4] = [("tcp4", 1), ("udp4", 2), ("tcp6", 5), ("udp6", 6)];
/// Bits of hashed fields (RXH_ of linux/ethtool.h).
const FIELDS: [(&str, u32); 6] = [
    ("vlan", 1 << 2),
    ("protocol", 1 << 3),
    ("source address", 1 << 4),
    ("destination address", 1 << 5),
    ("source port", 1 << 6),
    ("destination port", 1 << 7),
];
/// A rule with this target drops.
const DROPS: u64 = u64::MAX;

impl Steering {
    /// Ask the NIC `interface`; empty where it reports nothing.
    #[must_use]
    pub fn read(interface: &str) -> Self {
        let hashed = FLOWS.into_iter().filter_map(|(flow, number)| {
            let bits = ioctl::hash_fields(interface, number)?;
            let fields = FIELDS.into_iter().filter(|(_, bit)| bits & bit != 0);
            Some((flow, fields.map(|(field, _)| field).collect()))
        });
        let rule = |location| {
            let target = ioctl::rule_target(interface, location)?;
            // The upper half names a virtual function, whose queues are not ours.
            let queue = u32::try_from(target).ok();
            (queue.is_some() || target == DROPS).then_some(FlowRule { location, queue })
        };
        Self {
            table: ioctl::indirection_table(interface),
            rules: ioctl::rule_locations(interface).into_iter().filter_map(rule).collect(),
            hashed: hashed.collect(),
        }
    }

    /// The queues of `all` that receive frames without a rule and are not among those `served`.
    #[must_use]
    pub fn unserved(&self, all: u32, served: &[u32]) -> Vec<u32> {
        unserved(self.table.as_deref(), all, served)
    }

    /// The rules that send frames to a queue that is not among those `served`.
    pub fn rules_beside(&self, served: &[u32]) -> impl Iterator<Item = &FlowRule> {
        let beside = |rule: &&FlowRule| rule.queue.is_some_and(|queue| !served.contains(&queue));
        self.rules.iter().filter(beside)
    }
}

/// The queues of `all` that a table leads to and that are not among those `served`.
#[must_use]
pub fn unserved(table: Option<&[u32]>, all: u32, served: &[u32]) -> Vec<u32> {
    let receives = |queue: &u32| table.is_none_or(|table| table.contains(queue));
    (0..all).filter(|queue| receives(queue) && !served.contains(queue)).collect()
}

/// An indirection table of `entries` entries that spreads over these queues alone, evenly.
#[must_use]
pub fn spread(entries: usize, queues: &[u32]) -> Vec<u32> {
    queues.iter().copied().cycle().take(entries).collect()
}

/// Whether a table leads to all of these queues and to no other.
#[must_use]
pub fn leads_to(table: &[u32], queues: &[u32]) -> bool {
    queues.iter().all(|queue| table.contains(queue))
        && table.iter().all(|queue| queues.contains(queue))
}

/// The indirection table in force; None where the NIC has none.
#[must_use]
pub fn table(interface: &str) -> Option<Vec<u32>> {
    ioctl::indirection_table(interface)
}

/// Set the indirection table, and check that it is in force: drivers may accept a table and not
/// keep it.
///
/// # Errors
/// The driver's; EOPNOTSUPP where it cannot; [`io::ErrorKind::InvalidData`] where it took the table
/// and has another.
pub fn set_table(interface: &str, table: &[u32]) -> io::Result<()> {
    ioctl::set_indirection_table(interface, table)?;
    if ioctl::indirection_table(interface).as_deref() == Some(table) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the driver took the table and has another"))
}

/// Restore the NIC's former table. The driver sets it if it was the kernel's default
/// (`ethtool_rxfh_indir_default`): a table set by us would prevent fewer queues.
///
/// # Errors
/// The driver's.
pub fn restore_table(interface: &str, table: &[u32], receiving: u32) -> io::Result<()> {
    let all: Vec<u32> = (0..receiving).collect();
    if spread(table.len(), &all) == table {
        return ioctl::set_indirection_table(interface, &[]);
    }
    set_table(interface, table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steering(table: Option<&[u32]>) -> Steering {
        let rule = |location, queue| FlowRule { location, queue };
        Steering {
            table: table.map(<[u32]>::to_vec),
            rules: vec![rule(7, Some(3)), rule(8, None), rule(9, Some(0))],
            hashed: BTreeMap::new(),
        }
    }

    #[test]
    fn a_queue_without_a_socket_matters_only_if_something_arrives_there() {
        let even = steering(Some(&[0, 1, 2, 3]));
        assert_eq!(even.unserved(4, &[0, 1]), [2, 3]);
        assert!(even.unserved(4, &[0, 1, 2, 3]).is_empty());
        assert!(steering(Some(&[0, 1, 0, 1])).unserved(4, &[0, 1]).is_empty());
        assert_eq!(steering(None).unserved(4, &[0, 1]), [2, 3], "no table: any may receive");
    }

    #[test]
    fn a_rule_to_a_queue_without_a_socket_is_found_and_one_that_drops_is_not() {
        let steering = steering(None);
        let beside = |served: &[u32]| -> Vec<u32> {
            steering.rules_beside(served).map(|rule| rule.location).collect()
        };
        assert_eq!(beside(&[0, 1]), [7]);
        assert_eq!(beside(&[0, 3]), [0; 0]);
    }

    #[test]
    fn a_spread_table_has_every_queue_equally_often_and_no_other() {
        assert_eq!(spread(7, &[1, 3]), [1, 3, 1, 3, 1, 3, 1]);
        assert_eq!(spread(2, &[5]), [5, 5]);
        assert!(leads_to(&spread(7, &[1, 3]), &[3, 1]) && !leads_to(&[1, 3], &[1]));
        assert!(!leads_to(&[1, 1], &[1, 3]));
        assert_eq!(spread(128, &[0, 1, 2]).iter().filter(|&&queue| queue == 2).count(), 42);
    }

    #[test]
    fn a_nic_without_a_table_says_so() {
        // The loopback interface has neither table nor rules.
        assert_eq!(table("lo"), None);
        assert_eq!(Steering::read("lo").rules, []);
        assert!(set_table("lo", &[0]).is_err());
        assert_eq!(table("a-name-that-is-too-long-for-any"), None);
    }
}
