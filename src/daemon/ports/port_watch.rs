//! The thread that looks at every port once a second. It gathers the facts for `diagnosis`, keeps
//! the findings for the API, and has the log report each of them once in a session.
//!
//! A look costs a worker one command for several ports. A port whose guest sends nothing costs two
//! more system calls for each ring. The findings decide nothing: they are for people.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::config::Attach;
use crate::control::api::{FindingView, Severity};
use crate::datapath::{PortId, PortSight, RingSight, WorkerGone, is_from_guest};
use crate::device::mac::MacAddress;
use crate::metrics::{PortCounter, Published};
use crate::platform::signals;
use crate::profile::Profile;
use crate::vhost_user::SessionBinding;

use super::diagnosis::{Foreign, PortFacts, RingFacts, SessionFacts, findings, is_logged};
use super::port::Port;
use super::port_link::PortLink;
use super::registry::Registry;
use crate::daemon::nic::{NicState, Nics};
use crate::daemon::workers::Workers;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);
/// Looks in a row at which a state must hold before it counts: a single look may see a guest's
/// action half done.
const LOOKS_MIN: u32 = 2;
/// Rings that a worker inspects in one command.
const RINGS_AT_ONCE: u16 = 256;

/// The objects that the watch looks at and calls.
#[derive(Debug)]
pub struct PortWatchSetup {
    /// The ports.
    pub registry: Arc<Registry>,
    /// The workers.
    pub workers: Arc<Workers>,
    /// The NICs.
    pub nics: Arc<Nics>,
}

