//! A guest is migrated while its rings run: a mirror of its memory is kept by copying the pages
//! that are marked, as a front-end does, and the mirror is the memory.
//!
//! What the guest's driver writes is marked in a log of its own, as the hypervisor's is, so that a
//! page is right in the mirror only if whoever wrote it marked it.

use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use isonic::datapath::{Attachment, PortId, Route, UplinkId, WorkerId, frame_max};
use isonic::device::features::{
    EVENT_IDX, FeatureSet, IN_ORDER, INDIRECT_DESC, LOG_ALL, RING_PACKED,
};
use isonic::guest_memory::GuestMemory;
use isonic::profile::Profile;
use isonic::test_support::frontend::{
    Frontend, GuestFile, NEED_REPLY, RecordingHost, addresses_logged, code, event, pair, profile,
};
use isonic::test_support::guest_driver::{BUFFER_BYTES, Driver, FRONTEND_BASE, GuestRam};
use isonic::test_support::live_port::LivePort;
use isonic::test_support::log_file::LogFile;
use isonic::test_support::rig::Rig;
use isonic::vhost_user::{PortBackend, PortBackendError, Refusal, SessionBinding, SessionEnd};
use isonic::virtqueue::{EventFd, EventKind, QueueOptions, QueueSetup, Ring};
use proptest::collection::vec;
use proptest::prelude::*;

const PAGE: usize = 4096;
/// Entries of each ring: few, so that it goes around often.
const ENTRIES: u16 = 16;
const GUEST_BYTES: u64 = 1 << 20;
/// VHOST_VRING_F_LOG.
const LOGGED: u32 = 1;

/// So far behind the place of a guest's parts is the middle of the first split ring's used entries.
const USED_CUT: usize = 16 * ENTRIES as usize + 64 + 64;

/// Both rings of a pair, and the options they are tried with.
const RINGS: [u32; 2] = [0, 1];

fn page_of(address: u64) -> usize {
    usize::try_from(address).unwrap() / PAGE
}

fn logging_profile() -> Profile {
    let more = [LOG_ALL, RING_PACKED, IN_ORDER].into_iter().collect();
    Profile { features: profile().features.union(more), ..profile() }
}

/// What is acknowledged of the profile for rings with these options.
fn features(options: QueueOptions, in_order: bool, logging: bool) -> FeatureSet {
    let unless = |wanted: bool, bit: u8| (!wanted).then_some(bit);
    let left_out = [
        unless(options.event_idx, EVENT_IDX),
        unless(options.indirect, INDIRECT_DESC),
        unless(options.packed, RING_PACKED),
        unless(in_order, IN_ORDER),
        unless(logging, LOG_ALL),
    ];
    logging_profile().features.without(left_out.into_iter().flatten().collect())
}

// ---- a guest under migration --------------------------------------------------------------------

/// A guest, its driver, and the front-end's view of both.
struct Guest {
    ram: GuestRam,
    drivers: [Driver; 2],
    options: QueueOptions,
    in_order: bool,
    /// What the guest wrote.
    own: LogFile,
    /// What the backend wrote.
    log: LogFile,
    logging: bool,
    mirror: Vec<u8>,
    positions: [u32; 2],
}

impl Guest {
    /// With pages of their own for all parts, or one behind the other at some place in a page.
    fn new(options: QueueOptions, in_order: bool, place: Option<usize>) -> Self {
        let mut ram = GuestRam::new(GUEST_BYTES);
        let own = LogFile::new(GUEST_BYTES);
        match place {
            None => ram.alignment = PAGE as u64,
            Some(place) => _ = ram.allocate(place),
        }
        ram.log_writes(own.log());
        let drivers = RINGS.map(|_| Driver::new(&mut ram, ENTRIES, options));
        let positions = drivers.each_ref().map(|driver| u32::from(driver.setup().base));
        Self {
            ram,
            drivers,
            options,
            in_order,
            own,
            log: LogFile::new(GUEST_BYTES),
            logging: false,
            mirror: Vec::new(),
            positions,
        }
    }

    fn features(&self) -> Vec<u8> {
        features(self.options, self.in_order, self.logging).0.to_ne_bytes().to_vec()
    }

