//! The registry of ports: those that are served or refused, and their entries in the state file.
//! The files above this one make, change and restore ports.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::config::{Config, PortConfig, SocketMode};
use crate::daemon::host_port::PORTS_MAX;
use crate::daemon::nic::Nics;
use crate::daemon::ownership::{DaemonBusy, Ownership};
use crate::daemon::problems::{HostProblem, HostProblems};
use crate::daemon::workers::Workers;
use crate::datapath::PortId;
use crate::profile::Catalog;
use crate::report::chain;

use super::inherited_ports::{InheritedPorts, InheritedSocket};
use super::port::{Pending, Port, RefusedPort};
use super::port_error::PortError;
use super::port_record::{BoundProfile, PortRecord};
use super::ring_journals::RingJournals;
use super::state_file::{StateFile, StateFileError};
use super::state_text::Kept;

/// The ports, by name.
pub type PortMap = BTreeMap<String, Port>;

/// The ports, by name, locked.
pub type LockedPorts<'r> = MutexGuard<'r, PortMap>;

/// The objects with which ports are made.
#[derive(Debug)]
pub struct RegistrySetup {
    /// The configuration.
    pub config: Config,
    /// The profiles.
    pub catalog: Arc<Catalog>,
    /// The NICs.
    pub nics: Arc<Nics>,
    /// The workers.
    pub workers: Arc<Workers>,
    /// Whether this process owns all of this.
    pub ownership: Arc<Ownership>,
    /// The problems of the host.
    pub problems: Arc<HostProblems>,
    /// The state that survives a restart.
    pub state: Option<Arc<StateFile>>,
    /// The ports of another process, if this one is to take over from it.
    pub inherited: Option<InheritedPorts>,
}

/// All ports of the daemon.
#[derive(Debug)]
pub struct Registry {
    pub(super) config: Config,
    pub(super) catalog: Arc<Catalog>,
    pub(super) nics: Arc<Nics>,
    pub(super) workers: Arc<Workers>,
    pub(super) ownership: Arc<Ownership>,
    pub(super) problems: Arc<HostProblems>,
    pub(super) state: Option<Arc<StateFile>>,
    pub(super) journals: RingJournals,
    ports: Mutex<PortMap>,
    /// No name is both here and in `ports`. Locked after it.
    refused: Mutex<BTreeMap<String, RefusedPort>>,
    /// The ports of another process, until we take over.
    inherited: Mutex<Option<InheritedPorts>>,
    finished: Arc<Notify>,
    /// The state was saved since the start.
    recorded: AtomicBool,
    /// The port number given last.
    last_id: AtomicU16,
}

/// A port's entry in the state file.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateEntry<'p> {
    /// As configured.
    pub config: &'p PortConfig,
    /// The record of its profile.
    pub bound: Option<&'p BoundProfile>,
    /// The configuration file has it.
    pub permanent: bool,
}

impl Registry {
    /// An empty one.
    pub fn new(setup: RegistrySetup) -> Self {
        let RegistrySetup { config, catalog, nics, workers, .. } = setup;
        let RegistrySetup { ownership, problems, state, inherited, .. } = setup;
        for (problem, reason) in state.iter().flat_map(|state| state.problems()) {
            problems.set(*problem, Some(reason.clone()));
        }
        Self {
            journals: RingJournals::new(config.runtime_dir.clone()),
            config,
            catalog,
            nics,
            workers,
            ownership,
            problems,
            state,
            ports: Mutex::default(),
            refused: Mutex::default(),
            inherited: Mutex::new(inherited),
            finished: Arc::default(),
            recorded: AtomicBool::default(),
            last_id: AtomicU16::default(),
        }
    }

    // ---- what there is --------------------------------------------------------------------------

