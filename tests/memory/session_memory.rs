//! Memory tables change under rings that run, whole or not at all.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use isonic::test_support::frontend::{
    Frontend, GuestFile, RecordingHost, code, event, profile, signalled,
};
use isonic::vhost_user::{PortBackend, PortBackendError, SessionBinding};
use isonic::virtqueue::{EventFd, EventKind, Ring};

const FRONTEND: u64 = 0x7f00_0000_0000;

fn memory() -> GuestFile {
    GuestFile::new(0x4000_0000, FRONTEND, 0x40_0000)
}

fn connect() -> (Frontend, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    (Frontend::connect(profile(), Arc::clone(&host) as Arc<dyn PortBackend>), host)
}

/// The used index as the ring that runs sees it.
fn position(host: &RecordingHost, index: u16) -> u32 {
    host.rings()[&index].queue.ring().position()
}

#[test]
fn a_replaced_table_moves_all_running_rings_to_the_new_memory() {
    let (frontend, host) = connect();
    let (old, new) = (memory(), memory());
    frontend.start(&old, 4);
    new.set_used_index(2, 41);
    host.moves.lock().unwrap().clear();
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&new]), &[&new.file]);
    assert_eq!(host.indices(), [0, 1, 2, 3]);
    assert_eq!(position(&host, 2), 41);
    let moves = host.moves.lock().unwrap().clone();
    let each_once: Vec<_> = (0..4).flat_map(|ring| [(ring, false), (ring, true)]).collect();
    assert_eq!(moves, each_once);
    assert!(host.rings().values().all(|ring| ring.enabled && ring.kick.is_some()));
}

#[test]
fn a_refused_table_leaves_rings_and_memory_as_they_were() {
    let (frontend, host) = connect();
    let old = memory();
    frontend.start(&old, 2);
    host.moves.lock().unwrap().clear();
    let overlapping = GuestFile::new(old.guest + 0x1000, 0x7e00_0000_0000, 0x10000);
    let table = GuestFile::table(&[&old, &overlapping]);
    frontend.refused(code::SET_MEM_TABLE, &table, &[&old.file, &overlapping.file]);
    let mut beyond = memory();
    beyond.size += 0x1000;
    frontend.refused(code::SET_MEM_TABLE, &GuestFile::table(&[&beyond]), &[&beyond.file]);
    // Fewer descriptors than regions, and more.
    frontend.refused(code::SET_MEM_TABLE, &table, &[&old.file]);
    let files = [&old.file, &old.file];
    frontend.refused(code::SET_MEM_TABLE, &GuestFile::table(&[&old]), &files);
    // More than the profile has slots.
    let many: Vec<GuestFile> =
        (0..9).map(|n| GuestFile::new(n * 0x10000, FRONTEND + n * 0x10000, 0x10000)).collect();
    let files: Vec<_> = many.iter().map(|region| &region.file).collect();
    let regions: Vec<_> = many.iter().collect();
    frontend.refused(code::SET_MEM_TABLE, &GuestFile::table(&regions), &files);
    assert!(host.moves.lock().unwrap().is_empty());
    assert_eq!(host.indices(), [0, 1]);
}

#[test]
fn a_ring_that_the_new_table_does_not_hold_stops_and_says_so_and_comes_back_with_it() {
    let (frontend, host) = connect();
    let old = memory();
    frontend.start(&old, 2);
    let err = event();
    frontend.ok(code::SET_VRING_ERR, &1_u64.to_ne_bytes(), &[&err]);
    old.set_used_index(1, 9);
    // Ring 0 is in its first 64 KiB, ring 1 is not.
    let mut short = memory();
    short.size = 0x10000;
    frontend.refused(code::SET_MEM_TABLE, &GuestFile::table(&[&short]), &[&short.file]);
    assert_eq!(host.indices(), [0]);
    assert!(signalled(&err));
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&old]), &[&old.file]);
    assert_eq!(host.indices(), [0, 1]);
    assert_eq!(position(&host, 1), 9);
}