    /// SET_VRING_ADDR of a ring, logged where it is if anything is.
    fn addresses(&self, index: u32) -> Vec<u8> {
        let parts = self.drivers[index as usize].setup().addresses;
        let places = [parts.descriptors.0, parts.available.0, parts.used.0];
        let flags = if self.logging { LOGGED } else { 0 };
        addresses_logged(index, flags, places, parts.used.0 - FRONTEND_BASE)
    }

    /// All up to the memory.
    fn negotiate(&self, frontend: &Frontend) {
        frontend.negotiate();
        frontend.ok(code::SET_FEATURES, &self.features(), &[]);
        let spec = GuestRam::spec(GUEST_BYTES);
        let table = [1, spec.guest.0, spec.size, spec.frontend.0, 0].map(u64::to_ne_bytes).concat();
        frontend.ok(code::SET_MEM_TABLE, &table, &[&self.ram.file]);
    }

    fn start_rings(&self, frontend: &Frontend) {
        for index in RINGS {
            let position = self.positions[index as usize];
            frontend.ok(code::SET_VRING_NUM, &pair(index, u32::from(ENTRIES)), &[]);
            frontend.ok(code::SET_VRING_BASE, &pair(index, position), &[]);
            frontend.ok(code::SET_VRING_ADDR, &self.addresses(index), &[]);
            frontend.ok(code::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[&event()]);
            frontend.ok(code::SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[&event()]);
            frontend.ok(code::SET_VRING_ENABLE, &pair(index, 1), &[]);
        }
    }

    fn stop_rings(&mut self, frontend: &Frontend) {
        self.positions = RINGS.map(|index| frontend.stop_ring(index).unwrap());
    }

    fn give_log(&self, frontend: &Frontend) {
        let body = self.log.description();
        frontend.send(code::SET_LOG_BASE, 1, &body, &[&self.log.file]);
        assert_eq!(frontend.reply(code::SET_LOG_BASE), Some(body));
    }

    /// Begin or end logging, in QEMU's order.
    fn set_logging(&mut self, frontend: &Frontend, logging: bool) {
        self.logging = logging;
        if logging {
            self.give_log(frontend);
        }
        frontend.ok(code::SET_FEATURES, &self.features(), &[]);
        for index in RINGS {
            frontend.ok(code::SET_VRING_ADDR, &self.addresses(index), &[]);
        }
        if logging {
            // A migration begins with all of the memory.
            self.mirror = self.memory();
        }
        // The worker gave the rings back, and wrote to them, while it was logging still.
        let _ = (self.own.take(), self.log.take());
    }

    fn memory(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.ram.len()];
        self.ram.file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    /// Copy what is marked. Returns the pages that the backend marked.
    fn copy_marked(&mut self) -> Vec<usize> {
        let marked = self.log.take();
        for page in self.own.take().into_iter().chain(marked.iter().copied()) {
            let place = page * PAGE..(page + 1) * PAGE;
            self.ram.file.read_exact_at(&mut self.mirror[place], (page * PAGE) as u64).unwrap();
        }
        marked
    }

    /// The mirror is the memory, but for nothing.
    fn assert_mirrored(&self) {
        let memory = self.memory();
        let pages = self.mirror.chunks(PAGE).zip(memory.chunks(PAGE)).enumerate();
        let stale: Vec<_> =
            pages.filter(|(_, (ours, real))| ours != real).map(|(n, _)| n).collect();
        assert!(stale.is_empty(), "written and not marked: pages {stale:x?}");
    }

    /// Pages that the backend has no business to write: of receive and transmit buffers the
    /// latter, if each buffer has a page of its own.
    fn is_transmit_buffer(&self, page: usize) -> bool {
        let first = page_of(self.drivers[1].buffer(0));
        (first..first + usize::from(ENTRIES)).contains(&page)
    }
}

// ---- a worker that turns when it is told to -----------------------------------------------------

/// A port of a worker that is stepped by hand, so that nothing is written behind the test's back.
struct Stepped {
    rig: Mutex<Rig>,
    port: PortId,
}

impl Stepped {
    fn new() -> Arc<Self> {
        let mut rig = Rig::new(1);
        let port = rig.add_port(Self::route(Vec::new()));
        Arc::new(Self { rig: Mutex::new(rig), port })
    }