    /// The ports, by name, locked. While they are locked no thread may wait for a front-end:
    /// neither for a session to end nor for a front-end's descriptor to be closed.
    pub fn ports(&self) -> LockedPorts<'_> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports that are not served, by name.
    pub fn refused(&self) -> MutexGuard<'_, BTreeMap<String, RefusedPort>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports, to add, change or remove some on request.
    ///
    /// # Errors
    /// [`DaemonBusy`], at once: a request must not wait for a hand-over.
    pub(super) fn change(&self) -> Result<LockedPorts<'_>, DaemonBusy> {
        self.ownership.check()?;
        let ports = self.ports();
        self.ownership.check()?;
        Ok(ports)
    }

    /// Do `work` as the owner of everything. The phase of ownership changes with the ports locked,
    /// so they are locked until `work` is done. No port can be changed meanwhile: at most for the
    /// time of a write to a disk.
    ///
    /// # Errors
    /// [`DaemonBusy`].
    pub fn as_owner<T>(&self, work: impl FnOnce() -> T) -> Result<T, DaemonBusy> {
        let _ports = self.change()?;
        Ok(work())
    }

    /// Check that no port is half removed or changed: another process could not be told its state.
    ///
    /// # Errors
    /// [`DaemonBusy::Changing`].
    pub fn check_settled(&self, ports: &PortMap) -> Result<(), DaemonBusy> {
        let settled = ports.values().all(|port| port.pending.is_none());
        if settled { Ok(()) } else { Err(DaemonBusy::Changing) }
    }

    /// Check that nobody is removing or changing the port.
    pub(super) fn check_stays(&self, ports: &PortMap, name: &str) -> Result<(), PortError> {
        match ports.get(name) {
            Some(port) if port.pending.is_some() => Err(PortError::Changing(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// Notified when the only session of `--fd` has ended.
    pub fn finished(&self) -> Arc<Notify> {
        Arc::clone(&self.finished)
    }

    /// A number that no port has, and that none had lately: packets may still be under way to it.
    pub(super) fn free_id(&self, ports: &PortMap) -> Option<PortId> {
        let limit = u16::try_from(PORTS_MAX).expect("a small number");
        let last = self.last_id.load(Ordering::Relaxed);
        let mut candidates = (1..=limit).map(|step| PortId((last + step) % limit));
        let id = candidates.find(|&id| ports.values().all(|port| port.id != id))?;
        self.last_id.store(id.0, Ordering::Relaxed);
        Some(id)
    }

    // ---- the process before this one, and the one after -----------------------------------------

    fn inherited(&self) -> MutexGuard<'_, Option<InheritedPorts>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another process still has the ports' sessions.
    pub fn is_successor(&self) -> bool {
        self.inherited().is_some()
    }

    /// Whether the process before this one serves a port of this name.
    pub fn is_left_to_us(&self, name: &str) -> bool {
        self.inherited().as_ref().is_some_and(|ports| ports.has_listener(name))
    }

    /// The socket of a port on which the predecessor listens for us.
    pub(super) fn take_inherited_listener(&self, config: &PortConfig) -> Option<UnixListener> {
        let mut inherited = self.inherited();
        let listens = config.mode == SocketMode::Server;
        inherited.as_mut().filter(|_| listens)?.take_listener(&config.socket)
    }

    /// All sockets of the process before this one, taken or not, by their names.
    pub fn take_inherited_sockets(&self) -> BTreeMap<PathBuf, InheritedSocket> {
        self.inherited().as_mut().map(InheritedPorts::take_sockets).unwrap_or_default()
    }

    /// The ports' records from the process before this one, if it has sent them.
    pub fn inherited_records(&self) -> Option<Vec<PortRecord>> {
        self.inherited().as_ref()?.records.clone()
    }

    /// The ports that the process before this one was given at run time, as it has sent them.
    /// Unless it has sent all, those in the state file are added.
    pub fn remembered(&self) -> Vec<PortConfig> {
        let mut ports: Vec<PortConfig> = match &*self.inherited() {
            Some(inherited) => inherited.added().cloned().collect(),
            None => Vec::new(),
        };
        if self.inherited().as_ref().is_some_and(|inherited| inherited.tells_all) {
            // Further ports in the state file were removed since.
            return ports;
        }
        let kept = self.state.as_ref().map(|state| state.kept().ports.clone());
        for port in kept.unwrap_or_default() {
            if ports.iter().all(|told| told.name != port.name) {
                ports.push(port);
            }
        }
        ports
    }

    /// The record of a port in the last run.
    pub(super) fn recorded(&self, name: &str) -> Option<BoundProfile> {
        let inherited = self.inherited();
        let told = inherited.as_ref().and_then(|ports| ports.record(name)?.bound.clone());
        drop(inherited);
        let kept = || self.state.as_ref()?.kept().bindings.get(name).cloned();
        told.or_else(kept)
    }

    /// This process owns everything from now on, including the files of the ring positions.
    pub fn become_owner(&self) {
        self.journals.put_in_force();
        *self.inherited() = None;
    }

    /// The records of all ports, for a successor.
    pub fn records(&self, ports: &PortMap) -> Vec<PortRecord> {
        let stays = |port: &&Port| port.pending != Some(Pending::Removed);
        let served = ports.values().filter(stays).map(|port| PortRecord {
            config: port.config.clone(),
            bound: Some(port.bound.clone()),
            permanent: port.permanent,
            served: true,
        });
        let refused = self.refused();
        let refused = refused.values().map(|port| PortRecord {
            config: port.config.clone(),
            bound: port.bound.clone(),
            permanent: port.permanent,
            served: false,
        });
        served.chain(refused).collect()
    }

    // ---- the state file -------------------------------------------------------------------------

    /// Keep the records of all ports, and the facts of the uplinks.
    ///
    /// # Errors
    /// [`StateFileError`].
    pub fn record(&self) -> Result<(), StateFileError> {
        let Ok(ports) = self.change() else {
            // The file is another process's, or is about to be. If not, the upkeep saves later.
            self.recorded.store(false, Ordering::Relaxed);
            return Ok(());
        };
        self.save(&ports, None, None)
    }

    /// [`record`](Self::record), if it has failed before or was never done.
    pub fn record_if_due(&self) {
        let failed =
            self.problems.has(HostProblem::State) || self.problems.has(HostProblem::StateCopy);
        if failed || !self.recorded.load(Ordering::Relaxed) {
            // A failure is among the problems.
            let _ = self.record();
        }
    }

    /// Write the state anew: another process may have changed its files.
    pub fn record_again(&self) {
        self.recorded.store(false, Ordering::Relaxed);
        self.record_if_due();
    }

    /// Keep the ports added at run time, also the refused ones, and all records. `more` is about to
    /// be made, and `less` about to be removed; if both have one name, the port is changed.
    ///
    /// The ports are locked during the write, so that the file matches the ports, and the later of
    /// two changes is written last. A change that cannot be kept is refused, so its request waits
    /// for the disk in any case.
    ///
    /// # Errors
    /// [`StateFileError`].
    pub(super) fn save(
        &self,
        ports: &PortMap,
        more: Option<StateEntry<'_>>,
        less: Option<&str>,
    ) -> Result<(), StateFileError> {
        let Some(state) = &self.state else { return Ok(()) };
        let refused = self.refused();
        let served = ports.values().filter_map(|port| {
            let (config, bound) = port.recorded()?;
            Some(StateEntry { config, bound: Some(bound), permanent: port.permanent })
        });
        let refused = refused.values().map(|port| StateEntry {
            config: &port.config,
            bound: port.bound.as_ref(),
            permanent: port.permanent,
        });
        let others = served.chain(refused).filter(|entry| less != Some(&entry.config.name));
        let mut kept = Kept::default();
        for StateEntry { config, bound, permanent } in others.chain(more) {
            if let Some(bound) = bound {
                kept.bindings.insert(config.name.clone(), bound.clone());
            }
            if !permanent {
                kept.ports.push(config.clone());
            }
        }
        kept.uplinks = self.nics.known();
        let saved = state.save(&kept);
        self.problems.set(HostProblem::State, saved.as_ref().err().map(|error| chain(error)));
        saved?;
        self.recorded.store(true, Ordering::Relaxed);
        let copied = state.back_up(&kept).err().map(|error| chain(&error));
        self.problems.set(HostProblem::StateCopy, copied);
        Ok(())
    }
}
