//! A steady flow of numbered messages that a guest's echo server sends back, for as long as it is
//! wanted. It counts messages that were lost, repeated, late or damaged, and times the gaps.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Netns, wait_for};

/// Between two messages.
const INTERVAL: Duration = Duration::from_millis(2);
/// Shortest message, and how many lengths there are.
const LENGTHS: (usize, u64) = (32, 1400);
/// How long answers are waited for when no more is sent.
const LINGER: Duration = Duration::from_millis(500);

/// The outcome of a flow's messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent to the guest.
    pub sent: u64,
    /// Those of them that came back.
    pub returned: u64,
    /// Came back once more.
    pub repeated: u64,
    /// Came back after one that was sent later.
    pub late: u64,
    /// Came back as nothing that was sent.
    pub damaged: u64,
}

/// The events that are waited for.
#[derive(Debug, Default)]
struct Awaited {
    /// An answer to a message that was sent after this.
    since: Option<Instant>,
    /// The time when it came.
    came: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    awaited: Mutex<Awaited>,
}

/// A running flow.
#[derive(Debug)]
pub struct EchoFlow {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Tally>>,
}

impl EchoFlow {
    /// Begins to send from the namespace to the guest at `address`.
    pub fn start(from: &Netns, address: &str) -> Self {
        let socket = from.enter(|| UdpSocket::bind("0.0.0.0:0").expect("socket"));
        socket.connect((address, 7)).expect("connect");
        socket.set_nonblocking(true).expect("non-blocking");
        let shared = Arc::<Shared>::default();
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || run(&socket, &theirs));
        Self { shared, thread: Some(thread) }
    }

    /// Begins to wait for an answer to a message sent from now on.
    pub fn mark(&self) {
        let awaited = Awaited { since: Some(Instant::now()), came: None };
        *self.shared.awaited.lock().expect("the flow runs") = awaited;
    }

    /// How long after the last [`mark`](Self::mark) the answer came; panics after `seconds`.
    pub fn resumed(&self, seconds: u64) -> Duration {
        let mut after = None;
        wait_for("a message comes back", seconds, || {
            let awaited = self.shared.awaited.lock().expect("the flow runs");
            let since = awaited.since.expect("a mark");
            after = awaited.came.map(|came| came - since);
            after.is_some()
        });
        after.expect("it was waited for")
    }

    /// Ends it, and counts.
    pub fn stop(mut self) -> Tally {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it was not stopped").join().expect("the flow's thread")
    }
}

impl Drop for EchoFlow {
    /// A test that fails leaves nothing that sends.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

/// The thread's own.
struct Counting {
    sent: Vec<Instant>,
    returned: HashSet<u64>,
    last: u64,
    tally: Tally,
}

fn run(socket: &UdpSocket, shared: &Shared) -> Tally {
    let (sent, returned) = (Vec::new(), HashSet::new());
    let mut counting = Counting { sent, returned, last: 0, tally: Tally::default() };
    while !shared.stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        counting.sent.push(now);
        // A guest that cannot be reached may have no route. The message is then lost, as others
        // are.
        let _ = socket.send(&message(counting.sent.len() as u64));
        counting.receive_for(INTERVAL, socket, shared);
    }
    counting.receive_for(LINGER, socket, shared);
    counting.tally.sent = counting.sent.len() as u64;
    counting.tally.returned = counting.returned.len() as u64;
    counting.tally
}

/// Message `number`, from 1 on: the number, and bytes that follow from it.
fn message(number: u64) -> Vec<u8> {
    let (shortest, lengths) = LENGTHS;
    let length = shortest + usize::try_from(number * 37 % lengths).expect("a small number");
    let mut bytes = number.to_le_bytes().to_vec();
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

impl Counting {
    fn receive_for(&mut self, duration: Duration, socket: &UdpSocket, shared: &Shared) {
        let begin = Instant::now();
        let mut buffer = [0; 2048];
        while begin.elapsed() < duration {
            match socket.recv(&mut buffer) {
                Ok(length) => self.count(&buffer[..length], shared),
                // None there, or the host's word that there is no way to the guest, which passes.
                Err(_) => std::thread::sleep(INTERVAL / 10),
            }
        }
    }

    fn count(&mut self, bytes: &[u8], shared: &Shared) {
        let number = bytes.first_chunk().map_or(0, |number| u64::from_le_bytes(*number));
        let known = (1..=self.sent.len() as u64).contains(&number);
        if !known || bytes != message(number) {
            self.tally.damaged += 1;
            return;
        }
        if !self.returned.insert(number) {
            self.tally.repeated += 1;
        } else if number < self.last {
            self.tally.late += 1;
        }
        self.last = self.last.max(number);
        let place = usize::try_from(number - 1).expect("a number that was sent");
        let mut awaited = shared.awaited.lock().expect("nobody panics with it");
        if awaited.came.is_none() && awaited.since.is_some_and(|since| since < self.sent[place]) {
            awaited.came = Some(Instant::now());
        }
    }
}