    fn route(ready: Vec<u16>) -> Route {
        let (attachment, workers) = (Attachment::Wire { queues: vec![0] }, vec![WorkerId(0)]);
        Route { ready, ..Route::new(UplinkId(0), attachment, frame_max(1500), workers) }
    }

    fn arrive(&self, frame: &[u8]) {
        self.rig.lock().unwrap().wires[0].arrive(frame);
    }

    fn settle(&self) {
        let mut rig = self.rig.lock().unwrap();
        rig.settle();
        let _ = rig.wires[0].departed();
    }
}

impl PortBackend for Stepped {
    fn give(&self, index: u16, ring: Ring) -> Result<(), PortBackendError> {
        let mut rig = self.rig.lock().unwrap();
        rig.give(0, self.port, index, ring);
        if index == 0 {
            rig.set_route(self.port, Self::route(vec![0]));
        }
        Ok(())
    }

    fn take(&self, index: u16) -> Result<Option<Ring>, PortBackendError> {
        Ok(self.rig.lock().unwrap().take(0, self.port, index))
    }

    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), PortBackendError> {
        self.rig.lock().unwrap().exchange(0, (self.port, index), kind, event);
        Ok(())
    }

    fn relocate(
        &self,
        index: u16,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<bool, PortBackendError> {
        Ok(self.rig.lock().unwrap().relocate(0, (self.port, index), setup, memory))
    }

    fn announce(&self, _: [u8; 6]) {}

    fn bound(&self, _: SessionBinding) {}
}

// ---- any traffic, any toggles -------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    /// The guest posts receive buffers of so many bytes.
    Post(u16, usize),
    /// The guest sends, cut into pieces of so many bytes.
    Send(usize, usize),
    /// Frames arrive from the wire.
    Arrive(u16, usize),
    /// The worker turns until nothing is left.
    Settle,
    /// The front-end looks at the log.
    Copy,
    /// Logging begins or ends.
    Log(bool),
    /// The front-end takes another log file.
    Replace,
    /// An event descriptor is exchanged: the ring goes there and back.
    Exchange(u32),
    /// The device stops and starts again, and its log comes last; or all of it on a new
    /// connection.
    Restart { reconnect: bool, frames: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // Often the whole ring at once.
    let count = || prop_oneof![1..=ENTRIES, Just(ENTRIES)];
    let frame = || 60..1500_usize;
    prop_oneof![
        6 => (count(), 60..BUFFER_BYTES).prop_map(|(count, len)| Step::Post(count, len)),
        6 => (frame(), 1..1500_usize).prop_map(|(len, cut)| Step::Send(len, cut)),
        6 => (count(), frame()).prop_map(|(count, len)| Step::Arrive(count, len)),
        8 => Just(Step::Settle),
        6 => Just(Step::Copy),
        3 => any::<bool>().prop_map(Step::Log),
        1 => Just(Step::Replace),
        1 => (0..2_u32).prop_map(Step::Exchange),
        1 => (any::<bool>(), 0..3_usize)
            .prop_map(|(reconnect, frames)| Step::Restart { reconnect, frames }),
    ]
}

/// A guest, its front-end and a stepped worker.
struct Run {
    guest: Guest,
    host: Arc<Stepped>,
    frontend: Frontend,
    /// Everything was marked, whether written or not.
    all_marked: bool,
}