/// The thread; ends when dropped.
#[derive(Debug)]
pub struct PortWatch {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl PortWatch {
    /// Watch the ports.
    ///
    /// # Errors
    /// No thread to be had.
    pub fn start(watched: PortWatchSetup) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let thread = std::thread::Builder::new()
            .name("ports".to_owned())
            .spawn(move || watch(&watched, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for PortWatch {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(Err(_panic)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that watches the ports has panicked");
        }
    }
}

fn watch(daemon: &PortWatchSetup, stopped: &Receiver<()>) {
    let mut histories = BTreeMap::new();
    while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
        // A worker has ended only if the daemon stops.
        if look(daemon, &mut histories).is_err() {
            return;
        }
    }
}

/// The data of a port for a look, so that the registry is not locked meanwhile.
struct WatchedPort {
    name: String,
    id: PortId,
    mac: MacAddress,
    attach: Attach,
    uplink: String,
    profile: Arc<Profile>,
    link: Arc<PortLink>,
    /// The session, if there is one, and the number of this or the last one.
    session: (Option<SessionBinding>, u64),
    traffic: PacketCounts,
}

impl WatchedPort {
    fn new(port: &Port) -> Self {
        let number = port.link.session_number();
        Self {
            name: port.config.name.clone(),
            id: port.id,
            mac: port.config.mac(),
            attach: port.config.attach,
            uplink: port.config.uplink.clone(),
            profile: Arc::clone(&port.profile),
            link: Arc::clone(&port.link),
            session: (port.link.session(), number),
            traffic: PacketCounts::of(&port.counters),
        }
    }
}

/// Counted packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PacketCounts {
    from_guest: u64,
    to_guest: u64,
}

impl PacketCounts {
    fn of(counters: &[Arc<Published<PortCounter>>]) -> Self {
        const FROM_GUEST: [PortCounter; 10] = [
            PortCounter::FromGuestPackets,
            PortCounter::FromGuestDroppedHeader,
            PortCounter::FromGuestDroppedRunt,
            PortCounter::FromGuestDroppedOversize,
            PortCounter::FromGuestDroppedDisabled,
            PortCounter::FromGuestDroppedUplinkFull,
            PortCounter::FromGuestDroppedUplinkDown,
            PortCounter::FromGuestDroppedNoRoute,
            PortCounter::FromGuestDroppedUnrouted,
            PortCounter::FromGuestDroppedReserved,
        ];
        let sum = |of: &[PortCounter]| {
            counters.iter().flat_map(|place| of.iter().map(|&it| place.get(it))).sum()
        };
        Self { from_guest: sum(&FROM_GUEST), to_guest: sum(&[PortCounter::ToGuestPackets]) }
    }
}

/// One look at all ports.
fn look(
    daemon: &PortWatchSetup,
    histories: &mut BTreeMap<String, History>,
) -> Result<(), WorkerGone> {
    let watched: Vec<WatchedPort> =
        daemon.registry.ports().values().map(WatchedPort::new).collect();
    let names: BTreeSet<&str> = watched.iter().map(|port| &*port.name).collect();
    histories.retain(|name, _| names.contains(&**name));
    for port in &watched {
        let history = histories.entry(port.name.clone()).or_default();
        history.follow(port);
    }
    for ports in batches(&watched) {
        let asked: Vec<_> =
            ports.iter().map(|port| (port.id, histories[&port.name].is_suspect(port))).collect();
        for (port, sights) in ports.iter().zip(daemon.workers.survey(&asked)?) {
            let history = histories.get_mut(&port.name).expect("made above");
            history.note(port, sights);
        }
    }
    judge(&daemon.nics, &watched, histories);
    Ok(())
}

/// Batches of ports with a session, each with at most [`RINGS_AT_ONCE`] rings or one port.
fn batches(watched: &[WatchedPort]) -> Vec<Vec<&WatchedPort>> {
    let mut batches: Vec<Vec<&WatchedPort>> = Vec::new();
    let mut room = 0;
    for port in watched.iter().filter(|port| port.session.0.is_some()) {
        let rings = port.profile.queue_pairs_max.saturating_mul(2).max(1);
        if room < rings || batches.is_empty() {
            batches.push(Vec::new());
            room = RINGS_AT_ONCE.max(rings);
        }
        room -= rings;
        batches.last_mut().expect("one was pushed").push(port);
    }
    batches
}

fn judge(nics: &Nics, watched: &[WatchedPort], histories: &mut BTreeMap<String, History>) {
    let owners: BTreeMap<MacAddress, &str> =
        watched.iter().map(|port| (port.mac, &*port.name)).collect();
    for port in watched {
        let foreign = foreign(port, &owners, watched, histories);
        let history = histories.get_mut(&port.name).expect("every port has one");
        let session = port.session.0.as_ref().map(|binding| history.facts(binding, foreign));
        let host = Some(port.mac).filter(|_| port.attach == Attach::Switch);
        let host_interface = host.and_then(|mac| nics.with_mac(mac));
        let found = findings(&PortFacts {
            mac: port.mac,
            host_interface: host_interface.as_deref(),
            profile: &port.profile,
            uplink: &port.uplink,
            uplink_is: uplink_is(nics, &port.uplink).as_deref(),
            session: session.as_ref(),
        });
        history.log(&port.name, &found);
        port.link.set_findings(port.session.1, found);
    }
}

/// The other address from which a port's guest sends, if there is one, and the port that has it.
fn foreign(
    port: &WatchedPort,
    owners: &BTreeMap<MacAddress, &str>,
    watched: &[WatchedPort],
    histories: &BTreeMap<String, History>,
) -> Option<Foreign> {
    let (mac, alone) = histories[&port.name].foreign()?;
    let owner = owners.get(&mac).copied();
    let its_own = owner.and_then(|owner| histories.get(owner)?.foreign());
    let connected =
        |name: &str| watched.iter().any(|other| other.name == name && other.session.0.is_some());
    let swapped = owner.is_some_and(connected) && its_own == Some((port.mac, true));
    Some(Foreign { mac, alone, port: owner.map(str::to_owned), swapped })
}

/// The state of the uplink, if no packets move there.
fn uplink_is(nics: &Nics, uplink: &str) -> Option<String> {
    let status = nics.by_name(uplink)?.status();
    let problem = Some(status.problem).filter(|problem| !problem.is_empty());
    let because = |state: &str| match &problem {
        Some(problem) => format!("{state} ({problem})"),
        None => state.to_owned(),
    };
    match status.state {
        NicState::Up => None,
        NicState::Down => Some(because("down")),
        NicState::Gone => Some(because("gone")),
        NicState::Failed => Some(because("not to be used")),
    }
}

/// The observations of a session so far.
#[derive(Debug)]
struct History {
    session: u64,
    begun: Instant,
    ran: bool,
    /// The counts when it began.
    traffic: PacketCounts,
    moved: bool,
    rings: Vec<RingFacts>,
    /// How often each ring was kicked at the first look, and its position then.
    kicks: BTreeMap<u16, Kicked>,
    /// Looks in a row with features and without memory.
    without_memory: u32,
    /// The other address since the guest last sent from its own, and the number of looks with it.
    alone: Option<(MacAddress, u32)>,
    /// The other address from which it sends besides its own.
    beside: Option<MacAddress>,
    /// By finding: looks in a row with it.
    found: BTreeMap<String, u32>,
    logged: BTreeSet<String>,
}

/// A ring's kicks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kicked {
    position: u32,
    kicks: u64,
    /// Looks in a row at which it was kicked for nothing.
    for_nothing: u32,
}

