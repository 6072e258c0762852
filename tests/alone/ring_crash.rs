//! What is left of a ring when the process that serves it is killed, at every instruction.
//!
//! A child runs the device side over memory that it shares with us, one instruction at a time
//! (ptrace(2)). A process that is killed between two instructions leaves its shared memory as it is
//! then; so after each instruction that changed it, a copy is given to a new device, which goes on
//! with the ring to its end, and the driver counts: every descriptor comes back once, in order.
//! Some children are killed indeed, at random instructions.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::my_turn;
use isonic::guest_memory::GuestMemory;
use isonic::test_support::guest_driver::{Driver, GuestRam};
use isonic::virtqueue::{Chain, Direction, Journals, Queue, QueueOptions, QueueSetup, Segments};

const RAM: u64 = 1 << 17;
const JOURNAL: &str = "rings";
const OWNER: &str = "/run/vm.sock";

/// The kinds of ring that are tried, and a size that the chains go around in.
const KINDS: [(QueueOptions, u16); 3] = [
    (QueueOptions { event_idx: true, ..QueueOptions::NONE }, 8),
    (QueueOptions { packed: true, event_idx: true, ..QueueOptions::NONE }, 7),
    (QueueOptions { packed: true, ..QueueOptions::NONE }, 5),
];

/// What the driver has offered before the child begins: descriptors per chain.
const OFFERED: [usize; 4] = [1, 2, 1, 1];

/// Everything that outlives the device: the guest's memory and the journal's file.
struct Shared {
    directory: tempfile::TempDir,
    ram: GuestRam,
    driver: Driver,
    direction: Direction,
}

impl Shared {
    /// A ring that has been in use: served twice around, so that stale descriptors lie in it.
    fn new(options: QueueOptions, size: u16, direction: Direction) -> Self {
        let mut ram = GuestRam::new(RAM);
        let driver = Driver::new(&mut ram, size, options);
        let directory = tempfile::tempdir().unwrap();
        let mut shared = Self { directory, ram, driver, direction };
        let mut queue = shared.device();
        for round in 0..2 * size + 1 {
            offer(&mut shared.driver, direction, 1 + usize::from(round) % 3);
            serve(&mut queue, direction, usize::MAX);
            assert_eq!(shared.driver.completed().len(), 1);
        }
        // Not retired: it was killed.
        drop(queue);
        for pieces in OFFERED {
            offer(&mut shared.driver, direction, pieces);
        }
        shared
    }

    fn journal(&self) -> PathBuf {
        self.directory.path().join(JOURNAL)
    }

    fn device(&self) -> Queue {
        device(&self.ram.memory, &self.driver.setup(), &self.journal())
    }
}

fn offer(driver: &mut Driver, direction: Direction, pieces: usize) {
    match direction {
        Direction::FromGuest => drop(driver.send(&[7; 60], &vec![12; pieces - 1])),
        Direction::ToGuest => driver.post_chain(&vec![64; pieces]),
    }
}

/// As a session makes it, in whatever process.
fn device(memory: &Arc<GuestMemory>, setup: &QueueSetup, journal: &Path) -> Queue {
    let journals = Journals::open(journal, OWNER, 1).unwrap();
    setup.activate(memory, journals.ring(0)).unwrap()
}

/// Takes what there is in bursts of this many chains, completes each, and publishes each burst.
/// Returns how many chains that were.
fn serve(queue: &mut Queue, direction: Direction, burst: usize) -> usize {
    let (memory, ring) = queue.parts();
    let ring = ring.any();
    let mut served = 0;
    let mut chains: Vec<Chain> = Vec::with_capacity(8);
    let mut segments = Segments::new();
    loop {
        while chains.len() < burst && ring.has_available().unwrap() {
            segments.clear();
            chains.push(ring.take(memory, direction, &mut segments).unwrap());
        }
        if chains.is_empty() {
            return served;
        }
        served += chains.len();
        let written = if direction == Direction::ToGuest { 60 } else { 0 };
        for chain in chains.drain(..) {
            ring.complete(chain, written);
        }
        ring.publish();
        ring.needs_notification();
    }
}

// ---- the child ----------------------------------------------------------------------------------

/// A child under our control, stopped before its first instruction of interest.
struct Child(libc::pid_t);