impl Run {
    fn new(guest: Guest) -> Self {
        let host = Stepped::new();
        let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
        let frontend = Frontend::connect(logging_profile(), port_host);
        guest.negotiate(&frontend);
        guest.start_rings(&frontend);
        Self { guest, host, frontend, all_marked: false }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Post(count, len) => {
                let driver = &mut self.guest.drivers[0];
                let free = u16::try_from(driver.free_descriptors()).unwrap();
                driver.post(count.min(free), len);
            }
            Step::Send(len, cut) => {
                let pieces = vec![cut; 3.min((len + 12) / cut)];
                let driver = &mut self.guest.drivers[1];
                if pieces.len() < driver.free_descriptors() {
                    driver.send(&vec![0xa5; len], &pieces);
                }
            }
            Step::Arrive(count, len) => {
                let frame: Vec<_> = (0..=255).cycle().take(len).collect();
                (0..count).for_each(|_| self.host.arrive(&frame));
            }
            Step::Settle => self.settle(),
            Step::Copy => self.copy(),
            Step::Log(logging) => {
                self.settle();
                self.copy();
                self.guest.set_logging(&self.frontend, logging);
                self.all_marked = false;
            }
            Step::Replace if self.guest.logging => {
                self.copy();
                self.guest.log = LogFile::new(GUEST_BYTES);
                self.guest.give_log(&self.frontend);
            }
            Step::Replace => {}
            Step::Exchange(ring) => {
                let body = u64::from(ring).to_ne_bytes();
                self.frontend.ok(code::SET_VRING_CALL, &body, &[&event()]);
            }
            Step::Restart { reconnect, frames } => self.restart(reconnect, frames),
        }
    }

    /// Let the worker and then the driver do all they can.
    fn settle(&mut self) {
        self.host.settle();
        for driver in &mut self.guest.drivers {
            driver.completed();
        }
    }

    fn copy(&mut self) {
        if !self.guest.logging {
            assert!(self.guest.log.take().is_empty(), "nothing is logged, and pages are marked");
            return;
        }
        let marked = self.guest.copy_marked();
        let own_pages = self.guest.ram.alignment == PAGE as u64 && !self.all_marked;
        let astray = marked.iter().filter(|&&page| self.guest.is_transmit_buffer(page));
        assert!(!own_pages || astray.count() == 0, "marked and not written: {marked:x?}");
        self.all_marked = false;
        self.guest.assert_mirrored();
    }

    /// QEMU's `vhost_dev_stop` and `vhost_dev_start`: the last look at the old log after the rings
    /// have stopped, the new one given after they have started.
    fn restart(&mut self, reconnect: bool, frames: usize) {
        self.guest.stop_rings(&self.frontend);
        self.copy();
        if reconnect {
            let port_host = Arc::clone(&self.host) as Arc<dyn PortBackend>;
            self.frontend = Frontend::connect(logging_profile(), port_host);
            self.guest.negotiate(&self.frontend);
        }
        self.guest.start_rings(&self.frontend);
        for _ in 0..frames {
            self.step(&Step::Arrive(1, 600));
            self.settle();
        }
        if self.guest.logging {
            self.guest.log = LogFile::new(GUEST_BYTES);
            self.guest.give_log(&self.frontend);
            self.all_marked = reconnect;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 192,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_page_that_changed_while_logging_is_marked(
        steps in vec(step(), 1..60),
        event_idx: bool,
        packed: bool,
        in_order: bool,
        place in proptest::option::of(prop_oneof![PAGE - 1024..PAGE, Just(PAGE - USED_CUT)]),
    ) {
        let options = QueueOptions { event_idx, packed, indirect: true, ..QueueOptions::NONE };
        let mut run = Run::new(Guest::new(options, in_order, place));
        for step in [Step::Log(true)].iter().chain(&steps) {
            run.step(step);
        }
        run.settle();
        run.guest.stop_rings(&run.frontend);
        run.copy();
    }
}

/// Half of the descriptors are on one page and half on the next, and nothing else is.
#[test]
fn a_burst_that_goes_around_the_end_of_a_ring_is_marked_at_both_ends() {
    let options = QueueOptions { packed: true, ..QueueOptions::NONE };
    let half = 16 * usize::from(ENTRIES) / 2;
    let mut run = Run::new(Guest::new(options, false, Some(PAGE - half)));
    // The burst begins on the second page.
    let already = ENTRIES / 2 + 2;
    for step in [
        Step::Log(true),
        Step::Post(already, 900),
        Step::Arrive(already, 600),
        Step::Settle,
        Step::Post(ENTRIES, 900),
        // From here on nothing is written but by the worker.
        Step::Copy,
        Step::Arrive(ENTRIES, 600),
    ] {
        run.step(&step);
    }
    run.host.settle();
    run.copy();
}

// ---- with a worker of its own ----------------------------------------------------------------

#[test]
fn the_mirror_is_the_memory_after_a_migration_under_load() {
    for packed in [false, true] {
        let options = QueueOptions { event_idx: true, packed, ..QueueOptions::NONE };
        let mut guest = Guest::new(options, false, Some(0));
        let port = Arc::new(LivePort::start(1500));
        let port_host = Arc::clone(&port) as Arc<dyn PortBackend>;
        let frontend = Frontend::connect(logging_profile(), port_host);
        guest.negotiate(&frontend);
        guest.start_rings(&frontend);
        for _migration in 0..3 {
            guest.set_logging(&frontend, true);
            let mut packets = 0_u32;
            while packets < 3000 {
                packets += traffic(&mut guest, &port, packets);
                if packets.is_multiple_of(7) {
                    guest.copy_marked();
                }
            }
            // As at the end of a migration, which then fails: the guest goes on here.
            guest.stop_rings(&frontend);
            guest.copy_marked();
            guest.assert_mirrored();
            guest.start_rings(&frontend);
            guest.set_logging(&frontend, false);
        }
    }
}

/// More than it takes a worker to answer.
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn no_frame_is_lost_while_logging_begins_and_ends() {
    const FRAMES: usize = 12;
    for packed in [false, true] {
        let options = QueueOptions { event_idx: true, packed, ..QueueOptions::NONE };
        let mut guest = Guest::new(options, false, Some(0));
        let port = Arc::new(LivePort::start(1500));
        let port_host = Arc::clone(&port) as Arc<dyn PortBackend>;
        let frontend = Frontend::connect(logging_profile(), port_host);
        guest.negotiate(&frontend);
        guest.start_rings(&frontend);
        guest.give_log(&frontend);
        for turn in 0..200 {
            guest.drivers[0].post(ENTRIES, 900);
            guest.logging = turn % 2 == 0;
            assert!(frontend.send(code::SET_FEATURES, NEED_REPLY, &guest.features(), &[]));
            for number in 0..FRAMES {
                port.arrive(&[number.to_le_bytes()[0]; 100]);
                std::thread::yield_now();
            }
            assert_eq!(frontend.reply(code::SET_FEATURES), Some(vec![0; 8]));
            let (mut come, deadline) = (0, Instant::now() + PATIENCE);
            while come < FRAMES {
                come += guest.drivers[0].completed().len();
                assert!(Instant::now() < deadline, "{come} of {FRAMES} in turn {turn}");
                std::thread::yield_now();
            }
            // As many buffers again next time.
            for number in 0..usize::from(ENTRIES) - FRAMES {
                port.arrive(&[number.to_le_bytes()[0]; 100]);
            }
            while guest.drivers[0].free_descriptors() < usize::from(ENTRIES) {
                let _ = guest.drivers[0].completed();
                assert!(Instant::now() < deadline, "the other frames in turn {turn}");
                std::thread::yield_now();
            }
        }
    }
}

/// Whatever can be moved now, in both directions; how much was.
fn traffic(guest: &mut Guest, port: &LivePort, number: u32) -> u32 {
    let [to_guest, from_guest] = &mut guest.drivers;
    let done = to_guest.completed().len() + from_guest.completed().len();
    to_guest.post(u16::try_from(to_guest.free_descriptors()).unwrap(), 900);
    for _ in 0..from_guest.free_descriptors() {
        from_guest.send(&[number.to_le_bytes(); 64].concat(), &[]);
    }
    // What the wire has no frame for is lost, as on any wire.
    let _ = port.try_arrive(&[number.to_le_bytes(); 100].concat());
    let _ = port.departed();
    std::thread::yield_now();
    u32::try_from(done).unwrap()
}

// ---- what is asked for is checked ---------------------------------------------------------------

/// A session whose rings run, not logging.
fn running() -> (Guest, Arc<RecordingHost>, Frontend) {
    let options = QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };
    let guest = Guest::new(options, true, None);
    let host = Arc::new(RecordingHost::default());
    let frontend = Frontend::connect(logging_profile(), Arc::clone(&host) as Arc<dyn PortBackend>);
    guest.negotiate(&frontend);
    guest.start_rings(&frontend);
    (guest, host, frontend)
}