impl Default for History {
    fn default() -> Self {
        Self {
            session: 0,
            begun: Instant::now(),
            ran: false,
            traffic: PacketCounts::default(),
            moved: false,
            rings: Vec::new(),
            kicks: BTreeMap::new(),
            without_memory: 0,
            alone: None,
            beside: None,
            found: BTreeMap::new(),
            logged: BTreeSet::new(),
        }
    }
}

impl History {
    /// Begin a new history with each session.
    fn follow(&mut self, port: &WatchedPort) {
        let (binding, number) = &port.session;
        if *number != self.session {
            *self = Self { session: *number, traffic: port.traffic, ..Self::default() };
        }
        self.moved |= port.traffic != self.traffic;
        let waits =
            |binding: &SessionBinding| binding.regions == 0 && !binding.acknowledged.is_empty();
        let waits = binding.as_ref().is_some_and(waits);
        self.without_memory = if waits { self.without_memory + 1 } else { 0 };
    }

    /// Whether we may have missed its guest's packets: it has sent nothing in this session.
    fn is_suspect(&self, port: &WatchedPort) -> bool {
        port.traffic.from_guest == self.traffic.from_guest
    }

    /// Note the sights of the port by each worker.
    fn note(&mut self, port: &WatchedPort, sights: Vec<PortSight>) {
        let (mut own, mut other) = (false, None);
        let mut rings = Vec::new();
        for sight in sights {
            own |= sight.sources.own;
            other = sight.sources.other.or(other);
            rings.extend(sight.rings);
        }
        self.note_sources(own, other.map(MacAddress));
        let suspect = self.is_suspect(port);
        rings.sort_by_key(|ring| ring.index);
        self.rings = rings.iter().map(|ring| self.ring(ring, suspect)).collect();
        self.ran |= !self.rings.is_empty();
    }

    fn note_sources(&mut self, own: bool, other: Option<MacAddress>) {
        match (own, other) {
            (true, Some(mac)) => (self.alone, self.beside) = (None, Some(mac)),
            (true, None) => self.alone = None,
            (false, Some(mac)) => {
                let looks = self.alone.map_or(0, |(_, looks)| looks);
                self.alone = Some((mac, looks.saturating_add(1)));
            }
            (false, None) => {}
        }
    }

    /// Another address from which the guest sends, and whether it sends from no other.
    fn foreign(&self) -> Option<(MacAddress, bool)> {
        let alone = self.alone.filter(|&(_, looks)| looks >= LOOKS_MIN);
        let beside = self.beside.map(|mac| (mac, false));
        alone.map(|(mac, _)| (mac, true)).or(beside)
    }

    fn ring(&mut self, ring: &RingSight, suspect: bool) -> RingFacts {
        let kicks = ring.kick.as_ref().and_then(|kick| signals(kick.as_fd()));
        let unheard = suspect && kicks.is_some_and(|kicks| self.kicked(ring, kicks));
        RingFacts {
            index: ring.index,
            enabled: ring.enabled,
            broken: ring.broken,
            untouched: ring.glance.untouched,
            unheard,
        }
    }

    /// Whether a ring with this number of kicks was kicked for nothing, again and again.
    ///
    /// Nobody reads a kick descriptor, so it counts. QEMU's begins with one (`event_notifier_init`
    /// in its `virtio_bus_set_host_notifier`). A driver with EVENT_IDX that sees none of our
    /// answers kicks only once.
    fn kicked(&mut self, ring: &RingSight, kicks: u64) -> bool {
        let now = Kicked { position: ring.position, kicks, for_nothing: 0 };
        let first = self.kicks.entry(ring.index).or_insert(now);
        if first.position != ring.position || kicks < first.kicks || ring.broken.is_some() {
            *first = now;
        }
        let never = ring.glance.untouched && kicks > 1;
        // A guest's receive ring may be kicked for buffers that we have not taken.
        let again = is_from_guest(ring.index) && ring.glance.quiet && kicks > first.kicks;
        first.for_nothing = if never || again { first.for_nothing + 1 } else { 0 };
        first.for_nothing >= LOOKS_MIN
    }

    fn facts(&self, binding: &SessionBinding, foreign: Option<Foreign>) -> SessionFacts {
        SessionFacts {
            binding: binding.clone(),
            ran: self.ran,
            moved: self.moved,
            rings: self.rings.clone(),
            memory_missing: self.without_memory >= LOOKS_MIN,
            foreign,
        }
    }