#[test]
fn regions_come_and_go_one_by_one_up_to_the_profiles_slots() {
    let (frontend, host) = connect();
    let first = memory();
    frontend.negotiate();
    assert_eq!(frontend.number(code::GET_MAX_MEM_SLOTS), Some(8));
    frontend.ok(code::ADD_MEM_REG, &first.single(), &[&first.file]);
    frontend.start_ring(&first, 0);
    let more: Vec<GuestFile> =
        (1..8).map(|n| GuestFile::new(n << 32, FRONTEND + (n << 32), 0x10000)).collect();
    for region in &more {
        frontend.ok(code::ADD_MEM_REG, &region.single(), &[&region.file]);
    }
    let ninth = GuestFile::new(9 << 32, FRONTEND + (9 << 32), 0x10000);
    frontend.refused(code::ADD_MEM_REG, &ninth.single(), &[&ninth.file]);
    frontend.refused(code::ADD_MEM_REG, &more[0].single(), &[]);
    frontend.ok(code::REM_MEM_REG, &more[0].single(), &[]);
    // Old front-ends send the descriptor with it.
    frontend.ok(code::REM_MEM_REG, &more[1].single(), &[&more[1].file]);
    frontend.ok(code::ADD_MEM_REG, &ninth.single(), &[&ninth.file]);
    assert_eq!(host.indices(), [0]);
    frontend.refused(code::REM_MEM_REG, &first.single(), &[]);
    assert!(host.indices().is_empty(), "its memory is gone");
}

#[test]
fn each_queue_pair_of_qemu_may_add_and_remove_the_same_region() {
    let (frontend, host) = connect();
    let (first, second) = (memory(), GuestFile::new(1 << 32, FRONTEND + (1 << 32), 0x10000));
    frontend.negotiate();
    for _pair in 0..3 {
        frontend.ok(code::ADD_MEM_REG, &first.single(), &[&first.file]);
        frontend.ok(code::ADD_MEM_REG, &second.single(), &[&second.file]);
    }
    frontend.start_ring(&first, 0);
    for _pair in 0..3 {
        frontend.ok(code::REM_MEM_REG, &second.single(), &[]);
    }
    assert_eq!(host.indices(), [0]);
    // What never was there is not taken for gone.
    let never = GuestFile::new(2 << 32, FRONTEND + (2 << 32), 0x10000);
    frontend.refused(code::REM_MEM_REG, &never.single(), &[]);
    let longer = GuestFile { size: 2 * second.size, ..second };
    frontend.refused(code::REM_MEM_REG, &longer.single(), &[]);
    // The same addresses backed by another file are another region, and overlap.
    let other = memory();
    frontend.refused(code::ADD_MEM_REG, &other.single(), &[&other.file]);
}

#[test]
fn a_file_cut_short_under_a_ring_ends_nothing_but_that_memory() {
    isonic::guest_memory::install_fault_handler();
    let (frontend, host) = connect();
    let memory = memory();
    frontend.start(&memory, 2);
    memory.file.set_len(0).unwrap();
    assert_eq!(frontend.stop_ring(0), Some(0));
    // Starting touches the ring: this is where the missing pages show.
    frontend.start_ring(&memory, 0);
    assert!(host.rings()[&0].queue.memory_gone());
    frontend.refused(code::SET_MEM_TABLE, &GuestFile::table(&[&memory]), &[&memory.file]);
    assert_eq!(frontend.number(code::GET_QUEUE_NUM), Some(2));
}

/// A host whose worker touches all its rings all the time, as the real one does.
struct BusyHost {
    rings: Arc<Mutex<BTreeMap<u16, Ring>>>,
    stop: Arc<AtomicBool>,
}

impl BusyHost {
    fn new() -> (Arc<Self>, std::thread::JoinHandle<u64>) {
        let host = Arc::new(Self { rings: Arc::default(), stop: Arc::default() });
        let (rings, stop) = (Arc::clone(&host.rings), Arc::clone(&host.stop));
        let worker = std::thread::spawn(move || {
            let mut turns = 0;
            while !stop.load(Ordering::Relaxed) {
                for ring in rings.lock().unwrap().values_mut() {
                    let queue = ring.queue.ring_mut();
                    queue.want_kicks(false);
                    assert_eq!(queue.has_available(), Ok(false));
                    queue.publish();
                }
                turns += 1;
                std::thread::yield_now();
            }
            turns
        });
        (host, worker)
    }
}

impl PortBackend for BusyHost {
    fn give(&self, index: u16, ring: Ring) -> Result<(), PortBackendError> {
        self.rings.lock().unwrap().insert(index, ring);
        Ok(())
    }
    fn take(&self, index: u16) -> Result<Option<Ring>, PortBackendError> {
        Ok(self.rings.lock().unwrap().remove(&index))
    }
    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), PortBackendError> {
        if let Some(ring) = self.rings.lock().unwrap().get_mut(&index) {
            ring.set_event(kind, event);
        }
        Ok(())
    }

    fn announce(&self, _: [u8; 6]) {}
    fn bound(&self, _: SessionBinding) {}
}