/// The worker's part with a ring that it has: a write to it. And the pages that are marked then.
fn touch(guest: &Guest, host: &RecordingHost, index: u16) -> Vec<usize> {
    let _ = guest.log.take();
    host.rings().get_mut(&index).unwrap().queue.ring_mut().want_kicks(false);
    guest.log.take()
}

/// The page of a ring's used part.
fn used_page(guest: &Guest, index: usize) -> usize {
    page_of(guest.drivers[index].setup().addresses.used.0 - FRONTEND_BASE)
}

/// SET_VRING_ADDR with this log address.
fn logged_at(guest: &Guest, index: u32, flags: u32, log: u64) -> Vec<u8> {
    let parts = guest.drivers[index as usize].setup().addresses;
    let places = [parts.descriptors.0, parts.available.0, parts.used.0];
    addresses_logged(index, flags, places, log)
}

#[test]
fn a_rings_own_pages_are_logged_if_its_flag_says_so_and_where_it_says() {
    let (mut guest, host, frontend) = running();
    // A log with room for addresses that no memory has.
    guest.log = LogFile::new(2 * GUEST_BYTES);
    assert!(touch(&guest, &host, 0).is_empty());
    guest.set_logging(&frontend, true);
    assert_eq!(touch(&guest, &host, 0), [used_page(&guest, 0)]);
    assert_eq!(touch(&guest, &host, 1), [used_page(&guest, 1)]);
    frontend.ok(code::SET_VRING_ADDR, &logged_at(&guest, 0, 0, 0), &[]);
    assert!(touch(&guest, &host, 0).is_empty());
    frontend.ok(code::SET_VRING_ADDR, &logged_at(&guest, 0, LOGGED, GUEST_BYTES + 0x5000), &[]);
    assert_eq!(touch(&guest, &host, 0), [page_of(GUEST_BYTES + 0x5000)]);
    assert_eq!(touch(&guest, &host, 1), [used_page(&guest, 1)]);
    guest.set_logging(&frontend, false);
    assert!(touch(&guest, &host, 1).is_empty());
}