    /// Have the log report the findings of two looks in a row, each once in a session.
    fn log(&mut self, port: &str, found: &[FindingView]) {
        let present: BTreeSet<&str> = found.iter().map(|finding| &*finding.id).collect();
        self.found.retain(|id, _| present.contains(&**id));
        for finding in found {
            let FindingView { id, severity, found, mend } = finding;
            let looks = self.found.entry(id.clone()).or_default();
            *looks = looks.saturating_add(1);
            let due = *looks >= LOOKS_MIN && is_logged(finding, self.begun.elapsed());
            if !due || !self.logged.insert(id.clone()) {
                continue;
            }
            match severity {
                Severity::Problem => {
                    tracing::error!(port, finding = id, found, mend, "a port does not work");
                }
                Severity::Warning => {
                    tracing::warn!(port, finding = id, found, mend, "a port is hampered");
                }
                Severity::Note => tracing::info!(port, finding = id, found, "a port waits"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::virtqueue::Glance;

    const OTHER: MacAddress = MacAddress([6; 6]);

    #[test]
    fn another_address_counts_when_it_was_the_only_one_twice() {
        let mut history = History::default();
        history.note_sources(false, Some(OTHER));
        assert_eq!(history.foreign(), None, "one frame may be anything");
        history.note_sources(false, None);
        history.note_sources(false, Some(OTHER));
        assert_eq!(history.foreign(), Some((OTHER, true)));
        // It has been given its own address meanwhile.
        history.note_sources(true, None);
        assert_eq!(history.foreign(), None);
    }

    #[test]
    fn a_guest_that_forwards_for_others_is_not_one_with_another_address() {
        let mut history = History::default();
        for _ in 0..3 {
            history.note_sources(true, Some(OTHER));
            assert_eq!(history.foreign(), Some((OTHER, false)));
        }
    }

    /// A ring with this many kicks, and with this content and position.
    fn ring(index: u16, kicks: u32, glance: Glance, position: u32) -> RingSight {
        let kick: OwnedFd = eventfd(kicks, EventfdFlags::empty()).unwrap();
        let (enabled, broken) = (true, None);
        RingSight { index, enabled, broken, position, glance, kick: Some(kick) }
    }

    /// Whether it is unheard, at each of three looks.
    fn looks(rings: [RingSight; 3], suspect: bool) -> [bool; 3] {
        let mut history = History::default();
        rings.map(|ring| history.ring(&ring, suspect).unheard)
    }

    const NOTHING: Glance = Glance { untouched: true, quiet: true };
    const TAKEN: Glance = Glance { untouched: false, quiet: true };
    const WAITING: Glance = Glance { untouched: false, quiet: false };

    #[test]
    fn a_ring_that_was_kicked_and_never_written_is_unheard() {
        for index in [0, 1] {
            let ring = || ring(index, 2, NOTHING, 0);
            assert_eq!(looks([ring(), ring(), ring()], true), [false, true, true]);
            assert_eq!(looks([ring(), ring(), ring()], false), [false; 3], "it was heard");
        }
    }

    #[test]
    fn the_kick_with_which_qemu_begins_says_nothing() {
        let ring = || ring(1, 1, NOTHING, 0);
        assert_eq!(looks([ring(), ring(), ring()], true), [false; 3]);
    }

    #[test]
    fn kicks_for_what_an_old_file_does_not_show_are_unheard_too() {
        let kicked = |kicks| ring(1, kicks, TAKEN, 7);
        assert_eq!(looks([kicked(1), kicked(2), kicked(2)], true), [false, false, true]);
        // The entries are taken or will be; in a receive ring no entry has to be taken.
        assert_eq!(looks([kicked(1), kicked(2), ring(1, 3, TAKEN, 8)], true), [false; 3]);
        assert_eq!(looks([kicked(1), kicked(2), ring(1, 2, WAITING, 7)], true), [false; 3]);
        let receive = |kicks| ring(0, kicks, TAKEN, 7);
        assert_eq!(looks([receive(1), receive(2), receive(2)], true), [false; 3]);
    }

    #[test]
    fn a_front_end_that_keeps_its_descriptors_over_sessions_is_no_evidence() {
        let ring = || ring(1, 5000, TAKEN, 7);
        assert_eq!(looks([ring(), ring(), ring()], true), [false; 3]);
    }

    #[test]
    fn a_finding_is_logged_once_and_not_at_the_first_look() {
        let finding = FindingView {
            id: "other-mac".into(),
            severity: Severity::Problem,
            found: String::new(),
            mend: String::new(),
        };
        let mut history = History::default();
        history.log("vm1", std::slice::from_ref(&finding));
        assert!(history.logged.is_empty());
        history.log("vm1", &[]);
        history.log("vm1", std::slice::from_ref(&finding));
        assert!(history.logged.is_empty(), "it was away in between");
        history.log("vm1", std::slice::from_ref(&finding));
        assert!(history.logged.contains("other-mac"));
    }
}