impl Child {
    /// Runs `body` in a child that stops before it.
    fn stopped(body: impl FnOnce()) -> Self {
        // SAFETY: the child calls nothing but `body` and system calls, and leaves by _exit. It
        // allocates, which glibc allows after fork (malloc has its own atfork handlers).
        let id = unsafe { libc::fork() };
        assert!(id >= 0, "fork: {}", std::io::Error::last_os_error());
        if id == 0 {
            // SAFETY: plain system calls; the process ends here whatever `body` does.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0);
                libc::raise(libc::SIGSTOP);
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body));
                libc::_exit(if done.is_ok() { 0 } else { 1 });
            }
        }
        let child = Self(id);
        assert!(libc::WIFSTOPPED(child.wait()), "the child waits for us");
        child
    }

    fn wait(&self) -> libc::c_int {
        let mut status = 0;
        // SAFETY: our own child, and a place for its status.
        let waited = unsafe { libc::waitpid(self.0, &raw mut status, 0) };
        assert_eq!(waited, self.0, "waitpid: {}", std::io::Error::last_os_error());
        status
    }

    /// One instruction; false when it has ended.
    fn step(&self) -> bool {
        // SAFETY: our own child, which is stopped.
        let stepped = unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, self.0, 0, 0) };
        assert_eq!(stepped, 0, "ptrace: {}", std::io::Error::last_os_error());
        let status = self.wait();
        if libc::WIFSTOPPED(status) {
            assert_eq!(libc::WSTOPSIG(status), libc::SIGTRAP, "the child was not stopped by us");
            return true;
        }
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "{status:#x}");
        false
    }

    fn kill(self) {
        // SAFETY: our own child, not yet waited for.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        assert!(libc::WIFSIGNALED(self.wait()));
    }
}

/// The life that is cut short: a device that begins where another was killed, and serves what
/// there is in bursts of up to two chains.
fn life(shared: &Shared) -> impl FnOnce() {
    let begin = beginning(shared);
    let direction = shared.direction;
    move || assert_eq!(serve(&mut begin(), direction, 2), OFFERED.len())
}

/// Only its beginning.
fn beginning(shared: &Shared) -> impl FnOnce() -> Queue {
    let memory = Arc::clone(&shared.ram.memory);
    let setup = shared.driver.setup();
    let journal = Journals::open(&shared.journal(), OWNER, 1).unwrap().ring(0);
    move || setup.activate(&memory, journal).unwrap()
}

// ---- what comes after ---------------------------------------------------------------------------

/// The shared bytes: ring and buffers, and journal.
#[derive(Clone, PartialEq)]
struct Remains {
    ram: Vec<u8>,
    journal: Vec<u8>,
}

impl Remains {
    fn put_back(&self, shared: &Shared) {
        shared.ram.write(0, &self.ram);
        std::fs::write(shared.journal(), &self.journal).unwrap();
    }
}

/// The files of a stage, mapped to look at without a system call.
struct Watch {
    ram: memmap::Map,
    journal: memmap::Map,
}

mod memmap {
    //! A file's bytes, as they are.

    use std::fs::File;
    use std::os::fd::AsRawFd;

    /// A mapping; unmapped on drop.
    pub struct Map(*mut libc::c_void, usize);

    impl Map {
        pub fn new(file: &File) -> Self {
            let len = usize::try_from(file.metadata().unwrap().len()).unwrap();
            let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
            // SAFETY: a new mapping of an open file.
            let at =
                unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, file.as_raw_fd(), 0) };
            assert_ne!(at, libc::MAP_FAILED);
            Self(at, len)
        }

        pub fn bytes(&self) -> &[u8] {
            // SAFETY: mapped while `self` lives; its one writer, the child, is stopped whenever
            // we look.
            unsafe { std::slice::from_raw_parts(self.0.cast(), self.1) }
        }
    }

    impl Drop for Map {
        fn drop(&mut self) {
            // SAFETY: mapped in `new`, and no slice of it outlives `self`.
            unsafe { libc::munmap(self.0, self.1) };
        }
    }
}

impl Watch {
    fn new(shared: &Shared) -> Self {
        let journal = File::open(shared.journal()).unwrap();
        Self { ram: memmap::Map::new(&shared.ram.file), journal: memmap::Map::new(&journal) }
    }