#[test]
fn logging_begins_and_ends_while_rings_run_and_nothing_else_changes() {
    let (mut guest, host, frontend) = running();
    for logging in [true, false, true] {
        guest.set_logging(&frontend, logging);
        assert_eq!(host.indices(), [0, 1]);
        assert_eq!(!touch(&guest, &host, 0).is_empty(), logging);
        let other = features(QueueOptions { indirect: true, ..guest.options }, true, !logging);
        let other = FeatureSet(other.0 & !(1 << INDIRECT_DESC));
        frontend.refused(code::SET_FEATURES, &other.0.to_ne_bytes(), &[]);
        assert_eq!(!touch(&guest, &host, 0).is_empty(), logging);
    }
    // The kick, the position and all else went with the rings.
    assert!(host.rings().values().all(|ring| ring.enabled && ring.kick.is_some()));
}

#[test]
fn a_log_that_cannot_serve_is_refused_by_name_and_the_session_ends() {
    let wanted = GUEST_BYTES.div_ceil(8 * 4096);
    let file = || LogFile::new(GUEST_BYTES).file;
    let socket = || {
        let (end, _) = std::os::unix::net::UnixStream::pair().unwrap();
        std::fs::File::from(std::os::fd::OwnedFd::from(end))
    };
    let cases = [
        (wanted - 1, 0, file(), "does not reach the end"),
        (wanted, 1, file(), "cannot map"),
        (wanted + 1, 0, file(), "cannot map"),
        (0, 0, file(), "cannot map"),
        (wanted, u64::MAX - wanted + 1, file(), "a log ends within"),
        (u64::MAX, 0, file(), "a log ends within"),
        (wanted, 0, event(), "cannot map"),
        (wanted, 0, socket(), "cannot map"),
    ];
    for (size, offset, file, reason) in cases {
        let (_guest, host, frontend) = running();
        let body = [size, offset].map(u64::to_ne_bytes).concat();
        frontend.send(code::SET_LOG_BASE, 1, &body, &[&file]);
        assert_eq!(frontend.reply(code::SET_LOG_BASE), None, "{size:#x} at {offset:#x}");
        let end = frontend.ended();
        let SessionEnd::Unanswerable { source: Refusal::Log(error), .. } = end else {
            panic!("{end:?}")
        };
        assert!(error.to_string().contains(reason), "{error}");
        assert!(host.indices().is_empty());
    }
}