#[test]
fn memory_changes_under_a_worker_that_never_rests() {
    let (host, worker) = BusyHost::new();
    let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
    let frontend = Frontend::connect(profile(), port_host);
    frontend.start(&memory(), 4);
    for _ in 0..100 {
        let next = memory();
        frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&[&next]), &[&next.file]);
        let extra = GuestFile::new(1 << 40, 1 << 40, 0x1000);
        frontend.ok(code::ADD_MEM_REG, &extra.single(), &[&extra.file]);
        frontend.ok(code::REM_MEM_REG, &extra.single(), &[]);
    }
    frontend.disconnect();
    assert!(host.rings.lock().unwrap().is_empty());
    host.stop.store(true, Ordering::Relaxed);
    assert!(worker.join().unwrap() > 0);
}

#[test]
fn a_table_with_a_region_that_is_mapped_already_maps_it_once() {
    let (frontend, host) = connect();
    let first = memory();
    frontend.start(&first, 1);
    let at = |host: &RecordingHost| host.rings()[&0].queue.ring().position();
    let before = at(&host);
    let second = GuestFile::new(1 << 32, FRONTEND + (1 << 32), 0x10000);
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inode = first.file.metadata().unwrap().ino().to_string();
        maps.lines().filter(|line| line.split_whitespace().nth(4) == Some(&inode)).count()
    };
    let table = GuestFile::table(&[&first, &second]);
    assert_eq!(mapped(), 1);
    frontend.ok(code::SET_MEM_TABLE, &table, &[&first.file, &second.file]);
    assert_eq!((mapped(), at(&host)), (1, before));
}

#[test]
fn sparse_memory_beyond_the_port_s_limit_is_refused_in_one_region_or_in_many() {
    const LIMIT: u64 = 1 << 42;
    let (frontend, _host) = connect();
    frontend.negotiate();
    let (mut guest, mut taken) = (0, 0);
    // From more than there is down to a page, as often as it is taken.
    for size in (12..=46).rev().map(|bits| 1_u64 << bits) {
        while taken < 8 {
            let region = GuestFile::new(guest, FRONTEND + guest, size);
            if !frontend.accepted(code::ADD_MEM_REG, &region.single(), &[&region.file]) {
                break;
            }
            (guest, taken) = (guest + size, taken + 1);
        }
    }
    assert!(guest <= LIMIT, "{guest:#x} bytes");
    let table: Vec<_> =
        (0..3).map(|n| GuestFile::new(n * LIMIT, FRONTEND + n * LIMIT, LIMIT / 2)).collect();
    let both = [&table[0], &table[1]];
    let files = [&table[0].file, &table[1].file, &table[2].file];
    frontend.ok(code::SET_MEM_TABLE, &GuestFile::table(&both), &files[..2]);
    let all = GuestFile::table(&[both[0], both[1], &table[2]]);
    frontend.refused(code::SET_MEM_TABLE, &all, &files);
}

#[test]
fn only_memory_is_memory_and_a_refused_file_is_asked_nothing() {
    let (frontend, _host) = connect();
    frontend.negotiate();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let program = File::open("/proc/self/exe").unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    let region = memory();
    for file in [null, program, File::from(OwnedFd::from(socket)), event()] {
        frontend.refused(code::ADD_MEM_REG, &region.single(), &[&file]);
        frontend.refused(code::SET_MEM_TABLE, &GuestFile::table(&[&region]), &[&file]);
    }
    frontend.ok(code::ADD_MEM_REG, &region.single(), &[&region.file]);
}

#[test]
fn memory_that_cannot_be_written_or_that_lies_askew_is_refused() {
    let (frontend, host) = connect();
    frontend.negotiate();
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("isonic-guest", flags).unwrap());
    file.set_len(0x10000).unwrap();
    let sealed = GuestFile { file, guest: 0, frontend: FRONTEND, size: 0x10000 };
    rustix::fs::fcntl_add_seals(&sealed.file, rustix::fs::SealFlags::WRITE).unwrap();
    frontend.refused(code::ADD_MEM_REG, &sealed.single(), &[&sealed.file]);
    for (guest, frontend_address) in [(0, FRONTEND + 1), (8, FRONTEND), (16, FRONTEND + 2048)] {
        let askew = GuestFile::new(guest, frontend_address, 0x10000);
        frontend.refused(code::ADD_MEM_REG, &askew.single(), &[&askew.file]);
    }
    let first = memory();
    frontend.ok(code::ADD_MEM_REG, &first.single(), &[&first.file]);
    frontend.start_ring(&first, 0);
    assert_eq!(host.indices(), [0]);
}