    fn remains(&self) -> Remains {
        Remains { ram: self.ram.bytes().to_vec(), journal: self.journal.bytes().to_vec() }
    }

    fn differs(&self, from: &Remains) -> bool {
        // What a device writes is in the first pages: rings, and the journal's slot.
        self.journal.bytes() != from.journal || self.ram.bytes()[..0x4000] != from.ram[..0x4000]
    }
}

/// Each state of the shared bytes in a child's life, the one before it first, with the number of
/// the instruction that made it.
fn remains_of(shared: &Shared, body: impl FnOnce()) -> Vec<(usize, Remains)> {
    let watch = Watch::new(shared);
    let mut states = vec![(0, watch.remains())];
    let child = Child::stopped(body);
    let mut instruction = 0;
    while child.step() {
        instruction += 1;
        if states.last().is_some_and(|(_, last)| watch.differs(last)) {
            states.push((instruction, watch.remains()));
        }
    }
    println!("{instruction} instructions, {} states", states.len());
    states
}

/// Lets new devices go on with what a killed one left, and has the driver count. The driver may
/// have offered what it had got back by then, and the devices may be killed as they begin.
fn assert_each_once(shared: &Shared, remains: &Remains, instruction: usize, busy: bool) {
    let directory = tempfile::tempdir().unwrap();
    let journal = directory.path().join(JOURNAL);
    std::fs::write(&journal, &remains.journal).unwrap();
    let copy = GuestRam::new(RAM);
    copy.write(0, &remains.ram);
    let mut driver = shared.driver.over(&copy);
    let mut expected = driver.outstanding().to_vec();
    let mut completed = driver.completed();
    while busy && driver.free_descriptors() > 0 {
        offer(&mut driver, shared.direction, 1);
        expected.extend(driver.outstanding().last());
    }
    let setup = driver.setup();
    for _ in 0..2 {
        drop(device(&copy.memory, &setup, &journal));
        completed.extend(driver.completed());
    }
    let mut queue = device(&copy.memory, &setup, &journal);
    serve(&mut queue, shared.direction, 3);
    completed.extend(driver.completed());
    let heads: Vec<u16> = completed.iter().map(|used| used.head).collect();
    assert_eq!(heads, expected, "killed after instruction {instruction}, driver busy: {busy}");
    let written = if shared.direction == Direction::ToGuest { 60 } else { 0 };
    assert!(completed.iter().all(|used| used.written == written), "{completed:?}");
}

#[test]
fn killed_at_any_instruction_a_device_leaves_a_ring_that_the_next_one_finishes() {
    let _turn = my_turn();
    for (options, size) in KINDS {
        for direction in [Direction::FromGuest, Direction::ToGuest] {
            let shared = Shared::new(options, size, direction);
            let states = remains_of(&shared, life(&shared));
            assert!(states.len() > 5, "the child's stores were not seen");
            for (instruction, remains) in states {
                for busy in [false, true] {
                    assert_each_once(&shared, &remains, instruction, busy);
                }
            }
        }
    }
}

#[test]
fn killed_while_it_finishes_what_another_left_a_device_leaves_no_less() {
    let _turn = my_turn();
    let (options, size) = KINDS[1];
    let shared = Shared::new(options, size, Direction::ToGuest);
    let mut mended = 0;
    for (killed, remains) in remains_of(&shared, life(&shared)) {
        remains.put_back(&shared);
        let begin = beginning(&shared);
        let states = remains_of(&shared, || drop(begin()));
        mended += usize::from(states.len() > 2);
        for (instruction, remains) in states {
            assert_each_once(&shared, &remains, killed + instruction, false);
        }
    }
    assert!(mended > 2, "only {mended} of the states left something to finish");
}

#[test]
fn a_device_that_is_killed_indeed_leaves_what_was_seen() {
    let _turn = my_turn();
    for (options, size) in KINDS {
        let shared = Shared::new(options, size, Direction::FromGuest);
        let states = remains_of(&shared, life(&shared));
        let (last, _) = states[states.len() - 1];
        for instruction in [1, 3, 5, 7].map(|part| part * last / 8) {
            states[0].1.put_back(&shared);
            let child = Child::stopped(life(&shared));
            for _ in 0..instruction {
                assert!(child.step());
            }
            child.kill();
            assert_each_once(&shared, &Watch::new(&shared).remains(), instruction, true);
        }
    }
}
