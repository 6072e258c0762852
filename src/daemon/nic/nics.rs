//! All uplinks' NICs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use crate::config::{Config, steering_note};
use crate::daemon::host_port::HostNic;
use crate::daemon::workers::{UplinkSetup, WorkerSockets, Workers};
use crate::datapath::UplinkId;
use crate::device::mac::MacAddress;
use crate::profile::UplinkFacts;
use crate::xdp::{InheritedUplink, Interface};

use super::nic_in_use::{Nic, NicStart};
use super::nic_status::{KnownUplink, NicError};
use super::open_nic::interrupt_notes;

/// All NICs, by number.
#[derive(Debug)]
pub struct Nics(Vec<Nic>);

impl Nics {
    /// Open all uplinks of the configuration, or continue with those that are `inherited`. An
    /// uplink that is `known` may be away or busy for now. Returns the sockets of each worker.
    ///
    /// # Errors
    /// [`NicError`]; those opened before are given back.
    pub fn open(
        config: &Config,
        inherited: &mut BTreeMap<String, InheritedUplink>,
        known: &BTreeMap<String, KnownUplink>,
    ) -> Result<(Self, Vec<WorkerSockets>), NicError> {
        let mut sockets = Vec::new();
        sockets.resize_with(config.workers, Vec::new);
        let mut nics = Vec::new();
        for (id, uplink) in (0u16..).map(UplinkId).zip(&config.uplinks) {
            let name = &uplink.interface;
            let runtime_dir = config.runtime_dir.as_deref();
            let start = NicStart {
                id,
                config: uplink,
                workers: config.workers,
                steering_note: runtime_dir.map(|directory| steering_note(directory, name)),
                interrupt_notes: interrupt_notes(config),
            };
            let (nic, own) = Nic::open(start, inherited.remove(name), known.get(name))?;
            for (worker, socket) in own {
                sockets[worker.index()].push((id, socket));
            }
            nics.push(nic);
        }
        Ok((Self(nics), sockets))
    }

    /// The facts of the uplinks that the workers need from the start.
    pub fn for_workers(&self) -> Vec<UplinkSetup> {
        let setup = |nic: &Nic| {
            let status = nic.status();
            let host = nic.config.host.then(|| HostNic::of(&status.interface));
            UplinkSetup {
                id: nic.id,
                expected: if status.is_open() { Vec::new() } else { status.queues },
                host,
                forward_groups: nic.config.forward_groups,
            }
        };
        self.0.iter().map(setup).collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Nic> {
        self.0.iter()
    }

    /// The facts of the uplinks, for a start while one is away.
    pub fn known(&self) -> BTreeMap<String, KnownUplink> {
        self.0.iter().map(|nic| (nic.config.interface.clone(), nic.known())).collect()
    }

    /// The facts of the uplinks for profiles.
    pub fn facts(&self) -> Vec<UplinkFacts> {
        self.0.iter().map(Nic::facts).collect()
    }

    /// The host's own addresses: those of the NICs, present or away, and of its other interfaces,
    /// which may lie on them (a macvlan, a bridge).
    pub fn host_addresses(&self) -> Vec<(String, MacAddress)> {
        let of_nic = |nic: &Nic| {
            let status = nic.status();
            (status.interface.name, MacAddress(status.interface.mac))
        };
        // If the kernel does not report them now, that is no reason to refuse a port.
        let others = Interface::macs().unwrap_or_default().into_iter();
        let others = others.map(|(name, mac)| (name, MacAddress(mac)));
        self.0.iter().map(of_nic).chain(others).collect()
    }

    /// The NIC whose own address this is, by the name of its interface.
    pub fn with_mac(&self, mac: MacAddress) -> Option<String> {
        let interface = |nic: &Nic| nic.status().interface;
        let mut interfaces = self.0.iter().map(interface);
        interfaces.find(|interface| interface.mac == mac.0).map(|interface| interface.name)
    }

    /// By the name in the configuration.
    pub fn by_name(&self, name: &str) -> Option<&Nic> {
        self.0.iter().find(|nic| nic.config.interface == name)
    }

    /// Start to bring broadcast and multicast from each of our NICs to its workers, and join the
    /// host where it shares one.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start_threads(&self, workers: &Arc<Workers>) -> io::Result<()> {
        self.0.iter().try_for_each(|nic| nic.start_threads(workers))
    }

    /// Stop these threads.
    pub fn stop_threads(&self) {
        for nic in &self.0 {
            nic.stop_threads();
        }
    }
}