#[test]
fn a_log_address_outside_the_log_is_refused_and_the_ring_runs_on() {
    let (mut guest, host, frontend) = running();
    guest.set_logging(&frontend, true);
    host.moves.lock().unwrap().clear();
    // The used ring's last byte must be in the log, and no sum may wrap.
    let bytes = 6 + 8 * u64::from(ENTRIES);
    for address in [GUEST_BYTES, GUEST_BYTES - bytes + 1, u64::MAX, u64::MAX - bytes + 1] {
        frontend.refused(code::SET_VRING_ADDR, &logged_at(&guest, 0, LOGGED, address), &[]);
    }
    for flags in [2, 3, 0x8000_0000] {
        frontend.refused(code::SET_VRING_ADDR, &logged_at(&guest, 0, flags, 0), &[]);
    }
    assert!(host.moves.lock().unwrap().is_empty());
    let last = GUEST_BYTES - bytes;
    frontend.ok(code::SET_VRING_ADDR, &logged_at(&guest, 0, LOGGED, last), &[]);
    assert_eq!(touch(&guest, &host, 0), [page_of(last)]);
    // Said while nothing was logged, it stops the ring when it matters.
    guest.set_logging(&frontend, false);
    frontend.ok(code::SET_VRING_ADDR, &logged_at(&guest, 0, LOGGED, GUEST_BYTES), &[]);
    guest.logging = true;
    frontend.refused(code::SET_FEATURES, &guest.features(), &[]);
    assert_eq!(host.indices(), [1]);
}

#[test]
fn memory_that_outgrows_the_log_waits_for_a_larger_one() {
    let (mut guest, host, frontend) = running();
    let more = GuestFile::new(GUEST_BYTES, 0x1234_0000_0000, GUEST_BYTES);
    guest.set_logging(&frontend, true);
    frontend.refused(code::ADD_MEM_REG, &more.single(), &[&more.file]);
    assert!(!touch(&guest, &host, 0).is_empty());
    guest.log = LogFile::new(2 * GUEST_BYTES);
    guest.give_log(&frontend);
    frontend.ok(code::ADD_MEM_REG, &more.single(), &[&more.file]);
    assert!(!touch(&guest, &host, 0).is_empty());
    // A device that starts anew has its memory first, and its log last.
    guest.stop_rings(&frontend);
    let large = GuestFile::new(4 * GUEST_BYTES, 0x2345_0000_0000, GUEST_BYTES);
    frontend.ok(code::ADD_MEM_REG, &large.single(), &[&large.file]);
    guest.start_rings(&frontend);
    assert!(touch(&guest, &host, 0).is_empty());
    guest.log = LogFile::new(5 * GUEST_BYTES);
    guest.give_log(&frontend);
    // Nobody knows what was written in between: all of the memory, and nothing that is none.
    let [two, four, five] = [2, 4, 5].map(|times| page_of(times * GUEST_BYTES));
    let all: Vec<_> = (0..two).chain(four..five).collect();
    assert_eq!(guest.log.take(), all);
    assert_eq!(touch(&guest, &host, 0), [used_page(&guest, 0)]);
}

#[test]
fn a_log_cut_short_under_a_ring_is_the_end_of_its_memory_and_of_nothing_else() {
    isonic::guest_memory::install_fault_handler();
    let (mut guest, host, frontend) = running();
    guest.set_logging(&frontend, true);
    guest.log.file.set_len(0).unwrap();
    host.rings().get_mut(&0).unwrap().queue.ring_mut().want_kicks(true);
    assert!(host.rings()[&0].queue.memory_gone());
    assert_eq!(frontend.number(code::GET_QUEUE_NUM), Some(2));
}

#[test]
fn the_logs_event_may_be_given_and_must_be_one() {
    let (guest, _host, frontend) = running();
    frontend.ok(code::SET_LOG_FD, &[], &[&event()]);
    frontend.refused(code::SET_LOG_FD, &[], &[&guest.log.file]);
    frontend.refused(code::SET_LOG_FD, &[], &[]);
}
